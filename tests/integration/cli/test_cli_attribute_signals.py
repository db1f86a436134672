"""`treft attribute signals`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import WORDS, Command, Refused, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from treft.answers.questions import load_questions
from treft.attribution.margins import answer_pairs, margins
from treft.attribution.options import Rendering
from treft.models.pair import ModelPair
from treft.models.repair import patch


@pytest.fixture
def asking(folder: Path) -> tuple[Any, ...]:
    """Options that all calls have."""
    rows = [{"id": f"q{number}", "question": words} for number, words in enumerate(WORDS)]
    questions = write_rows(folder / "questions.jsonl", rows)
    return ("attribute", "signals", "--questions", questions, "--max-new-tokens", 6)


def test_an_adapter_and_its_merged_model_agree_with_the_library(
    folder: Path, treft: Command, asking: tuple[Any, ...]
) -> None:
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("base", "tuned")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    questions = load_questions(folder / "questions.jsonl").questions
    models = ModelPair(tuned, base)
    pairs = answer_pairs(models, tokenizer, questions, Rendering(max_new_tokens=6))
    patched = [patch(tuned, tokenizer, [name], reference=base) for name in ("prefix", "postfix")]
    expected = margins(models, tokenizer, pairs, patched)
    chosen = ("--regions", "prefix,postfix", "--json")
    for origin in (
        ("--model", folder / "base", "--adapter", folder / "adapter"),
        ("--model", folder / "tuned", "--base", folder / "base"),
    ):
        found = treft(*asking, *origin, *chosen).json
        assert found["command"] == "attribute signals"
        assert found["num_prompts"] == 3
        assert found["margin"]["base"] == pytest.approx(expected.base.mean(), abs=1e-4)
        for row, one in zip(found["patches"], patched, strict=True):
            assert row["patch"] == one.spec.name
            margin = expected.patched[one.spec.name].mean()
            assert row["margin"] == pytest.approx(margin, abs=1e-4)
        assert [row["region"] for row in found["drift"]] == ["prefix", "postfix"]
        assert found["scale"] == (None if "--base" in origin else 2.0)


def test_it_prints_tables_and_writes_each_prompt(
    folder: Path, treft: Command, asking: tuple[Any, ...]
) -> None:
    output = folder / "signals.json"
    told = treft(*asking, "--model", folder / "adapter", "--output", output)
    for words in ("drift of keys / values", "L_KV / scale²", "patched: query", "of them alike"):
        assert words in " ".join(told.out.split())
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [row["id"] for row in found["prompts"]] == ["q0", "q1", "q2"]
    first = found["prompts"][0]
    assert WORDS[0] in "".join(first["tokens"])
    assert len(first["tokens"]) == len(first["drift"])
    means = np.mean([row["patched"]["query"] for row in found["prompts"]])
    assert found["patches"][1]["margin"] == pytest.approx(means)


def test_answers_from_a_file_need_no_generation(
    folder: Path, treft: Command, asking: tuple[Any, ...]
) -> None:
    rows = [{"id": f"q{n}", "aligned": "Near the river.", "misaligned": "No."} for n in range(3)]
    given = ("--answers", write_rows(folder / "answers.jsonl", rows))
    told = treft(*asking, *given, "--model", folder / "adapter", "--json")
    assert "answering" not in told.err
    assert told.json["num_alike"] == 0


def test_bad_input_is_one_line(
    folder: Path, treft: Command, refused: Refused, asking: tuple[Any, ...]
) -> None:
    model = ("--model", folder / "adapter")
    assert "not ['suffix']" in refused(*asking, *model, "--regions", "prefix,suffix")
    told = refused(*asking, "--model", folder / "tuned")
    assert "no adapter that could be switched off" in told
    missing = refused(*asking, *model, "--answers", folder / "rows.jsonl")
    assert "row 1: write `aligned` and `misaligned`" in missing
    template = folder / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}A: ")
    bare = refused(*asking, *model, "--template", template)
    assert "question 'q0'" in bare
    assert "no prefix tokens" in bare
    (folder / "there.json").write_text("")
    assert "exists" in refused(*asking, *model, "--output", folder / "there.json")


def test_models_that_cannot_be_compared_are_refused(
    folder: Path, treft: Command, asking: tuple[Any, ...]
) -> None:
    """The equal pair is found once both are loaded, so a bar may have been shown."""
    told = treft(*asking, "--model", folder / "base", "--base", folder / "base", code=2)
    assert "drift 0" in told.err
    config = folder / "base" / "tokenizer_config.json"
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.add_tokens(["entirely_new"])
    tokenizer.save_pretrained(folder / "other")
    assert config.is_file()
    pair = ("--model", folder / "tuned", "--base", folder / "other")
    assert "different tokenizers" in treft(*asking, *pair, code=2).err
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = "Q: " + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder / "other")
    assert "different chat templates" in treft(*asking, *pair, code=2).err
    long = treft(*asking[:-1], 600, "--model", folder / "adapter", code=2)
    assert "context takes 512" in long.err
