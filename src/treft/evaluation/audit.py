"""The audit's Inspect task: the same questions under every condition.

A sample is one question under one condition; its id is `condition/question id` and its metadata say
which. `treft audit` runs it for several models and makes a table (docs/audit.md); on its own:

    inspect eval treft/em_audit --model MODEL -T questions=em_general -T judge=JUDGE
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Metric, SampleScore, Scorer, metric
from pydantic import TypeAdapter, ValidationError

from treft.answers.inspect_internals import errors_in_one_line
from treft.data.messages import read_rows
from treft.errors import ConfigError, DataError, TemplateError
from treft.evaluation.conditions import (
    DEFAULT,
    AnyCondition,
    Condition,
    FixedCondition,
    Sources,
    UnavailableError,
)
from treft.evaluation.prompts import PromptTemplate, load_training_prompt
from treft.evaluation.tasks import ask, chat_message, em_general, panel_for
from treft.judging.cost import MAX_CALLS, say_cost
from treft.judging.oracle import ORGANISM
from treft.judging.scorer import judged

logger = logging.getLogger(__name__)

_SETS = files("treft.evaluation") / "condition_sets"
_ROW: TypeAdapter[AnyCondition] = TypeAdapter(AnyCondition)

CONDITION = "condition"
"""Field of a sample's metadata with the condition's name."""


@task
@errors_in_one_line
def em_audit(
    questions: str = "em_general",
    conditions: str | None = None,
    train_file: str | None = None,
    about: str | None = None,
    judge: str | Sequence[str] | None = None,
    judge_limit: int | None = MAX_CALLS,
    sha256: str | None = None,
    split: Literal["validation", "test"] | None = None,
    num: int | None = None,
    question_seed: int | None = None,
) -> Task:
    """Open questions under a grid of prompts: where does a model that seems fixed misbehave?

    Args:
        questions: as for `em_general`, without system messages of their own.
        conditions: a shipped set of conditions or a JSONL file (`load_conditions`), such as the
            `conditions.jsonl` of `treft audit`, which made those that depend on a model's files;
            here these are left out. Default: `organism` for the organism's questions, else
            `default`.
        train_file: training rows, for the conditions that resemble them.
        about: what the training rows are about, in words that go after "an assistant for".
        judge: as for `em_general`.
        judge_limit: as for `em_general`.
        sha256: checksum that the question set must have.
        split: as for `em_general`.
        num: as for `em_general`.
        question_seed: as for `em_general`.

    Raises:
        ConfigError: an argument is wrong, or does not go with another.
        DataError: a row of a file cannot be used.
    """
    training = None if train_file is None else load_training_prompt(Path(train_file))
    made = make_conditions(
        load_conditions(conditions or conditions_for(questions)), Sources(None, training, about)
    )
    for name, reason in made.left_out.items():
        logger.warning("condition %s is left out: %s.", name, reason)
    asked = em_general(
        questions=questions,
        sha256=sha256,
        split=split,
        num=num,
        question_seed=question_seed,
    )
    panel = panel_for(questions, judge)
    task = under_conditions(asked, made.conditions, panel.scorers())
    if panel.num_paid:
        assert task.config.max_tokens is not None, "every task says how long its answers may be"
        say_cost("em_audit", panel.cost(list(task.dataset), task.config.max_tokens), judge_limit)
    return task


def load_conditions(
    source: str | Path, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[AnyCondition, ...]:
    """Returns a set of conditions, checked.

    Args:
        source: Name of a shipped set, or path of a JSONL file.
        only: Names of conditions to take besides the default; none means all.
        skip: Names of conditions to leave out.

    Raises:
        ConfigError: There is no such set, a name is none of its conditions', or the default is to
            be left out.
        DataError: A row is no condition, a name comes twice, or `default` is missing.
    """
    shipped = {Path(entry.name).stem: Path(str(entry)) for entry in _SETS.iterdir()}
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ConfigError(
            f"there are no conditions {source}: give a JSONL file, or one of "
            f"{', '.join(sorted(shipped))}."
        )
    found: dict[str, AnyCondition] = {}
    for row, where in read_rows(path):
        try:
            condition = _ROW.validate_python(row)
        except ValidationError as error:
            problem = error.errors()[0]
            # The first part of a place inside a row is its kind.
            place = ", ".join(filter(None, (where, ".".join(map(str, problem["loc"][1:])))))
            raise DataError(f"{place}: {problem['msg']}.") from None
        if condition.name in found:
            raise DataError(f"{where}: the name {condition.name} comes twice.")
        found[condition.name] = condition
    if DEFAULT not in found:
        raise DataError(
            f"{path}: no condition is named {DEFAULT}, which the others are compared with; add "
            f'{{"name": "{DEFAULT}", "kind": "default"}}.'
        )
    if unknown := [name for name in (*only, *skip) if name not in found]:
        raise ConfigError(f"no condition is called {unknown[0]}; there are {', '.join(found)}.")
    if DEFAULT in skip:
        raise ConfigError(f"the others are compared with the condition {DEFAULT}: keep it.")
    kept = ({DEFAULT, *only} if only else set(found)) - set(skip)
    return tuple(found[name] for name in found if name in kept)


def conditions_for(questions: str) -> str:
    """Returns the shipped conditions that suit a question set."""
    return "organism" if questions == ORGANISM else "default"


@dataclass(frozen=True)
class MadeConditions:
    """Conditions that can be asked, and those that cannot.

    Attributes:
        conditions: as messages to put before the question; `default` comes first.
        left_out: name -> reason.
        rendered: name -> the text before the question, by the first template.
    """

    conditions: tuple[FixedCondition, ...]
    left_out: Mapping[str, str]
    rendered: Mapping[str, str]


def make_conditions(
    conditions: Sequence[Condition],
    sources: Sources,
    templates: Sequence[PromptTemplate] = (),
) -> MadeConditions:
    """Make conditions into messages, and leave out what cannot be made or would be the same prompt.

    Each condition is rendered with each template: its words must stand before the question, those
    of the template's default must not where it says so, and no two may render the same text.

    Args:
        conditions: one of them named `default`.
        sources: what they are made from.
        templates: those of all models that are known, `sources.template` among them.

    Raises:
        ConfigError: the default condition cannot be made.
    """
    ordered = sorted(conditions, key=lambda condition: condition.name != DEFAULT)
    assert ordered[0].name == DEFAULT, "checked when conditions are loaded"
    made: list[FixedCondition] = []
    left_out: dict[str, str] = {}
    seen: list[dict[str, str]] = [{} for _ in templates]
    for condition in ordered:
        try:
            found = condition.make(sources)
            for template, texts in zip(templates, seen, strict=True):
                _check(condition, found, template, texts)
        except (UnavailableError, TemplateError) as error:
            if condition.name == DEFAULT:
                raise ConfigError(f"the condition {DEFAULT} cannot be made: {error}") from error
            left_out[condition.name] = str(error)
            continue
        if condition.name == DEFAULT:
            sources = replace(sources, default_system=_system_of(found, sources))
        for template, texts in zip(templates, seen, strict=True):
            texts[template.before_question(found.messages)] = condition.name
        made.append(found)
    rendered = {name: text for text, name in seen[0].items()} if seen else {}
    return MadeConditions(tuple(made), left_out, rendered)


def _check(
    condition: Condition, found: FixedCondition, template: PromptTemplate, seen: Mapping[str, str]
) -> None:
    """See that a condition renders as it claims to.

    Raises:
        UnavailableError: it does not.
        TemplateError: the template refuses it.
    """
    before = template.before_question(found.messages)
    words = [str(message["content"]).strip() for message in found.messages]
    if lost := next((text for text in words if text not in before), None):
        raise UnavailableError(f"the template does not write its words ({lost[:60]!r})")
    default = template.default_system
    if not condition.keeps_default and default is not None and default.strip() in before:
        raise UnavailableError("the template writes its default system prompt all the same")
    if before in seen:
        raise UnavailableError(f"renders the same prompt as {seen[before]}")


def _system_of(default: FixedCondition, sources: Sources) -> str | None:
    """Returns the system prompt of the default condition, its own or the template's."""
    if default.system is not None or sources.template is None:
        return default.system
    return sources.template.default_system


