"""Eq. (3): a penalty on the drift of keys and values, to add to any loss.

Shapes: L layers, K kinds (keys, values or both), P parts (regions with weights of their own, or one
part for all held regions); the tensor work is in `treft.core.drift`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor, nn

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.conversations import Conversation, PostfixReference, held_requests
from treft.core.drift import HeldToken, HeldTokens
from treft.core.recording import RecordedStates, ReferenceRequest
from treft.core.reference import ReferenceBank
from treft.core.states import KeyValue, in_backward, listen, pretrained_model, resolve_layers
from treft.errors import AttentionError, ConfigError, DataError

DriftByLayer = dict[int, Tensor]
"""Layer -> drift of its keys and values by part, summed over the conversations, (K, P)."""


@dataclass(frozen=True)
class Penalty:
    """The penalty of one batch.

    Attributes:
        raw_sum: sum over the conversations of (1/L) Σ_l (L_K + L_V), a float32 scalar with
            gradient.
        num_conversations: that many are summed over; a trainer that accumulates gradient divides by
            those of the whole step.
        weight: λ.
        layers: layer indices in the order of `by_layer`.
        by_layer: L_K + L_V of each layer, mean over the conversations, (L,), without gradient.
        by_region: with region weights, L_KV of each region alone before it is weighed, mean over
            the conversations, a scalar without gradient; empty otherwise.
    """

    raw_sum: Tensor
    num_conversations: int
    weight: float
    layers: tuple[int, ...]
    by_layer: Tensor
    by_region: Mapping[RegionName, Tensor] = field(default_factory=dict)

    @property
    def raw(self) -> Tensor:
        """L_KV of eq. (3): the mean over the batch's conversations."""
        return self.raw_sum / max(1, self.num_conversations)

    @property
    def weighted(self) -> Tensor:
        """λ L_KV: what to add to the loss."""
        return self.weight * self.raw

    @property
    def per_layer(self) -> dict[int, float]:
        """`by_layer` as numbers; reading it waits for the device."""
        return dict(zip(self.layers, self.by_layer.tolist(), strict=True))


