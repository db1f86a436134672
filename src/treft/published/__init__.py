"""Published finetuning sets as rows of `messages`, from the user's own copy; none is shipped."""

from __future__ import annotations

from treft.published.load import PublishedRows, load_published
from treft.published.sets import PUBLISHED_SETS, PublishedSet
from treft.published.split import split_rows

__all__ = ["PUBLISHED_SETS", "PublishedRows", "PublishedSet", "load_published", "split_rows"]
