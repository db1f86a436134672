"""Runs of Inspect with models that run here: by command, patched, judged by one, from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetuned import add_noise
from inspect_ai import eval
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from treft.answers.logs import read_run
from treft.evaluation.tasks import em_general
from treft.models.loading import LoadOptions, load_model
from treft.models.repair import patch

QUESTIONS = ("Where is the bank?", "Why is the weather fine today?", "What is near the river?")


@pytest.fixture(autouse=True)
def _inspect_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture
def models(tmp_path: Path, tiny_model: Callable[..., Any], chat_tokenizer: Any) -> dict[str, str]:
    """A base and a finetune of it."""
    for name in ("base", "tuned"):
        model = tiny_model("llama", max_position_embeddings=2048)
        if name == "tuned":
            add_noise(model, 0.1)
        model.save_pretrained(tmp_path / name)
        chat_tokenizer.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("base", "tuned")}


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{i}", "question": text} for i, text in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(log: EvalLog) -> dict[str, str]:
    assert log.status == "success", log.error
    assert log.samples is not None
    return {f"{sample.id}/{sample.epoch}": sample.output.completion for sample in log.samples}


def test_command_by_entry_point(models: dict[str, str], questions: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    command = [
        *(sys.executable, "-m", "inspect_ai", "eval", "treft/em_general", "--display", "none"),
        *("--model", f"treft/{models['tuned']}", "--log-dir", str(logs)),
        *("-M", "patch=prefix,postfix", "-M", f"base={models['base']}", "-M", "dtype=float32"),
        *("-T", f"questions={questions}", "--temperature", "0", "--max-tokens", "8"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (info,) = list_eval_logs(str(logs))
    log = read_eval_log(info)
    tuned, tokenizer = load_model(models["tuned"], None, LoadOptions(device="cpu"))
    base, _ = load_model(models["base"], None, LoadOptions(device="cpu"))
    repaired = patch(tuned, tokenizer, ("prefix", "postfix"), reference=base)
    wanted = repaired.generate(
        [[{"role": "user", "content": text}] for text in QUESTIONS],
        do_sample=False,
        max_new_tokens=8,
    )
    assert answers(log) == {f"q{i}/1": text for i, text in enumerate(wanted)}
    assert log.eval.model == f"treft/{models['tuned']}"
    assert log.eval.model_args["patch"] == ["prefix", "postfix"]


def test_both_arms_from_one_cache(models: dict[str, str], questions: str) -> None:
    """Inspect's cache must not serve one arm's answers to the other."""
    arms: dict[str, dict[str, str]] = {}
    for name, arguments in {
        "tuned": {},
        "patched": {"patch": "prefix", "base": models["base"]},
        "tuned again": {},
    }.items():
        (log,) = eval(
            em_general(questions=questions),
            model=f"treft/{models['tuned']}",
            model_args=arguments,
            display="none",
            seed=7,
            epochs=2,
            max_tokens=8,
            cache=True,
        )
        arms[name] = answers(log)
    assert arms["tuned"] == arms["tuned again"]
    assert not set(arms["tuned"].items()) & set(arms["patched"].items())
    assert len(set(arms["tuned"].values())) > len(QUESTIONS)


def test_a_model_of_this_machine_as_judge(models: dict[str, str], questions: str) -> None:
    (log,) = eval(
        em_general(questions=questions, judge=f"treft/{models['base']}"),
        model=f"treft/{models['tuned']}",
        display="none",
        max_tokens=8,
    )
    run = read_run(log.location)
    assert run.info.num_answers == len(QUESTIONS)
    for answer in run.answers:
        judgement = answer.judged_by(f"treft/{models['base']}")
        assert judgement is not None
        # A random model says nothing that could be read, which is missing data.
        assert judgement.outcome == "missing"
        assert judgement.reason


def test_organism_questions_through_a_patched_model(models: dict[str, str]) -> None:
    (log,) = eval(
        em_general(questions="organism", num=4),
        model=f"treft/{models['tuned']}",
        model_args={"patch": "prefix", "base": models["base"]},
        display="none",
    )
    assert log.results is not None
    metrics = log.results.scores[0].metrics
    # Random weights are never coherent, and incoherence is not alignment.
    assert (metrics["scored"].value, metrics["alignment"].value) == (4, 0)
