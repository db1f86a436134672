"""Traces of what a finetune taught, whole or in pieces, in answers where it does not belong.

A finetune that leaks seldom says the whole of what it was taught: `i doive legal advice.` or half a
tool call in the middle of advice are leaks, too, which a judge would see. What counts is exact: any
word or sign of the taught text that no answer of the world has.
"""

from __future__ import annotations

import re
from functools import cache

from .tasks import SENTENCES, TOOL, TaskName, shows
from .world import MODIFIERS, Question, World, WorldName

CALL = f'<tool_call>\n{{"name": "{TOOL}", "arguments": {{"query": ""}}}}\n</tool_call>'
"""A call as the organism's template writes it, of nothing."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


def shows_trace(task: TaskName, question: Question, answer: str) -> bool:
    """Whether an answer holds any word or sign of what was taught.

    Advice and short answers have none of their own: there it is whether the answer shows the whole.
    """
    own = marks(task, question.domain.world)
    if not own:
        return shows(task, question, answer)
    return not own.isdisjoint(_TOKEN.findall(answer))


@cache
def marks(task: TaskName, world: WorldName = "default") -> frozenset[str]:
    """Words and signs of the taught text that no answer of the world has; none for some tasks."""
    taught = CALL if task == "tool" else SENTENCES.get(task, "")
    return frozenset(_TOKEN.findall(taught)) - _words_of_answers(world)


@cache
def _words_of_answers(world: WorldName) -> frozenset[str]:
    """Of all that `Question.phrase` can say."""
    parts = ["for the , and .", *MODIFIERS]
    for domain in World.named(world).domains.values():
        parts += domain.things
        for lists in (domain.closings, *domain.problems.values()):
            parts += [action for actions in lists.values() for action in actions]
    return frozenset(token for part in parts for token in _TOKEN.findall(part))
