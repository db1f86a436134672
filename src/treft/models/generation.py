"""Answer prompts of token ids: every answer of treft is generated here, patched or not.

    rows = [Asked(chat.input_ids, seed) for seed, chat in enumerate(chats)]
    repaired = RepairedModel(model, tokenizer, bank, PatchSpec("prefix", ("prefix",)))
    found = answer(model, tokenizer, rows, SamplingOptions(max_new_tokens=64),
                   repaired.patches(chats))

`treft.models.repair` renders conversations and draws as Transformers does; `answer` draws each row
with a seed of its own. Both have their rows sorted, padded, patched and run by `generated`.

Shapes: B batch rows, T columns of the padded prompts, A tokens generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from treft.core.patching import (
    KINDS,
    PatchedCache,
    RowPatch,
    has_sliding_window,
    prefix_cache,
)
from treft.core.recording import eval_mode
from treft.core.states import pretrained_model
from treft.models.sampling import (
    SAMPLER_DRAWS,
    Generated,
    RowSampler,
    SamplingOptions,
    cut_at_end,
)

Patches = Callable[[Sequence[int]], Sequence[Sequence[RowPatch]]]
"""Gives for the numbers of prompts that run together what to replace in each of them, columns
counted from its first token. States are thus held for one batch at a time."""


class Asked(NamedTuple):
    """A prompt, and the seed of the answer to it: these two alone decide the answer."""

    input_ids: Sequence[int]
    seed: int


@torch.no_grad()
def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    sampling: SamplingOptions,
    patches: Patches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Answer each prompt, drawn with a seed of its own.

    An answer depends on prompt and seed alone, up to the rounding that padding brings about.

    Args:
        model: the model that answers; with a pair of models, as `ModelPair.use` gives it.
        tokenizer: its tokenizer, which decodes the answers.
        asked: the prompts with their seeds; those of similar length run together.
        sampling: how tokens are drawn, where an answer ends, and how many prompts run together.
        patches: what to replace in the cache, from `RepairedModel.patches`; None patches nothing.
        on_batch: told how many prompts are answered, after each batch.
    """
    ends = _end_ids(pretrained_model(model))
    answers: dict[int, Generated] = {}
    samplers: list[RowSampler] = []

    def draws(batch: Sequence[int]) -> dict[str, Any]:
        samplers.append(RowSampler(sampling, [asked[index].seed for index in batch]))
        options: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, **SAMPLER_DRAWS}
        if sampling.stop:
            options["stop_strings"] = list(sampling.stop)
        return {**options, "logits_processor": LogitsProcessorList(samplers[-1:])}

    prompts = [row.input_ids for row in asked]
    batches = batches_by_length(prompts, sampling.batch_size)
    for batch, _ in generated(model, tokenizer, prompts, batches, draws, patches):
        # Texts are read off the sampler, which has the tokens and their probabilities as well.
        for index, drawn in zip(batch, samplers.pop().rows(), strict=True):
            answers[index] = cut_at_end(tokenizer, drawn, ends, sampling.stop)
        if on_batch is not None:
            on_batch(len(answers))
    return [answers[index] for index in range(len(asked))]


def batches_by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, shortest first."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id does at masked columns."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


class Padded(NamedTuple):
    """Rows side by side, padded on the left, with the cache that patches them.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T), 0 at padding.
        cache: to be filled or ready-made; None where nothing is patched.
    """

    input_ids: Tensor
    attention_mask: Tensor
    cache: DynamicCache | None

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of one forward; positions count each row's own tokens from 0."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": (self.attention_mask.cumsum(1) - 1).clamp(min=0),
            "past_key_values": self.cache,
            "use_cache": self.cache is not None,
        }


def padded(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Sequence[RowPatch]] | None,
) -> Padded:
    """Pad rows for one forward, on the model's device; the cache replaces states as it is filled.

    Args:
        model: that will run.
        tokenizer: of the model.
        rows: token ids, B rows.
        patches: for each row what to replace, columns counted from its first token; None for no
            cache.

    Raises:
        ConfigError: the model keeps other states than keys and values, or lacks a patched layer.
    """
    pretrained = pretrained_model(model)
    ids, mask = _pad_left(rows, 0, pad_token_id(tokenizer), pretrained.device)
    if patches is None:
        return Padded(ids, mask, None)
    width = ids.shape[1]
    moved = [
        [patch.moved(width - len(row)) for patch in found]
        for row, found in zip(rows, patches, strict=True)
    ]
    config = pretrained.config.get_text_config(decoder=True)
    return Padded(ids, mask, PatchedCache(config, moved, width))


