"""Eq. (2) for a whole batch in few operations: gather only the tokens that count, stack layers.

Shapes: B batch rows, C batch columns, N conversations that share a reference, H key/value heads,
T tokens compared, D head dimension, S tensors of one shape stacked together, E = layers x kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from treft.drift import squared_norm
from treft.recording import RecordedStates, ReferenceRequest
from treft.states import States

__all__ = ["Entry", "Group", "Placement", "Stack", "group_placements", "stack_references"]

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
    weight: float
    """Share of one token in the document's mean, 1 / |T|."""


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
    is_shared: bool
    """Whether a later batch is likely to bring the same requests."""
    rows: tuple[tuple[int, ...], ...]
    """(N, T) batch rows."""
    columns: tuple[tuple[int, ...], ...]
    """(N, T) batch columns."""
    weights: tuple[tuple[float, ...], ...]
    """(N, T)."""

    def drift(self, states: States, stacks: Sequence[Stack]) -> dict[Entry, Tensor]:
        """Weighted sums of the drift over N and T, a scalar for each entry, with gradient."""
        sums: dict[Entry, Tensor] = {}
        first = states[stacks[0].entries[0].layer].key
        index = self._index(first)
        weights = torch.tensor(self.weights, device=first.device)
        for entries, reference, norms in stacks:
            found = torch.stack([index.take(states[layer][kind]) for layer, kind in entries])
            drift = squared_norm(found.float() - reference) / norms
            summed = (drift * weights.to(drift.device)).sum(dim=(1, 2))
            sums.update(zip(entries, summed.unbind(), strict=True))
        return sums

    def _index(self, example: Tensor) -> _Index:
        """How to gather this group's tokens from a (B, H, C, D) tensor."""
        columns = self.columns[0]
        every_row = [row[0] for row in self.rows] == list(range(example.shape[0]))
        is_run = columns == tuple(range(columns[0], columns[-1] + 1))
        one_row_each = all(len(set(row)) == 1 for row in self.rows)
        if every_row and is_run and one_row_each and len(set(self.columns)) == 1:
            return _Slice(columns[0], columns[-1] + 1)
        return _Gather(
            torch.tensor(self.rows, device=example.device),
            torch.tensor(self.columns, device=example.device),
        )


class _Slice(NamedTuple):
    """The same run of columns in every row: a view, nothing is copied."""

    start: int
    end: int

    def take(self, tensor: Tensor) -> Tensor:
        """(B, H, C, D) -> (B, H, T, D)."""
        return tensor[:, :, self.start : self.end]


class _Gather(NamedTuple):
    """Any rows and columns, (N, T) each."""

    rows: Tensor
    columns: Tensor

    def take(self, tensor: Tensor) -> Tensor:
        """(B, H, C, D) -> (N, H, T, D)."""
        rows, columns = self.rows.to(tensor.device), self.columns.to(tensor.device)
        return tensor.transpose(1, 2)[rows, columns].transpose(1, 2)


_Index = _Slice | _Gather


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
        is_shared=placements[0].is_shared,
        rows=tuple((found.row,) * num_tokens for found in placements),
        columns=tuple(found.columns for found in placements),
        weights=tuple((found.weight,) * num_tokens for found in placements),
    )


def _joined(placements: Sequence[Placement]) -> Group:
    """Several requests end to end, each at its one place."""
    rows: list[int] = []
    columns: list[int] = []
    weights: list[float] = []
    for found in placements:
        rows += [found.row] * len(found.columns)
        columns += found.columns
        weights += [found.weight] * len(found.columns)
    return Group(
        requests=tuple(found.request for found in placements),
        is_shared=False,
        rows=(tuple(rows),),
        columns=(tuple(columns),),
        weights=(tuple(weights),),
    )


def stack_references(
    references: Sequence[RecordedStates], entries: Sequence[Entry], states: States, num_rows: int
) -> list[Stack]:
    """Lay references end to end and stack the entries whose tensors agree in shape and device.

    Args:
        references: of a group's requests in their order, layer -> (H, T_i, D).
        entries: what to hold.
        states: the batch's states, which say where each layer lives.
        num_rows: N of the group, to bound the size of one stack.
    """
    by_kin: dict[object, list[tuple[Entry, Tensor]]] = {}
    for entry in entries:
        device = states[entry.layer][entry.kind].device
        parts = [found[entry.layer][entry.kind] for found in references]
        joined = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(device).float()
        by_kin.setdefault((joined.shape, device), []).append((entry, joined))
    stacks = []
    for kin in by_kin.values():
        size = max(1, MAX_STACKED_VECTORS // (num_rows * kin[0][1].shape[1]))
        for chunk in (kin[start : start + size] for start in range(0, len(kin), size)):
            reference = torch.stack([tensor for _, tensor in chunk]).unsqueeze(1)
            stacks.append(
                Stack(tuple(entry for entry, _ in chunk), reference, squared_norm(reference))
            )
    return stacks
