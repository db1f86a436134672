"""Eq. (2) for a whole batch in few operations: gather only the tokens that count, stack layers.

Shapes: B batch rows, C batch columns, N conversations that share a reference, H key/value heads,
T tokens compared, D head dimension, S tensors of one shape stacked together, E = layers x kinds,
P parts of a document's penalty (its held regions, or one part for all of them together).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from treft.core.drift import squared_norm
from treft.core.recording import RecordedStates, ReferenceRequest
from treft.core.states import KeyValue

MAX_STACKED_VECTORS = 65_536
"""Vectors of one stacked operation; more are split, which bounds the memory of the copies."""

MAX_SINGLE_GROUPS = 2
"""References used once in a batch that are compared on their own; more are joined end to end."""


class Entry(NamedTuple):
    """One tensor to hold: a layer's keys (kind 0) or values (kind 1)."""

    layer: int
    kind: int


class Placement(NamedTuple):
    """Where one document's copy of a reference lies in the batch."""

    request: ReferenceRequest
    is_shared: bool
    """Whether conversations with another query may have the same request."""
    row: int
    columns: tuple[int, ...]
    shares: tuple[float, ...]
    """Of each token in the mean of its part, 1 / |T|."""
    parts: tuple[int, ...]
    """Which part of the penalty each token belongs to."""


class Stack(NamedTuple):
    """References of entries that share shape and device, ready to compare with."""

    entries: tuple[Entry, ...]
    reference: Tensor
    """(S, 1, H, T, D) in float32."""
    norms: Tensor
    """(S, 1, T), squared."""


class Group(NamedTuple):
    """Equally long runs of tokens that are compared with one reference, broadcast over N.

    References used by one document each are laid end to end and form one group with N = 1.
    """

    requests: tuple[ReferenceRequest, ...]
    shared: tuple[bool, ...]
    """Whether conversations with another query may have each request."""
    rows: tuple[tuple[int, ...], ...]
    """(N, T) batch rows."""
    columns: tuple[tuple[int, ...], ...]
    """(N, T) batch columns."""
    shares: tuple[tuple[float, ...], ...]
    """(N, T), of each token in the mean of its part."""
    parts: tuple[tuple[int, ...], ...]
    """(N, T), which part each token belongs to."""

    @property
    def is_shared(self) -> bool:
        """Whether a later batch is likely to bring the same group of requests."""
        return self.shared == (True,)

    def locate(self, num_rows: int, device: torch.device) -> Index:
        """How to take this group's tokens from a batch of `num_rows` rows on `device`."""
        columns = self.columns[0]
        every_row = [row[0] for row in self.rows] == list(range(num_rows))
        one_row_each = all(len(set(row)) == 1 for row in self.rows)
        same_columns = len(set(self.columns)) == 1
        is_run = columns == tuple(range(columns[0], columns[-1] + 1))
        if every_row and one_row_each and same_columns and is_run:
            return _Slice(columns[0], columns[-1] + 1)
        return _Gather(
            torch.tensor(self.rows, device=device), torch.tensor(self.columns, device=device)
        )

    def drift(self, taken: Taken, stacks: Sequence[Stack], num_parts: int) -> dict[Entry, Tensor]:
        """Token means of the drift by part, summed over N: (P,) an entry, with gradient."""
        sums: dict[Entry, Tensor] = {}
        for entries, reference, norms in stacks:
            found = torch.stack([taken[entry] for entry in entries]).float()
            drift = squared_norm(found - reference) / norms
            shares = self._shares_by_part(num_parts).to(found.device)
            summed = (drift.unsqueeze(1) * shares).sum(dim=(2, 3))
            sums.update(zip(entries, summed.unbind(), strict=True))
        return sums

    def _shares_by_part(self, num_parts: int) -> Tensor:
        """(P, N, T), zero where a token belongs to another part."""
        shares, parts = torch.tensor(self.shares), torch.tensor(self.parts)
        return shares * (parts == torch.arange(num_parts)[:, None, None])


Taken = dict[Entry, Tensor]
"""A group's tokens of each held tensor, (N, H, T, D), part of the model's graph."""


class _Slice(NamedTuple):
    """The same run of columns in every row."""

    start: int
    end: int

    def take(self, tensor: Tensor) -> Tensor:
        """Copy (B, H, C, D) -> (B, H, T, D), so that the rest need not be kept."""
        return tensor[:, :, self.start : self.end].clone()


