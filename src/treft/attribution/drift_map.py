"""Drift of keys and values (eq. (2)) by layer and token: where a finetune has moved a prompt.

Every token is compared with the same token of the same prompt in the unfinetuned model, the postfix
too: what a map shows is the finetune's doing alone, and a model compared with itself has drift 0.
(A *patch* of the postfix takes its states from an empty query instead.)

Shapes: P prompts, L layers, T tokens of a prompt's regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName, template_hash
from treft.core.conversations import own_request, prefix_request
from treft.core.drift import token_drift
from treft.core.recording import RecordedStates, ReferenceRequest, other_model
from treft.core.reference import ReferenceBank
from treft.errors import DataError, ReferenceStatesError
from treft.statistics.intervals import FloatArray


class RegionDrift(NamedTuple):
    """L_K and L_V of each prompt and layer, (P, L) each: means over a region's tokens."""

    key: FloatArray
    value: FloatArray

    @property
    def by_prompt(self) -> FloatArray:
        """L_KV of each prompt (P,): mean over layers of L_K + L_V (eq. (3))."""
        found: FloatArray = (self.key + self.value).mean(axis=1)
        return found


@dataclass(frozen=True)
class DriftMap:
    """Drift of chosen tokens of P prompts; dimensionless, 0 where nothing moved.

    Attributes:
        chats: the prompts, rendered.
        regions: whose tokens were compared.
        positions: of each prompt's compared tokens (T,), ascending.
        layers: that were compared (L,), ascending.
        key: drift of each prompt's keys (L, T).
        value: drift of each prompt's values (L, T).
    """

    chats: tuple[ChatRegions, ...]
    regions: tuple[RegionName, ...]
    positions: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    key: tuple[FloatArray, ...]
    value: tuple[FloatArray, ...]

    @property
    def is_zero(self) -> bool:
        """Whether no key and no value differs from the unfinetuned model's."""
        return not any(part.any() for part in (*self.key, *self.value))

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """Text of each compared token (T,), prompt by prompt."""
        return tuple(
            tuple(chat.text[slice(*chat.offsets[place])] for place in places)
            for chat, places in zip(self.chats, self.positions, strict=True)
        )

    def region(self, region: RegionName) -> RegionDrift:
        """Drift of one region, prompt by prompt and layer by layer.

        Raises:
            DataError: the region was not compared.
        """
        if region not in self.regions:
            raise DataError(f"the map is of {', '.join(self.regions)}, not of {region}.")
        columns = [
            np.flatnonzero(np.isin(places, chat.positions(region)))
            for chat, places in zip(self.chats, self.positions, strict=True)
        ]
        return RegionDrift(*(_means(parts, columns) for parts in (self.key, self.value)))


def drift_map(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    bank: ReferenceBank,
    chats: Sequence[ChatRegions],
    regions: Sequence[RegionName] = ("prefix", "query", "postfix"),
    *,
    batch_size: int = 16,
) -> DriftMap:
    """Compare the model's keys and values with the unfinetuned model's.

    Args:
        model: the finetuned model.
        tokenizer: its tokenizer.
        bank: of the unfinetuned model. Without a source (a file) it must hold the very prompts;
            for prefixes that is common, for others it is not.
        chats: prompts, rendered for an answer.
        regions: which tokens; every prompt must have them.
        batch_size: prompts whose states are held at a time.

    Raises:
        DataError: there is no prompt.
        TemplateError: a prompt lacks a region.
        ReferenceMismatchError: the bank is of another model or template, or lacks a prompt.
        ReferenceStatesError: a key or value is NaN, infinite or, in the reference, zero.
    """
    if not chats or not regions:
        raise DataError("a drift map needs at least one prompt and one region.")
    positions = [sorted(p for region in regions for p in chat.require(region)) for chat in chats]
    if bank.identity is not None:
        bank.check_origin(model, template_hash(tokenizer))
    own = ReferenceBank(other_model(model))
    layers: tuple[int, ...] = ()
    keys: list[FloatArray] = []
    values: list[FloatArray] = []
    for start in range(0, len(chats), batch_size):
        batch = [_requests(chat, regions) for chat in chats[start : start + batch_size]]
        reference = _look_up(bank, batch)
        running = _running(own, batch)
        for requests in batch:
            parts = [(running[request], reference[request]) for request in requests]
            layers = tuple(parts[0][1])
            keys.append(_drift(parts, 0, layers))
            values.append(_drift(parts, 1, layers))
    return DriftMap(
        tuple(chats),
        tuple(regions),
        tuple(map(tuple, positions)),
        layers,
        tuple(keys),
        tuple(values),
    )


def _requests(chat: ChatRegions, regions: Sequence[RegionName]) -> list[ReferenceRequest]:
    """The prefix, which prompts share, and all other tokens in one run; ascending positions."""
    requests = [prefix_request(chat)] if "prefix" in regions else []
    others = [place for region in regions if region != "prefix" for place in chat.require(region)]
    if others:
        requests.append(own_request(chat, sorted(others), " or ".join(regions)))
    return requests


def _look_up(
    bank: ReferenceBank, batch: Sequence[Sequence[ReferenceRequest]]
) -> dict[ReferenceRequest, RecordedStates]:
    """States by request; those that end with the prefix stay in the bank."""
    whole = [request for requests in batch for request in requests if _is_prefix(request)]
    rest = [request for requests in batch for request in requests if not _is_prefix(request)]
    found = [*bank.get(whole), *bank.look_up(rest)]
    return dict(zip([*whole, *rest], found, strict=True))


def _is_prefix(request: ReferenceRequest) -> bool:
    return len(request.keep) == len(request.token_ids)


def _running(
    bank: ReferenceBank, batch: Sequence[Sequence[ReferenceRequest]]
) -> dict[ReferenceRequest, RecordedStates]:
    try:
        return _look_up(bank, batch)
    except ReferenceStatesError as error:
        raise ReferenceStatesError(f"in the finetuned model, not in its base: {error}") from error


def _drift(
    parts: Sequence[tuple[RecordedStates, RecordedStates]], kind: int, layers: Sequence[int]
) -> FloatArray:
    """Keys (0) or values (1) of one prompt, (L, T)."""
    drift: list[Tensor] = []
    for layer in layers:
        found = [
            token_drift(states[layer][kind], reference[layer][kind].to(states[layer][kind].device))
            for states, reference in parts
        ]
        drift.append(torch.cat(found).cpu())
    array: FloatArray = torch.stack(drift).double().numpy()
    return array


def _means(parts: Sequence[FloatArray], columns: Sequence[NDArray[np.intp]]) -> FloatArray:
    """Means over each prompt's columns, (P, L)."""
    found: FloatArray = np.stack(
        [part[:, chosen].mean(axis=1) for part, chosen in zip(parts, columns, strict=True)]
    )
    return found
