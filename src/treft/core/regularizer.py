"""Eq. (3): a penalty on the drift of keys and values, to add to any loss.

Shapes: L layers, P parts (regions with weights of their own, or one part for all held regions);
the tensor work is in `treft.core.batched_drift`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from treft.chat.regions import REGION_CODES, RegionName
from treft.core.batched_drift import (
    Entry,
    Group,
    Placement,
    Stack,
    Taker,
    group_placements,
    stack_references,
)
from treft.core.documents import Document, require_region
from treft.core.recording import RecordedStates, ReferenceRequest
from treft.core.reference import ReferenceBank
from treft.core.requests import PostfixReference, own_request, postfix_requests, prefix_request
from treft.core.states import KeyValue, listen, pretrained_model, resolve_layers
from treft.errors import AttentionError, ConfigError, DataError

MAX_PREPARED = 32
"""Shared references that stay stacked and ready on the device."""


@dataclass(frozen=True)
class Penalty:
    """The penalty of one batch.

    Attributes:
        raw_sum: sum over the documents of (1/L) Σ_l (L_K + L_V), a float32 scalar with gradient.
        num_documents: documents it sums over; a trainer that accumulates gradient divides by those
            of the whole step.
        weight: λ.
        layers: layer indices in the order of `key` and `value`.
        key: L_K of each layer, mean over the documents, (L,), without gradient; zeros if not held.
        value: L_V likewise.
        by_region: with region weights, L_KV of each region alone before it is weighed, mean over
            the documents, a scalar without gradient; empty otherwise.
    """

    raw_sum: Tensor
    num_documents: int
    weight: float
    layers: tuple[int, ...]
    key: Tensor
    value: Tensor
    by_region: Mapping[RegionName, Tensor] = field(default_factory=dict)

    @property
    def raw(self) -> Tensor:
        """L_KV of eq. (3): the mean over the batch's documents."""
        return self.raw_sum / max(1, self.num_documents)

    @property
    def weighted(self) -> Tensor:
        """λ L_KV: what to add to the loss."""
        return self.weight * self.raw

    @property
    def per_layer(self) -> dict[int, float]:
        """L_K + L_V by layer; reading it waits for the device."""
        return dict(zip(self.layers, (self.key + self.value).tolist(), strict=True))


