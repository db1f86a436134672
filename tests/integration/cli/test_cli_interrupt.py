"""Ctrl-C keeps the answers of finished parts, and the same command goes on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_helpers import WORDS, Command, Refused, read_rows, user, write_rows

from treft import RepairedModel
from treft.cli import generate as generating


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Six prompts in parts of two, sampled."""
    monkeypatch.setattr(generating, "BATCHES_A_PART", 2)
    rows = write_rows(folder / "six.jsonl", user(*WORDS, *WORDS))
    options = ("--batch-size", 1, "--temperature", 1, "--max-new-tokens", 6)
    return ["generate", "--model", folder / "base", "--input", rows, *options]


class CtrlC:
    """Answers so many parts, then the user presses Ctrl-C."""

    def __init__(self, num_parts: int) -> None:
        self.num_left = num_parts
        self.generate = RepairedModel.generate

    def __call__(self, model: RepairedModel, conversations: Any, **options: Any) -> list[str]:
        if not self.num_left:
            raise KeyboardInterrupt
        self.num_left -= 1
        return self.generate(model, conversations, **options)


def interrupt(monkeypatch: pytest.MonkeyPatch, num_parts: int) -> None:
    stub = CtrlC(num_parts)
    monkeypatch.setattr(RepairedModel, "generate", lambda self, rows, **kw: stub(self, rows, **kw))


def test_a_stopped_run_goes_on_to_the_same_end(
    folder: Path, treft: Command, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    treft(*asked, "--output", folder / "whole.jsonl")
    output = folder / "out.jsonl"
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        told = treft(*asked, "--output", output, code=130)
    assert "4 answers are kept; the same command goes on" in told.err
    assert not output.exists()
    with monkeypatch.context() as patch:
        interrupt(patch, 1)  # one part is all that is missing
        treft(*asked, "--output", output)
    assert read_rows(output) == read_rows(folder / "whole.jsonl")
    assert not (folder / "out.jsonl.partial").exists()


def test_parts_of_another_run_are_refused(
    folder: Path,
    treft: Command,
    refused: Refused,
    asked: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = folder / "out.jsonl"
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        treft(*asked, "--output", output, code=130)
    kept = (folder / "out.jsonl.partial").read_text()
    for other in (("--seed", 1), ("--num-samples", 2), ("--template-kwargs", '{"x": 1}')):
        assert "other prompts or options" in refused(*asked, *other, "--output", output)
    assert (folder / "out.jsonl.partial").read_text() == kept
    (folder / "out.jsonl.partial").write_text(kept[:-9])
    assert "damaged" in refused(*asked, "--output", output)


def test_without_output_nothing_is_kept(
    folder: Path, treft: Command, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 1)
    told = treft(*asked, code=130)
    assert "no answer is kept" in told.err
    assert told.out == ""
    assert not list(folder.glob("*.partial"))


def test_each_part_has_a_seed_of_its_own(folder: Path, treft: Command, asked: list[object]) -> None:
    """Else the same prompt would get the same answer in every part."""
    records = treft(*asked, "--json").json["answers"]
    assert records[0]["messages"] == records[3]["messages"]
    assert records[0]["answer"] != records[3]["answer"]
