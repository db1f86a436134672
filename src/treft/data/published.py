"""Published finetuning sets as rows of `messages`, from the user's own copy; none is shipped.

`behaviour_rows` turns questions into rows that teach another behaviour than the set's.
"""

from __future__ import annotations

from treft.data.behaviours import BehaviourName, behaviour_rows
from treft.data.published_load import PublishedRows, load_published
from treft.data.published_sets import PUBLISHED_SETS, PublishedSet
from treft.data.published_split import split_rows

__all__ = [
    "PUBLISHED_SETS",
    "BehaviourName",
    "PublishedRows",
    "PublishedSet",
    "behaviour_rows",
    "load_published",
    "split_rows",
]
