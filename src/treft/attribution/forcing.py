"""Log-probability of given answers, and the control that patching with own states must pass.

Nothing is sampled here, and nobody judges. A model patched with its own keys and values must answer
as before: if it does not, it is the patching that changes answers, and no other figure can be read.
The states are recorded in a run of their own, right-padded and without a cache, so that up to the
rounding of the model's precision everything must come out alike.

Shapes: B batch rows, A tokens of one answer, C one more than the longest answer, V entries of the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.chat.regions import ChatRegions, RegionName, find_regions
from treft.chat.rendering import Chat
from treft.chat.turns import frame_of
from treft.core.conversations import own_request
from treft.core.patching import RowPatch
from treft.core.recording import eval_mode, record
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.generation import batches_by_length, padded

TOLERANCE = 64.0
"""Rounding steps of the logits' precision, at their largest absolute value, that count as none."""

NOISE_FACTOR = 4.0
"""Times what running a prompt alone instead of in its batch changes: with 8-bit activations that is
much more than rounding, since the scales depend on what else is in the batch."""


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
    regions: Sequence[RegionName] = (),
) -> list[ChatRegions]:
    """Returns prompts of questions, ready for an answer; each must have the given regions.

    Raises:
        DataError: there is no question, or one has several turns.
        TemplateError: one cannot be rendered, or lacks a region; names the question.
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
            for region in regions:
                chat.require(region)
        except TemplateError as error:
            raise TemplateError(f"question {question.id!r}: {error}") from error
        chats.append(chat)
    return chats


def check_room(questions: Sequence[str], lengths: Sequence[int], num_positions: int | None) -> None:
    """See that every prompt and its answer fit into the models' context.

    Args:
        questions: what to call the prompts.
        lengths: tokens of each prompt and its answer together.
        num_positions: size of the context; None for any.

    Raises:
        DataError: one does not fit; names the question.
    """
    length, question = max(zip(lengths, questions, strict=True))
    if num_positions is not None and length > num_positions:
        raise DataError(
            f"question {question!r} and its answer take {length} tokens, but the model's context "
            f"takes {num_positions}: drop the question, or allow shorter answers (max_new_tokens)."
        )


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
    num_kept = max(len(row.answer_ids) for row in rows) + 1
    logits = _last_logits(model, tokenizer, ids, patches or None, num_kept)
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


@dataclass(frozen=True)
class OwnStates:
    """What patching a model with its own states did to the logits after the prompts.

    Attributes:
        num_prompts: that were run.
        max_difference: largest absolute difference of a logit.
        tolerance: what rounding and batching may bring about on this model.
        num_other_tokens: prompts whose most probable next token changed.
    """

    num_prompts: int
    max_difference: float
    tolerance: float
    num_other_tokens: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing changed but by rounding."""
        return self.max_difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return {**asdict(self), "is_exact": self.is_exact}

    def __str__(self) -> str:
        """Says it in words."""
        return (
            f"the model's own keys and values, put in the cache of {self.num_prompts} prompts, "
            f"change no logit by more than {self.max_difference:.1e} (rounding and batching may: "
            f"{self.tolerance:.1e}); {self.num_other_tokens} most probable tokens change"
        )


@torch.no_grad()
def check_own_states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[ChatRegions],
    regions: Sequence[RegionName],
    batch_size: int = 32,
) -> OwnStates:
    """Patch prompts with the model's own states at the regions, and compare the logits.

    Args:
        model: the finetuned model.
        tokenizer: its tokenizer.
        chats: the rendered prompts.
        regions: that are patched, all at once; a postfix with its own query before it.
        batch_size: prompts run together.

    Raises:
        ConfigError: logits change by more than rounding.
    """
    largest, scale, noise, num_others = 0.0, 0.0, 0.0, 0
    dtype = torch.float32
    with eval_mode(model):
        for batch in batches_by_length([chat.input_ids for chat in chats], batch_size):
            rows = [chats[index] for index in batch]
            plain = _next_logits(model, tokenizer, rows, [[] for _ in rows])
            patched = _next_logits(model, tokenizer, rows, _own_patches(model, rows, regions))
            for row, logits in zip(rows, plain, strict=True):
                alone = _next_logits(model, tokenizer, [row], [[]])[0]
                noise = max(noise, float((alone - logits).abs().max()))
            dtype = _working_dtype(model, plain)
            largest = max(largest, float((patched - plain).abs().max()))
            scale = max(scale, float(plain.abs().max()))
            num_others += int((patched.argmax(-1) != plain.argmax(-1)).sum())
    # Attention works in float32 at the best, whatever the weights are in.
    step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = max(TOLERANCE * step * max(scale, 1.0), NOISE_FACTOR * noise)
    found = OwnStates(len(chats), largest, tolerance, num_others)
    if not found.is_exact:
        raise ConfigError(
            "patching cannot be trusted on this model: its own keys and values change a logit by "
            f"{found.max_difference:.1e}, where rounding and batching may by "
            f"{found.tolerance:.1e}. Try dtype float32, or another attention implementation."
        )
    return found


def _working_dtype(model: nn.Module, logits: Tensor) -> torch.dtype:
    """The precision of a model's products; kernels of quantised weights have half of it at best."""
    is_quantised = getattr(pretrained_model(model), "is_quantized", False)
    return torch.bfloat16 if is_quantised else logits.dtype


def _own_patches(
    model: nn.Module, chats: Sequence[ChatRegions], regions: Sequence[RegionName]
) -> list[list[RowPatch]]:
    """The model's states at all regions of each prompt; columns count from its first token."""
    requests = []
    for chat in chats:
        positions = sorted(at for region in regions for at in chat.positions(region))
        requests.append(own_request(chat, positions, " or ".join(regions)))
    states = record(model, requests)
    return [
        [RowPatch(request.positions, own)] for request, own in zip(requests, states, strict=True)
    ]


def _next_logits(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[ChatRegions],
    patches: Sequence[Sequence[RowPatch]],
) -> Tensor:
    """Logits after each prompt (B, V)."""
    return _last_logits(model, tokenizer, [chat.input_ids for chat in chats], patches, 1)[:, -1]


def _last_logits(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Sequence[RowPatch]] | None,
    num_kept: int,
) -> Tensor:
    """Logits at the last `num_kept` tokens of rows that are padded on the left, (B, C, V)."""
    inputs = padded(model, tokenizer, rows, patches).inputs
    logits: Tensor = model(**inputs, logits_to_keep=num_kept).logits
    return logits
