"""What a mitigation may do in a training run: change rows, the model's forward, or the loss.

`treft.mitigations` holds the methods; a method of your own subclasses `Mitigation`, overrides what
it needs and is given to the trainer: `TReFTTrainer(..., mitigations=[MyMethod()])`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import RegionName
from treft.errors import ConfigError

if TYPE_CHECKING:
    from treft.training.config import TReFTConfig
    from treft.training.meter import Meter
    from treft.training.trainer import TReFTTrainer


Split = Literal["train", "eval"]


@dataclass(frozen=True)
class LossBatch:
    """One micro-batch, and how a term of it is averaged over its optimizer step.

    Attributes:
        trainer: whose batch it is.
        inputs: what the model gets, (B, T) tensors, with `labels` (-100: not learnt).
        regions: the columns `region_codes` and `turns`, (B, T); empty unless something needs them.
        per_token: a sum over the learnt tokens times this is averaged exactly as the SFT loss is.
        per_batch: likewise for a mean over the micro-batch.
        num_divided: by how much `Trainer` divides the loss afterwards.
    """

    trainer: TReFTTrainer
    inputs: dict[str, Any]
    regions: dict[str, Tensor]
    per_token: Tensor | float
    per_batch: float
    num_divided: int

    @property
    def is_training(self) -> bool:
        """Whether this is a step, and no evaluation."""
        return bool(self.trainer.model.training)


class Mitigation:
    """Base of all methods; each hook does nothing unless it is overridden.

    Attributes:
        name: in the log, where the method's term is `<name>_loss`, and in errors.
        regions: regions that every row must have; their codes are then in each batch.
        changes_forward: the trained model's forward is another than without the method.
        has_term: the method adds to the loss.
        whole_rows: the SFT loss's forward must be of whole rows (not with `share_prefix`); None, if
            the method changes that forward or reads from it.
    """

    name: ClassVar[str] = ""
    regions: tuple[RegionName, ...] = ()
    changes_forward: ClassVar[bool] = False
    has_term: ClassVar[bool] = False
    whole_rows: ClassVar[bool | None] = None

    def rows(self, dataset: Any, split: Split) -> Any:
        """The rows to train or evaluate on instead of `dataset`; before anything is tokenised."""
        return dataset

    def adapter(self, config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        """The adapter to make instead of `config`, PEFT's; None where none is made.

        Raises:
            ConfigError: the method cannot work with it.
        """
        return config

    def prepare(self, trainer: TReFTTrainer) -> None:
        """Called once the trainer stands, before any weight changes: check, record, add callbacks.

        Raises:
            ConfigError: the method cannot work with this model or these options.
        """

    def around_forward(self, batch: LossBatch) -> AbstractContextManager[None]:
        """Entered for each forward of the model in the SFT loss."""
        return nullcontext()

    def forward_inputs(self, batch: LossBatch, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the model gets in such a forward instead of `inputs`; called inside it."""
        return inputs

    def term(self, batch: LossBatch) -> Tensor | None:
        """What to add to the loss of this micro-batch, a scalar, weighed; None for nothing."""
        return None


class _ForwardInMitigations:
    """Stands in for the model in TRL's loss."""

    def __init__(self, model: nn.Module, batch: LossBatch) -> None:
        self._model = model
        self._batch = batch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for mitigation in self._batch.trainer.mitigations:
                stack.enter_context(mitigation.around_forward(self._batch))
                kwargs = mitigation.forward_inputs(self._batch, kwargs)
            return self._model(*args, **kwargs)


def in_mitigations(model: nn.Module, batch: LossBatch) -> nn.Module:
    """What TRL's loss is to call instead of the model."""
    return cast(nn.Module, _ForwardInMitigations(model, batch))


def wants_whole_rows(mitigation: Mitigation) -> bool:
    """Whether a method cannot work where rows begin behind a shared prefix."""
    if mitigation.whole_rows is not None:
        return mitigation.whole_rows
    base, own = Mitigation, type(mitigation)
    hooks = (own.around_forward, own.forward_inputs)
    return hooks != (base.around_forward, base.forward_inputs)


def changes_adapter(mitigations: Sequence[Mitigation]) -> bool:
    """Whether a method wants another adapter, for which it needs the tokenizer."""
    return any(type(method).adapter is not Mitigation.adapter for method in mitigations)


