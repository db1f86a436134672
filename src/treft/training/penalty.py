"""Eq. (3) in a training run: the key/value penalty as a term of the loss, and its reference.

The reference is chosen when the trainer stands, fixed before step 1 and found again on resume, see
`reference_source`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTTrainer

from treft.chat.regions import RegionName, template_hash
from treft.core.conversations import Conversation, PostfixReference, conversations_of_batch
from treft.core.recording import RecordedStates, ReferenceRequest, Source
from treft.core.reference import ReferenceBank
from treft.core.regularizer import KVRegularizer, Penalty
from treft.core.states import capturable
from treft.errors import ConfigError
from treft.training import checks
from treft.training.auto_weight import AutoWeight
from treft.training.collator import REGION_COLUMNS
from treft.training.config import TReFTConfig
from treft.training.dataset import as_conversation, draw_row
from treft.training.reference_source import (
    REFERENCE_FILE,
    ReferenceKind,
    RunRecord,
    choose_kind,
    identity_before,
    open_bank,
)
from treft.training.terms import LossBatch, Mitigation

logger = logging.getLogger(__name__)

CONVERSATIONS = "conversations"
"""Key under which a training batch carries its conversations, found once a step."""


class KVPenalty(Mitigation):
    """λ L_KV of the trained regions, a mean over the conversations of the optimizer step.

    Args:
        config: the `kv_*` options, with λ > 0.

    Attributes:
        kind: which reference it is, see `reference_source`.
        regularizer: eq. (3) for the model that trains.
    """

    name: ClassVar[str] = "kv"
    told: ClassVar[str] = "the key/value penalty (set kv_weight=0)"
    has_term: ClassVar[bool] = True
    whole_rows: ClassVar[bool | None] = False

    kind: ReferenceKind
    regularizer: KVRegularizer

    def __init__(self, config: TReFTConfig) -> None:
        self.config = config
        self.regions = tuple(cast(list[RegionName], config.kv_regions))
        self._datasets: list[Any] = []
        self._postfix_row: Conversation | None = None
        self._is_open = False
        self._captured: LossBatch | None = None
        self._num_conversations = 1

    # ---- The reference ----

    def see(self, dataset: Any) -> None:
        """Remember the rows whose reference is recorded before step 1; later ones come too late."""
        if self._is_open:
            return
        self._datasets.append(dataset)
        if self._postfix_row is None and self.config.kv_postfix_reference == "training_row":
            self._postfix_row = draw_row(dataset, self.config.seed)

    def prepare(self, trainer: SFTTrainer) -> None:
        """Check that the penalty can work on this model, and open the reference."""
        self._model: nn.Module = trainer.model
        self._accelerator = trainer.accelerator
        with capturable(self._model):
            pass
        # Not of TRL's marked twin: it writes the same text, and files are recorded without it.
        self._template_hash = template_hash(checks.text_tokenizer(trainer.processing_class))
        kind = choose_kind(self._model, _regions_read(self.config), self.config.kv_reference)
        if kind == "snapshot" and not self._is_known:
            raise ConfigError(
                "all weights train on a streaming dataset, so its prompts cannot be recorded "
                "before step 1: record them (treft reference record) and pass kv_reference, use a "
                "map-style dataset, or train an adapter."
            )
        self._open(kind)
        self._is_open = True
        logger.info("the reference is: %s", kind)
        checks.sharding(trainer, self.kind)
        checks.isolation(trainer)
        self._callbacks = trainer.callback_handler
        steering = self.config.auto_weight()
        if steering is not None:
            trainer.add_callback(steering)

    def _open(self, kind: ReferenceKind, bank: ReferenceBank | None = None) -> None:
        """Take the reference of this kind, or a bank that an earlier run kept."""
        config = self.config
        identity = identity_before(self._model, kind, self._template_hash)
        self.kind = kind
        self._weights = identity.weights
        if bank is None:
            bank = open_bank(self._model, kind, identity, config.kv_reference)
        if bank.source is not None:
            bank.source = self._in_training_precision(bank.source)
        self._bank = bank
        self.regularizer = KVRegularizer(
            self._model,
            bank,
            weight=config.first_weight,
            regions=cast(list[RegionName], config.kv_regions),
            region_weights=cast("dict[RegionName, float] | None", config.kv_region_weights),
            keys=config.kv_states != "value",
            values=config.kv_states != "key",
            layers=config.kv_layers,
            postfix_reference=self._postfix_reference,
        )

    @property
    def _postfix_reference(self) -> PostfixReference:
        if self.config.kv_postfix_reference == "own_query":
            return "own_query"
        return self._postfix_row or "empty_query"

    def _in_training_precision(self, source: Source) -> Source:
        """Record under training's autocast; another precision would show a drift of rounding."""

        def recorded(requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
            with self._accelerator.autocast(AutocastKwargs(cache_enabled=False)):
                return source(requests)

        return recorded

    def begin(self, resumed: Path | None = None, output: Path | None = None) -> None:
        """Take up a resumed run's reference; record what must be known before a weight changes.

        Raises:
            ConfigError, ReferenceMismatchError, DataError: the reference is not to be had.
        """
        if resumed is not None:
            self._resume(resumed)
        self._fix()
        if output is not None:
            self._save(output)

    def _fix(self) -> None:
        """Record what must be known before a weight changes; check that a file holds it.

        Raises:
            ReferenceMismatchError: the stored reference lacks prompts of the dataset.
        """
        is_taken = self.kind == "snapshot" and self._bank.source is None
        if self.kind not in ("snapshot", "stored") or is_taken or not self._is_known:
            return
        requests = self._distinct_requests()
        if self.kind == "stored":
            self._bank.look_up(requests)
            return
        logger.info("recording the reference of %d distinct prompts", len(requests))
        self._bank.pin(requests)
        self._bank.source = None

    @property
    def _is_known(self) -> bool:
        """Whether the conversations can be known beforehand; they cannot while streaming."""
        return all(isinstance(dataset, Dataset) for dataset in self._datasets)

    def _distinct_requests(self) -> list[ReferenceRequest]:
        found: dict[ReferenceRequest, None] = {}
        for dataset in self._datasets:
            for row in dataset.select_columns(["input_ids", *REGION_COLUMNS]):
                found.update(dict.fromkeys(self.regularizer.requests(as_conversation(row))))
        return list(found)

    def _save(self, folder: Path) -> None:
        """Leave in the output folder what a resumed run needs to find the same reference.

        Raises:
            ConfigError: checkpoints of a run that began from another model would lose theirs.
        """
        earlier = RunRecord.read(folder)
        replaces = earlier is not None and earlier.weights != self._weights
        if replaces and any(folder.glob("checkpoint-*")):
            raise ConfigError(
                f"{folder} holds checkpoints of a run that began from another model, whose "
                "reference would be overwritten: choose another output_dir, or remove it."
            )
        config = self.config
        RunRecord(
            kind=self.kind,
            weights=self._weights,
            kv_weight=cast("float | str", config.kv_weight),
            kv_regions=list(config.kv_regions),
            kv_states=config.kv_states,
            kv_layers=config.kv_layers,
            kv_region_weights=cast("dict[str, float] | None", config.kv_region_weights),
            kv_budget=config.kv_budget,
        ).write(folder)
        if self.kind == "snapshot":
            self._bank.save(folder / REFERENCE_FILE, overwrite=True)

    def _resume(self, folder: Path) -> None:
        """Take up the reference of the run whose output folder this is.

        Raises:
            ConfigError: the model at hand is not the one that run began from, and is needed.
            ReferenceMismatchError: the kept snapshot belongs to another model or template.
            DataError: a kept file is damaged.
        """
        record = RunRecord.read(folder)
        if record is None:
            logger.warning(
                "%s was not left by a TReFT run: the reference is the model as it was handed over",
                folder,
            )
            return
        options = [item.name for item in fields(record) if item.name.startswith("kv_")]
        for name in options:
            before, now = getattr(record, name), getattr(self.config, name)
            if before != now:
                logger.warning("resuming with %s=%s; the run began with %s", name, now, before)
        if record.kind == "stored" or self.kind == "stored":
            if record.kind != self.kind:
                raise ConfigError(
                    f"the run in {folder} began with another reference ({record.kind}, now "
                    f"{self.kind}): pass the same kv_reference as before."
                )
            return
        if record.kind == "snapshot":
            bank = ReferenceBank.load(
                folder / REFERENCE_FILE, device=next(self._model.parameters()).device
            )
            current = identity_before(self._model, record.kind, self._template_hash)
            bank.check(current, ignore=("weights", "model_id", "revision"))
            self._open(record.kind, bank)
            self._weights = record.weights
            if self._is_known:
                bank.look_up(self._distinct_requests())
            return
        if record.weights != self._weights:
            raise ConfigError(
                f"the run in {folder} began from other weights: hand the trainer the model that "
                "run began from; resuming loads the checkpoint's weights by itself."
            )
        if record.kind != self.kind:
            self._open(record.kind)

    # ---- The loss ----

    @property
    def steering(self) -> AutoWeight | None:
        """What steers λ; looked up, because a resumed run may have put another in its place."""
        found = (item for item in self._callbacks.callbacks if isinstance(item, AutoWeight))
        return next(found, None)

    def begin_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Count the step's conversations everywhere, and set its λ."""
        for batch in batches:
            batch[CONVERSATIONS] = _conversations(batch, batch)
        counted = sum(len(batch[CONVERSATIONS]) for batch in batches)
        total = self._accelerator.reduce(torch.tensor(float(counted), device=device), "sum")
        self._num_conversations = max(int(total), 1)
        if self.steering is not None:
            self.regularizer.weight = self.steering.weight

    def around_forward(self, batch: LossBatch) -> AbstractContextManager[None]:
        """Take the held tokens' states from the first forward of a batch, the one with gradient.

        TRL may run the model again for logits or metrics; those forwards do not count.
        """
        return self._capture(batch)

    @contextmanager
    def _capture(self, batch: LossBatch) -> Iterator[None]:
        if self._captured is batch:
            yield
            return
        self._captured = batch
        known = batch.regions.get(CONVERSATIONS) or _conversations(batch.inputs, batch.regions)
        with self.regularizer.capture(known):
            yield

    def term(self, batch: LossBatch) -> Tensor:
        """λ L_KV, so that a step's penalty is the mean over all its conversations.

        Gradients are averaged over processes, hence their number; and where `Trainer` divides what
        it gets by the number of accumulated micro-batches, that is undone for the penalty. In
        evaluation it is the mean over the batch.
        """
        self._captured = None
        penalty = self.regularizer.penalty()
        num = penalty.num_conversations
        share = self._accelerator.num_processes / self._num_conversations
        share = share if batch.is_training else 1.0
        raw = penalty.raw_sum * share
        parts = {name: mean * num * share for name, mean in self._parts(penalty).items()}
        batch.meter.add({"kv_penalty": raw, **parts}, weight=num)
        if not batch.is_training:
            return penalty.weighted
        if self.steering is not None:
            self.steering.observe(raw)
        return penalty.weight * raw * batch.num_divided

    def _parts(self, penalty: Penalty) -> dict[str, Tensor]:
        """What the log shows of a penalty beside its whole, means over the batch.

        With region weights `kv_penalty/<region>`, that region's L_KV before it is weighed; with
        `kv_log_layers` each layer's L_K + L_V as `kv_penalty/layer_<index>`.
        """
        found = {f"kv_penalty/{region}": mean for region, mean in penalty.by_region.items()}
        if self.config.kv_log_layers:
            layers = zip(penalty.layers, penalty.key + penalty.value, strict=True)
            found.update({f"kv_penalty/layer_{layer}": mean for layer, mean in layers})
        return found

    def logged(self) -> dict[str, float]:
        """λ of the last step, where it is steered."""
        return {} if self.steering is None else {"kv_weight": self.regularizer.weight}


def _conversations(batch: dict[str, Any], regions: dict[str, Any]) -> list[Conversation]:
    """The conversations of a batch, from what the model gets and the region columns, (B, T)."""
    codes, turns = (regions[name] for name in REGION_COLUMNS)
    return conversations_of_batch(
        batch["input_ids"], codes, turns, batch.get("attention_mask"), batch.get("position_ids")
    )


def _regions_read(config: TReFTConfig) -> list[str]:
    """Held regions, and the query where the postfix reference has read it."""
    reads_query = "postfix" in config.kv_regions and config.kv_postfix_reference == "own_query"
    return [*config.kv_regions, *(["query"] if reads_query else [])]
