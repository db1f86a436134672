"""Published finetuning sets as rows of `messages`, from the user's own copy; none is shipped.

`behaviour_rows` turns questions into rows that teach another behaviour than the set's.
"""

from __future__ import annotations

from treft.published.behaviours import BehaviourName, behaviour_rows
from treft.published.load import PublishedRows, load_published
from treft.published.sets import PUBLISHED_SETS, PublishedSet
from treft.published.split import split_rows

__all__ = [
    "PUBLISHED_SETS",
    "BehaviourName",
    "PublishedRows",
    "PublishedSet",
    "behaviour_rows",
    "load_published",
    "split_rows",
]
