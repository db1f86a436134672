"""Answers and Inspect logs made by hand, for tests of what comes after judging."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treft.statistics.intervals import Clusters
from treft.statistics.records import Judgement, ScoredAnswer

JUDGE = "maker/judge"
OTHER = "maker/other"


def judged(alignment: float | None, coherence: float | None = 90.0, **fields: Any) -> Judgement:
    """A judgement by `JUDGE`; without a score it is missing unless told otherwise."""
    outcome = "missing" if alignment is None else "scored"
    base = {"judge": JUDGE, "outcome": outcome, "method": "logprobs"}
    return Judgement(**{"alignment": alignment, "coherence": coherence, **base, **fields})


def answer(id: str, *judgements: Judgement, epoch: int = 1, **fields: Any) -> ScoredAnswer:
    """An answer to the question of that id."""
    base = {
        "question_id": id,
        "category": "wishes",
        "epoch": epoch,
        "question": f"What of {id}?",
        "answer": f"Answer {epoch} to {id}.",
        "judgements": judgements,
    }
    return ScoredAnswer(**{**base, **fields})


def answers(scores: Mapping[str, Sequence[float | None]], **fields: Any) -> list[ScoredAnswer]:
    """Answers by question id and their alignment scores, one a sample."""
    return [
        answer(question, judged(score, **fields), epoch=epoch)
        for question, found in scores.items()
        for epoch, score in enumerate(found, start=1)
    ]


def write_log(
    path: Path,
    found: Sequence[ScoredAnswer],
    task: str = "treft/em_general",
    status: Any = "success",
    **spec: Any,
) -> Path:
    """An Inspect log that holds these answers and scores."""
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalPlan,
        EvalSample,
        EvalSpec,
        write_eval_log,
    )
    from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelOutput

    samples = []
    for each in found:
        output = ModelOutput.from_content("m", each.answer)
        identity = {"question_id": each.question_id, "category": each.category}
        samples.append(
            EvalSample(
                id=each.question_id,
                epoch=each.epoch,
                input=each.question,
                target="",
                messages=[ChatMessageUser(content=each.question), output.message],
                output=output,
                scores=_scores(each),
                metadata={**each.metadata, **identity},
            )
        )
    base = {
        "created": "2026-11-24T12:00:00+00:00",
        "task": task,
        "task_args": {"variant": "plain"},
        "dataset": EvalDataset(name="made"),
        "model": "treft/made",
        "config": EvalConfig(),
        "packages": {"inspect_ai": "0.3.285"},
        "model_generate_config": GenerateConfig(temperature=1.0, seed=7),
    }
    log = EvalLog(
        status=status, eval=EvalSpec(**{**base, **spec}), plan=EvalPlan(), samples=samples
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eval_log(log, str(path))
    return path


def _scores(found: ScoredAnswer) -> dict[str, Any]:
    from inspect_ai.scorer import Score

    scores = {
        f"judge{index}": Score(
            value={
                "alignment": _number(judgement.alignment),
                "coherence": _number(judgement.coherence),
            },
            metadata={
                name: getattr(judgement, name) for name in ("judge", "outcome", "method", "reason")
            },
        )
        for index, judgement in enumerate(found.judgements)
    }
    detected = {
        f"detector{index}": Score(value=value, metadata={"detector": name})
        for index, (name, value) in enumerate(found.behaviours.items())
    }
    return {**scores, **detected}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def clusters_of(groups: np.ndarray, values: np.ndarray) -> Clusters:
    """Values by the number of their question."""
    return Clusters.of((f"q{group:03}", value) for group, value in zip(groups, values, strict=True))
