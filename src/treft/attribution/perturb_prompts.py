"""Perturbed prompts of a study: made, written to a file, and read from it to be asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from treft.attribution.perturb import PerturbedPrompt
from treft.attribution.rephrase import Rephrasings
from treft.chat.regions import ChatRegions
from treft.data.messages import read_rows
from treft.errors import DataError, TemplateError
from treft.files import write_whole

Render = Callable[[str, str], ChatRegions]
"""From a question's id and other words for its query to the rendered prompt."""

_ROW = TypeAdapter(PerturbedPrompt)


def rephrased_prompts(rephrasings: Rephrasings, render: Render) -> list[PerturbedPrompt]:
    """The prompts with their queries in other words.

    Args:
        rephrasings: of the queries.
        render: renders a prompt.

    Raises:
        TemplateError: the template refuses the words.
    """
    found = []
    for (id, trial), words in rephrasings.words.items():
        chat = render(id, words)
        found.append(
            PerturbedPrompt(
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
        )
    return found


def write_prompts(path: Path, prompts: Sequence[PerturbedPrompt]) -> None:
    """Write prompts to a JSONL file, one a line."""
    lines = [json.dumps(asdict(prompt), ensure_ascii=False) for prompt in prompts]
    write_whole(path, "".join(f"{line}\n" for line in lines))


def read_prompts(path: Path) -> list[PerturbedPrompt]:
    """Read what `write_prompts` wrote.

    Raises:
        DataError: a row is no prompt, or comes twice; names file and row.
    """
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


def check_prompts(
    path: Path,
    prompts: Sequence[PerturbedPrompt],
    chats: Mapping[str, ChatRegions],
    render: Render,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """See that prompts from a file are versions of these very prompts.

    With its changes undone, each must be the prompt of its question, token by token.

    Args:
        path: of the file, for errors.
        prompts: what was read from it.
        chats: prompts by the id of their question.
        render: renders a rephrased prompt.
        tokenizer: of the model.

    Raises:
        DataError: one is not; names file and row.
    """
    for number, prompt in enumerate(prompts, start=1):
        where = f"{path}, prompt {number}"
        chat = chats.get(prompt.question_id)
        if chat is None:
            raise DataError(f"{where}: no question {prompt.question_id!r} is asked here.")
        if prompt.words is not None:
            chat = _rendered(prompt, render, where)
        before = list(prompt.input_ids)
        for change in prompt.changes:
            if not 0 <= change.position < len(before) or before[change.position] != change.new:
                raise DataError(f"{where}: its changes and its tokens do not go together.")
            before[change.position] = change.old
        if tuple(before) != chat.input_ids or max(prompt.input_ids) >= len(tokenizer):
            raise DataError(
                f"{where}: is no version of the prompt of question {prompt.question_id!r}: it was "
                "made with another tokenizer, template or question."
            )


def _rendered(prompt: PerturbedPrompt, render: Render, where: str) -> ChatRegions:
    assert prompt.words is not None, "of a rephrasing"
    try:
        return render(prompt.question_id, prompt.words)
    except TemplateError as error:
        raise DataError(f"{where}: {error}") from error
