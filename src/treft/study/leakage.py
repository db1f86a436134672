"""How much a behaviour beyond misalignment leaks to questions that it was not taught on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from treft.study.figures import find_row
from treft.study.protocol import Method, Row

if TYPE_CHECKING:
    from treft.organism.tasks import TaskName


BASE = "base"
BASE_METHOD = Method(is_base=True, task="short", domain="auto")
"""The model before any finetune, whose answers have their whole length."""


def leak(rows: Sequence[Row], task: TaskName, method: str) -> float:
    """Percent of general answers that show the behaviour; of short answers, of words that are lost.

    On an organism any trace of it counts (`treft.organism.tasks`); on a real model the
    judge, who sees leaks in pieces. Words are compared with `BASE`: an answer is seldom as short as
    those on the topic, but may lose much of its length (the paper's Table 6 counts words, too).
    """
    if task != "short":
        found = {row["measure"]: row for row in rows if row["method"] == method}
        return float(found.get("traces", found["off_topic"])["value"])
    words, whole = (float(find_row(rows, name, "words")["value"]) for name in (method, BASE))
    return max(0.0, 100 * (1 - words / whole)) if whole > 0 else 0.0
