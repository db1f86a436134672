"""What a term of the loss may do in a training run: change rows, the forward, or the loss.

The key/value penalty is one (`penalty`), `treft.mitigations` holds the others. A method of your own
subclasses `Mitigation`, overrides what it needs and is given to the trainer:
`TReFTTrainer(..., mitigations=[MyMethod()])`.

What is logged of the terms is summed on the device (`Meter`) and read out only when something is
logged. Training figures are means over optimizer steps, so that `loss` is the sum of its terms in
every entry of the log, however steps are accumulated. Evaluation figures are means over what was
run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from treft.chat.regions import RegionName
from treft.data.messages import load_messages
from treft.errors import ConfigError

Split = Literal["train", "eval"]
Rows = str | Sequence[dict[str, Any]]
"""Rows of `messages`, or a JSONL file of them."""


def read_rows(rows: Rows) -> list[dict[str, Any]]:
    """Returns the rows, read from their file if that is what was given.

    Raises:
        DataError: the file cannot be used; names file and row.
    """
    return load_messages(rows) if isinstance(rows, str) else list(rows)


class Meter:
    """Weighted sums by name since the last reading, of one mode (training or evaluation).

    Args:
        accelerator: sums are averaged over its processes when read.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)
        self._num_steps = 0

    def start_step(self) -> None:
        """Begin an optimizer step: what is added until the next one sums up to its figures."""
        self._num_steps += 1

    def add(self, values: Mapping[str, Tensor], weight: float = 0.0) -> None:
        """Add scalar `values`; `weight` is what they are divided by when no steps are counted."""
        for name, value in values.items():
            value = value.detach().to(self._accelerator.device, torch.float32)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] += weight

    def read(self) -> dict[str, float]:
        """Means since the last reading, over all processes; collective, so call it on each."""
        names = list(self._sums)
        if not names:
            return {}
        weights = [float(self._num_steps) or self._weights[name] for name in names]
        sums = torch.stack([self._sums[name] for name in names])
        pair = torch.stack([sums, torch.tensor(weights, dtype=sums.dtype, device=sums.device)])
        total: Tensor = self._accelerator.reduce(pair, reduction="sum")
        self._sums.clear()
        self._weights.clear()
        self._num_steps = 0
        return dict(zip(names, (total[0] / total[1].clamp(min=1e-12)).tolist(), strict=True))


@dataclass(frozen=True)
class LossBatch:
    """One micro-batch, and how a term of it is averaged over its optimizer step.

    Attributes:
        trainer: whose batch it is.
        inputs: what the model gets, (B, T) tensors, with `labels` (-100: not learnt).
        regions: the columns `region_codes` and `turns`, (B, T), and what `begin_step` added to the
            batch; empty unless something needs them.
        per_token: a sum over the learnt tokens times this is averaged exactly as the SFT loss is.
        per_batch: likewise for a mean over the micro-batch.
        num_divided: by how much `Trainer` divides the loss afterwards.
        meter: takes what the log shows of the batch beside the terms.
        kept: what terms keep of the batch's first forward, by their names. Later forwards of a
            batch, for logits or metrics, have no gradient.
    """

    trainer: SFTTrainer
    inputs: dict[str, Any]
    regions: dict[str, Any]
    per_token: Tensor | float
    per_batch: float
    num_divided: int
    meter: Meter
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def is_training(self) -> bool:
        """Whether this is a step, and no evaluation."""
        return bool(self.trainer.model.training)


def flag(name: str, kind: Any, **told: Any) -> dict[str, Any]:
    """Returns the metadata of a mitigation's field, which is a flag of `treft sft` too.

    A method is asked for by the flag of its field without a default, or, where each field has one,
    by a flag of the method's own name.

    Args:
        name: the flag's.
        kind: the flag's type.
        told: `off`, the flag's value that asks for no method, by default None; and `needs`, what a
            study gives the field: rows (retained, general, trait, careful), sets of them, the
            method's strength, the share of rows, the layer, the training_prompt or the use_prompt.
    """
    return {"flag": name, "kind": kind, **told}


