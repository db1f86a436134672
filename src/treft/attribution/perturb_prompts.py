"""Perturbed prompts as a file: written, and read to be asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from treft.attribution.perturb import PerturbedPrompt, PerturbOptions
from treft.attribution.rephrase import Rephrasings
from treft.chat.regions import ChatRegions
from treft.data.messages import read_rows
from treft.errors import DataError, TemplateError

Render = Callable[[str, str], ChatRegions]
"""From a question's id and other words for its query to the rendered prompt."""

_ROW = TypeAdapter(PerturbedPrompt)


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
    wanted = [
        prompt
        for prompt in _read(path)
        if prompt.perturbation in options.perturbations and prompt.question_id in chats
    ]
    for number, prompt in enumerate(wanted, start=1):
        where = f"{path}, prompt {number}"
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
    _check_all_there(path, wanted, options, list(chats))
    return [prompt for prompt in wanted if prompt.trial <= options.num_trials]


def _read(path: Path) -> list[PerturbedPrompt]:
    found: dict[tuple[str, str, int], PerturbedPrompt] = {}
    for row, where in read_rows(path):
        try:
            prompt = _ROW.validate_python(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise DataError(f"{where}, {field}: {first['msg'].lower()}.") from None
        key = (prompt.perturbation.name, prompt.question_id, prompt.trial)
        if key in found:
            raise DataError(f"{where}: trial {prompt.trial} of this question comes twice.")
        found[key] = prompt
    return list(found.values())


def _undone(prompt: PerturbedPrompt, where: str) -> tuple[int, ...]:
    """Returns the prompt's tokens (T,) before its changes."""
    before = list(prompt.input_ids)
    for change in prompt.changes:
        if not 0 <= change.position < len(before) or before[change.position] != change.new:
            raise DataError(f"{where}: its changes and its tokens do not go together.")
        before[change.position] = change.old
    return tuple(before)


def _check_all_there(
    path: Path, prompts: Sequence[PerturbedPrompt], options: PerturbOptions, ids: Sequence[str]
) -> None:
    there = {(prompt.perturbation, prompt.question_id, prompt.trial) for prompt in prompts}
    every = [(id, trial) for id in ids for trial in range(1, options.num_trials + 1)]
    for each in options.perturbations:
        lacking = [(id, trial) for id, trial in every if (each, id, trial) not in there]
        # Some rephrasings may have failed when the file was made.
        if len(lacking) > (len(every) - 1 if each.method == "rephrase" else 0):
            id, trial = lacking[0]
            raise DataError(
                f"{path}: has no {each.name} version {trial} of question {id!r}: ask for what the "
                "file has, or make new prompts."
            )
