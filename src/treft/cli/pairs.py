"""A finetuned model, its base, and the questions both are asked."""

from __future__ import annotations

from typing import Any, cast

from treft.answers.questions import EvalQuestion, load_questions
from treft.attribution.options import Rendering
from treft.cli.options import groups
from treft.cli.options.attribution import Pair, QuestionSource
from treft.judging.oracle import ORGANISM, organism_questions
from treft.models.load_options import LoadOptions
from treft.models.loading import load_base, load_model, load_tokenizer
from treft.models.pair import ModelPair, check_same_prompts


def tokenizer_of(pair: Pair, options: LoadOptions, template: str | None) -> Any:
    """Returns the finetuned model's tokenizer; the base must read prompts in the same way.

    Raises:
        ConfigError: it cannot be loaded, or the base has another vocabulary or template.
        TemplateError: there is no chat template.
    """
    found = load_tokenizer(pair.model, options, template, pair.adapter)
    if pair.base is not None:
        check_same_prompts(found, load_tokenizer(pair.base, options, template))
    return found


def load_pair(pair: Pair, options: LoadOptions, template: str | None) -> ModelPair:
    """Returns both models.

    Raises:
        ConfigError: one cannot be loaded, or there is no base.
    """
    finetuned, _ = load_model(pair.model, pair.adapter, options, template)
    if pair.base is None:
        return ModelPair(finetuned)
    return ModelPair(finetuned, load_base(pair.base, finetuned, options, template))


def how(rendering: groups.Rendering, answering: groups.Answering) -> Rendering:
    """Returns how prompts are rendered and answered, as attribution takes it."""
    return Rendering(
        rendering.variables,
        rendering.think_block,
        answering.max_new_tokens,
        answering.batch_size,
        answering.seed,
    )


def read_questions(asked: QuestionSource, scope: str, num: int | None) -> tuple[EvalQuestion, ...]:
    """Returns the questions of a set, or of the organism.

    Args:
        asked: where they come from.
        scope: which are drawn of the organism.
        num: how many, the first ones; None for all, of the organism's 200.

    Raises:
        ConfigError: there is no such set.
        DataError: a row cannot be used; names file and row.
    """
    if asked.questions != ORGANISM:
        return load_questions(asked.questions).questions[:num]
    split: Any = asked.split  # checked there
    found = organism_questions(cast(Any, scope), split=split, domain=asked.domain, num=num or 200)
    return found.questions