class _Gather(NamedTuple):
    """Any rows and columns, (N, T) each."""

    rows: Tensor
    columns: Tensor

    def take(self, tensor: Tensor) -> Tensor:
        """Copy (B, H, C, D) -> (N, H, T, D)."""
        taken: Tensor = _TakeTokens.apply(tensor, self.rows, self.columns)  # type: ignore[no-untyped-call]
        return taken


Index = _Slice | _Gather


class _TakeTokens(torch.autograd.Function):
    """Advanced indexing that saves no tensor, so that checkpointing's replay may leave it out.

    No token is taken twice, so the backward pass may write instead of adding up.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.rows, ctx.columns, ctx.shape = rows, columns, tensor.shape
        return tensor.transpose(1, 2)[rows, columns].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        full = gradient.new_zeros(ctx.shape)
        full.transpose(1, 2)[ctx.rows, ctx.columns] = gradient.transpose(1, 2)
        return full, None, None


class Taker:
    """Receives a running model's keys and values and copies out the tokens that groups need.

    Args:
        groups: what to take.
        kinds: which of key (0) and value (1).
        layers: which layers; None for all.
    """

    def __init__(
        self, groups: Sequence[Group], kinds: Sequence[int], layers: Collection[int] | None
    ) -> None:
        self.groups = groups
        self.taken: list[Taken] = [{} for _ in groups]
        self._kinds = kinds
        self._layers = layers
        self._indices: dict[torch.device, list[Index]] = {}

    def receive(self, layer: int, states: KeyValue) -> None:
        """A `treft.core.states.Receiver`."""
        if self._layers is not None and layer not in self._layers:
            return
        num_rows, device = states.key.shape[0], states.key.device
        if device not in self._indices:
            self._indices[device] = [group.locate(num_rows, device) for group in self.groups]
        for index, taken in zip(self._indices[device], self.taken, strict=True):
            for kind in self._kinds:
                taken[Entry(layer, kind)] = index.take(states[kind])


def group_placements(placements: Sequence[Placement]) -> list[Group]:
    """Gather the placements of each request, and join the requests that occur only once."""
    by_request: dict[ReferenceRequest, list[Placement]] = {}
    for placement in placements:
        by_request.setdefault(placement.request, []).append(placement)
    single = [found[0] for found in by_request.values() if len(found) == 1]
    if len(single) <= MAX_SINGLE_GROUPS:
        return [_broadcast(found) for found in by_request.values()]
    groups = [_broadcast(found) for found in by_request.values() if len(found) > 1]
    return [*groups, _joined(single)]


def _broadcast(placements: Sequence[Placement]) -> Group:
    """One request at several places."""
    num_tokens = len(placements[0].columns)
    return Group(
        requests=(placements[0].request,),
        shared=(placements[0].is_shared,),
        rows=tuple((found.row,) * num_tokens for found in placements),
        columns=tuple(found.columns for found in placements),
        shares=tuple(found.shares for found in placements),
        parts=tuple(found.parts for found in placements),
    )


def _joined(placements: Sequence[Placement]) -> Group:
    """Several requests end to end, each at its one place."""
    rows: list[int] = []
    columns: list[int] = []
    shares: list[float] = []
    parts: list[int] = []
    for found in placements:
        rows += [found.row] * len(found.columns)
        columns += found.columns
        shares += found.shares
        parts += found.parts
    return Group(
        requests=tuple(found.request for found in placements),
        shared=tuple(found.is_shared for found in placements),
        rows=(tuple(rows),),
        columns=(tuple(columns),),
        shares=(tuple(shares),),
        parts=(tuple(parts),),
    )


def stack_references(references: Sequence[RecordedStates], taken: Taken) -> list[Stack]:
    """Lay references end to end and stack the entries whose tensors agree in shape and device.

    Args:
        references: of a group's requests in their order, layer -> (H, T_i, D).
        taken: what they will be compared with.
    """
    by_kin: dict[tuple[torch.Size, torch.device], list[tuple[Entry, Tensor]]] = {}
    for entry, found in taken.items():
        parts = [reference[entry.layer][entry.kind] for reference in references]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        kin = by_kin.setdefault((found.shape, found.device), [])
        kin.append((entry, joined.to(found.device).float()))
    stacks = []
    for (shape, _), kin in by_kin.items():
        size = max(1, MAX_STACKED_VECTORS // (shape[0] * shape[2]))
        for chunk in (kin[start : start + size] for start in range(0, len(kin), size)):
            reference = torch.stack([tensor for _, tensor in chunk]).unsqueeze(1)
            stacks.append(
                Stack(tuple(entry for entry, _ in chunk), reference, squared_norm(reference))
            )
    return stacks
