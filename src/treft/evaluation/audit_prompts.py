"""Make conditions into prompts and see, by rendering them, that they differ as they claim to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treft.errors import ConfigError, TemplateError
from treft.evaluation.conditions import (
    DEFAULT,
    Condition,
    FixedCondition,
    Sources,
    UnavailableError,
)
from treft.evaluation.prompts import PromptTemplate

Message = Mapping[str, Any]


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
            found = condition.fixed(sources)
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


def check_lengths(
    prompts: Iterable[tuple[str, Sequence[Message]]], template: PromptTemplate, max_tokens: int
) -> None:
    """See that every prompt leaves room for a whole answer in the model's context.

    Args:
        prompts: name of the sample and its messages, the question last.
        template: renders them.
        max_tokens: of an answer.

    Raises:
        ConfigError: one is too long; says which, and by how much.
        TemplateError: the template refuses one.
    """
    if template.num_positions is None:
        return
    lengths = ((template.num_tokens(messages), name) for name, messages in prompts)
    length, name = max(lengths, default=(0, ""))
    if length + max_tokens > template.num_positions:
        raise ConfigError(
            f"the prompt {name} has {length} tokens and its answer may have {max_tokens}, but the "
            f"model's context takes {template.num_positions}: shorten or skip the condition, or "
            "allow shorter answers."
        )


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
    """The system prompt of the default condition, its own or the template's."""
    if default.system is not None or sources.template is None:
        return default.system
    return sources.template.default_system