class KVRegularizer:
    """Hold the keys and values of template tokens at the unfinetuned model's.

        documents = documents_of_batch(input_ids, codes, turns, attention_mask)
        with regularizer.capture(documents):
            loss = model(input_ids, attention_mask=attention_mask, labels=labels).loss
        loss = loss + regularizer.penalty().weighted

    The prefix is compared with a reference that prompts share (see `treft.core.requests`); query,
    postfix and response with the conversation itself as the reference model reads it. Without the
    query held, `postfix_reference` may name another reference for the postfix.

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

    def __init__(
        self,
        model: nn.Module,
        bank: ReferenceBank,
        *,
        weight: float = 1.0,
        regions: Sequence[RegionName] = ("prefix",),
        region_weights: Mapping[RegionName, float] | None = None,
        keys: bool = True,
        values: bool = True,
        layers: Sequence[int] | None = None,
        postfix_reference: PostfixReference = "own_query",
    ) -> None:
        unknown = [region for region in regions if region not in REGION_CODES]
        if unknown or not regions:
            raise ConfigError(f"regions must be some of {list(REGION_CODES)}, not {list(regions)}.")
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"weight must be a finite number of at least 0, not {weight}.")
        if not (keys or values):
            raise ConfigError("keys, values or both must be held.")
        self.model = model
        self.bank = bank
        self.weight = weight
        self.regions = tuple(regions)
        if region_weights is not None:
            check_region_weights("region_weights", region_weights, regions)
        self.region_weights = region_weights
        self.kinds = tuple(
            kind for kind, held in zip(KeyValue._fields, (keys, values), strict=True) if held
        )
        self.layers = None if layers is None else tuple(resolve_layers(model, layers))
        self.postfix_reference = postfix_reference
        self._parts = {REGION_CODES[name]: part for part, name in enumerate(self.regions)}
        self._num_documents = 0
        self._taker: Taker | None = None
        self._prepared: OrderedDict[tuple[ReferenceRequest, ...], list[Stack]] = OrderedDict()

    @contextmanager
    def capture(self, documents: Sequence[Document]) -> Iterator[None]:
        """Take the held tokens' keys and values from the forward made inside the block.

        Args:
            documents: the conversations of that forward's batch, from `documents_of_batch`. Nothing
                but their held tokens is kept in memory.

        Raises:
            AttentionError: keys and values cannot be captured from this model.
            DataError: there is no document, or one lacks a held region; the model is not run.
        """
        self._num_documents, self._taker = len(documents), None
        if self.weight == 0:
            yield
            return
        taker = self._new_taker(documents)
        with listen(self.model, taker.receive):
            yield
        self._taker = taker

    def penalty(self) -> Penalty:
        """Eq. (3) for the forward that was captured last; its states are let go afterwards.

        Raises:
            AttentionError: no forward was captured.
            ReferenceMismatchError: the bank lacks a reference and cannot record it.
            ReferenceStatesError: a recorded reference is NaN, infinite or zero.
        """
        if self.weight == 0:
            nothing = torch.zeros((), device=pretrained_model(self.model).device)
            return Penalty(
                nothing, self._num_documents, 0.0, (), nothing[None][:0], nothing[None][:0]
            )
        taker, self._taker = self._taker, None
        if taker is None:
            raise AttentionError("run the model inside capture() before asking for a penalty.")
        return self._compare(taker, self._num_documents)

    def requests(self, document: Document) -> list[ReferenceRequest]:
        """What the bank must hold for this document, e.g. to `pin` it before training.

        Raises:
            DataError: the document lacks a held region.
        """
        return [*self._shared_requests(document), *self._own_requests(document)]

    def _shared_requests(self, document: Document) -> list[ReferenceRequest]:
        """References that other documents may share."""
        for region in self.regions:
            require_region(document, region)
        found = []
        if "prefix" in self.regions:
            found.append(prefix_request(document, document.first_position))
        if "postfix" in self.regions and not self._reads_query:
            found += postfix_requests(document, self.postfix_reference, document.first_position)
        return found

    @property
    def _reads_query(self) -> bool:
        """Whether the postfix reference is the conversation itself."""
        return "query" in self.regions or self.postfix_reference == "own_query"

    def _own_requests(self, document: Document) -> list[ReferenceRequest]:
        """The document itself, for the regions whose states depend on its query."""
        own = {REGION_CODES[region] for region in self.regions if region in ("query", "response")}
        if "postfix" in self.regions and self._reads_query:
            own.add(REGION_CODES["postfix"])
        positions = [index for index, code in enumerate(document.codes) if code in own]
        if not own:
            return []
        return [own_request(document, positions, "held", document.first_position)]

    def _placements(self, document: Document) -> list[Placement]:
        """Where the held tokens of a document lie, and what to compare them with."""
        shared = [(request, True) for request in self._shared_requests(document)]
        requests = shared + [(request, False) for request in self._own_requests(document)]
        indices = [
            [position - document.first_position for position in request.positions]
            for request, _ in requests
        ]
        parts = [[self._part_of(document.codes[index]) for index in found] for found in indices]
        num_tokens = Counter(chain.from_iterable(parts))
        return [
            Placement(
                request,
                is_shared,
                document.row,
                columns=tuple(document.start + index for index in found),
                shares=tuple(1 / num_tokens[part] for part in of_tokens),
                parts=tuple(of_tokens),
            )
            for (request, is_shared), found, of_tokens in zip(requests, indices, parts, strict=True)
        ]

    def _part_of(self, code: int) -> int:
        """Which part of the penalty a token of this region counts to."""
        return 0 if self.region_weights is None else self._parts[code]

    def _new_taker(self, documents: Sequence[Document]) -> Taker:
        """What to copy out of the forward for these documents."""
        if not documents:
            raise DataError("the batch holds no conversation with a region to hold.")
        placements = [found for document in documents for found in self._placements(document)]
        kinds = [index for index, kind in enumerate(KeyValue._fields) if kind in self.kinds]
        return Taker(group_placements(placements), kinds, self.layers)

    def _compare(self, taker: Taker, num_documents: int) -> Penalty:
        """Eq. (3) from the tokens that were taken."""
        absent = sorted(set(self.layers or ()) - {entry.layer for entry in taker.taken[0]})
        if absent:
            raise ConfigError(f"layers {absent} have no attention whose keys could be held.")
        waiting = [group for group in taker.groups if group.requests not in self._prepared]
        references = self._references(waiting)
        num_parts = 1 if self.region_weights is None else len(self.regions)
        totals: dict[Entry, Tensor] = {}
        for group, taken in zip(taker.groups, taker.taken, strict=True):
            stacks = self._prepared.get(group.requests)
            if stacks is None:
                found = [references[request] for request in group.requests]
                stacks = stack_references(found, taken)
                self._keep(group, stacks)
            for entry, summed in group.drift(taken, stacks, num_parts).items():
                totals[entry] = totals[entry] + summed if entry in totals else summed
        return self._sum_up(totals, num_documents)

    def _keep(self, group: Group, stacks: list[Stack]) -> None:
        """Spare later batches with the same reference the stacking."""
        if group.is_shared:
            self._prepared[group.requests] = stacks
            if len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)

    def _references(self, groups: Sequence[Group]) -> dict[ReferenceRequest, RecordedStates]:
        """The bank keeps what other conversations can use, and forgets the rest."""
        held: dict[ReferenceRequest, bool] = {}
        for group in groups:
            held.update(zip(group.requests, group.shared, strict=True))
        shared = [request for request, is_shared in held.items() if is_shared]
        own = [request for request, is_shared in held.items() if not is_shared]
        return {
            **dict(zip(shared, self.bank.get(shared), strict=True)),
            **dict(zip(own, self.bank.look_up(own), strict=True)),
        }

    def _sum_up(self, totals: dict[Entry, Tensor], num_documents: int) -> Penalty:
        """Add the entries up, on the device of the first layer."""
        layers = tuple(dict.fromkeys(entry.layer for entry in totals))
        device = next(iter(totals.values())).device
        by_part = torch.stack([summed.to(device) for summed in totals.values()])  # (E, P)
        stacked, by_region = self._weigh(by_part)
        means = stacked.detach() / num_documents
        by_kind = [torch.zeros(len(layers), device=device) for _ in KeyValue._fields]
        for kind, by_layer in enumerate(by_kind):
            held = [index for index, entry in enumerate(totals) if entry.kind == kind]
            if held:
                by_layer += means[held]
        raw_sum = stacked.sum() / len(layers)
        scale = 1 / (len(layers) * num_documents)
        own = {region: summed * scale for region, summed in by_region.items()}
        key, value = by_kind
        return Penalty(raw_sum, num_documents, self.weight, layers, key, value, own)

    def _weigh(self, by_part: Tensor) -> tuple[Tensor, dict[RegionName, Tensor]]:
        """(E, P) -> the weighted sum over parts, (E,), and each region's own sum over entries."""
        if self.region_weights is None:
            return by_part[:, 0], {}
        weights = [self.region_weights[region] for region in self.regions]
        own = by_part.detach().sum(dim=0).unbind()
        weighted = (by_part * torch.tensor(weights, device=by_part.device)).sum(dim=1)
        return weighted, dict(zip(self.regions, own, strict=True))


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
    unknown = [region for region in weights if region not in REGION_CODES]
    if unknown:
        raise ConfigError(
            f"{option} names {', '.join(map(str, unknown))}: regions are {', '.join(REGION_CODES)}."
        )
    if set(weights) != set(regions):
        raise ConfigError(
            f"{option} must weigh each held region and no other: it weighs "
            f"{', '.join(weights) or 'none'}, held are {', '.join(regions)}."
        )
    bad = {region: weight for region, weight in weights.items() if not 0 <= weight < float("inf")}
    if bad or not any(weights.values()):
        raise ConfigError(
            f"{option} must be finite numbers ≥ 0, not all of them 0; got {dict(weights)}."
        )