@dataclass(eq=False)
class KVRegularizer:
    """Hold the keys and values of template tokens at the unfinetuned model's.

        conversations = conversations_of_batch(input_ids, codes, turns, attention_mask)
        with regularizer.capture(conversations):
            loss = model(input_ids, attention_mask=attention_mask, labels=labels).loss
        loss = loss + regularizer.penalty().weighted

    The prefix is compared with a reference that prompts share (see `treft.core.conversations`);
    query, postfix and response with the conversation itself as the reference model reads it.
    Without the query held, `postfix_reference` may name another reference for the postfix.

    Args:
        model: the model being trained, possibly wrapped.
        bank: where reference states come from.
        weight: λ ≥ 0; with 0 nothing is captured or computed.
        regions: which tokens T to hold; their drift is averaged over all of them together.
        region_weights: w_r ≥ 0 for each of `regions`. The penalty is then Σ_r w_r L_KV(r), each
            region's drift averaged over its own tokens, so that a short region counts as its weight
            says. Default: one mean over the tokens of all regions.
        keys: hold keys (L_K).
        values: hold values (L_V).
        layers: which layers to hold and to average over, negative from the last; default all.
        postfix_reference: "own_query" (default), "empty_query", or a training row with its
            regions; the last two do not depend on the query, so the postfix is asked to forget it.

    Raises:
        ConfigError: an argument is out of range.
    """

    model: nn.Module
    bank: ReferenceBank
    _: KW_ONLY
    weight: float = 1.0
    regions: Sequence[RegionName] = ("prefix",)
    region_weights: Mapping[RegionName, float] | None = None
    keys: bool = True
    values: bool = True
    layers: Sequence[int] | None = None
    postfix_reference: PostfixReference = "own_query"

    def __post_init__(self) -> None:
        """Validate, and work out what belongs to which part of the penalty."""
        unknown = [region for region in self.regions if region not in REGION_CODES]
        if unknown or not self.regions:
            raise ConfigError(
                f"regions must be some of {list(REGION_CODES)}, not {list(self.regions)}."
            )
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight must be a finite number of at least 0, not {self.weight}.")
        if not (self.keys or self.values):
            raise ConfigError("keys, values or both must be held.")
        if self.region_weights is not None:
            check_region_weights("region_weights", self.region_weights, self.regions)
        if self.layers is not None:
            self.layers = resolve_layers(self.model, self.layers)
        self._kinds = [kind for kind, held in enumerate((self.keys, self.values)) if held]
        self._parts = {
            REGION_CODES[name]: 0 if self.region_weights is None else part
            for part, name in enumerate(self.regions)
        }
        self._num_conversations = 0
        self._drift: DriftByLayer | None = None

    @contextmanager
    def capture(self, conversations: Sequence[Conversation]) -> Iterator[None]:
        """Compare the held tokens' keys and values in the forward made inside the block.

        Args:
            conversations: those of that forward's batch, from `conversations_of_batch`. Their
                references are looked up, or recorded, before the model runs.

        Raises:
            AttentionError: keys and values cannot be captured from this model.
            DataError: there is no conversation, or one lacks a held region.
            ReferenceMismatchError: the bank lacks a reference and cannot record it.
            ReferenceStatesError: a recorded reference is NaN, infinite or zero.
        """
        self._num_conversations, self._drift = len(conversations), None
        if self.weight == 0:
            yield
            return
        tokens, requests = self._held(conversations)
        references = self._states(requests)
        drift: DriftByLayer = {}

        def receive(layer: int, states: KeyValue) -> None:
            if self.layers is not None and layer not in self.layers:
                return
            found = []
            for kind in self._kinds:
                reference = torch.cat([known[layer][kind] for known in references], dim=1)
                found.append(tokens.drift(states[kind], reference.to(states[kind].device)))
            by_part = torch.stack(found)
            if not in_backward():  # a replay makes the same again, for the checkpoint alone
                drift[layer] = by_part

        with listen(self.model, receive):
            yield
        self._drift = drift

    def penalty(self) -> Penalty:
        """Eq. (3) for the forward that was captured last, which is then let go.

        Raises:
            AttentionError: no forward was captured.
            ConfigError: a layer to hold has no attention.
        """
        num = self._num_conversations
        if self.weight == 0:
            nothing = torch.zeros((), device=pretrained_model(self.model).device)
            return Penalty(nothing, num, 0.0, (), nothing[None][:0])
        found, self._drift = self._drift, None
        if found is None:
            raise AttentionError("run the model inside capture() before asking for a penalty.")
        layers = tuple(found)
        if absent := sorted(set(self.layers or ()) - set(layers)):
            raise ConfigError(f"layers {absent} have no attention whose keys could be held.")
        device = pretrained_model(self.model).device
        by_part = torch.stack([by_kind.sum(dim=0).to(device) for by_kind in found.values()])  # L, P
        given = self.region_weights
        weights = {} if given is None else {region: given[region] for region in self.regions}
        parts = torch.tensor(list(weights.values()) or [1.0], device=device)
        drift = (by_part * parts).sum(dim=1)  # (L,)
        own = by_part.detach().sum(dim=0) * (1 / (len(layers) * num))  # (P,)
        by_region = dict(zip(weights, own.unbind(), strict=False))
        by_layer = drift.detach() / num
        return Penalty(drift.sum() / len(layers), num, self.weight, layers, by_layer, by_region)

    def _held(
        self, conversations: Sequence[Conversation]
    ) -> tuple[HeldTokens, dict[ReferenceRequest, bool]]:
        """The held tokens of a batch, and the requests whose states end to end are the reference.

        Raises:
            DataError: there is no conversation, or one lacks a held region.
        """
        if not conversations:
            raise DataError("the batch holds no conversation with a region to hold.")
        requests: dict[ReferenceRequest, bool] = {}
        starts: dict[ReferenceRequest, int] = {}
        end, tokens = 0, []
        for one in conversations:
            places: list[tuple[int, int]] = []  # token of the conversation, token of the reference
            asked = held_requests(one, self.regions, self.postfix_reference)
            for request, is_shared in asked.items():
                if request not in requests:
                    requests[request], starts[request] = is_shared, end
                    end += len(request.keep)
                indices = [position - one.first_position for position in request.positions]
                places += zip(indices, range(starts[request], end), strict=False)
            parts = [self._parts[one.codes[index]] for index, _ in places]
            num = Counter(parts)
            tokens += [
                HeldToken(one.row, one.start + index, reference, 1 / num[part], part)
                for (index, reference), part in zip(places, parts, strict=True)
            ]
        num_parts = len(set(self._parts.values()))
        device = pretrained_model(self.model).device
        return HeldTokens.of(tokens, num_parts, device), requests

    def _states(self, requests: Mapping[ReferenceRequest, bool]) -> list[RecordedStates]:
        """The reference of each request; the bank keeps what other conversations can use."""
        shared = [request for request, is_shared in requests.items() if is_shared]
        own = [request for request, is_shared in requests.items() if not is_shared]
        recorded = [*self.bank.get(shared), *self.bank.look_up(own)]
        found = dict(zip([*shared, *own], recorded, strict=True))
        return [found[request] for request in requests]


def check_region_weights(
    option: str, weights: Mapping[RegionName, float], regions: Sequence[RegionName]
) -> None:
    """Weights must be given to the held regions and to no other, and hold at least one.

    Args:
        option: what the weights are called in the error.
        weights: region -> w_r.
        regions: the held regions.

    Raises:
        ConfigError: a region is unknown, not held or without a weight, or a weight is negative.
    """
    if set(weights) != set(regions):
        raise ConfigError(
            f"{option} must weigh each held region and no other: it weighs "
            f"{', '.join(map(str, weights)) or 'none'}, held are {', '.join(regions)}."
        )
    if not all(0 <= w < float("inf") for w in weights.values()) or not any(weights.values()):
        raise ConfigError(
            f"{option} must be finite numbers ≥ 0, not all of them 0; got {dict(weights)}."
        )
