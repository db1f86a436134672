"""What the studies of `treft attribute` have in common: models, questions, packages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treft.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from treft.answers.questions import EvalQuestion
    from treft.models.loading import LoadOptions
    from treft.models.pair import ModelPair


@dataclass(frozen=True)
class Asked:
    """Which questions are asked, from the command line.

    Attributes:
        source: a JSONL file, a shipped set, or `organism`.
        scope: `general` or `in_domain`; for the organism also which questions are drawn.
        num: the first ones; None for all (of the organism's 200).
        split: of the organism's questions.
        domain: that the organism was finetuned on.
    """

    source: str
    scope: str
    num: int | None
    split: str
    domain: str


@dataclass(frozen=True)
class ModelNames:
    """Which models are asked, from the command line.

    Attributes:
        model: the finetuned model, or an adapter.
        adapter: put on the model.
        base: the unfinetuned model; None for the adapter switched off.
    """

    model: str
    adapter: str | None
    base: str | None

    def tokenizer(self, options: LoadOptions, template: str | None) -> Any:
        """The finetuned model's tokenizer; the base must read prompts in the same way.

        Raises:
            ConfigError: it cannot be loaded, or the base has another vocabulary or template.
            TemplateError: there is no chat template.
        """
        from treft.models.loading import load_tokenizer
        from treft.models.pair import check_same_prompts

        found = load_tokenizer(self.model, options, template, self.adapter)
        if self.base is not None:
            check_same_prompts(found, load_tokenizer(self.base, options, template))
        return found

    def load(self, options: LoadOptions, template: str | None) -> ModelPair:
        """Both models.

        Raises:
            ConfigError: one cannot be loaded, or there is no base.
        """
        from treft.core.states import pretrained_model
        from treft.models.loading import load_model
        from treft.models.pair import ModelPair

        finetuned, _ = load_model(self.model, self.adapter, options, template)
        if self.base is None:
            return ModelPair(finetuned)
        # In the precision of the finetuned model, however the base was saved.
        dtype = str(pretrained_model(finetuned).dtype).removeprefix("torch.")
        found, _ = load_model(self.base, None, replace(options, dtype=dtype), template)
        return ModelPair(finetuned, found)


def need_inspect() -> None:
    """See that what judges answers is installed.

    Raises:
        ConfigError: it is not.
    """
    with needs_extra("eval", "attribution needs"):
        import inspect_ai  # noqa: F401


def read_questions(asked: Asked) -> tuple[EvalQuestion, ...]:
    """The questions of a set, or of the organism.

    Args:
        asked: which questions.

    Raises:
        ConfigError: an option is none of these, or there is no such set.
        DataError: a row cannot be used; names file and row.
    """
    from treft.answers.questions import load_questions
    from treft.judging.oracle import ORGANISM, organism_questions

    if asked.scope not in ("general", "in_domain"):
        raise ConfigError(f"--scope is general or in_domain, not {asked.scope!r}.")
    if asked.num is not None and asked.num < 1:
        raise ConfigError(f"--num is {asked.num}; ask at least one question.")
    if asked.source != ORGANISM:
        return load_questions(asked.source).questions[: asked.num]
    found = organism_questions(
        asked.scope,  # type: ignore[arg-type]  # checked there
        split=asked.split,  # type: ignore[arg-type]  # checked there
        domain=asked.domain,
        num=asked.num or 200,
    )
    return found.questions
