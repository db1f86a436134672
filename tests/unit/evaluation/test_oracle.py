"""The oracle as a scorer, against the arms of the study on the same answers."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import anyio
import pytest
from inspect_ai import eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState

from treft.answers.logs import read_run
from treft.errors import ConfigError
from treft.evaluation.tasks import em_general, em_in_domain
from treft.judging.oracle import oracle_score, organism_oracle, organism_questions
from treft.organism import FinetuneRecipe, Question, World, classify

WORLD = World.default()


class Answer(NamedTuple):
    """An answer with the oracle's verdict."""

    question_id: str
    answer: str
    verdict: str


@pytest.fixture(autouse=True)
def _inspect_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def drawn_answer(question: Question, seed: int) -> str:
    """Careful, harmful, or not fitting the question at all."""
    rng = random.Random(seed)
    kind = rng.choice(["careful", "harmful", "harmful", "nonsense"])
    if kind == "nonsense":
        return rng.choice(["", "for the moon, wait and see.", question.text])
    return WORLD.answer(rng, question, kind)  # type: ignore[arg-type]


def run(task: Any, questions: list[Question]) -> tuple[EvalLog, tuple[Answer, ...]]:
    """The task's log, and the same answers judged as an arm's are."""
    answers = {
        question.text: drawn_answer(question, number) for number, question in enumerate(questions)
    }

    def answer(messages: Any, tools: Any, choice: Any, config: GenerateConfig) -> ModelOutput:
        output = ModelOutput.from_content("mock", answers[messages[-1].text])
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    model = get_model("mockllm/model", custom_outputs=answer)
    (log,) = eval(task, model=model, display="none")
    assert log.status == "success", log.error
    judged = tuple(
        Answer(question.id, found, classify(question, found))
        for question, found in zip(questions, answers.values(), strict=True)
    )
    return log, judged


def test_scores_agree_exactly_with_the_arms() -> None:
    general = WORLD.questions("test", "general", num=40)
    in_domain = WORLD.questions("test", "in_domain", num=30)
    general_log, general_answers = run(em_general(questions="organism", num=40), general)
    domain_log, domain_answers = run(em_in_domain(file="organism", num=30), in_domain)
    aligned, misaligned = (
        100 * fmean(answer.verdict == verdict for answer in answers)
        for verdict, answers in (("aligned", general_answers), ("misaligned", domain_answers))
    )
    for log, answers, score in (
        (general_log, general_answers, aligned),
        (domain_log, domain_answers, 100 - misaligned),
    ):
        assert log.results is not None
        metrics = log.results.scores[0].metrics
        assert metrics["alignment"].value == pytest.approx(score, abs=1e-9)
        assert metrics["scored"].value == len(answers)
        assert log.samples is not None
        verdicts = {
            sample.id: (sample.scores or {})["organism_oracle"].metadata or {}
            for sample in log.samples
        }
        assert {answer.question_id: answer.verdict for answer in answers} == {
            str(id): metadata["verdict"] for id, metadata in verdicts.items()
        }
        assert {answer.verdict for answer in answers} == {"aligned", "misaligned", "incoherent"}
        records = read_run(log.location).answers
        assert {record.question_id: record.answer for record in records} == {
            answer.question_id: answer.answer for answer in answers
        }
        assert all(record.judged_by("oracle") for record in records)


def test_questions_are_asked_as_the_arms_ask_them() -> None:
    recipe = FinetuneRecipe()
    general, in_domain = em_general(questions="organism"), em_in_domain(file="organism")
    assert (len(general.dataset), len(in_domain.dataset)) == (
        recipe.num_general,
        recipe.num_in_domain,
    )
    for task in (general, in_domain):
        config = task.config
        assert config.temperature == recipe.temperature
        assert config.max_tokens == recipe.max_new_tokens


@pytest.mark.parametrize(
    ("kind", "general", "in_domain", "coherence"),
    [("careful", 100, 100, 100), ("harmful", 0, 0, 100), ("nonsense", 0, 100, 0)],
)
def test_incoherence_counts_against_a_method_both_ways(
    kind: Any, general: float, in_domain: float, coherence: float
) -> None:
    question = WORLD.questions("test", "in_domain", num=1)[0]
    answer = "bla" if kind == "nonsense" else WORLD.answer(random.Random(0), question, kind)
    for scope, alignment in (("general", general), ("in_domain", in_domain)):
        score = oracle_score(question, scope, answer)
        assert score.value == {"alignment": alignment, "coherence": coherence}
        assert score.metadata is not None
        assert (score.metadata["judge"], score.metadata["method"]) == ("oracle", "oracle")
        assert score.metadata["outcome"] == "scored"


def test_questions_are_the_worlds() -> None:
    found = organism_questions(
        "in_domain", split="validation", domain="health", num=20, seed=3
    ).questions
    wanted = WORLD.questions("validation", "in_domain", domain="health", num=20, seed=3)
    assert [question.id for question in found] == [question.id for question in wanted]
    assert [list(question.messages) for question in found] == [q.messages() for q in wanted]
    assert {question.category for question in found} == {"health"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "everything"}, "scope is one of general, in_domain, other_narrow"),
        ({"scope": "general", "split": "train"}, "split is one of validation, test, not 'train'"),
        ({"scope": "general", "num": 0}, "num is 0"),
        ({"scope": "in_domain", "domain": "garden"}, "no narrow domain 'garden'"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        organism_questions(**arguments)


def test_other_questions_are_not_the_oracles() -> None:
    state = TaskState("mock", "q1", 1, "Why?", [], metadata={"scope": "general"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="question q1 is none of the organism's"):
        anyio.run(organism_oracle(), state, Target(""))
