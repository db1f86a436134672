"""What an audit does, decided and written down before any answer is generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from inspect_ai import Task
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treft.errors import ConfigError
from treft.evaluation.audit import em_audit, make_conditions, under_conditions
from treft.evaluation.audit_arms import Arms, embedding_of, joined, templates_of
from treft.evaluation.conditions import AnyCondition, FixedCondition, Sources
from treft.evaluation.prompts import PromptTemplate, load_training_prompt
from treft.evaluation.tasks import em_general
from treft.evaluation.translation import template_messages
from treft.files import write_whole

PLAN = "plan.json"
CONDITIONS = "conditions.jsonl"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Questions(_Frozen):
    """Which questions are asked; the fields are arguments of the task `em_general`."""

    questions: str = "em_general"
    sha256: str | None = None
    split: str | None = None
    num: int | None = None
    question_seed: int | None = None

    def task(self) -> Task:
        """Returns the questions as they are, under no condition, unjudged but by the oracle."""
        return em_general(**self.model_dump())


class AuditRequest(_Frozen):
    """What must be equal for an audit to be continued; arms may be added.

    Attributes:
        questions: The questions that are asked.
        conditions: The conditions that they are asked under.
        train_file: Training rows; None for no condition that resembles them.
        train_sha256: Checksum of the file; filled in.
        about: What the training rows are about.
        tokenizer: Folder or hub id of a tokenizer whose template renders the prompts of models
            that are served elsewhere.
        epochs: Answers to each question under each condition.
        seed: The seed of the answers.
        temperature: None for the task's.
        max_tokens: Length of an answer; None for the task's.
    """

    questions: Questions = Questions()
    conditions: tuple[AnyCondition, ...]
    train_file: Path | None = None
    train_sha256: str | None = None
    about: str | None = None
    tokenizer: str | None = None
    epochs: int = Field(default=1, ge=1)
    seed: int = 0
    temperature: float | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)


class AuditPlan(_Frozen):
    """An audit that can be run.

    Attributes:
        request: what was asked for.
        arms: by name, the base first if there is one.
        base: arm that the others are compared with; None compares none.
        conditions: that are asked.
        left_out: conditions that are not, with the reason.
        rendered: the text before the question, by condition, where a template is known.
        num_questions: asked under each condition.
        max_tokens: of an answer.
    """

    request: AuditRequest
    arms: Arms
    base: str | None
    conditions: tuple[FixedCondition, ...]
    left_out: dict[str, str]
    rendered: dict[str, str]
    num_questions: int
    max_tokens: int

    @property
    def num_answers(self) -> int:
        """Of one arm."""
        return len(self.conditions) * self.num_questions * self.request.epochs

    def task(self, folder: Path, judges: Sequence[str]) -> Task:
        """Returns the Inspect task; `folder` is where `save` wrote the plan."""
        return em_audit(
            conditions=str((folder / CONDITIONS).absolute()),
            judge=list(judges) or None,
            judge_limit=None,  # the audit has said what it costs, and asked
            **self.request.questions.model_dump(),
        )

    def save(self, folder: Path) -> None:
        """Write the plan and its conditions; the latter can be given to other audits."""
        rows = [condition.model_dump_json() + "\n" for condition in self.conditions]
        write_whole(folder / CONDITIONS, "".join(rows))
        write_whole(folder / PLAN, self.model_dump_json(indent=1) + "\n")


def plan_audit(
    request: AuditRequest,
    arms: Arms,
    base: str | None,
    folder: Path,
) -> AuditPlan:
    """Make the conditions, check that every prompt can be asked, and fit in with an earlier run.

    Args:
        request: what is asked for.
        arms: models by name.
        base: one of them, or None.
        folder: of the audit; nothing is written.

    Raises:
        ConfigError: an arm is wrong or cannot be loaded, a prompt is too long, or the folder holds
            an audit of something else.
        DataError: a row of a file cannot be used.
    """
    training = None
    if request.train_file is not None:
        training = load_training_prompt(request.train_file)
        digest = hashlib.sha256(request.train_file.read_bytes()).hexdigest()
        request = request.model_copy(update={"train_sha256": digest})
    before = _earlier(folder)
    if before is not None:
        _check_same(before.request, request, folder)
        base = base or before.base
    arms = joined(arms, before.arms if before else {}, base)
    templates = templates_of(arms.values(), request.tokenizer)
    sources = Sources(
        templates[0] if templates else None, training, request.about, embedding_of(arms.values())
    )
    conditions = request.conditions if before is None else before.conditions
    made = make_conditions(conditions, sources, templates)
    if before is not None and made.left_out:
        name, reason = next(iter(made.left_out.items()))
        raise ConfigError(f"an added arm cannot be asked under the condition {name}: {reason}.")
    task = under_conditions(request.questions.task(), made.conditions)
    max_tokens = request.max_tokens or task.config.max_tokens
    assert max_tokens is not None, "the task says how long answers may be"
    _check_lengths(task, templates, max_tokens)
    return AuditPlan(
        request=request,
        arms=arms,
        base=base,
        conditions=made.conditions,
        left_out=dict(made.left_out) if before is None else before.left_out,
        rendered=dict(made.rendered),
        num_questions=len(task.dataset) // len(made.conditions),
        max_tokens=max_tokens,
    )


def _earlier(folder: Path) -> AuditPlan | None:
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        return AuditPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no plan of an audit: choose another --output.") from error


def _check_same(before: AuditRequest, now: AuditRequest, folder: Path) -> None:
    """Refuse to mix answers to different questions in one table."""
    ignored = {"train_file"}  # it may move; its checksum is compared
    old, new = (json.loads(each.model_dump_json(exclude=ignored)) for each in (before, now))
    if changed := [name for name in new if new[name] != old[name]]:
        raise ConfigError(
            f"{folder} was begun with other {', '.join(changed)}: choose another --output."
        )


def _check_lengths(task: Task, templates: Sequence[PromptTemplate], max_tokens: int) -> None:
    """Sees that every prompt leaves room for a whole answer in every known model's context."""
    for template in templates:
        if template.num_positions is None:
            continue
        lengths = (
            (template.num_tokens(template_messages(sample.input)), repr(sample.id))  # type: ignore[arg-type]
            for sample in task.dataset
        )
        length, name = max(lengths)
        if length + max_tokens > template.num_positions:
            raise ConfigError(
                f"the prompt {name} has {length} tokens and its answer may have {max_tokens}, but "
                f"the model's context takes {template.num_positions}: shorten or skip the "
                "condition, or allow shorter answers."
            )
