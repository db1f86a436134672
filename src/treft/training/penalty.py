"""Eq. (3) in a training run: the key/value penalty as a term of the loss, and its reference.

The reference is chosen when the trainer stands, fixed before step 1 and found again on resume, see
`reference_source`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTTrainer

from treft.chat.regions import RegionName, template_hash
from treft.core.conversations import (
    Conversation,
    PostfixReference,
    conversations_of_batch,
    held_requests,
)
from treft.core.recording import ReferenceRequest
from treft.core.regularizer import KVRegularizer, Penalty
from treft.core.states import capturable
from treft.training import checks
from treft.training.auto_weight import AutoWeight
from treft.training.config import TReFTConfig
from treft.training.dataset import REGION_COLUMNS, as_conversation, draw_row
from treft.training.reference_source import RunReference
from treft.training.terms import LossBatch, Mitigation

logger = logging.getLogger(__name__)

CONVERSATIONS = "conversations"
"""Key under which a training batch carries its conversations, found once a step."""


class KVPenalty(Mitigation):
    """λ L_KV of the trained regions, a mean over the conversations of the optimizer step.

    Args:
        config: the `kv_*` options, with λ > 0.

    Attributes:
        reference: what is held to.
        regularizer: eq. (3) for the model that trains.
    """

    name: ClassVar[str] = "kv"
    told: ClassVar[str] = "the key/value penalty (set kv_weight=0)"
    has_term: ClassVar[bool] = True

    reference: RunReference
    regularizer: KVRegularizer

    def __init__(self, config: TReFTConfig) -> None:
        self.config = config
        self.regions = tuple(cast(list[RegionName], config.kv_regions))
        self._datasets: list[Any] = []
        self._is_open = False
        self._num_conversations = 1

    # ---- The reference ----

    def see(self, dataset: Any) -> None:
        """Remember the rows whose reference is recorded before step 1; later ones come too late."""
        if not self._is_open:
            self._datasets.append(dataset)

    def prepare(self, trainer: SFTTrainer) -> None:
        """Check that the penalty can work on this model, and open the reference."""
        self._model: nn.Module = trainer.model
        self._accelerator = trainer.accelerator
        with capturable(self._model):
            pass
        if self.config.kv_postfix_reference == "training_row":
            self._postfix_row = draw_row(self._datasets[0], self.config.seed)
        # Not of TRL's marked twin: it writes the same text, and files are recorded without it.
        hashed = template_hash(checks.text_tokenizer(trainer.processing_class))
        is_known = all(isinstance(dataset, Dataset) for dataset in self._datasets)
        requests = self._distinct_requests if is_known else None
        self.reference = RunReference(trainer, self.config, hashed, requests)
        self._hold()
        self._is_open = True
        checks.isolation(trainer)
        self._callbacks = trainer.callback_handler
        steering = self.config.auto_weight()
        if steering is not None:
            trainer.add_callback(steering)

    def _hold(self) -> None:
        """Compare with the reference as it now is."""
        config = self.config
        self.regularizer = KVRegularizer(
            self._model,
            self.reference.bank,
            weight=config.first_weight,
            regions=cast(list[RegionName], config.kv_regions),
            region_weights=cast("dict[RegionName, float] | None", config.kv_region_weights),
            keys=config.kv_states != "value",
            values=config.kv_states != "key",
            layers=config.kv_layers,
            postfix_reference=self._postfix,
        )

    @property
    def _postfix(self) -> PostfixReference:
        name = self.config.kv_postfix_reference
        return self._postfix_row if name == "training_row" else name

    def _distinct_requests(self) -> list[ReferenceRequest]:
        found: dict[ReferenceRequest, None] = {}
        for dataset in self._datasets:
            for row in dataset.select_columns(["input_ids", *REGION_COLUMNS]):
                asked = held_requests(as_conversation(row), self.regions, self._postfix)
                found.update(dict.fromkeys(asked))
        return list(found)

    def begin(self, resumed: Path | None = None, output: Path | None = None) -> None:
        """Take up a resumed run's reference; record what must be known before a weight changes.

        Raises:
            ConfigError, ReferenceMismatchError, DataError: the reference is not to be had.
        """
        if resumed is not None:
            self.reference.resume(resumed)
            self._hold()
        self.reference.fix()
        if output is not None:
            self.reference.save(output)

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
            self.regularizer.weight = self.steering.next_weight()

    @contextmanager
    def around_forward(self, batch: LossBatch, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Take the held tokens' states from the first forward of a batch, the one with gradient."""
        if self.name in batch.kept:
            yield inputs
            return
        batch.kept[self.name] = True
        known = batch.regions.get(CONVERSATIONS) or _conversations(batch.inputs, batch.regions)
        with self.regularizer.capture(known):
            yield inputs

    def term(self, batch: LossBatch) -> Tensor:
        """λ L_KV, so that a step's penalty is the mean over all its conversations.

        Gradients are averaged over processes, hence their number; and where `Trainer` divides what
        it gets by the number of accumulated micro-batches, that is undone for the penalty. In
        evaluation it is the mean over the batch.
        """
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
        """Returns what the log shows of a penalty beside its whole, means over the batch.

        With region weights `kv_penalty/<region>`, that region's L_KV before it is weighed; with
        `kv_log_layers` each layer's L_K + L_V as `kv_penalty/layer_<index>`.
        """
        found = {f"kv_penalty/{region}": mean for region, mean in penalty.by_region.items()}
        if self.config.kv_log_layers:
            layers = zip(penalty.layers, penalty.by_layer, strict=True)
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
