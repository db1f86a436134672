"""A finetuned model, its base, and the questions both are asked."""

from __future__ import annotations

from typing import Any, cast

from treft.answers.questions import EvalQuestion, load_questions
from treft.cli.options.attribution import Pair, Questions
from treft.judging.oracle import ORGANISM, organism_questions
from treft.models.load_options import LoadOptions
from treft.models.loading import load_base, load_model, load_tokenizer
from treft.models.pair import ModelPair, check_same_prompts


def tokenizer_of(pair: Pair, options: LoadOptions, template: str | None) -> Any:
    """The finetuned model's tokenizer; the base must read prompts in the same way.

    Raises:
        ConfigError: it cannot be loaded, or the base has another vocabulary or template.
        TemplateError: there is no chat template.
    """
    found = load_tokenizer(pair.model, options, template, pair.adapter)
    if pair.base is not None:
        check_same_prompts(found, load_tokenizer(pair.base, options, template))
    return found


def load_pair(pair: Pair, options: LoadOptions, template: str | None) -> ModelPair:
    """Both models.

    Raises:
        ConfigError: one cannot be loaded, or there is no base.
    """
    finetuned, _ = load_model(pair.model, pair.adapter, options, template)
    if pair.base is None:
        return ModelPair(finetuned)
    return ModelPair(finetuned, load_base(pair.base, finetuned, options, template))


def read_questions(asked: Questions) -> tuple[EvalQuestion, ...]:
    """The questions of a set, or of the organism.

    Args:
        asked: which questions.

    Raises:
        ConfigError: there is no such set.
        DataError: a row cannot be used; names file and row.
    """
    if asked.questions != ORGANISM:
        return load_questions(asked.questions).questions[: asked.num]
    found = organism_questions(
        cast(Any, asked.scope),
        split=cast(Any, asked.split),  # checked there
        domain=asked.domain,
        num=asked.num or 200,
    )
    return found.questions
