"""TReFTTrainer: TRL's SFTTrainer whose loss is eq. (3), L = L_SFT + λ L_KV.

`_prepare_dataset` annotates tokens with regions, the collator carries them along, `compute_loss`
adds the penalty, `train` sees to the reference. All else is TRL's; with λ = 0 everything.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput
from trl import SFTTrainer
from trl.trainer.utils import global_then_local_main_first

from treft.chat.regions import template_hash
from treft.core.conversations import Conversation
from treft.core.regularizer import KVRegularizer, Penalty
from treft.core.states import capturable
from treft.errors import DataError
from treft.training import checks
from treft.training import dataset as rows
from treft.training.auto_weight import AutoWeight
from treft.training.collator import REGION_COLUMNS, carry_regions
from treft.training.config import TReFTConfig, as_treft_config
from treft.training.forward import FirstForward, batch_conversations
from treft.training.learnt_tokens import at_learnt_tokens
from treft.training.masking import (
    load_processing_class,
    needs_region_mask,
    text_tokenizer,
    tokenizer_in_force,
)
from treft.training.meter import Meter, add_in_evaluation, penalty_parts
from treft.training.output import run_folder
from treft.training.penalty import ReferenceKeeper
from treft.training.shared_prefix import SharedPrefix
from treft.training.terms import (
    Mitigation,
    add_terms,
    change_adapter,
    change_rows,
    changes_adapter,
    check_set,
    in_mitigations,
    log_terms,
    loss_batch,
    num_divided,
    required_regions,
)

logger = logging.getLogger(__name__)

CONVERSATIONS = "conversations"
"""Key under which a training batch carries its conversations, found once a step."""


class TReFTTrainer(SFTTrainer):
    """`trl.SFTTrainer` that also holds keys and values of chosen regions to the unfinetuned model.

    Takes SFTTrainer's arguments and datasets; `args` is a `TReFTConfig` (another config is
    converted and gets the `kv_*` defaults). Datasets must be conversational while `kv_weight > 0`.
    `assistant_only_loss` also works with chat templates for which TRL has no loss mask.

    The log has, beside TRL's entries: `kv_penalty` (eq. (3)'s L_KV), `kv_loss` (λ L_KV) and
    `sft_loss`, with `loss` = `sft_loss` + `kv_loss`; in evaluation with the prefix `eval_`. With
    `kv_weight="auto"` also `kv_weight`, λ of the last step; with region weights
    `kv_penalty/<region>`. `mitigations` are further methods (docs/mitigations.md), whose
    `<name>_loss` are then in `loss` too.

    Raises:
        ConfigError: options that cannot work together, before the model is run.
        DataError: a row cannot be used, or truncation would cut a held region; names the row.
        TemplateError: the chat template lacks a held region.
        AttentionError: keys and values of this model cannot be captured with gradient.
        ReferenceMismatchError: the stored reference belongs to another model or template.
    """

    args: TReFTConfig
    data_collator: Any
    _tag_names = ["trl", "sft", "treft"]  # noqa: RUF012 - as TRL declares it
    _name = "TReFT"
    _paper = {  # noqa: RUF012 - for the model card
        "title": (
            "The Piggyback Hypothesis of Generalization: Explaining and Mitigating Emergent "
            "Misalignment"
        ),
        "id": "2606.06667",
    }

    def __init__(
        self,
        model: Any,
        args: TReFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *rest: Any,
        mitigations: Sequence[Mitigation] = (),
        **options: Any,
    ) -> None:
        config = as_treft_config(args, model)
        check_set(mitigations, config.holds)
        self.mitigations = tuple(mitigations)
        self._required_regions = required_regions(config, self.mitigations)
        checks.before_loading(config, model, options.get("peft_config"))
        self._annotated: list[Any] = []
        self._postfix_row: Conversation | None = None
        self._keeper: ReferenceKeeper | None = None
        self._num_conversations = 1
        self._eval_prefix = "eval"
        train_dataset = change_rows(train_dataset, self.mitigations, "train")
        eval_dataset = change_rows(eval_dataset, self.mitigations, "eval")
        assistant_only = config.assistant_only_loss
        self._mask_labels = False
        if assistant_only:
            processing_class = processing_class or load_processing_class(model, config)
            self._mask_labels = needs_region_mask(processing_class, config)
        if changes_adapter(self.mitigations):
            processing_class = processing_class or load_processing_class(model, config)
            tokenizer = tokenizer_in_force(processing_class, config)
            adapter = change_adapter(options.get("peft_config"), self.mitigations, tokenizer)
            options["peft_config"] = adapter
        # TRL raises for templates it has no loss mask for; there the mask comes from our regions.
        config.assistant_only_loss = assistant_only and not self._mask_labels
        try:
            super().__init__(
                model,
                config,
                data_collator,
                train_dataset,
                eval_dataset,
                processing_class,
                *rest,
                **options,
            )
        finally:
            config.assistant_only_loss = assistant_only
        self._meters = {"train": Meter(self.accelerator), "eval": Meter(self.accelerator)}
        if self._required_regions:
            checks.after_loading(self)
            self.data_collator = carry_regions(self.data_collator)
        if config.holds:
            self._set_up_penalty()
        self._shared = SharedPrefix(self) if config.share_prefix else None
        for mitigation in self.mitigations:
            mitigation.prepare(self)

    # ---- Data ----

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: TReFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Any:
        """TRL's preparation, with regions found between tokenising and truncating."""
        names = rows.column_names(dataset)
        if not (self._required_regions or self._mask_labels) or "seq_lengths" in names:
            return super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        annotated = set(REGION_COLUMNS) <= set(names)
        if formatting_func is not None or ("input_ids" in names and not annotated):
            raise DataError(
                f"the {dataset_name} dataset is given as text or tokens, in which regions cannot "
                "be found: give `messages` rows without formatting_func, or tokens with the "
                "columns `region_codes` and `turns` (or set kv_weight=0)."
            )
        options = rows.RegionOptions(
            tokenizer=text_tokenizer(processing_class),
            chat_template=self.chat_template,
            include_think_block=args.kv_include_think_block,
            regions=self._required_regions,
            mask_labels=self._mask_labels,
            dataset_name=dataset_name,
        )
        num_proc = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        with global_then_local_main_first():
            if not annotated:
                dataset = rows.check_conversations(dataset, options, **num_proc)
            plain = copy.copy(args)
            plain.max_length, plain.shuffle_dataset = None, False
            plain.assistant_only_loss = args.assistant_only_loss and not self._mask_labels
            dataset = super()._prepare_dataset(
                dataset, processing_class, plain, False, None, dataset_name
            )
            if not annotated:
                dataset = rows.annotate(dataset, options, **num_proc)
            if self._postfix_row is None and args.kv_postfix_reference == "training_row":
                self._postfix_row = rows.draw_row(dataset, args.seed)
            return self._fit(dataset, args, packing, options, num_proc)

    def _fit(
        self,
        dataset: Any,
        args: TReFTConfig,
        packing: bool,
        options: rows.RegionOptions,
        num_proc: dict[str, Any],
    ) -> Any:
        """Truncate, shuffle and pack in TRL's order."""
        checks.packed_length(args, packing)
        if packing and args.packing_strategy == "bfd_split" and options.regions:
            dataset = rows.refuse_split(dataset, options, cast(int, args.max_length), **num_proc)
        elif args.max_length is not None and (options.regions or not packing):
            dataset = rows.truncate(dataset, options, rows.kept_tokens(args, packing), **num_proc)
            if not packing:
                dataset = dataset.filter(rows.has_label, **num_proc)
        if self._keeper is None:  # later datasets come after the reference was fixed
            self._annotated.append(dataset)
        if packing:
            dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
            dataset = rows.pack(
                dataset, cast(int, args.max_length), args.packing_strategy, **num_proc
            )
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = [name for name in REGION_COLUMNS if name not in self._signature_columns]
        self._signature_columns += missing

    # ---- The reference ----

    def _set_up_penalty(self) -> None:
        """Check that the penalty can work on this model, and open the reference."""
        with capturable(self.model):
            pass
        is_known = all(isinstance(dataset, Dataset) for dataset in self._annotated)
        self._keeper = ReferenceKeeper(
            self.model,
            self.args,
            # Not of TRL's marked twin: it writes the same text, and files are recorded without it.
            template_hash(text_tokenizer(self.processing_class)),
            self._known_conversations if is_known else None,
            self._postfix_row,
            lambda: self.accelerator.autocast(AutocastKwargs(cache_enabled=False)),
        )
        checks.sharding(self, self._keeper.kind)
        checks.isolation(self)
        steering = self.args.auto_weight()
        if steering is not None:
            self.add_callback(steering)

    @property
    def reference_kind(self) -> str | None:
        """Which model is the reference, see `reference_source`; None with λ = 0."""
        return None if self._keeper is None else self._keeper.kind

    @property
    def _steering(self) -> AutoWeight | None:
        """Looked up, because a resumed run may have put another in its place."""
        found = (item for item in self.callback_handler.callbacks if isinstance(item, AutoWeight))
        return next(found, None)

    @property
    def _regularizer(self) -> KVRegularizer | None:
        return self._keeper.regularizer if self._keeper is not None else None

    def _known_conversations(self) -> Iterable[Conversation]:
        for dataset in self._annotated:
            columns = dataset.select_columns(["input_ids", *REGION_COLUMNS])
            yield from (rows.as_conversation(row) for row in columns)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **options: Any
    ) -> TrainOutput:
        """Train as `transformers.Trainer.train` does; a resumed run keeps its first reference."""
        if self._keeper is not None:
            if resume_from_checkpoint:
                self._keeper.resume(run_folder(self.args.output_dir, resume_from_checkpoint))
            self._keeper.fix()
            if self.is_world_process_zero():
                self._keeper.save(Path(self.args.output_dir))
        return cast(TrainOutput, super().train(resume_from_checkpoint, *rest, **options))

    # ---- The loss ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch one optimizer step's batches, count its conversations everywhere, and set its λ."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._keeper is not None and samples:
            for batch in samples:
                batch[CONVERSATIONS] = batch_conversations(batch, batch)
            counted = sum(len(batch[CONVERSATIONS]) for batch in samples)
            total = self.accelerator.reduce(torch.tensor(float(counted), device=device), "sum")
            self._num_conversations = max(int(total), 1)
            if self._steering is not None:
                self._keeper.regularizer.weight = self._steering.weight
        if samples:
            self._meters["train"].start_step()
        return samples, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss plus λ L_KV of this micro-batch's share of the step (eq. 3)."""
        regions = {name: inputs.pop(name) for name in REGION_COLUMNS if name in inputs}
        conversations: list[Conversation] | None = inputs.pop(CONVERSATIONS, None)
        model = at_learnt_tokens(model) if self.args.learnt_tokens_only else model
        if not self.mitigations:
            return self._loss(
                model, inputs, regions, conversations, return_outputs, num_items_in_batch
            )
        batch = loss_batch(self, inputs, regions, num_items_in_batch)
        model = in_mitigations(model, batch)
        result = self._loss(
            model, inputs, regions, conversations, return_outputs, num_items_in_batch
        )
        loss, terms = add_terms(result[0] if return_outputs else result, batch)
        log_terms(self._meters["train" if batch.is_training else "eval"], terms, batch)
        return (loss, result[1]) if return_outputs else loss

    def _loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        regions: dict[str, Any],
        conversations: list[Conversation] | None,
        return_outputs: bool,
        num_items_in_batch: Tensor | int | None,
    ) -> Any:
        """TRL's loss, and the penalty if there is one."""
        if self._regularizer is not None:
            found = conversations or batch_conversations(inputs, regions)
            model = cast(nn.Module, FirstForward(model, self._regularizer, found))
        model = model if self._shared is None else self._shared.before(model)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._regularizer is None:
            return result
        sft_loss: Tensor = result[0] if return_outputs else result
        penalty = self._regularizer.penalty()
        if self.model.training:
            loss = self._add_in_training(sft_loss, penalty, num_items_in_batch)
        else:
            num_rows, by_layer = inputs["input_ids"].shape[0], self.args.kv_log_layers
            loss = add_in_evaluation(self._meters["eval"], sft_loss, penalty, num_rows, by_layer)
        return (loss, result[1]) if return_outputs else loss

    def _add_in_training(
        self, sft_loss: Tensor, penalty: Penalty, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """Weigh a micro-batch so that a step's penalty is the mean over all its conversations.

        Gradients are averaged over processes, hence their number; and where `Trainer` divides what
        it gets by the number of accumulated micro-batches, that is undone for the penalty.
        """
        share = self.accelerator.num_processes / self._num_conversations
        divided_by = num_divided(self, num_items_in_batch)
        raw = penalty.raw_sum * share
        parts = penalty_parts(penalty, self.args.kv_log_layers)
        self._meters["train"].add(
            {
                "kv_penalty": raw,
                "kv_loss": raw * penalty.weight,
                "sft_loss": sft_loss / divided_by,
                **{name: value * share for name, value in parts.items()},
            }
        )
        if self._steering is not None:
            self._steering.observe(raw, sft_loss / divided_by)
        loss: Tensor = sft_loss + penalty.weight * raw * divided_by
        return loss

    # ---- Evaluation and log ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as SFTTrainer does; `<prefix>_loss` includes the weighted penalty."""
        if self._keeper is not None:
            self._keeper.fix()
        self._eval_prefix = metric_key_prefix
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return cast(dict[str, float], metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does, with the penalty's entries."""
        trains = self.model.training
        prefix = "" if trains else f"{self._eval_prefix}_"
        found = self._meters["train" if trains else "eval"].read()
        if found and self._steering is not None and self._regularizer is not None:
            found["kv_weight"] = self._regularizer.weight
        logs.update({f"{prefix}{name}": value for name, value in found.items()})
        super().log(logs, start_time)
