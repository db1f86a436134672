"""Score sampled answers by the organism's oracle or by judges.

Inspect's own scoring runs both, so the judges' cache, retries and limits on connections hold here
as they do in `treft judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

from inspect_ai import score
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalSample, EvalSpec
from inspect_ai.model import ChatMessageUser, ModelOutput

from treft.answers.logs import scored_answer
from treft.answers.questions import EvalQuestion
from treft.errors import ConfigError
from treft.judging.oracle import ORACLE, ORGANISM
from treft.judging.panel import Panel, assemble
from treft.statistics.records import ScoredAnswer

CALLS_PER_ANSWER = 2
"""One for alignment, one for coherence."""


def panel_for(questions: Sequence[EvalQuestion], judges: Sequence[str] = ()) -> Panel:
    """The judges of these questions, each loaded, so that a missing key is seen before any work.

    Args:
        questions: what is asked.
        judges: Inspect model names, or `oracle`; without any it is the oracle.

    Raises:
        ConfigError: the oracle is to judge other questions than the organism's, or a judge is
            named twice or cannot be loaded.
    """
    panel = assemble(judges or [ORACLE])
    stranger = next((each for each in questions if ORGANISM not in each.metadata), None)
    if ORACLE in panel.judges and stranger is not None:
        raise ConfigError(
            f"the oracle knows the organism's questions only, and {stranger.id!r} is none: name a "
            "judge, such as --judge openai/gpt-4o."
        )
    return panel


def num_judge_calls(num_answers: int, judges: Sequence[str]) -> int:
    """Calls of paid judges for so many answers, at most: equal answers are paid once.

    Args:
        num_answers: to be scored.
        judges: names; the oracle costs nothing.
    """
    return CALLS_PER_ANSWER * num_answers * sum(judge != ORACLE for judge in judges)


def score_answers(
    questions: Sequence[EvalQuestion],
    answers: Sequence[str],
    epochs: Sequence[int],
    scope: str,
    panel: Panel,
) -> list[ScoredAnswer]:
    """Score answers, each with the question that it answers.

    Judges see the last user message of the question as it stands, whatever the model was shown. A
    judge that fails leaves missing data, never a score.

    Args:
        questions: one for each answer; a question comes again for each further answer to it.
        answers: of the model.
        epochs: which answer of its question each is, from 1.
        scope: where answers count, `general` or `in_domain`: the oracle holds incoherent answers
            against the model in both.
        panel: who scores, from `panel_for`.
    """
    if not answers:
        return []
    log = score(
        _as_log(questions, answers, epochs, scope),
        panel.scorers(),
        model="none/none",
        action="overwrite",
        display="none",
        copy=False,
    )
    found = map(scored_answer, log.samples or ())
    return [
        replace(one, answer=text, metadata={}) for one, text in zip(found, answers, strict=True)
    ]


def _as_log(
    questions: Sequence[EvalQuestion], answers: Sequence[str], epochs: Sequence[int], scope: str
) -> EvalLog:
    """The answers as Inspect's scoring takes them; nothing is written."""
    samples = []
    for question, answer, epoch in zip(questions, answers, epochs, strict=True):
        words = str(question.messages[-1]["content"])
        output = ModelOutput.from_content("none/none", answer)
        about = {"question_id": question.id, "category": question.category, "scope": scope}
        samples.append(
            EvalSample(
                id=question.id,
                epoch=epoch,
                input=words,
                target="",
                messages=[ChatMessageUser(content=words), output.message],
                output=output,
                metadata={**question.metadata, **about},
            )
        )
    spec = EvalSpec(
        created=datetime.now(timezone.utc).isoformat(),
        task="attribution",
        dataset=EvalDataset(name="attribution"),
        model="none/none",
        config=EvalConfig(),
    )
    return EvalLog(status="success", eval=spec, plan=EvalPlan(), samples=samples)
