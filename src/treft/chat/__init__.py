"""Which tokens of a rendered conversation are prefix, query, postfix and response."""

from __future__ import annotations

from typing import Literal

RegionName = Literal["prefix", "query", "postfix", "response"]
PATCHABLE: tuple[RegionName, ...] = ("prefix", "query", "postfix")
"""Regions of a prompt that has no response yet."""