def change_adapter(
    config: Any, mitigations: Sequence[Mitigation], tokenizer: PreTrainedTokenizerBase
) -> Any:
    """The adapter after all methods."""
    for mitigation in mitigations:
        config = mitigation.adapter(config, tokenizer)
    return config


def change_rows(dataset: Any, mitigations: Sequence[Mitigation], split: Split) -> Any:
    """The rows after all methods; of several evaluation sets, each."""
    if dataset is None:
        return None
    if isinstance(dataset, dict) and split == "eval":
        return {name: change_rows(part, mitigations, split) for name, part in dataset.items()}
    for mitigation in mitigations:
        dataset = mitigation.rows(dataset, split)
    return dataset


def required_regions(
    config: TReFTConfig, mitigations: Sequence[Mitigation]
) -> tuple[RegionName, ...]:
    """Regions that every row must have: those of the penalty and of the methods.

    When there are any, batches carry the regions of their tokens.
    """
    held = config.kv_regions if config.holds else []
    found = [*held, *(region for method in mitigations for region in method.regions)]
    return tuple(cast(RegionName, region) for region in dict.fromkeys(found))


def check_set(mitigations: Sequence[Mitigation], holds: bool) -> None:
    """Refuse methods that would undo or mismeasure each other.

    Args:
        mitigations: of one run.
        holds: whether the key/value penalty is on.

    Raises:
        ConfigError: a method is given twice, or one adds a term to a forward that another changes.
    """
    names = [mitigation.name for mitigation in mitigations]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice: give each mitigation once.")
    changing = [found.name for found in mitigations if found.changes_forward]
    terms = [found.name for found in mitigations if found.has_term]
    terms += ["the key/value penalty (set kv_weight=0)"] if holds else []
    if len(changing) > 1 or (changing and terms):
        raise ConfigError(
            f"{changing[0]} changes the model's forward in training, so "
            f"{', '.join([*changing[1:], *terms])} would measure or change another model than the "
            "one that answers: use one of them."
        )


def add_terms(loss: Tensor, batch: LossBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with all terms, and each term as it counts in the step's loss, by name in the log.

    Args:
        loss: SFT loss, and the penalty if there is one, of a micro-batch.
        batch: the micro-batch.
    """
    trainer = batch.trainer
    found: dict[str, Tensor] = {}
    if trainer.reference_kind is None:  # the penalty logs it too
        found["sft_loss"] = loss / batch.num_divided
    for mitigation in trainer.mitigations:
        term = mitigation.term(batch)
        if term is not None:
            loss = loss + term
            found[f"{mitigation.name}_loss"] = term / batch.num_divided
    return loss, found


def log_terms(meter: Meter, terms: Mapping[str, Tensor], batch: LossBatch) -> None:
    """Terms of a step add up over its micro-batches; in evaluation batches weigh by their rows."""
    num_rows = 1 if batch.is_training else len(batch.inputs["input_ids"])
    meter.add({name: term * num_rows for name, term in terms.items()}, weight=num_rows)


def loss_batch(
    trainer: TReFTTrainer,
    inputs: dict[str, Any],
    regions: dict[str, Tensor],
    num_items_in_batch: Tensor | int | None,
) -> LossBatch:
    """Describe a micro-batch, see `LossBatch`."""
    divided_by = num_divided(trainer, num_items_in_batch)
    accumulated = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
    num_learnt = (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
    per_token = 1 / (num_learnt if num_items_in_batch is None else num_items_in_batch)
    if num_items_in_batch is not None and trainer.args.average_tokens_across_devices:
        per_token = per_token * trainer.accelerator.num_processes  # gradients are averaged
    per_batch = divided_by / accumulated
    return LossBatch(trainer, dict(inputs), regions, per_token, per_batch, divided_by)


def num_divided(trainer: TReFTTrainer, num_items_in_batch: Tensor | int | None) -> int:
    """By how much `Trainer` divides the loss of a micro-batch.

    Not at all where TRL's loss is the micro-batch's share of the step already, or in evaluation.
    """
    by_tokens = bool(trainer.model_accepts_loss_kwargs) and num_items_in_batch is not None
    is_share = by_tokens or trainer.compute_loss_func is not None
    if trainer.loss_is_scaled_for_ga is not None:
        is_share = bool(trainer.loss_is_scaled_for_ga)
    is_whole = is_share or not trainer.model.training
    return 1 if is_whole else int(trainer.current_gradient_accumulation_steps)
