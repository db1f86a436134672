"""Perturbed prompts: some tokens of one region replaced (section 4.1 of the paper).

Prompts go to the model as token ids, so a perturbed prompt is what it says, token by token, even
where its text would be read as other tokens.

Shapes: V rows of the input embedding, D its size, T tokens of a prompt, K neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName
from treft.core.patch_spec import PATCHABLE
from treft.errors import ConfigError, TemplateError
from treft.models.perturbation import neighbours_of, ordinary_tokens, replace_tokens

Method = Literal["nearest", "random", "rephrase"]
"""Neighbours in the input embedding, any tokens of the vocabulary, or other words by a model."""

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Perturbation:
    """What is perturbed, and how.

    Attributes:
        region: whose tokens are replaced.
        method: where their replacements come from.

    Raises:
        ConfigError: there is no such region or method, or the two do not go together.
    """

    region: RegionName
    method: Method = "nearest"

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if self.region not in PATCHABLE:
            raise ConfigError(f"a region to perturb is one of {', '.join(PATCHABLE)}.")
        if self.method not in METHODS:
            raise ConfigError(f"a method is one of {', '.join(METHODS)}, not {self.method!r}.")
        if self.method == "rephrase" and self.region != "query":
            raise ConfigError(f"only the query is rephrased, not the {self.region}.")

    @property
    def name(self) -> str:
        """Such as `prefix-nearest`."""
        return f"{self.region}-{self.method}"


def default_perturbations(
    regions: Sequence[str], methods: Sequence[str], rephraser: str | None = None
) -> tuple[Perturbation, ...]:
    """Returns each region by each method, and the query rephrased when there is a model for it.

    Raises:
        ConfigError: there is no such region or method.
    """
    found = [
        Perturbation(region, method)  # type: ignore[arg-type]  # checked by Perturbation
        for method in dict.fromkeys(methods)
        for region in dict.fromkeys(regions)
    ]
    if rephraser is not None:
        found.append(Perturbation("query", "rephrase"))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class PerturbOptions:
    """How prompts are perturbed.

    Attributes:
        perturbations: rows of the table.
        num_tokens: tokens replaced in each prompt; all of a region that has fewer.
        num_neighbours: K, nearest tokens one of which is drawn.
        num_trials: perturbed versions of each prompt.
        special_tokens: special and added tokens of the region may give way, too; none ever comes.
        rephraser: Inspect model name; needed for rephrasings, and for nothing else.

    Raises:
        ConfigError: a number is out of range, a perturbation is named twice, or a rephraser and
            rephrasings do not go together.
    """

    perturbations: tuple[Perturbation, ...]
    num_tokens: int = 10
    num_neighbours: int = 5
    num_trials: int = 10
    special_tokens: bool = False
    rephraser: str | None = None

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        for name in ("num_tokens", "num_neighbours", "num_trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.perturbations:
            raise ConfigError("name at least one region and method.")
        if len(set(self.perturbations)) < len(self.perturbations):
            raise ConfigError("a perturbation is named twice.")
        rephrases = any(each.method == "rephrase" for each in self.perturbations)
        if rephrases and self.rephraser is None:
            raise ConfigError("name the model that rephrases (--rephraser MODEL).")
        if not rephrases and self.rephraser is not None:
            raise ConfigError("a rephraser is named, but nothing is to be rephrased.")


class Change(NamedTuple):
    """One token that gave way to another.

    Attributes:
        position: of the token in the prompt.
        old: its id.
        new: the id in its place.
        old_text: its text.
        new_text: the text in its place.
    """

    position: int
    old: int
    new: int
    old_text: str
    new_text: str


@dataclass(frozen=True)
class PerturbedPrompt:
    """One version of one prompt.

    Attributes:
        question_id: whose prompt.
        region: that was perturbed.
        method: how.
        trial: which version, from 1.
        seed: of its random draws; empty where a model drew (rephrasing).
        input_ids: (T,) the prompt as the model is given it.
        text: the same as text; for people, it need not be read as the same tokens.
        num_replaceable: tokens of the region that could have been replaced.
        changes: in the order of positions; none for a rephrasing.
        words: of the rephrased query; None for other methods.
    """

    question_id: str
    region: RegionName
    method: Method
    trial: int
    seed: str
    input_ids: tuple[int, ...]
    text: str
    num_replaceable: int
    changes: tuple[Change, ...] = ()
    words: str | None = None

    @property
    def perturbation(self) -> Perturbation:
        """What was perturbed, and how."""
        return Perturbation(self.region, self.method)


def replaceable(
    chat: ChatRegions,
    region: RegionName,
    ordinary: Collection[int],
    *,
    special_tokens: bool = False,
) -> list[int]:
    """Positions of a region whose tokens may give way.

    Args:
        chat: the prompt.
        region: of it.
        ordinary: tokens that are neither special nor added.
        special_tokens: the others may give way, too.

    Raises:
        TemplateError: the region has no token, or none that may give way.
    """
    positions = chat.require(region)
    if special_tokens:
        return positions
    found = [position for position in positions if chat.input_ids[position] in ordinary]
    if not found:
        raise TemplateError(
            f"the {region} has special tokens alone, which stay: perturb another region, or allow "
            "them to be replaced (--special-tokens)."
        )
    return found


def perturb_tokens(
    tokenizer: PreTrainedTokenizerBase,
    embedding: Tensor,
    chats: Mapping[str, ChatRegions],
    options: PerturbOptions,
    seed: int = 0,
) -> Iterator[PerturbedPrompt]:
    """Perturbed versions of prompts, by their neighbours or by random tokens.

    A version depends on seed, perturbation, question and trial alone, not on other prompts. No
    token is replaced by itself, by a special or added token, or by a row without a token.

    Args:
        tokenizer: of the prompts.
        embedding: (V, D) input embedding matrix.
        chats: prompts by the id of their question.
        options: what is wanted, and how; rephrasings are passed over.
        seed: draws positions and replacements.

    Raises:
        ConfigError: the vocabulary has too few tokens.
        TemplateError: a region of a prompt has no token that may give way.
    """
    ordinary = ordinary_tokens(tokenizer, len(embedding))
    if len(ordinary) < 2:
        raise ConfigError("the tokenizer has no ordinary tokens to put in place of others.")
    wanted = [each for each in options.perturbations if each.method != "rephrase"]
    known = set(ordinary)
    positions = {
        (region, id): replaceable(chat, region, known, special_tokens=options.special_tokens)
        for region in dict.fromkeys(each.region for each in wanted)
        for id, chat in chats.items()
    }
    near = {each.region for each in wanted if each.method == "nearest"}
    tokens = [
        chats[id].input_ids[position]
        for (region, id), found in positions.items()
        if region in near
        for position in found
    ]
    neighbours = neighbours_of(embedding, tokens, options.num_neighbours, ordinary)
    perturber = _Perturber(tokenizer, ordinary, neighbours, options.num_tokens, seed)
    for each in wanted:
        for id, chat in chats.items():
            for trial in range(1, options.num_trials + 1):
                yield perturber.prompt(each, id, chat, positions[each.region, id], trial)


@dataclass(frozen=True)
class _Perturber:
    """What all perturbed prompts have in common."""

    tokenizer: PreTrainedTokenizerBase
    ordinary: Sequence[int]
    neighbours: Mapping[int, Sequence[int]]
    num_tokens: int
    seed: int

    def prompt(
        self, each: Perturbation, id: str, chat: ChatRegions, places: Sequence[int], trial: int
    ) -> PerturbedPrompt:
        """Returns one version of one prompt, with some of its tokens at `places` replaced."""
        seed = f"{self.seed}/{each.name}/{id}/{trial}"
        rng = random.Random(seed)
        candidates = {
            place: self._candidates(each.method, chat.input_ids[place], rng) for place in places
        }
        ids, replaced = replace_tokens(chat.input_ids, candidates, self.num_tokens, rng)
        changes = tuple(
            Change(one.position, one.old, one.new, self._text([one.old]), self._text([one.new]))
            for one in replaced
        )
        return PerturbedPrompt(
            question_id=id,
            region=each.region,
            method=each.method,
            trial=trial,
            seed=seed,
            input_ids=tuple(ids),
            text=self._text(ids),
            num_replaceable=len(places),
            changes=changes,
        )

    def _candidates(self, method: Method, token: int, rng: random.Random) -> Sequence[int]:
        """Returns what may come in place of a token, which is never among them."""
        if method == "nearest":
            return self.neighbours[token]
        drawn = token
        while drawn == token:
            drawn = rng.choice(self.ordinary)
        return (drawn,)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
