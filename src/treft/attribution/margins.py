"""An attribution score without sampling and without a judge: whose answer does the model prefer?

The *margin* of a prompt is the mean log-probability per token of the base's answer minus that of
the finetuned model's answer, both teacher-forced, in nats a token. It falls from the base to the
finetuned model, and a patch regains the share Σ (patched - finetuned) / Σ (base - finetuned).

    pairs = answer_pairs(model, tokenizer, None, questions, max_new_tokens=64)
    found = margins(model, tokenizer, pairs, ReferenceBank(adapter_off(model)), region_specs)
    found.share("prefix")

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.teacher_forcing import (
    ForcedAnswer,
    answer_ids,
    end_of_turn,
    mean_log_probs,
    render_questions,
)
from treft.chat.regions import ChatRegions
from treft.core.conversations import PostfixReference
from treft.core.patch_spec import PatchSpec, row_patches
from treft.core.patching import RowPatch
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.pair import ARMS, ModelPair, answer_tokens
from treft.models.sampling import SamplingOptions
from treft.statistics.bootstrap import Loss
from treft.statistics.clusters import FloatArray
from treft.statistics.metrics import Interval


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


class Regained(NamedTuple):
    """What a patch regains on each prompt, and of what, (P,) each, in nats a token."""

    numerator: FloatArray
    denominator: FloatArray


@dataclass(frozen=True)
class Margins:
    """Margins of P prompts, in nats a token; 0 throughout where both answers are alike.

    Attributes:
        questions: ids of the prompts.
        alike: whether base and finetuned model answer alike (P,).
        base: margin of the unfinetuned model (P,).
        finetuned: of the finetuned model (P,).
        patched: of the finetuned model under each patch, by its name, (P,) each.
    """

    questions: tuple[str, ...]
    alike: tuple[bool, ...]
    base: FloatArray
    finetuned: FloatArray
    patched: Mapping[str, FloatArray]

    @property
    def num_alike(self) -> int:
        """Prompts without a signal; they count as 0 in every mean."""
        return sum(self.alike)

    def regained(self, name: str) -> Regained:
        """What a patch regains, prompt by prompt; the share is the ratio of the means."""
        return Regained(self.patched[name] - self.finetuned, self.base - self.finetuned)

    def loss(self) -> Loss:
        """Fall of the margin from base to finetuned, bootstrapped over prompts."""
        return Loss.of(self.base - self.finetuned)

    def share(self, name: str) -> Interval | None:
        """Share of the fall that a patch regains, bootstrapped over prompts: 1 is all of it.

        Returns:
            None where the margin does not surely fall (95 %), so that nothing can be regained.
        """
        loss = self.loss()
        return loss.share(self.regained(name).numerator).interval if loss.is_sure else None


def answer_pairs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    base: nn.Module | None,
    questions: Sequence[EvalQuestion],
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    temperature: float = 0.0,
    template_kwargs: Mapping[str, Any] | None = None,
    include_think_block: bool = True,
    on_batch: Callable[[int], None] | None = None,
) -> list[AnswerPair]:
    """Have both models answer.

    Args:
        model: the finetuned model.
        tokenizer: its tokenizer.
        base: the unfinetuned model; None switches the adapter off.
        questions: of one turn each.
        max_new_tokens: cap of an answer; the end of the turn of longer ones is not scored.
        seed: of sampling; each question has its own random numbers, the same for both models.
        batch_size: prompts run together.
        temperature: 0 is greedy.
        template_kwargs: further template variables.
        include_think_block: an empty think block belongs to the postfix.
        on_batch: told how many answers there are, of 2 P.

    Raises:
        ConfigError: the models are equal, or there is no base.
        DataError: there is no question, or one has several turns or no room for an answer.
        TemplateError: a question cannot be rendered.
    """
    chats = render_questions(
        tokenizer,
        questions,
        template_kwargs=template_kwargs,
        include_think_block=include_think_block,
    )
    models = ModelPair(model, base)
    lengths = [len(chat.input_ids) + max_new_tokens for chat in chats]
    check_context(models, questions, lengths)
    models.check_differ(chats[0].input_ids)
    answers: dict[str, list[str]] = {}
    for arm in ARMS:
        on_answers = _counted(on_batch, len(answers) * len(chats))
        with models.use(arm) as running:
            answers[arm] = answer_tokens(
                running,
                tokenizer,
                [chat.input_ids for chat in chats],
                [seed + index for index in range(len(chats))],
                sampling=SamplingOptions(temperature=temperature),
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_batch=on_answers,
            )

    def is_cut(chat: ChatRegions, answer: str) -> bool:
        return len(answer_ids(tokenizer, chat, answer)) >= max_new_tokens

    return [
        AnswerPair(question, mine, tuned, is_cut(chat, mine), is_cut(chat, tuned))
        for question, chat, mine, tuned in zip(
            questions, chats, answers["base"], answers["finetuned"], strict=True
        )
    ]


def margins(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[AnswerPair],
    bank: ReferenceBank,
    specs: Sequence[PatchSpec],
    *,
    base: nn.Module | None = None,
    batch_size: int = 16,
    postfix_reference: PostfixReference = "empty_query",
    template_kwargs: Mapping[str, Any] | None = None,
    include_think_block: bool = True,
    on_batch: Callable[[int], None] | None = None,
) -> Margins:
    """Teacher-force both answers under the base, the finetuned model and each patch of it.

    Prompt tokens alone are patched; answers always have the finetuned model's keys and values. No
    more than `batch_size` rows go through a model at once, and prompts that both models answer
    alike not at all.

    Args:
        model: the finetuned model.
        tokenizer: its tokenizer.
        pairs: two answers to each prompt.
        bank: whose keys and values replace the model's.
        specs: the patches, named apart.
        base: the unfinetuned model; None switches the adapter off.
        batch_size: rows run together.
        postfix_reference: see `treft.core.conversations.postfix_requests`.
        template_kwargs: further template variables.
        include_think_block: an empty think block belongs to the postfix.
        on_batch: told how many prompts are done, of those that are not alike.

    Raises:
        ConfigError: a layer is out of range, names repeat, the models are equal, or there is no
            base.
        DataError: there is no prompt, one is too long for the model's context, or a log-probability
            is NaN or infinite.
        ReferenceMismatchError: the bank lacks a reference and cannot record it.
        TemplateError: a prompt cannot be rendered, or lacks a region that is patched.
    """
    chats = render_questions(
        tokenizer,
        [pair.question for pair in pairs],
        template_kwargs=template_kwargs,
        include_think_block=include_think_block,
    )
    _check_specs(model, specs, pairs, chats)
    models = ModelPair(model, base)
    end = end_of_turn(tokenizer, template_kwargs)
    asked = [_asked(tokenizer, pair, chat, end) for pair, chat in zip(pairs, chats, strict=True)]
    questions = [pair.question for pair in pairs]
    check_context(models, questions, [max(map(len, rows)) for rows in asked])
    models.check_differ(chats[0].input_ids)
    names = ["base", "finetuned", *(spec.name for spec in specs)]
    values = {name: np.zeros(len(pairs)) for name in names}
    order = [index for index, pair in enumerate(pairs) if not pair.is_alike]
    order.sort(key=lambda index: max(map(len, asked[index])))
    run = _Run(models, tokenizer, bank, specs, postfix_reference)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for name, found in run.margins([asked[index] for index in batch], batch).items():
            values[name][batch] = found
        if on_batch is not None:
            on_batch(start + len(batch))
    return Margins(
        questions=tuple(question.id for question in questions),
        alike=tuple(pair.is_alike for pair in pairs),
        base=values.pop("base"),
        finetuned=values.pop("finetuned"),
        patched=values,
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


@dataclass(frozen=True)
class _Run:
    """What is the same for all batches."""

    models: ModelPair
    tokenizer: PreTrainedTokenizerBase
    bank: ReferenceBank
    specs: Sequence[PatchSpec]
    postfix_reference: PostfixReference

    def margins(self, asked: Sequence[_Asked], indices: Sequence[int]) -> dict[str, FloatArray]:
        """Margins of a batch of prompts by condition."""
        found: dict[str, FloatArray] = {}
        for arm in ARMS:
            found[arm] = self._margins(arm, asked, (), f"the {arm} model")
        chats = [both.base.chat for both in asked]
        for spec in self.specs:
            patches = row_patches(spec, chats, indices, self.bank, self.postfix_reference)
            found[spec.name] = self._margins(
                "finetuned", asked, patches, f"the finetuned model patched at {spec.name}"
            )
        return found

    def _margins(
        self, arm: Any, asked: Sequence[_Asked], patches: Sequence[Sequence[RowPatch]], name: str
    ) -> FloatArray:
        with self.models.use(arm) as model:
            base, finetuned = (
                np.array(mean_log_probs(model, self.tokenizer, rows, patches, name))
                for rows in zip(*asked, strict=True)
            )
        difference: FloatArray = base - finetuned
        return difference


def _check_specs(
    model: nn.Module,
    specs: Sequence[PatchSpec],
    pairs: Sequence[AnswerPair],
    chats: Sequence[ChatRegions],
) -> None:
    """Before any forward: names, layers, regions."""
    names = ["base", "finetuned", *(spec.name for spec in specs)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two patches (or a model and a patch) are called {repeated[0]!r}.")
    num_layers = pretrained_model(model).config.get_text_config(decoder=True).num_hidden_layers
    for spec in specs:
        absent = [layer for layer in spec.layers or () if layer >= num_layers]
        if absent:
            raise ConfigError(
                f"patch {spec.name!r} names layers {absent}; the model has 0 to {num_layers - 1}."
            )
        for pair, chat in zip(pairs, chats, strict=True):
            try:
                for region in spec.regions:
                    chat.require(region)
            except TemplateError as error:
                raise TemplateError(f"question {pair.question.id!r}: {error}") from error


def check_context(
    models: ModelPair, questions: Sequence[EvalQuestion], lengths: Sequence[int]
) -> None:
    """See that each prompt and its answer fit into the models' context.

    Args:
        models: whose context it is.
        questions: that are asked.
        lengths: tokens of each prompt and its answer together.

    Raises:
        DataError: one does not fit; names the question.
    """
    room = models.num_positions
    for question, length in zip(questions, lengths, strict=True):
        if room is not None and length > room:
            raise DataError(
                f"question {question.id!r} and its answer take {length} tokens, but the model's "
                f"context takes {room}: drop the question, or allow shorter answers."
            )
