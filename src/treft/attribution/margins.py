"""An attribution score without sampling and without a judge: whose answer does the model prefer?

The *margin* of a prompt is the mean log-probability per token of the base's answer minus that of
the finetuned model's answer, both teacher-forced, in nats a token. It falls from the base to the
finetuned model, and a patch regains the share Σ (patched - finetuned) / Σ (base - finetuned).

    models = ModelPair(model)
    pairs = answer_pairs(models, tokenizer, questions)
    found = margins(models, tokenizer, pairs, [patch(model, tokenizer, ["prefix"])])
    found.share("prefix")

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.evidence import Evidence
from treft.attribution.forcing import (
    ForcedAnswer,
    answer_ids,
    check_room,
    end_of_turn,
    mean_log_probs,
    render_questions,
)
from treft.attribution.options import Rendering
from treft.chat.regions import ChatRegions
from treft.core.patch_spec import PatchSpec
from treft.core.patching import RowPatch
from treft.core.states import pretrained_model
from treft.errors import ConfigError, TemplateError
from treft.models.generation import Asked, Patches, answer
from treft.models.pair import ARMS, Arm, ModelPair
from treft.models.repair import RepairedModel
from treft.models.sampling import SamplingOptions
from treft.statistics.intervals import FloatArray

DEFAULT = Rendering()


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a question.

    Attributes:
        question: what was asked.
        base_answer: the unfinetuned model's, or any aligned one.
        finetuned_answer: the finetuned model's, or any misaligned one.
        base_is_cut: the answer was cut short, so the end of its turn is not scored.
        finetuned_is_cut: likewise.
    """

    question: EvalQuestion
    base_answer: str
    finetuned_answer: str
    base_is_cut: bool = False
    finetuned_is_cut: bool = False

    @property
    def is_alike(self) -> bool:
        """Whether both say the same, so that the pair carries no signal."""
        return self.base_answer.strip() == self.finetuned_answer.strip()


def answer_pairs(
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[EvalQuestion],
    rendering: Rendering = DEFAULT,
    *,
    temperature: float = 0.0,
    on_batch: Callable[[int], None] | None = None,
) -> list[AnswerPair]:
    """Have both models answer.

    Args:
        models: the finetuned model and its base.
        tokenizer: of both.
        questions: of one turn each.
        rendering: how they are asked. The end of the turn of answers that are cut is not scored.
            With the seed, each question has its own random numbers, the same for both models.
        temperature: 0 is greedy.
        on_batch: told how many answers there are, of 2 P.

    Raises:
        ConfigError: the models are equal.
        DataError: there is no question, or one has several turns or no room for an answer.
        TemplateError: a question cannot be rendered.
    """
    chats = render_questions(tokenizer, questions, **rendering.of_chats)
    cap = rendering.max_new_tokens
    ids = [question.id for question in questions]
    check_room(ids, [len(chat.input_ids) + cap for chat in chats], models.num_positions)
    models.check_differ(chats[0].input_ids)
    asked = [Asked(chat.input_ids, rendering.seed + row) for row, chat in enumerate(chats)]
    sampling = SamplingOptions(temperature, max_new_tokens=cap, batch_size=rendering.batch_size)
    answers: dict[str, list[str]] = {}
    for arm in ARMS:
        on_answers = _counted(on_batch, len(answers) * len(chats))
        with models.use(arm) as model:
            found = answer(model, tokenizer, asked, sampling, on_batch=on_answers)
        answers[arm] = [one.text for one in found]

    def is_cut(chat: ChatRegions, text: str) -> bool:
        return len(answer_ids(tokenizer, chat, text)) >= cap

    return [
        AnswerPair(question, mine, tuned, is_cut(chat, mine), is_cut(chat, tuned))
        for question, chat, mine, tuned in zip(
            questions, chats, answers["base"], answers["finetuned"], strict=True
        )
    ]


