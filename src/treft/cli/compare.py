"""`treft compare`: arms side by side, as a table here and as a page with all answers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from treft import __version__
from treft.cli.options.groups import claim_file
from treft.cli.options.judging import Compare
from treft.cli.output import emit
from treft.errors import ConfigError
from treft.evaluation import compare as comparing
from treft.evaluation.logged_arms import doubts, read_arms
from treft.evaluation.report import change_tables, render_page, score_tables
from treft.files import new_output, write_whole
from treft.statistics.measures import Thresholds

RESULT, PAGE = "result.json", "report.html"


def compare(options: Compare) -> None:
    """Read logs, and write table and page."""
    given = {
        "misaligned_below": options.misaligned_below,
        "coherent_above": options.coherent_above,
    }
    thresholds = Thresholds(**{name: end for name, end in given.items() if end is not None})
    folder = _claim(options.output, options.overwrite)
    arms = read_arms(options.runs, options.label, partial=options.partial)
    found = comparing.compare(arms, options.base, options.judge, thresholds, options.k)
    found = replace(found, notes=(*found.notes, *doubts(arms)))
    result = {"command": "compare", **found.to_dict(), "output": str(folder)}
    _write(found, result, folder)
    if options.json:
        emit(result, as_json=True)
    else:
        _show(found, folder)


def _claim(output: Path | None, overwrite: bool) -> Path:
    """Returns the folder to write to, known to be free before any work."""
    if output is None:
        return new_output(Path("treft-compare"))
    if output.is_file():
        raise ConfigError(f"{output} is a file: name a folder as --output.")
    for name in (RESULT, PAGE):
        claim_file(output / name, overwrite=overwrite)
    return output


def _write(found: comparing.Comparison, result: dict[str, Any], folder: Path) -> None:
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = render_page(
        found,
        title=" / ".join(found.labels),
        footer=f"treft {__version__}, {made}",
    )
    write_whole(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
    write_whole(folder / PAGE, page)


def _show(found: comparing.Comparison, folder: Path) -> None:
    console = Console()
    for table in score_tables(found):
        table.show(console)
    for table in change_tables(found):
        title = f"Change against {found.base}. {table.title}"
        replace(table, title=title).show(console)
    console.print(f"{found.intervals}.", style="dim")
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"Report with all answers side by side: {folder / PAGE}", markup=False)
