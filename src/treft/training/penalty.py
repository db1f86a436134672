"""Keep the reference through a training run: choose it, fix it before step 1, find it on resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import cast

from torch import nn

from treft.chat.regions import RegionName
from treft.core.conversations import Conversation, PostfixReference
from treft.core.recording import RecordedStates, ReferenceRequest, Source
from treft.core.reference import ReferenceBank
from treft.core.regularizer import KVRegularizer
from treft.errors import ConfigError
from treft.training.config import TReFTConfig
from treft.training.reference_source import (
    REFERENCE_FILE,
    ReferenceKind,
    RunRecord,
    choose_kind,
    identity_before,
    open_bank,
)

logger = logging.getLogger(__name__)


class ReferenceKeeper:
    """The reference of one training run, and the regularizer that compares with it.

    Args:
        model: the model as it was handed to the trainer, before any step.
        config: the `kv_*` options.
        template_hash: of the chat template in force.
        conversations: the dataset's conversations, each time anew; None while streaming, when they
            cannot be known beforehand.
        postfix_row: the training row whose postfix is the postfix reference; None: empty query.
        autocast: precision of training; recording in another would show a drift of rounding.

    Attributes:
        kind: which reference it is, see `reference_source`.
        regularizer: eq. (3) for `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TReFTConfig,
        template_hash: str,
        conversations: Callable[[], Iterable[Conversation]] | None,
        postfix_row: Conversation | None,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._model = model
        self._config = config
        self._template_hash = template_hash
        self._conversations = conversations
        self._postfix_row = postfix_row
        self._autocast = autocast
        kind = choose_kind(model, _regions_read(config), config.kv_reference)
        if kind == "snapshot" and conversations is None:
            raise ConfigError(
                "all weights train on a streaming dataset, so its prompts cannot be recorded "
                "before step 1: record them (treft reference record) and pass kv_reference, use a "
                "map-style dataset, or train an adapter."
            )
        self._open(kind)
        logger.info("the reference is: %s", kind)

    def _open(self, kind: ReferenceKind, bank: ReferenceBank | None = None) -> None:
        """Take the reference of this kind, or a bank that an earlier run kept."""
        config = self._config
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
        if self._config.kv_postfix_reference == "own_query":
            return "own_query"
        return self._postfix_row or "empty_query"

    def _in_training_precision(self, source: Source) -> Source:
        def recorded(requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
            with self._autocast():
                return source(requests)

        return recorded

    def fix(self) -> None:
        """Record what must be known before a weight changes; check that a file holds it.

        Raises:
            ReferenceMismatchError: the stored reference lacks prompts of the dataset.
        """
        is_taken = self.kind == "snapshot" and self._bank.source is None
        if self.kind not in ("snapshot", "stored") or is_taken or self._conversations is None:
            return
        requests = self._distinct_requests(self._conversations())
        if self.kind == "stored":
            self._bank.look_up(requests)
            return
        logger.info("recording the reference of %d distinct prompts", len(requests))
        self._bank.pin(requests)
        self._bank.source = None

    def _distinct_requests(self, conversations: Iterable[Conversation]) -> list[ReferenceRequest]:
        found: dict[ReferenceRequest, None] = {}
        for conversation in conversations:
            found.update(dict.fromkeys(self.regularizer.requests(conversation)))
        return list(found)

    def save(self, folder: Path) -> None:
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
        config = self._config
        RunRecord(
            kind=self.kind,
            weights=self._weights,
            kv_weight=cast("float | str", config.kv_weight),
            kv_regions=list(config.kv_regions),
            kv_states=config.kv_states,
            kv_layers=config.kv_layers,
            kv_region_weights=cast("dict[str, float] | None", config.kv_region_weights),
            kv_budget=config.kv_budget,
            kv_loss_slack=config.kv_loss_slack,
        ).write(folder)
        if self.kind == "snapshot":
            self._bank.save(folder / REFERENCE_FILE, overwrite=True)

    def resume(self, folder: Path) -> None:
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
            before, now = getattr(record, name), getattr(self._config, name)
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
            bank = ReferenceBank.load(folder / REFERENCE_FILE, device=_device(self._model))
            current = identity_before(self._model, record.kind, self._template_hash)
            bank.check(current, ignore=("weights", "model_id", "revision"))
            self._open(record.kind, bank)
            self._weights = record.weights
            if self._conversations is not None:
                bank.look_up(self._distinct_requests(self._conversations()))
            return
        if record.weights != self._weights:
            raise ConfigError(
                f"the run in {folder} began from other weights: hand the trainer the model that "
                "run began from; resuming loads the checkpoint's weights by itself."
            )
        if record.kind != self.kind:
            self._open(record.kind)


def _device(model: nn.Module) -> str:
    return str(next(model.parameters()).device)


def _regions_read(config: TReFTConfig) -> list[str]:
    """Held regions, and the query where the postfix reference has read it."""
    reads_query = "postfix" in config.kv_regions and config.kv_postfix_reference == "own_query"
    return [*config.kv_regions, *(["query"] if reads_query else [])]
