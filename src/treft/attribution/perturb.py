"""Perturbed prompts: some tokens of one region replaced (section 4.1 of the paper).

Prompts go to the model as token ids, so a perturbed prompt is what it says, token by token, even
where its text would be read as other tokens.

Shapes: V rows of the input embedding, D its size, T tokens of a prompt, K neighbours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.attribution.options import Method, Perturbation, PerturbOptions
from treft.attribution.rephrase import Rephrasings
from treft.chat.regions import ChatRegions, RegionName
from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.perturbation import neighbours_of, ordinary_tokens, replace_tokens


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
    special_tokens: bool,
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
    known = set(ordinary)
    places = {
        (each, id): replaceable(chat, each.region, known, options.special_tokens)
        for each in options.perturbations
        if each.method != "rephrase"
        for id, chat in chats.items()
    }
    near = [
        chats[id].input_ids[place]
        for (each, id), found in places.items()
        if each.method == "nearest"
        for place in found
    ]
    neighbours = neighbours_of(embedding, near, options.num_neighbours, ordinary)

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    for ((each, id), found), trial in product(places.items(), range(1, options.num_trials + 1)):
        drawn_from, before = f"{seed}/{each.name}/{id}/{trial}", chats[id].input_ids
        rng, is_near = random.Random(drawn_from), each.method == "nearest"
        new = {
            place: neighbours[before[place]] if is_near else _another(before[place], ordinary, rng)
            for place in found
        }
        ids, replaced = replace_tokens(before, new, options.num_tokens, rng)
        changes = tuple(Change(*one, text([one.old]), text([one.new])) for one in replaced)
        version = (id, each.region, each.method, trial, drawn_from, tuple(ids), text(ids))
        yield PerturbedPrompt(*version, len(found), changes)


def _another(token: int, ordinary: Sequence[int], rng: random.Random) -> tuple[int]:
    """Draws any other ordinary token."""
    drawn = token
    while drawn == token:
        drawn = rng.choice(ordinary)
    return (drawn,)


Render = Callable[[str, str], ChatRegions]
"""From a question's id and other words for its query to the rendered prompt."""


def rephrased_prompts(rephrasings: Rephrasings, render: Render) -> Iterator[PerturbedPrompt]:
    """Yields the prompts with their queries in other words.

    Args:
        rephrasings: the words.
        render: renders a prompt.

    Raises:
        TemplateError: the template refuses the words.
    """
    for (id, trial), words in rephrasings.words.items():
        chat = render(id, words)
        yield PerturbedPrompt(
            question_id=id,
            region="query",
            method="rephrase",
            trial=trial,
            seed="",
            input_ids=chat.input_ids,
            text=chat.text,
            num_replaceable=len(chat.positions("query")),
            words=words,
        )


def read_prompts(
    path: Path,
    options: PerturbOptions,
    chats: Mapping[str, ChatRegions],
    render: Render,
    num_ids: int,
) -> list[PerturbedPrompt]:
    """Read those prompts of a file that are wanted, and see that they are versions of these ones.

    With its changes undone, each must be the prompt of its question, token by token.

    Args:
        path: of prompts that another run wrote.
        options: which perturbations and trials are wanted.
        chats: prompts by the id of their question.
        render: renders a rephrased prompt.
        num_ids: entries of the vocabulary.

    Raises:
        DataError: a row is no prompt, comes twice or does not fit, or a prompt is missing; names
            file and row.
    """
    found: dict[tuple[Perturbation, str, int], PerturbedPrompt] = {}
    for row, where in read_rows(path):
        prompt = _parsed(row, where)
        if prompt.perturbation not in options.perturbations or prompt.question_id not in chats:
            continue
        key = (prompt.perturbation, prompt.question_id, prompt.trial)
        if key in found:
            raise DataError(f"{where}: trial {prompt.trial} of this question comes twice.")
        chat = chats[prompt.question_id]
        if prompt.words is not None:
            try:
                chat = render(prompt.question_id, prompt.words)
            except TemplateError as error:
                raise DataError(f"{where}: {error}") from error
        if _undone(prompt, where) != chat.input_ids or max(prompt.input_ids) >= num_ids:
            raise DataError(
                f"{where}: is no version of the prompt of question {prompt.question_id!r}: it was "
                "made with another tokenizer, template or question."
            )
        found[key] = prompt
    for each in options.perturbations:
        every = [(each, id, trial) for id in chats for trial in range(1, options.num_trials + 1)]
        lacking = [key for key in every if key not in found]
        # Some rephrasings may have failed when the file was made.
        if len(lacking) > (len(every) - 1 if each.method == "rephrase" else 0):
            raise DataError(
                f"{path}: has no {each.name} version {lacking[0][2]} of question "
                f"{lacking[0][1]!r}: ask for what the file has, or make new prompts."
            )
    return [prompt for prompt in found.values() if prompt.trial <= options.num_trials]


_ROW = TypeAdapter(PerturbedPrompt)


def _parsed(row: dict[str, Any], where: str) -> PerturbedPrompt:
    try:
        return _ROW.validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}, {field}: {first['msg'].lower()}.") from None


def _undone(prompt: PerturbedPrompt, where: str) -> tuple[int, ...]:
    """Returns the prompt's tokens (T,) before its changes."""
    before = list(prompt.input_ids)
    for change in prompt.changes:
        if not 0 <= change.position < len(before) or before[change.position] != change.new:
            raise DataError(f"{where}: its changes and its tokens do not go together.")
        before[change.position] = change.old
    return tuple(before)
