"""Perturbed prompts: some tokens of one region replaced (section 4.1 of the paper).

Prompts go to the model as token ids, so a perturbed prompt is what it says, token by token, even
where its text would be read as other tokens.

Shapes: V rows of the input embedding, D its size, N tokens, K neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName
from treft.errors import ConfigError, TemplateError
from treft.models.perturbation import nearest_tokens, replace_tokens

Method = Literal["nearest", "random", "rephrase"]
"""Neighbours in the input embedding, any tokens of the vocabulary, or other words by a model."""

METHODS: tuple[Method, ...] = get_args(Method)
REGIONS: tuple[RegionName, ...] = ("prefix", "query", "postfix")

SEARCH_BYTES = 2**28
"""Memory of the search for neighbours, beside the embedding and its result."""


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
        if self.region not in REGIONS:
            raise ConfigError(f"a region to perturb is one of {', '.join(REGIONS)}.")
        if self.method not in METHODS:
            raise ConfigError(f"a method is one of {', '.join(METHODS)}, not {self.method!r}.")
        if self.method == "rephrase" and self.region != "query":
            raise ConfigError(f"only the query is rephrased, not the {self.region}.")

    @property
    def name(self) -> str:
        """Such as `prefix-nearest`."""
        return f"{self.region}-{self.method}"


@dataclass(frozen=True)
class PerturbOptions:
    """How prompts are perturbed.

    Attributes:
        num_tokens: replaced in each prompt; all of a region that has fewer.
        num_neighbours: K, nearest tokens one of which is drawn.
        num_trials: perturbed versions of each prompt.
        special_tokens: special and added tokens of the region may give way, too; none ever comes.
        seed: draws positions and replacements.

    Raises:
        ConfigError: a number is out of range.
    """

    num_tokens: int = 10
    num_neighbours: int = 5
    num_trials: int = 10
    special_tokens: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        for name in ("num_tokens", "num_neighbours", "num_trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


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


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that may come in place of others.

    Attributes:
        ordinary: ids that have a token, neither special nor added, ascending.
        num_rows: V, of the embedding, which may be padded beyond the tokens.
    """

    ordinary: tuple[int, ...]
    num_rows: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Vocabulary:
        """The vocabulary of a tokenizer and a model with `num_rows` rows of input embedding."""
        barred = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        known = set(tokenizer.get_vocab().values()) - barred
        return cls(tuple(sorted(token for token in known if token < num_rows)), num_rows)

    @property
    def barred(self) -> set[int]:
        """Rows that never come in place of a token."""
        return set(range(self.num_rows)) - set(self.ordinary)


def replaceable(
    chat: ChatRegions, region: RegionName, vocabulary: Vocabulary, *, special_tokens: bool = False
) -> list[int]:
    """Positions of a region whose tokens may give way.

    Args:
        chat: the prompt.
        region: of it.
        vocabulary: which tokens are ordinary.
        special_tokens: the others may give way, too.

    Raises:
        TemplateError: the region has no token, or none that may give way.
    """
    positions = chat.require(region)
    if special_tokens:
        return positions
    ordinary = set(vocabulary.ordinary)
    found = [position for position in positions if chat.input_ids[position] in ordinary]
    if not found:
        raise TemplateError(
            f"the {region} has special tokens alone, which stay: perturb another region, or allow "
            "them to be replaced (--special-tokens)."
        )
    return found


def neighbours_of(
    embedding: Tensor,
    tokens: Sequence[int],
    num: int,
    vocabulary: Vocabulary,
    max_bytes: int = SEARCH_BYTES,
) -> dict[int, tuple[int, ...]]:
    """The nearest ordinary tokens of each token by dot product of input embeddings.

    Args:
        embedding: (V, D) input embedding matrix, in any precision, on any device.
        tokens: N ids.
        num: K.
        vocabulary: which tokens may be neighbours.
        max_bytes: of the search; the rows that are compared at a time follow from it.

    Returns:
        K ids for each token, nearest first.

    Raises:
        ConfigError: there are not as many other tokens, or the embedding is not in memory.
    """
    if num >= len(vocabulary.ordinary):
        raise ConfigError(
            f"num_neighbours is {num}, but the vocabulary has {len(vocabulary.ordinary)} ordinary "
            "tokens: take fewer."
        )
    if embedding.is_meta:
        raise ConfigError("the input embedding is offloaded to disk: keep it in memory to perturb.")
    distinct = sorted(set(tokens))
    if not distinct:
        return {}
    # Each row compared is held once in float32, beside its products with all tokens, which are
    # copied a few times while the best are sorted out.
    row_bytes = 4 * (embedding.shape[1] + 8 * len(distinct))
    found = nearest_tokens(
        embedding,
        distinct,
        num,
        excluded=vocabulary.barred,
        chunk_size=max(1, max_bytes // row_bytes),
    )
    return {token: tuple(row) for token, row in zip(distinct, found.tolist(), strict=True)}


def perturb_tokens(
    tokenizer: PreTrainedTokenizerBase,
    embedding: Tensor,
    chats: Mapping[str, ChatRegions],
    perturbations: Sequence[Perturbation],
    options: PerturbOptions,
) -> Iterator[PerturbedPrompt]:
    """Perturbed versions of prompts, by their neighbours or by random tokens.

    A version depends on seed, perturbation, question and trial alone, not on other prompts. No
    token is replaced by itself, by a special or added token, or by a row without a token.

    Args:
        tokenizer: of the prompts.
        embedding: (V, D) input embedding matrix.
        chats: prompts by the id of their question.
        perturbations: what is wanted; rephrasings are passed over.
        options: how.

    Raises:
        ConfigError: the vocabulary has too few tokens.
        TemplateError: a region of a prompt has no token that may give way.
    """
    vocabulary = Vocabulary.of(tokenizer, len(embedding))
    if len(vocabulary.ordinary) < 2:
        raise ConfigError("the tokenizer has no ordinary tokens to put in place of others.")
    wanted = [each for each in perturbations if each.method != "rephrase"]
    positions = {
        (region, id): replaceable(chat, region, vocabulary, special_tokens=options.special_tokens)
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
    neighbours = neighbours_of(embedding, tokens, options.num_neighbours, vocabulary)
    perturber = _Perturber(tokenizer, vocabulary, neighbours, options)
    for each in wanted:
        for id, chat in chats.items():
            for trial in range(1, options.num_trials + 1):
                yield perturber.prompt(each, id, chat, positions[each.region, id], trial)


@dataclass(frozen=True)
class _Perturber:
    """What all perturbed prompts have in common."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    neighbours: Mapping[int, Sequence[int]]
    options: PerturbOptions

    def prompt(
        self, each: Perturbation, id: str, chat: ChatRegions, places: Sequence[int], trial: int
    ) -> PerturbedPrompt:
        """One version of one prompt, with some of its tokens at `places` replaced."""
        seed = f"{self.options.seed}/{each.name}/{id}/{trial}"
        rng = random.Random(seed)
        candidates = {
            place: self._candidates(each.method, chat.input_ids[place], rng) for place in places
        }
        ids, replaced = replace_tokens(chat.input_ids, candidates, self.options.num_tokens, rng)
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
        """What may come in place of a token, which is never among them."""
        if method == "nearest":
            return self.neighbours[token]
        drawn = token
        while drawn == token:
            drawn = rng.choice(self.vocabulary.ordinary)
        return (drawn,)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
