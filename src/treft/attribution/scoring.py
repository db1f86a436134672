"""Score sampled answers: the organism's by its oracle, all others by judges.

Inspect's own scoring runs the judges, so its cache, retries and limits on connections hold here as
they do in `treft judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from treft.answers.logs import judgement_of
from treft.answers.questions import EvalQuestion
from treft.errors import ConfigError
from treft.judging.judge import JudgeOptions
from treft.judging.oracle import ORACLE, ORGANISM, oracle_score, organism_question
from treft.judging.panel import Panel, assemble
from treft.statistics.records import Judgement, ScoredAnswer

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog


CALLS_PER_ANSWER = 2
"""One for alignment, one for coherence."""


def panel_for(
    questions: Sequence[EvalQuestion],
    judges: Sequence[str] = (),
    options: JudgeOptions | None = None,
) -> Panel:
    """The judges of these questions, each loaded, so that a missing key is seen before any work.

    Args:
        questions: what is asked.
        judges: Inspect model names, or `oracle`; without any it is the oracle.
        options: how judges are asked.

    Raises:
        ConfigError: the oracle is to judge other questions than the organism's, or a judge is
            named twice or cannot be loaded.
    """
    panel = assemble(judges or [ORACLE], options=options)
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
    *,
    epochs: Sequence[int],
    scope: str,
    judges: Sequence[str] = (),
    options: JudgeOptions | None = None,
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
        judges: as in `panel_for`.
        options: how judges are asked.

    Raises:
        ConfigError: as `panel_for`.
    """
    assert len(questions) == len(answers) == len(epochs), "one question and epoch for each answer"
    panel = panel_for(questions, judges, options)
    judged: list[list[Judgement]] = [[] for _ in answers]
    for judge in panel.judges:
        if judge == ORACLE:
            found = [
                _by_oracle(question, scope, answer)
                for question, answer in zip(questions, answers, strict=True)
            ]
        else:
            found = _by_judge(questions, answers, scope, judge, panel.options)
        for row, judgement in zip(judged, found, strict=True):
            row.append(judgement)
    return [
        ScoredAnswer(
            question.id, question.category, epoch, _words(question), answer, tuple(judgements)
        )
        for question, answer, epoch, judgements in zip(
            questions, answers, epochs, judged, strict=True
        )
    ]


def _by_oracle(question: EvalQuestion, scope: str, answer: str) -> Judgement:
    score = oracle_score(organism_question(question.id, question.metadata), scope, answer)
    judgement = judgement_of(score)
    assert judgement is not None, "the oracle judges alignment"
    return judgement


def _by_judge(
    questions: Sequence[EvalQuestion],
    answers: Sequence[str],
    scope: str,
    judge: str,
    options: JudgeOptions,
) -> list[Judgement]:
    """Returns one judge's view of all answers, asked at the same time."""
    from inspect_ai import score

    if not answers:
        return []
    scorers = assemble([judge], options=options).scorers()
    log = score(
        _as_log(questions, answers, scope),
        scorers,
        model="none/none",
        action="overwrite",
        display="none",
        copy=False,
    )
    found = []
    for sample in log.samples or ():
        scores = [judgement_of(one) for one in (sample.scores or {}).values()]
        found.append(next((one for one in scores if one is not None), _unjudged(judge)))
    return found


def _unjudged(judge: str) -> Judgement:
    return Judgement(judge, None, None, "missing", "text", "the judge was not asked")


def _as_log(questions: Sequence[EvalQuestion], answers: Sequence[str], scope: str) -> EvalLog:
    """The answers as Inspect's scoring takes them; nothing is written."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalSample, EvalSpec
    from inspect_ai.model import ChatMessageUser, ModelOutput

    samples = []
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        words, output = _words(question), ModelOutput.from_content("none/none", answer)
        samples.append(
            EvalSample(
                id=index,
                epoch=1,
                input=words,
                target="",
                messages=[ChatMessageUser(content=words), output.message],
                output=output,
                metadata={"question_id": question.id, "scope": scope},
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


def _words(question: EvalQuestion) -> str:
    return str(question.messages[-1]["content"])