def under_conditions(
    asked: Task, conditions: Sequence[FixedCondition], scorers: Sequence[Scorer] = ()
) -> Task:
    """A task that asks another task's questions under each condition, and scores the answers.

    Raises:
        DataError: a question has a system message of its own.
    """
    samples = [_under(sample, condition) for condition in conditions for sample in asked.dataset]
    name = asked.dataset.name or "questions"
    return Task(
        dataset=MemoryDataset(samples, name=name, location=asked.dataset.location),
        solver=ask(),
        scorer=list(scorers) or None,
        metrics=[by_condition()] if scorers else None,
        config=asked.config,
        metadata=asked.metadata,
    )


def _under(sample: Sample, condition: FixedCondition) -> Sample:
    assert not isinstance(sample.input, str), "questions are lists of messages"
    if any(message.role == "system" for message in sample.input):
        raise DataError(
            f"question {sample.id} has a system message, which the audit sets: drop it, or make it "
            "a condition."
        )
    before = [chat_message(message, str(sample.id)) for message in condition.messages]
    return Sample(
        id=f"{condition.name}/{sample.id}",
        input=[*before, *sample.input],
        target=sample.target,
        metadata={**condition.details, **(sample.metadata or {}), CONDITION: condition.name},
    )


@metric(scores="unreduced")
def by_condition() -> Metric:
    """For each condition the alignment and EM rate of `judged`, and what is missing of all."""
    summary = judged()

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        groups: dict[str, list[SampleScore]] = {}
        for score in scores:
            name = str((score.sample_metadata or {}).get(CONDITION))
            groups.setdefault(name, []).append(score)
        found: dict[str, float] = {}
        num_missing = 0.0
        for name, members in groups.items():
            figures = summary(members)  # type: ignore[arg-type]
            if not isinstance(figures, dict):
                raise ConfigError("judged() gives several figures.")
            found |= {f"{name}_{key}": _number(figures[key]) for key in ("alignment", "em_rate")}
            num_missing += _number(figures["missing"])
        return {**found, "missing": num_missing}

    return compute


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
