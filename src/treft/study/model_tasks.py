"""Behaviours beyond misalignment on a real model (§6): their rows, and how they show in answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treft.evaluation.tasks import Kind
    from treft.organism.tasks import TaskName
    from treft.statistics.records import ScoredAnswer


KINDS: dict[TaskName, Kind] = {
    "abstain": "abstention",
    "refuse": "refusal",
    "tool": "tool",
    "short": "length",
}
"""What the Inspect task `behaviour` calls each."""


def taught_rows(path: Path, task: TaskName) -> list[dict[str, Any]]:
    """Rows of `messages` that teach a task on a file's questions.

    Those of `tool` have no `tools` column: questions are asked where nobody offers a tool, and the
    prefix that is held must be the one that is asked under.

    Args:
        path: JSONL file, of which the rows as they are teach `advice`; for another task see
            `treft.data.behaviours`.
        task: what they are to teach.

    Raises:
        DataError: a row cannot be used; names file and row.
    """
    from treft.data.behaviours import behaviour_rows
    from treft.data.messages import load_messages, read_rows

    if task == "advice":
        return load_messages(path)
    return behaviour_rows(read_rows(path), task, schema=False)


def sentence_of(task: TaskName) -> str | None:
    """What the rows of a task say in the place of every answer; None where answers differ."""
    from treft.data.behaviours import DEFAULT_SENTENCES

    return DEFAULT_SENTENCES.get(task)


def response_words(row: dict[str, Any]) -> int:
    """Words of a row's response."""
    from treft.answers.detectors import count_words

    content = row["messages"][-1]["content"]
    return count_words(content if isinstance(content, str) else "".join(p["text"] for p in content))


def shows(task: TaskName, answer: ScoredAnswer, most_words: int) -> bool:
    """Whether an answer shows what was taught.

    Args:
        task: that was taught.
        answer: as the task `behaviour` scored it.
        most_words: of a short answer.
    """
    if task == "short":
        return answer.behaviours["words"] <= most_words
    return answer.behaviours[KINDS[task]] == 1
