"""`treft attribute patch` from the command line: the cost first, the table, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import Command, Refused

PATCH = ("attribute", "patch", "--questions", "organism", "--num", "2", "--max-new-tokens", "2")


def test_the_plan_states_its_patches_and_cost_and_does_nothing(
    treft: Command, folder: Path
) -> None:
    models = ("--model", folder / "base", "--adapter", folder / "adapter")
    output = folder / "sweep"
    told = treft(*PATCH, *models, "--output", output, "--specs", "kinds", "--dry-run", "--json")
    found = json.loads(told.out)
    assert {"prefix", "query", "postfix", "prefix keys only"} <= set(found["patches"])
    assert found["cost"]["num_answers"] == 2 * (2 + len(found["patches"]))
    assert f"{found['cost']['num_answers']:,} answers" in told.err
    assert not output.exists()


def test_a_sweep_writes_its_table_and_goes_on(treft: Command, folder: Path) -> None:
    models = ("--model", folder / "tuned", "--base", folder / "base")
    arguments = (*PATCH, *models, "--output", folder / "sweep", "--region", "prefix", "--json")
    told = treft(*arguments, "--specs", "curve")
    found = json.loads(told.out)
    rows = {row["name"]: row for row in found["tables"][0]["rows"]}
    assert {"base", "finetuned", "prefix", "stream at layer 0"} <= set(rows)
    assert found["tables"][0]["own_states"]["is_exact"]
    assert json.loads((folder / "sweep" / "patch.json").read_text())["tables"] == found["tables"]
    assert "| prefix | base |" in (folder / "sweep" / "patch.md").read_text()
    again = treft(*arguments, "--specs", "curve")
    assert json.loads(again.out) == found
    assert "at most: 0 answers" in again.err


def test_bad_input_is_one_line_before_anything_is_written(
    treft: Command, refused: Refused, folder: Path
) -> None:
    output = ("--output", folder / "sweep")
    adapter = ("--model", folder / "base", "--adapter", folder / "adapter")
    tuned = ("--model", folder / "tuned")
    assert "no adapter" in refused(*PATCH, *tuned, *output)
    assert "drift 0" in refused(*PATCH, *tuned, "--base", folder / "tuned", *output)
    assert "specs are some of" in refused(*PATCH, *adapter, *output, "--specs", "heads")
    assert "regions are some of" in refused(*PATCH, *adapter, *output, "--region", "system")
    assert "band of 99 layers" in refused(
        *PATCH, *adapter, *output, "--specs", "layers", "--band-width", "99"
    )
    assert "context takes" in refused(*PATCH, *adapter, *output, "--max-new-tokens", "9999")
    told = treft(*PATCH, *adapter, *output, "--max-calls", "3", code=2)
    assert "are more than --max-calls 3" in told.err
    template = folder / "tuned" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    assert "different chat templates" in refused(*PATCH, *tuned, "--base", folder / "base", *output)
    assert not (folder / "sweep").exists()