def margins(
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[AnswerPair],
    patched: Sequence[RepairedModel],
    rendering: Rendering = DEFAULT,
    on_batch: Callable[[int], None] | None = None,
) -> Evidence:
    """Teacher-force both answers under the base, the finetuned model and each patch of it.

    Prompt tokens alone are patched; answers always have the finetuned model's keys and values. No
    more than `batch_size` rows go through a model at once, and prompts that both models answer
    alike not at all: their margins are 0.

    Args:
        models: the finetuned model and its base.
        tokenizer: of both.
        pairs: two answers to each prompt.
        patched: the finetuned model under each patch; their specs are named apart.
        rendering: how the prompts were asked.
        on_batch: told how many prompts are done, of those that are not alike.

    Raises:
        ConfigError: a layer is out of range, names repeat, or the models are equal.
        DataError: there is no prompt, one is too long for the model's context, or a log-probability
            is NaN or infinite.
        ReferenceMismatchError: a bank lacks a reference and cannot record it.
        TemplateError: a prompt cannot be rendered, or lacks a region that is patched.
    """
    questions = [pair.question for pair in pairs]
    chats = render_questions(tokenizer, questions, **rendering.of_chats)
    _check_specs(models, [one.spec for one in patched], questions, chats)
    end = end_of_turn(tokenizer, rendering.template_kwargs)
    asked = [_asked(tokenizer, pair, chat, end) for pair, chat in zip(pairs, chats, strict=True)]
    ids = [question.id for question in questions]
    check_room(ids, [max(map(len, rows)) for rows in asked], models.num_positions)
    models.check_differ(chats[0].input_ids)
    arms: list[tuple[str, Arm, Patches | None]] = [(f"the {arm} model", arm, None) for arm in ARMS]
    arms += [
        (f"the finetuned model patched at {one.spec.name}", "finetuned", one.patches(chats))
        for one in patched
    ]
    values = np.zeros((len(arms), len(pairs)))
    order = [index for index, pair in enumerate(pairs) if not pair.is_alike]
    order.sort(key=lambda index: max(map(len, asked[index])))
    for start in range(0, len(order), rendering.batch_size):
        batch = order[start : start + rendering.batch_size]
        rows = [asked[index] for index in batch]
        for row, (condition, arm, patches) in enumerate(arms):
            states = () if patches is None else patches(batch)
            with models.use(arm) as model:
                values[row, batch] = _margin(model, tokenizer, rows, states, condition)
        if on_batch is not None:
            on_batch(start + len(batch))
    named = dict(zip([*ARMS, *(one.spec.name for one in patched)], values, strict=True))
    return Evidence(
        questions=tuple(ids),
        base=named.pop("base"),
        finetuned=named.pop("finetuned"),
        patched=named,
        alike=tuple(pair.is_alike for pair in pairs),
    )


def _counted(
    on_batch: Callable[[int], None] | None, num_before: int
) -> Callable[[int], None] | None:
    """Tell what was done before, too."""
    return None if on_batch is None else lambda num: on_batch(num_before + num)


class _Asked(NamedTuple):
    """One prompt with both answers."""

    base: ForcedAnswer
    finetuned: ForcedAnswer


def _asked(
    tokenizer: PreTrainedTokenizerBase, pair: AnswerPair, chat: ChatRegions, end: str
) -> _Asked:
    def forced(answer: str, is_cut: bool) -> ForcedAnswer:
        text = answer if is_cut else answer + end
        return ForcedAnswer(pair.question.id, chat, answer_ids(tokenizer, chat, text))

    return _Asked(
        forced(pair.base_answer, pair.base_is_cut),
        forced(pair.finetuned_answer, pair.finetuned_is_cut),
    )


def _margin(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[_Asked],
    patches: Sequence[Sequence[RowPatch]],
    condition: str,
) -> FloatArray:
    """Margins of a batch of prompts under one condition."""
    base, finetuned = (
        np.array(mean_log_probs(model, tokenizer, rows, patches, condition))
        for rows in zip(*asked, strict=True)
    )
    difference: FloatArray = base - finetuned
    return difference


def _check_specs(
    models: ModelPair,
    specs: Sequence[PatchSpec],
    questions: Sequence[EvalQuestion],
    chats: Sequence[ChatRegions],
) -> None:
    """Check names, layers and regions before any forward."""
    names = [*ARMS, *(spec.name for spec in specs)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two patches (or a model and a patch) are called {repeated[0]!r}.")
    config = pretrained_model(models.finetuned).config.get_text_config(decoder=True)
    num_layers = config.num_hidden_layers
    for spec in specs:
        absent = [layer for layer in spec.layers or () if layer >= num_layers]
        if absent:
            raise ConfigError(
                f"patch {spec.name!r} names layers {absent}; the model has 0 to {num_layers - 1}."
            )
        for question, chat in zip(questions, chats, strict=True):
            try:
                for region in spec.regions:
                    chat.require(region)
            except TemplateError as error:
                raise TemplateError(f"question {question.id!r}: {error}") from error