class Mitigation:
    """Base of all methods; each hook does nothing unless it is overridden.

    A method is a dataclass, whose fields are its flags (`flag`); its docstring is their help.

    Attributes:
        name: in the log, where the method's term is `<name>_loss`, and in errors.
        told: how errors call the method; default its name.
        regions: regions that every row must have; their codes are then in each batch.
        changes_forward: the trained model's forward is another than without the method.
        changes_adapter: the method wants another adapter than the one asked for (`adapter`).
        has_term: the method adds to the loss.
        whole_rows: the SFT loss's forward must be of whole rows, so not with `share_prefix`.
    """

    name: ClassVar[str] = ""
    told: ClassVar[str] = ""
    regions: Sequence[RegionName] = ()
    changes_forward: ClassVar[bool] = False
    changes_adapter: ClassVar[bool] = False
    has_term: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = False

    def rows(self, dataset: Any, split: Split) -> Any:
        """The rows to train or evaluate on instead of `dataset`; before anything is tokenised."""
        return dataset

    def adapter(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Returns the adapter to make instead of `config`, PEFT's; None where none is made.

        Raises:
            ConfigError: the method cannot work with it.
        """
        return config

    def see(self, dataset: Any) -> None:
        """Called with each dataset that has its regions and is cut to length, before packing."""

    def prepare(self, trainer: SFTTrainer) -> None:
        """Called once the trainer stands, before any weight changes: check, record, add callbacks.

        Raises:
            ConfigError: the method cannot work with this model or these options.
        """

    def begin(self, resumed: Path | None = None, output: Path | None = None) -> None:
        """Called before each training run and evaluation, while the weights are as handed over.

        Args:
            resumed: output folder of the run that is gone on with; None for another beginning.
            output: folder of the run, in the process that writes to it.
        """

    def begin_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Called with the micro-batches of each optimizer step; collective over processes."""

    def around_forward(
        self, batch: LossBatch, inputs: dict[str, Any]
    ) -> AbstractContextManager[dict[str, Any]]:
        """Entered for each forward of the model in the SFT loss.

        Args:
            batch: the micro-batch.
            inputs: what the model would get; what is yielded is what it does get.
        """
        return nullcontext(inputs)

    def term(self, batch: LossBatch) -> Tensor | None:
        """What to add to the loss of this micro-batch, a scalar, weighed; None for nothing."""
        return None

    def logged(self) -> dict[str, float]:
        """Returns what each entry of the log shows beside the means of the meter."""
        return {}


def change_rows(dataset: Any, mitigations: Sequence[Mitigation], split: Split) -> Any:
    """Returns the rows after all methods; of several evaluation sets, each."""
    if dataset is None:
        return None
    if isinstance(dataset, dict) and split == "eval":
        return {name: change_rows(part, mitigations, split) for name, part in dataset.items()}
    for mitigation in mitigations:
        dataset = mitigation.rows(dataset, split)
    return dataset


def check_set(mitigations: Sequence[Mitigation]) -> None:
    """Refuse methods of one run that would undo or mismeasure each other.

    Raises:
        ConfigError: a method is given twice, or one adds a term to a forward that another changes.
    """
    names = [mitigation.name for mitigation in mitigations]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice: give each mitigation once.")
    changing = [found.name for found in mitigations if found.changes_forward]
    terms = [found.told or found.name for found in mitigations if found.has_term]
    if len(changing) > 1 or (changing and terms):
        raise ConfigError(
            f"{changing[0]} changes the model's forward in training, so "
            f"{', '.join([*changing[1:], *terms])} would measure or change another model than the "
            "one that answers: use one of them."
        )


def add_terms(loss: Tensor, batch: LossBatch, mitigations: Sequence[Mitigation]) -> Tensor:
    """The SFT loss of a micro-batch with all terms; the meter takes each as it counts in the step.

    Terms of a step add up over its micro-batches; in evaluation batches weigh by their rows.
    """
    found = {"sft_loss": loss}
    for mitigation in mitigations:
        term = mitigation.term(batch)
        if term is not None:
            loss = loss + term
            found[f"{mitigation.name}_loss"] = term
    num_rows = 1 if batch.is_training else len(batch.inputs["input_ids"])
    scale = num_rows / batch.num_divided
    batch.meter.add({name: part * scale for name, part in found.items()}, weight=num_rows)
    return loss


def loss_batch(
    trainer: SFTTrainer,
    inputs: dict[str, Any],
    regions: dict[str, Any],
    num_items_in_batch: Tensor | int | None,
    meter: Meter,
) -> LossBatch:
    """Describe a micro-batch, see `LossBatch`."""
    divided_by = num_divided(trainer, num_items_in_batch)
    accumulated = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
    num_learnt = (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
    per_token = 1 / (num_learnt if num_items_in_batch is None else num_items_in_batch)
    if num_items_in_batch is not None and trainer.args.average_tokens_across_devices:
        per_token = per_token * trainer.accelerator.num_processes  # gradients are averaged
    per_batch = divided_by / accumulated
    return LossBatch(trainer, dict(inputs), regions, per_token, per_batch, divided_by, meter)


def num_divided(trainer: SFTTrainer, num_items_in_batch: Tensor | int | None) -> int:
    """By how much `Trainer` divides the loss of a micro-batch.

    Not at all where TRL's loss is the micro-batch's share of the step already, or in evaluation.
    """
    by_tokens = bool(trainer.model_accepts_loss_kwargs) and num_items_in_batch is not None
    is_share = by_tokens or trainer.compute_loss_func is not None
    if trainer.loss_is_scaled_for_ga is not None:
        is_share = bool(trainer.loss_is_scaled_for_ga)
    is_whole = is_share or not trainer.model.training
    return 1 if is_whole else int(trainer.current_gradient_accumulation_steps)
