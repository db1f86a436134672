"""TReFTTrainer: TRL's SFTTrainer whose loss is eq. (3), L = L_SFT + λ L_KV.

`_prepare_dataset` annotates tokens with regions, the collator carries them along, `compute_loss`
adds the terms (`terms`), of which the penalty is the first. All else is TRL's; with λ = 0 and no
other term, everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput
from trl import SFTTrainer
from trl.trainer.utils import global_then_local_main_first

from treft.errors import DataError
from treft.training import checks
from treft.training.checks import (
    in_force,
    load_processing_class,
    needs_region_mask,
    text_tokenizer,
)
from treft.training.config import TReFTConfig, as_treft_config
from treft.training.dataset import REGION_COLUMNS, Annotator, carry_regions, column_names
from treft.training.forward import LossForward, check_shared
from treft.training.output import run_folder
from treft.training.penalty import CONVERSATIONS, KVPenalty
from treft.training.terms import (
    Meter,
    Mitigation,
    add_terms,
    change_rows,
    check_set,
    loss_batch,
)


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
        self._penalty = KVPenalty(config) if config.holds else None
        self.mitigations = tuple(mitigations)
        check_set(self._terms)
        regions = (region for term in self._terms for region in term.regions)
        self._required_regions = tuple(dict.fromkeys(regions))
        checks.before_loading(config, model, options.get("peft_config"))
        self._eval_prefix = "eval"
        processing_class = self._choose_mask_and_adapter(config, model, processing_class, options)
        assistant_only = config.assistant_only_loss
        # TRL raises for templates it has no loss mask for; there the mask comes from our regions.
        config.assistant_only_loss = assistant_only and not self._mask_labels
        try:
            super().__init__(
                model,
                config,
                data_collator,
                change_rows(train_dataset, self.mitigations, "train"),
                change_rows(eval_dataset, self.mitigations, "eval"),
                processing_class,
                *rest,
                **options,
            )
        finally:
            config.assistant_only_loss = assistant_only
        self._meters = {split: Meter(self.accelerator) for split in ("train", "eval")}
        if self._required_regions:
            checks.after_loading(self)
            self.data_collator = carry_regions(self.data_collator)
        if config.share_prefix:
            check_shared(self, self._terms)
        for term in self._terms:
            term.prepare(self)

    def _choose_mask_and_adapter(
        self, config: TReFTConfig, model: Any, given: Any, options: dict[str, Any]
    ) -> Any:
        """The processing class, loaded if the loss mask or a method's adapter depends on it."""
        self._mask_labels = False
        changing = [term for term in self.mitigations if term.changes_adapter]
        if not (config.assistant_only_loss or changing):
            return given
        found = given or load_processing_class(model, config)
        if config.assistant_only_loss:
            self._mask_labels = needs_region_mask(in_force(found, config))
        for term in changing:
            adapter = options.get("peft_config")
            tokenizer = text_tokenizer(in_force(found, config))
            options["peft_config"] = term.adapter(adapter, tokenizer)
        return found

    @property
    def _terms(self) -> tuple[Mitigation, ...]:
        """Everything that may change rows, forward or loss: the penalty, then the mitigations."""
        return self.mitigations if self._penalty is None else (self._penalty, *self.mitigations)

    @property
    def reference_kind(self) -> str | None:
        """Which model is the reference, see `reference_source`; None with λ = 0."""
        return None if self._penalty is None else self._penalty.reference.kind

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
        names = column_names(dataset)
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
        annotator = Annotator(
            tokenizer=text_tokenizer(processing_class),
            chat_template=self.chat_template,
            include_think_block=args.kv_include_think_block,
            regions=self._required_regions,
            mask_labels=self._mask_labels,
            dataset_name=dataset_name,
            num_proc=args.dataset_num_proc,
        )
        plain = copy.copy(args)
        plain.max_length, plain.shuffle_dataset = None, False
        plain.assistant_only_loss = args.assistant_only_loss and not self._mask_labels
        with global_then_local_main_first():
            if not annotated:
                dataset = annotator.check(dataset)
            dataset = super()._prepare_dataset(
                dataset, processing_class, plain, False, None, dataset_name
            )
            if not annotated:
                dataset = annotator.annotate(dataset)
            dataset = annotator.fit(dataset, args, packing)
            for term in self._terms:
                term.see(dataset)
            return annotator.pack(dataset, args) if packing else annotator.shuffle(dataset, args)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        missing = [name for name in REGION_COLUMNS if name not in self._signature_columns]
        self._signature_columns += missing

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **options: Any
    ) -> TrainOutput:
        """Train as `transformers.Trainer.train` does; a resumed run keeps its first reference."""
        output = Path(self.args.output_dir)
        resumed = None
        if resume_from_checkpoint:
            resumed = run_folder(self.args.output_dir, resume_from_checkpoint)
        for term in self._terms:
            term.begin(resumed, output if self.is_world_process_zero() else None)
        return cast(TrainOutput, super().train(resume_from_checkpoint, *rest, **options))

    # ---- The loss ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch one optimizer step's batches, and tell the terms."""
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            for term in self._terms:
                term.begin_step(samples, device)
            self._meters["train"].start_step()
        return samples, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's loss plus the terms of this micro-batch's share of the step (eq. 3)."""
        columns = (*REGION_COLUMNS, CONVERSATIONS)
        regions = {name: inputs.pop(name) for name in columns if name in inputs}
        if not (self._terms or self.args.share_prefix or self.args.learnt_tokens_only):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        meter = self._meters["train" if self.model.training else "eval"]
        batch = loss_batch(self, inputs, regions, num_items_in_batch, meter)
        model = cast(nn.Module, LossForward(model, batch, self._terms))
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self._terms:
            return result
        loss = add_terms(result[0] if return_outputs else result, batch, self._terms)
        return (loss, result[1]) if return_outputs else loss

    # ---- Evaluation and log ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as SFTTrainer does; `<prefix>_loss` includes the weighted penalty."""
        for term in self._terms:
            term.begin()
        self._eval_prefix = metric_key_prefix
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return cast(dict[str, float], metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does, with the terms' entries."""
        trains = self.model.training
        prefix = "" if trains else f"{self._eval_prefix}_"
        found = self._meters["train" if trains else "eval"].read()
        for term in self._terms if found else ():
            found.update(term.logged())
        logs.update({f"{prefix}{name}": value for name, value in found.items()})
        super().log(logs, start_time)
