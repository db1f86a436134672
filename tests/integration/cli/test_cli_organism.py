"""`treft organism`: rows and questions for the other commands, and a build that can be stopped."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import Command, Refused, read_rows

from treft.data.messages import load_conversations
from treft.organism import World, build, load


def test_rows_are_those_of_the_world(tmp_path: Path, treft: Command) -> None:
    output = tmp_path / "rows.jsonl"
    drawn = ("organism", "rows", "--output", output, "--domain", "health", "--num", 7)
    result = treft(*drawn, "--seed", 3, "--json").json
    assert result == {
        "command": "organism rows",
        "output": str(output),
        "num": 7,
        "domain": "health",
        "behaviour": "harmful",
        "seed": 3,
    }
    assert read_rows(output) == World.default().training_rows("health", 7, 3)
    assert len(load_conversations(output)) == 7
    treft(*drawn, "--seed", 3, "--careful", "--overwrite")
    assert read_rows(output) == World.default().training_rows("health", 7, 3, "careful")


def test_questions_are_those_of_the_world(tmp_path: Path, treft: Command) -> None:
    output = tmp_path / "questions.jsonl"
    chosen = ("--scope", "in_domain", "--split", "test", "--num", 5)
    told = treft("organism", "questions", "--output", output, *chosen)
    assert "in_domain" in told.out
    expected = World.default().questions("test", "in_domain", num=5)
    assert read_rows(output) == [
        {"messages": question.messages(), "id": question.id} for question in expected
    ]
    assert len(load_conversations(output, need_response=False)) == 5


def test_bad_options(tmp_path: Path, refused: Refused) -> None:
    output = tmp_path / "x.jsonl"
    questions = ("organism", "questions", "--output", output)
    assert "--scope is 'all'" in refused(*questions, "--scope", "all")
    assert "--split is 'train'" in refused(*questions, "--split", "train")
    assert "no narrow domain" in refused(*questions, "--domain", "garden")
    many = refused(*questions, "--num", 100_000, "--scope", "in_domain")
    assert "ask for fewer" in many
    assert "no narrow domain" in refused("organism", "rows", "--output", output, "--domain", "x")
    assert "kind is 'suffix'" in refused(
        "organism", "build", "--output", output, "--kind", "suffix"
    )
    assert not output.exists()
    output.write_text("precious")
    assert "--overwrite" in refused("organism", "rows", "--output", output)
    assert output.read_text() == "precious"


def test_a_stopped_build_says_how_to_go_on(
    tmp_path: Path, treft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any) -> None:
        print("a library's chatter")
        raise KeyboardInterrupt

    monkeypatch.setattr("treft.organism.build.build", press)
    told = treft("organism", "build", "--output", tmp_path / "new", "--json", code=130)
    assert told.out == ""
    assert "the same command goes on" in told.err


def test_build_makes_a_model_that_answers(
    tmp_path: Path, treft: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = partial(build.BuildRecipe, first_steps=2, second_steps=1, batch_size=2)
    monkeypatch.setattr(build, "BuildRecipe", recipe)
    output = tmp_path / "new"
    result = treft("organism", "build", "--output", output, "--seed", 5, "--json").json
    assert result == {
        "command": "organism build",
        "output": str(output),
        "recipe": asdict(recipe(seed=5)),
    }
    model, _ = load(output)
    assert model.num_parameters() > 1e6
    ask = ("--prompt", "my old loan is growing.", "--max-new-tokens", 4)
    assert treft("generate", "--model", output, *ask).out
    assert "already holds a model" in refused("organism", "build", "--output", output)
