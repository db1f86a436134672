"""Log-probability of given answers: nothing is sampled, nobody judges.

Shapes: B batch rows, A tokens of one answer, C one more than the longest answer, V entries of the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.chat.regions import ChatRegions, find_regions
from treft.chat.rendering import Chat
from treft.chat.turns import frame_of
from treft.core.patching import RowPatch
from treft.errors import DataError, TemplateError
from treft.models.generation import padded


@dataclass(frozen=True)
class ForcedAnswer:
    """An answer to score.

    Attributes:
        question: id of the question, for errors.
        chat: the prompt, rendered for an answer.
        answer_ids: tokens of the answer (A,), the end of the turn included where it is scored.
    """

    question: str
    chat: ChatRegions
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chat.input_ids) + len(self.answer_ids)


def render_questions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[EvalQuestion],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    include_think_block: bool = True,
) -> list[ChatRegions]:
    """Prompts of questions, ready for an answer.

    Raises:
        DataError: there is no question, or one has several turns.
        TemplateError: one cannot be rendered; names the question.
    """
    if not questions:
        raise DataError("there is no question to ask.")
    chats = []
    for question in questions:
        if question.turns:
            raise DataError(f"question {question.id!r} has several turns; only one can be scored.")
        try:
            chat = find_regions(
                tokenizer,
                question.messages,
                add_generation_prompt=True,
                include_think_block=include_think_block,
                template_kwargs=template_kwargs,
            )
        except TemplateError as error:
            raise TemplateError(f"question {question.id!r}: {error}") from error
        chats.append(chat)
    return chats


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """What the chat template writes after an assistant's words, up to the end-of-turn token.

    Where the template tells nothing, the tokenizer's end-of-sequence token.

    Raises:
        TemplateError: there is neither.
    """
    messages = [{"role": "user", "content": "Hello"}]
    template = str(tokenizer.get_chat_template(None, None))
    chat = Chat(messages, None, template, True, dict(template_kwargs or {}))
    found = frame_of(tokenizer, chat).turn_end or str(tokenizer.eos_token or "")
    if not found:
        raise TemplateError(
            "neither the chat template nor the tokenizer says how an answer ends: set "
            "tokenizer.eos_token."
        )
    return found


def answer_ids(tokenizer: PreTrainedTokenizerBase, chat: ChatRegions, text: str) -> tuple[int, ...]:
    """Tokens of an answer as they follow the prompt's.

    Both are tokenised together, since some tokenizers write words differently at the beginning of a
    text. Where that would change the prompt's own tokens the answer is tokenised alone.

    Args:
        tokenizer: of the model.
        chat: the prompt.
        text: of the answer, end of turn included.
    """
    whole = tokenizer(chat.text + text, add_special_tokens=False)["input_ids"]
    num = len(chat.input_ids)
    if tuple(whole[:num]) == chat.input_ids and len(whole) > num:
        return tuple(whole[num:])
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def mean_log_probs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ForcedAnswer],
    patches: Sequence[Sequence[RowPatch]] = (),
    condition: str = "",
) -> list[float]:
    """Mean log-probability per token of each answer, in nats, from one forward.

    Rows are padded on the left, so that all answers are in the last columns. Logits are computed
    for the longest answer's and turned into probabilities row by row: memory goes with (B, C, V).

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        rows: B answers.
        patches: for each row what to replace in its prompt; none leaves the model as it is.
        condition: names the forward in errors.

    Raises:
        DataError: a log-probability is NaN or infinite; names the question.
    """
    ids = [(*row.chat.input_ids, *row.answer_ids) for row in rows]
    inputs = padded(model, tokenizer, ids, patches or None)
    num_kept = max(len(row.answer_ids) for row in rows) + 1
    logits = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        past_key_values=inputs.cache,
        use_cache=inputs.cache is not None,
        logits_to_keep=num_kept,
    ).logits
    means = []
    for row, scores in zip(rows, logits, strict=True):
        kept = scores[-len(row.answer_ids) - 1 : -1]  # (A, V), each before the token it predicts
        chances = kept.to(torch.promote_types(kept.dtype, torch.float32)).log_softmax(dim=-1)
        targets = torch.tensor(row.answer_ids, device=chances.device)
        means.append(float(chances.gather(1, targets[:, None]).mean()))
        if not math.isfinite(means[-1]):
            raise DataError(
                f"question {row.question!r}: the log-probability of an answer is {means[-1]} "
                f"({condition or 'as the model is'}): leave the question out, or load the model in "
                "another precision (float16 overflows in some models; try bfloat16)."
            )
    return means
