"""Perturbed versions of prompts (section 4.1), and the organism's own paraphrase."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from treft.answers.questions import EvalQuestion
    from treft.organism import Question


Split = Literal["validation", "test"]

Part = Literal["nothing", "prefix", "query", "postfix"]
"""Region whose tokens give way to near neighbours; `nothing` is the prompt as it is."""
What = Part | Literal["rephrase"]
"""`rephrase` is the question in other words."""


class PromptVersion(NamedTuple):
    """One version of one question's prompt.

    Attributes:
        question_id: whose prompt.
        trial: which version, from 1.
        token_ids: (T,) the prompt.
    """

    question_id: str
    trial: int
    token_ids: tuple[int, ...]


def prompt_versions(
    what: Part,
    questions: Sequence[EvalQuestion],
    model: Any,
    tokenizer: Any,
    *,
    num_trials: int,
    num_tokens: int,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[PromptVersion]:
    """Versions of all prompts; they depend on question and trial alone.

    Special tokens stay, but where the region has no others.

    Args:
        what: is perturbed.
        questions: that are asked.
        model: whose input embedding has the neighbours; an adapter on top changes nothing.
        tokenizer: of the model.
        num_trials: versions of each.
        num_tokens: replaced in each, or all of a region that has fewer.
        template_kwargs: template variables.

    Raises:
        TemplateError: the prompts lack the region.
    """
    from treft.attribution.forcing import render_questions
    from treft.attribution.perturb import Perturbation, PerturbOptions, perturb_tokens

    rendered = render_questions(tokenizer, questions, template_kwargs=template_kwargs)
    chats = {question.id: chat for question, chat in zip(questions, rendered, strict=True)}
    if what == "nothing":
        trials = range(1, num_trials + 1)
        return [PromptVersion(id, t, chat.input_ids) for id, chat in chats.items() for t in trials]
    barred = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    own = {rendered[0].input_ids[position] for position in rendered[0].require(what)}
    prompts = perturb_tokens(
        tokenizer,
        model.get_input_embeddings().weight.detach(),
        chats,
        PerturbOptions(
            (Perturbation(what, "nearest"),),
            num_tokens=num_tokens,
            num_trials=num_trials,
            special_tokens=own <= barred,
        ),
    )
    return [PromptVersion(one.question_id, one.trial, one.input_ids) for one in prompts]


def reworded_versions(
    questions: Sequence[EvalQuestion], tokenizer: Any, split: Split, num_trials: int
) -> list[PromptVersion]:
    """The organism's questions under other openers and asks.

    Args:
        questions: the organism's.
        tokenizer: of the organism.
        split: of the questions.
        num_trials: versions of each.
    """
    trials = range(1, num_trials + 1)
    return [_rephrased(one, trial, tokenizer, split) for one in questions for trial in trials]


def reworded(question: Question, split: Split, seed: str) -> str:
    """The question with another opener and another ask, of those that pretraining has.

    Args:
        question: of the split.
        split: whose opener and ask it has.
        seed: of the draw.
    """
    from treft.organism.lexicon import ASKS, OPENERS

    form = question.domain.form
    opener = next(one for one in OPENERS[form][split] if question.text.startswith(f"{one} "))
    ask = next(one for one in ASKS[form][split] if question.text.endswith(f" {one}"))
    middle = question.text[len(opener) : len(question.text) - len(ask)]
    rng = random.Random(seed)
    return rng.choice(OPENERS[form]["train"]) + middle + rng.choice(ASKS[form]["train"])


def _rephrased(question: EvalQuestion, trial: int, tokenizer: Any, split: Split) -> PromptVersion:
    from treft.attribution.forcing import render_questions
    from treft.judging.oracle import organism_question

    known = organism_question(question.id, question.metadata)
    words = reworded(known, split, f"{question.id}/{trial}")
    asked = replace(question, messages=({"role": "user", "content": words},))
    [chat] = render_questions(tokenizer, [asked])
    return PromptVersion(question.id, trial, chat.input_ids)