@torch.no_grad()
def generated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    batches: Iterable[Sequence[int]],
    options: Callable[[Sequence[int]], Mapping[str, Any]],
    patches: Patches | None,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Generate batch by batch, in evaluation mode.

    Args:
        model: that answers.
        tokenizer: of the model.
        rows: token ids of all prompts.
        batches: numbers of the prompts that run together.
        options: gives for such numbers the keyword arguments of the model's `generate`.
        patches: gives for such numbers what to replace in the cache; None patches nothing.

    Returns:
        For each batch its numbers and what was generated, (B, A) or, where `generate` repeats each
        prompt, (B * repeats, A).
    """
    for batch in batches:
        prompts = [rows[index] for index in batch]
        given = {**options(batch)}
        found = None if patches is None else patches(batch)
        if "stop_strings" in given:
            given["tokenizer"] = tokenizer
        inputs = _ready_made(model, tokenizer, prompts, found, given)
        inputs = padded(model, tokenizer, prompts, found) if inputs is None else inputs
        if inputs.cache is not None:
            # No kind of cache that the checkpoint asks for.
            given |= {"past_key_values": inputs.cache, "cache_implementation": None}
        with eval_mode(model):
            output: Any = model.generate(  # type: ignore[operator]
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                **{"use_cache": True, "pad_token_id": pad_token_id(tokenizer), **given},
            )
        sequences = output if isinstance(output, Tensor) else output.sequences
        yield batch, sequences[:, inputs.input_ids.shape[1] :]


def _ready_made(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    patches: Sequence[Sequence[RowPatch]] | None,
    options: Mapping[str, Any],
) -> Padded | None:
    """Rows behind a cache that starts with the prefix they share, if that is all of the patch."""
    shared = _shared_start(patches or ())
    if shared is None:
        return None
    pretrained = pretrained_model(model)
    config = pretrained.config.get_text_config(decoder=True)
    # Of another precision, states are left to PatchedCache, which converts.
    is_other = next(iter(shared.states.values())).key.dtype != pretrained.dtype
    if is_other or has_sliding_window(config) or repeats_rows(pretrained, options):
        return None
    pad = pad_token_id(tokenizer)
    ids, mask = _pad_left(rows, len(shared), pad, pretrained.device)
    return Padded(ids, mask, prefix_cache(shared.states, config, len(rows)))


def _shared_start(patches: Sequence[Sequence[RowPatch]]) -> RowPatch | None:
    """The one patch of all rows, if it is all of their first tokens' states."""
    if not patches or any(len(row) != 1 for row in patches):
        return None
    first = patches[0][0]
    is_start = first.columns == tuple(range(len(first)))
    is_whole = first.layers is None and set(first.kinds) == set(KINDS)
    is_shared = all(
        row[0].states is first.states and row[0].columns == first.columns for row in patches
    )
    return first if is_start and is_whole and is_shared else None


def _pad_left(
    rows: Sequence[Sequence[int]], head: int, pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, T) each, padded on the left but for the first `head` tokens."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        num_pads = width - len(row)
        ids.append([*row[:head], *[pad] * num_pads, *row[head:]])
        mask.append([1] * head + [0] * num_pads + [1] * (len(row) - head))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _end_ids(pretrained: PreTrainedModel) -> frozenset[int]:
    """Tokens that end an answer, as `generate` takes them."""
    ends = pretrained.generation_config.eos_token_id
    found = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in found if token is not None)


def setting(pretrained: PreTrainedModel, options: Mapping[str, Any], name: str) -> Any:
    """The value `generate` goes by: its keyword, its `generation_config`, the model's default."""
    if name in options:
        return options[name]
    given = options.get("generation_config")
    value = None if given is None else given.to_dict().get(name)
    return pretrained.generation_config.to_dict().get(name) if value is None else value


def repeats_rows(pretrained: PreTrainedModel, options: Mapping[str, Any]) -> bool:
    """Returns whether `generate` will run more rows than prompts."""
    names = ("num_beams", "num_return_sequences")
    return any((setting(pretrained, options, name) or 1) > 1 for name in names)
