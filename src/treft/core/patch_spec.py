"""What to replace: regions, keys or values, layers, tokens; and whose states go there.

    spec = PatchSpec("prefix keys", ("prefix",), kinds=("key",))
    rows = row_patches(spec, chats, range(len(chats)), ReferenceBank(other_model(base)))

The bank says whose states replace the model's: those of the unfinetuned model (`adapter_off`,
`other_model`), of the model itself (`other_model(model)`, which changes nothing), or those that the
unfinetuned model has at random tokens (`random_tokens_source`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from treft.chat import PATCHABLE as PATCHABLE
from treft.chat.regions import ChatRegions, RegionName
from treft.core.conversations import PostfixReference, region_requests
from treft.core.patching import KINDS, RowPatch, StateKind, draw_tokens
from treft.core.recording import RecordedStates, ReferenceRequest, Source
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError


@dataclass(frozen=True)
class PatchSpec:
    """Which keys and values of a prompt are replaced.

    Attributes:
        name: what the patch is called in tables.
        regions: prefix, query and postfix, or some; the postfix of every turn, and prefix and query
            as far as the conversation has them. None of them: nothing is replaced.
        kinds: keys, values or both.
        layers: in which layers, counted from 0; None means all.
        window: only the region's tokens [start, end), counted in its first turn from 0, as far as
            the conversation has them; None means all tokens of all turns. Needs a single region.
        num_positions: only so many tokens of each region (all when it has fewer), drawn at random
            for each conversation; None means all.
        position_seed: of that draw, together with the conversation's index.

    Raises:
        ConfigError: a field has a value that means nothing.
    """

    name: str
    regions: tuple[RegionName, ...]
    kinds: tuple[StateKind, ...] = KINDS
    layers: tuple[int, ...] | None = None
    window: tuple[int, int] | None = None
    num_positions: int | None = None
    position_seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"regions to patch are some of {list(PATCHABLE)}, not {unknown}.")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ConfigError(f"kinds to patch are some of {list(KINDS)}, not {list(self.kinds)}.")
        if self.layers is not None and not all(layer >= 0 for layer in self.layers):
            raise ConfigError(f"layers are counted from 0, so {list(self.layers)} cannot be.")
        if self.layers == ():
            raise ConfigError("name at least one layer to patch, or None for all.")
        if self.window is not None:
            self._check_window(*self.window)
        if self.num_positions is not None and self.num_positions < 1:
            raise ConfigError(f"num_positions is {self.num_positions}; patch at least one token.")

    def _check_window(self, start: int, end: int) -> None:
        if len(self.regions) != 1:
            raise ConfigError("a window is one of a single region; make a patch for each.")
        if not 0 <= start < end:
            raise ConfigError(f"the window is [{start}, {end}); it must hold at least one token.")

    @property
    def is_whole(self) -> bool:
        """Whether every token of the regions is replaced, with keys and values in all layers."""
        return (
            self.layers is None
            and self.window is None
            and self.num_positions is None
            and set(self.kinds) == set(KINDS)
        )


def row_patches(
    spec: PatchSpec,
    chats: Sequence[ChatRegions],
    indices: Sequence[int],
    bank: ReferenceBank,
    postfix_reference: PostfixReference = "empty_query",
) -> list[list[RowPatch]]:
    """Returns what to replace in each conversation; columns count from its first token.

    Args:
        spec: which states.
        chats: the conversations, one a row.
        indices: their numbers, by which tokens are drawn.
        bank: whose states replace them. It keeps those of prefixes and postfixes, which come again,
            and none of a query.
        postfix_reference: "empty_query" (nothing of the query leaks in), "own_query", or a
            training row.

    Raises:
        DataError: a conversation lacks a region.
        ReferenceMismatchError: the bank lacks a reference and cannot record it.
    """
    plans = [
        [region_requests(chat, region, postfix_reference) for region in spec.regions]
        for chat in chats
    ]
    states: dict[ReferenceRequest, RecordedStates] = {}
    for part, region in enumerate(spec.regions):
        wanted = [request for plan in plans for request in plan[part]]
        ask = bank.look_up if region == "query" else bank.get
        states.update(zip(wanted, ask(wanted), strict=True))
    return [
        _row(spec, chat, index, plan, states)
        for chat, index, plan in zip(chats, indices, plans, strict=True)
    ]


def _row(
    spec: PatchSpec,
    chat: ChatRegions,
    index: int,
    plan: Sequence[Sequence[ReferenceRequest]],
    states: Mapping[ReferenceRequest, RecordedStates],
) -> list[RowPatch]:
    """Returns one conversation's replacements; `plan` has its requests, region by region."""
    rng = random.Random(f"{spec.position_seed}/{index}")
    row: list[RowPatch] = []
    for requests in plan:
        found = [
            RowPatch(request.positions, states[request], spec.kinds, spec.layers)
            for request in requests
        ]
        if spec.window is not None:
            found = [_windowed(patch, chat, spec) for patch in found]
        if spec.num_positions is not None:
            found = draw_tokens(rng, found, spec.num_positions)
        row += [patch for patch in found if len(patch)]
    return row


def _windowed(patch: RowPatch, chat: ChatRegions, spec: PatchSpec) -> RowPatch:
    """The patch at those of its tokens that are in the window, possibly none."""
    (region,) = spec.regions
    assert spec.window is not None
    positions = chat.positions(region)
    first_turn = chat.positions(region, chat.turns[positions[0]])
    inside = first_turn[slice(*spec.window)]
    return patch.only([token for token, at in enumerate(patch.columns) if at in inside])


def random_tokens_source(source: Source, token_ids: Sequence[int], seed: int = 0) -> Source:
    """Returns `source` with random tokens in the place of those whose states are kept.

    The control for a patch: as many keys and values of the same model at the same positions, which
    know nothing of the tokens that stand there. The tokens that come before them, if they are not
    kept themselves, stay. The same request always gets the same tokens.

    Args:
        source: records the unfinetuned model.
        token_ids: what may be drawn; no special tokens, if they are to be words.
        seed: of the draw, together with the request.
    """

    def drawn(request: ReferenceRequest) -> ReferenceRequest:
        rng = random.Random(f"{seed}/{request}")
        ids = list(request.token_ids)
        for index in request.keep:
            ids[index] = rng.choice(token_ids)
        return dataclasses.replace(request, token_ids=tuple(ids))

    return lambda requests: source([drawn(request) for request in requests])
