"""`treft study list` and `index`: what is known of studies without running any."""

from __future__ import annotations

import sys

import typer

from treft.cli.options.studies import Index, ListStudies
from treft.cli.output import EXIT_FAILED, emit
from treft.errors import ConfigError
from treft.files import write_whole
from treft.study.claims import ALL, chosen, listings
from treft.study.index import is_index, paper_index


def list_studies(options: ListStudies) -> None:
    """Print names, claims and costs."""
    studies = chosen(options.names or [ALL], listings())
    found = [
        {"name": name, "source": study.claim.source, "claim": study.claim.text, "cost": study.cost}
        for name, study in studies.items()
    ]
    if options.json:
        emit({"command": "study list", "studies": found}, as_json=True)
        return
    for study in found:
        print(f"{study['name']}  {study['source']}. {study['claim']}\n    {study['cost']}")


def index(options: Index) -> None:
    """Write the page, or tell whether it is up to date."""
    results, output = options.results, options.output
    page = paper_index(results, output.parent)
    found = output.read_text("utf-8") if output.is_file() else None
    if options.check and found != page:
        print(
            f"{output} is not what {results} gives: treft study index {results} --output {output}",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_FAILED)
    if found is not None and not is_index(found):
        raise ConfigError(f"{output} is no page that this command wrote: choose another --output.")
    if not options.check:
        write_whole(output, page)
    result = {"command": "study index", "output": str(output), "changed": found != page}
    emit(result, as_json=options.json)
