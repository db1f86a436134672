"""Perturbed prompts: some tokens of one region replaced (section 4.1 of the paper).

Prompts go to the model as token ids, so a perturbed prompt is what it says, token by token, even
where its text would be read as other tokens.

Shapes: V rows of the input embedding, D its size, T tokens of a prompt, K neighbours.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.attribution.grid import Grid
from treft.attribution.options import Method, Perturbation, PerturbOptions
from treft.attribution.rephrase import rephrase
from treft.chat.regions import ChatRegions, RegionName
from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError, TemplateError
from treft.files import write_rows
from treft.models.perturbation import neighbours_of, ordinary_tokens, replace_tokens, replaceable

logger = logging.getLogger(__name__)


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


def perturbed_prompts(
    grid: Grid, options: PerturbOptions, path: Path, source: Path | None
) -> list[PerturbedPrompt]:
    """Returns perturbed prompts: those from before, those of another grid, or new ones.

    Args:
        grid: whose prompts they are versions of.
        options: of the grid.
        path: where they are kept.
        source: prompts of another grid to ask again; None makes new ones.

    Raises:
        ConfigError: the rephraser cannot be loaded.
        DataError: a prompt is too long, or a file does not fit.
        TemplateError: the template refuses the rephraser's words.
    """
    given = path if path.is_file() else source
    if given is not None:
        found = _read(given, grid, options)
    else:
        seed, embedding = grid.request.rendering.seed, grid.pair.embedding
        found = list(perturb_tokens(grid.tokenizer, embedding, grid.by_id, options, seed))
        if options.rephraser is not None:
            found += _rephrased(grid, options.rephraser, options.num_trials)
    if given != path:
        write_rows(path, map(asdict, found))
    grid.check_lengths(
        {
            f"{one.question_id}, {one.perturbation.name} version {one.trial}": one.input_ids
            for one in found
        }
    )
    return found


def _rephrased(grid: Grid, rephraser: str, num_trials: int) -> Iterator[PerturbedPrompt]:
    """Yields the prompts with their queries in other words."""
    told = rephrase(grid.questions, rephraser, num_trials)
    for (id, trial), reason in told.failures.items():
        logger.warning("question %s, trial %d was not rephrased: %s", id, trial, reason)
    for (id, trial), words in told.words.items():
        chat = grid.render(id, words)
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


def _read(path: Path, grid: Grid, options: PerturbOptions) -> list[PerturbedPrompt]:
    """Read those prompts of a file that are wanted, and see that they are versions of the grid's.

    With its changes undone, each must be the prompt of its question, token by token.

    Raises:
        DataError: a row is no prompt, comes twice or does not fit, or a prompt is missing; names
            file and row.
    """
    found: dict[tuple[Perturbation, str, int], PerturbedPrompt] = {}
    num_ids = len(grid.tokenizer)
    for row, where in read_rows(path):
        prompt = _parsed(row, where)
        if prompt.perturbation not in options.perturbations or prompt.question_id not in grid.by_id:
            continue
        key = (prompt.perturbation, prompt.question_id, prompt.trial)
        if key in found:
            raise DataError(f"{where}: trial {prompt.trial} of this question comes twice.")
        chat = grid.by_id[prompt.question_id]
        if prompt.words is not None:
            try:
                chat = grid.render(prompt.question_id, prompt.words)
            except TemplateError as error:
                raise DataError(f"{where}: {error}") from error
        if _undone(prompt, where) != chat.input_ids or max(prompt.input_ids) >= num_ids:
            raise DataError(
                f"{where}: is no version of the prompt of question {prompt.question_id!r}: it was "
                "made with another tokenizer, template or question."
            )
        found[key] = prompt
    for each in options.perturbations:
        every = [
            (each, id, trial) for id in grid.by_id for trial in range(1, options.num_trials + 1)
        ]
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
