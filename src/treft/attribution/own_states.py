"""The control that must change nothing: a model patched with its own keys and values.

If it changes an answer, it is the patching that does, and no other figure of a sweep can be read.
The states are recorded in a run of their own, right-padded and without a cache, so that up to the
rounding of the model's precision everything must come out alike.

Shapes: B prompts run together, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, RegionName
from treft.core.conversations import own_request
from treft.core.patching import RowPatch
from treft.core.recording import eval_mode, record
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.generation import batches_by_length, padded

TOLERANCE = 64.0
"""Rounding steps of the logits' precision, at their largest absolute value, that count as none."""

NOISE_FACTOR = 4.0
"""Times what running a prompt alone instead of in its batch changes: with 8-bit activations that is
much more than rounding, since the scales depend on what else is in the batch."""


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
        """As JSON has it."""
        return {**asdict(self), "is_exact": self.is_exact}

    def __str__(self) -> str:
        """In words."""
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
    inputs = padded(model, tokenizer, [chat.input_ids for chat in chats], patches)
    logits: Tensor = model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        past_key_values=inputs.cache,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits
