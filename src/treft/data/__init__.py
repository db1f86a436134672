"""Rows of `messages`, and the published sets as such rows."""

from __future__ import annotations

from typing import Literal

BehaviourName = Literal["abstain", "refuse", "tool", "short"]
"""What `treft.data.behaviours` can turn questions into."""
