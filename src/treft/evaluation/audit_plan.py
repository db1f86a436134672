"""What an audit does, decided and written down before any answer is generated."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inspect_ai import Task
from inspect_ai.model import Model, get_model
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treft.errors import ConfigError, TreftError
from treft.evaluation.audit import em_audit, under_conditions
from treft.evaluation.audit_prompts import check_lengths, make_conditions
from treft.evaluation.conditions import Condition, FixedCondition, Sources
from treft.evaluation.local_model import LocalOptions
from treft.evaluation.prompts import PromptTemplate, load_training_prompt, template_of
from treft.evaluation.tasks import em_general
from treft.evaluation.translation import template_messages
from treft.files import write_whole
from treft.judging.judge import one_line
from treft.models.loading import LoadOptions, load_model, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


PLAN = "plan.json"
CONDITIONS = "conditions.jsonl"

TREFT = "treft/"
_ARM_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AuditArm(_Frozen):
    """One model that answers.

    Attributes:
        model: Inspect model name.
        args: of its provider.
    """

    model: str
    args: dict[str, Any] = {}


class Questions(_Frozen):
    """Which questions are asked; as for the task `em_general`."""

    questions: str = "em_general"
    sha256: str | None = None
    split: Literal["validation", "test"] | None = None
    num: int | None = None
    question_seed: int | None = None

    def task(self) -> Task:
        """The questions as they are, under no condition and unjudged but by the oracle."""
        return em_general(**self.model_dump())


class AuditRequest(_Frozen):
    """What must be equal for an audit to be continued; arms may be added.

    Attributes:
        questions: which.
        conditions: rows of the set of conditions.
        train_file: training rows; None for no condition that resembles them.
        train_sha256: of the file; filled in.
        about: what the training rows are about.
        tokenizer: folder or hub id of a tokenizer whose template renders the prompts of models
            that are served elsewhere.
        epochs: answers to each question under each condition.
        seed: of the answers.
        temperature: None for the task's.
        max_tokens: of an answer; None for the task's.
    """

    questions: Questions = Questions()
    conditions: tuple[dict[str, Any], ...]
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
    arms: dict[str, AuditArm]
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
        """The Inspect task; `folder` is where `save` wrote the plan."""
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
    conditions: Sequence[Condition],
    arms: Mapping[str, AuditArm],
    base: str | None,
    folder: Path,
) -> AuditPlan:
    """Make the conditions, check that every prompt can be asked, and fit in with an earlier run.

    Args:
        request: what is asked for.
        conditions: those of the request, checked.
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
        conditions, base = before.conditions, base or before.base
    arms = _all_arms(arms, base, before)
    templates = _templates(arms, request.tokenizer)
    sources = Sources(
        templates[0] if templates else None, training, request.about, _embedding(arms)
    )
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


def load_arm(arm: AuditArm) -> Model:
    """The model of an arm; it is let go with the last reference to it.

    Raises:
        ConfigError: it cannot be loaded, or an argument is wrong.
    """
    try:
        return get_model(arm.model, memoize=False, **arm.args)
    except TreftError:
        raise
    except Exception as error:  # providers raise what they like
        raise ConfigError(f"the model {arm.model} cannot be loaded: {one_line(error)}") from None


def _all_arms(
    arms: Mapping[str, AuditArm], base: str | None, before: AuditPlan | None
) -> dict[str, AuditArm]:
    """Arms of this and of the earlier run, the base first."""
    for name, arm in arms.items():
        if not _ARM_NAME.fullmatch(name):
            raise ConfigError(f"an arm's name is letters, digits, '.', '_' and '-', not {name!r}.")
        if before is not None and before.arms.get(name, arm) != arm:
            raise ConfigError(
                f"the arm {name} was another model or had other arguments before: give it another "
                "name, or choose another --output."
            )
    if not arms:
        raise ConfigError("name at least one model.")
    every = {**(before.arms if before else {}), **arms}
    if base is not None and base not in every:
        raise ConfigError(f"the base {base} is none of the arms {', '.join(every)}.")
    return dict(sorted(every.items(), key=lambda item: item[0] != base))


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


def _templates(arms: Mapping[str, AuditArm], tokenizer: str | None) -> list[PromptTemplate]:
    """The different chat templates that are known; a model served elsewhere is tried now."""
    named = None
    if tokenizer is not None:
        named = PromptTemplate(load_tokenizer(tokenizer, LoadOptions(device="cpu")))
    found: dict[str, PromptTemplate] = {}
    for arm in arms.values():
        template = template_of(arm.model, arm.args)
        if template is None:
            load_arm(arm)
            template = named
        if template is not None:
            found.setdefault(template.identity, template)
    return list(found.values())


def _embedding(arms: Mapping[str, AuditArm]) -> Callable[[], Tensor] | None:
    """Loads, once, the input embedding of the first arm that runs here."""
    arm = next((arm for arm in arms.values() if arm.model.startswith(TREFT)), None)
    if arm is None:
        return None

    @cache
    def load() -> Tensor:
        options = LocalOptions.of(arm.args)
        name = arm.model.removeprefix(TREFT)
        model, _ = load_model(name, options.adapter, options.loading)
        weight: Tensor = model.get_input_embeddings().weight.detach().cpu()
        return weight

    return load


def _check_lengths(task: Task, templates: Sequence[PromptTemplate], max_tokens: int) -> None:
    """See that every prompt and its answer fit into every known model's context."""
    prompts = []
    for sample in task.dataset:
        assert not isinstance(sample.input, str), "made of messages"
        prompts.append((repr(sample.id), template_messages(sample.input)))
    for template in templates:
        check_lengths(prompts, template, max_tokens)
