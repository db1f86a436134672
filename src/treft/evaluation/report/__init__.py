"""The report of a comparison: tables for terminal and page, plots, one self-contained HTML page."""

from __future__ import annotations

from treft.evaluation.report.page import Extras, Section, render_page
from treft.evaluation.report.tables import change_tables, score_tables

__all__ = ["Extras", "Section", "change_tables", "render_page", "score_tables"]
