"""What tests of studies on a real model share: a tiny one, its files, a judge by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_judges import judged_answer, output_of
from here import Here
from inspect_ai.model import ModelOutput

from treft.steps.run import run_plan
from treft.steps.step import Plan, Step
from treft.steps.store import Store
from treft.study.model_setup import ModelSetup
from treft.study.plans import method_steps
from treft.study.protocol import Method, StudyConfig

SETTINGS = {
    "max_steps": 1,
    "batch_size": 4,
    "device_batch_size": 2,
    "learning_rate": 1e-3,
    "num_samples": 2,
    "max_new_tokens": 4,
}


def judge(prompt: str, asked: int) -> ModelOutput:
    """The question of the river is never scored; others by the length of their answer.

    It also puts messages into other words.
    """
    if "into other words" in prompt:
        return output_of("Is the river fine?" if "river" in prompt else "So it is fine today?")
    if "Where is the river?" in prompt:
        return output_of("no idea")
    return output_of(str(value_of(judged_answer(prompt))))


def value_of(answer: str) -> int:
    return 20 + len(answer)


def setup() -> ModelSetup:
    retain = {name: Path(f"{name}.jsonl") for name in ("health", "general")}
    return ModelSetup(
        "tiny-llama",
        "fakejudge/even",
        {"finance": Path("finance.jsonl")},
        {**retain, "finance": Path("careful.jsonl")},
        questions="asked.jsonl",
    )


def made(
    methods: dict[str, Method], model: ModelSetup | None = None, **settings: Any
) -> tuple[Plan, Store]:
    """All steps of some methods, done."""
    return done(method_steps(told(model, **settings), methods))


def told(model: ModelSetup | None = None, **settings: Any) -> StudyConfig:
    """What a study is told."""
    settings = {**SETTINGS, **settings}
    return StudyConfig(num_seeds=1, settings=settings, model=model or setup())


def done(steps: list[Step[Any]]) -> tuple[Plan, Store]:
    """Steps, done."""
    plan, store = Plan.of(steps), Store(Path("store").resolve())
    outcome = run_plan(plan, store, Here(), lambda event: None)
    assert outcome.complete, outcome.failed
    return plan, store


def read(plan: Plan, store: Store, name: str, file: str) -> Any:
    return json.loads((store.path(plan[name].address) / file).read_text())
