"""Activation patching: the unfinetuned model's residual stream at some tokens, layer by layer.

The stream *at layer l* is what decoder layer l puts out, (B, T, D), l counted from 0
(`treft.models.residual`). A token patched there keeps the finetuned model's keys and values up to
layer l; those of all later layers are computed by the finetuned model from the patched stream.
Patching the last layer thus changes no answer.

    for layer, repaired in sweep_layers(model, tokenizer):
        answers = repaired.generate(conversations, max_new_tokens=200)

    with patched_residual(model, batch, chats, layers=10):
        logits = model(**batch).logits

Shapes: B batch rows, T columns of the batch, D hidden size, N patched tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import REGION_CODES, ChatRegions, RegionName
from treft.core.recording import RecordedStates, ReferenceRequest, record
from treft.core.reference import ReferenceBank
from treft.core.requests import PostfixReference, region_requests
from treft.core.states import resolve_layers
from treft.errors import ConfigError
from treft.models.repair import RepairedModel
from treft.models.residual import ResidualReference, ResidualStream, decoder_layers, hidden_of


def activation_patch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layers: int | Sequence[int],
    *,
    reference: ResidualReference | nn.Module | None = None,
) -> RepairedModel:
    """A model that answers with the reference's residual stream at prefix positions of some layers.

    No token before the query depends on it, so the keys and values that the patched stream leads to
    are computed once per distinct prefix, and answering is the same as with eq. (1): any batch,
    beams, sampling, streaming, prompts in chunks, sliding windows. For other regions there is
    `patched_residual`.

    Args:
        model: the finetuned model; an adapter may be on top. It is not changed.
        tokenizer: its tokenizer, with a chat template.
        layers: one layer, or several at once; negative ones count from the last.
        reference: the unfinetuned model, or its recorded streams; None switches the adapter of a
            PEFT model off to get at it.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
        ConfigError: no such layer, or there is no adapter to switch off.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
    """
    chosen = resolve_layers(model, layers)
    streams = _streams(model, reference)

    def source(requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        return [_prefix_states(model, streams, request, chosen) for request in requests]

    return RepairedModel(model, tokenizer, ReferenceBank(source))


def sweep_layers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int] | None = None,
    *,
    reference: ResidualReference | nn.Module | None = None,
) -> Iterator[tuple[int, RepairedModel]]:
    """Each layer in turn, patched alone; the reference's streams are recorded once for all.

    Args:
        model: as for `activation_patch`.
        tokenizer: as for `activation_patch`.
        layers: which ones and in which order; default all, from the first.
        reference: as for `activation_patch`.

    Returns:
        Pairs of a layer and the model patched there. Errors, those of `activation_patch`, are
        raised at once.
    """
    every = range(len(decoder_layers(model))) if layers is None else layers
    numbers = [number for layer in every for number in resolve_layers(model, layer)]
    streams = _streams(model, reference)
    return (
        (layer, activation_patch(model, tokenizer, layer, reference=streams)) for layer in numbers
    )


@contextmanager
def patched_residual(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    chats: Sequence[ChatRegions],
    layers: int | Sequence[int],
    *,
    regions: Sequence[RegionName] = ("prefix",),
    reference: ResidualReference | nn.Module | None = None,
    postfix_reference: PostfixReference = "empty_query",
) -> Iterator[None]:
    """Run `model(**batch)` or `model.generate(**batch)` in this block with a patched stream.

    The whole batch must go through the model in one forward, as often as wanted; each may be
    followed by steps of one token, which are left alone. Beams and `num_return_sequences` work.
    Gradient flows, but not through patched tokens at patched layers. In training mode the reference
    is recorded without dropout.

    Args:
        model: the finetuned model; an adapter may be on top.
        batch: `input_ids` (B, T) and, if some row is padded on any side, `attention_mask` (B, T).
        chats: what the B rows begin with; a row may go on after it (with a response to score).
        layers: one layer, or several at once; negative ones count from the last.
        regions: which tokens are patched: prefix (default), query, postfix, or several.
        reference: the unfinetuned model, or its recorded streams, which a loop over layers should
            share; None switches the adapter of a PEFT model off.
        postfix_reference: "empty_query" (nothing of the query leaks in), "own_query", or a
            training row.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
        ConfigError: no such layer or region, no adapter to switch off, or rows that are not these
            conversations; within the block, a forward that is not of the whole batch; at its end,
            that there was none.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
        TemplateError: a conversation lacks a region.
    """
    chosen = resolve_layers(model, layers)
    if not regions or not set(regions) <= set(REGION_CODES):
        raise ConfigError(f"regions to patch are some of {list(REGION_CODES)}, not {regions}.")
    for chat in chats:
        for region in regions:
            chat.require(region)
    places = _places(batch, chats)
    streams = _streams(model, reference)
    rows: list[int] = []
    columns: list[int] = []
    found: list[ResidualStream] = []
    for row, chat in enumerate(chats):
        for region in regions:
            for request in region_requests(chat, region, postfix_reference):
                rows += [row] * len(request.keep)
                columns += [places[row][position] for position in request.positions]
                found.append(streams.get(request))
    patch = _Patch(rows, columns, _at(chosen, found))
    with _replaced(model, patch, len(chats), batch["input_ids"].shape[1]):
        yield


class _Patch(NamedTuple):
    """All patched tokens: their N rows and columns in the batch, and per layer their stream."""

    rows: list[int]
    columns: list[int]
    streams: ResidualStream


class _Replacement:
    """The hook of one decoder layer: the same patch in every forward of the whole batch.

    Args:
        patch: what to replace.
        layer: index of the hooked layer.
        num_rows: prompts of the batch; `generate` may repeat each (beams).
        num_columns: T of the batch.
    """

    def __init__(self, patch: _Patch, layer: int, num_rows: int, num_columns: int) -> None:
        self.patch = patch
        self.stream = patch.streams[layer]
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.has_patched = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        repeats, rest = divmod(hidden.shape[0], self.num_rows)
        if rest or hidden.shape[1] != self.num_columns:
            if self.has_patched and hidden.shape[1] == 1:  # a step: what it sees was patched
                return None
            raise ConfigError(
                f"the residual stream was to be patched in {self.num_rows} rows of "
                f"{self.num_columns} columns, but {hidden.shape[0]} of {hidden.shape[1]} came: run "
                "the whole batch at once (no prefill in chunks, no cache from before, no assisted "
                "decoding)."
            )
        patched = hidden.clone(memory_format=torch.contiguous_format)
        by_prompt = patched.view(self.num_rows, repeats, *hidden.shape[1:])
        by_prompt[self.patch.rows, :, self.patch.columns] = self.stream.to(hidden)[:, None]
        self.has_patched = True
        return (patched, *output[1:]) if isinstance(output, tuple) else patched


@contextmanager
def _replaced(model: nn.Module, patch: _Patch, num_rows: int, num_columns: int) -> Iterator[None]:
    """Hook the patched layers; the hooks are gone afterwards, whatever happens."""
    modules = decoder_layers(model)
    hooks = [_Replacement(patch, layer, num_rows, num_columns) for layer in patch.streams]
    with ExitStack() as stack:
        for layer, hook in zip(patch.streams, hooks, strict=True):
            stack.callback(modules[layer].register_forward_hook(hook).remove)
        yield
    if not all(hook.has_patched for hook in hooks):
        raise ConfigError(
            "no forward of this model ran while its residual stream was to be patched: call this "
            "model inside the block (torch.compile it there, too, not before)."
        )


def _prefix_states(
    model: nn.Module, streams: ResidualReference, request: ReferenceRequest, layers: Sequence[int]
) -> RecordedStates:
    """Keys and values of `model` at a prefix whose stream is patched; see `RecordedStates`."""
    columns = list(request.keep)
    patch = _Patch([0] * len(columns), columns, _at(layers, [streams.get(request)]))
    with _replaced(model, patch, 1, len(request.token_ids)):
        return record(model, [request])[0]


def _places(batch: Mapping[str, Tensor], chats: Sequence[ChatRegions]) -> list[list[int]]:
    """For each row, the column of each token of its conversation.

    Raises:
        ConfigError: a row does not begin with its conversation.
    """
    input_ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(input_ids))
    if len(chats) != len(input_ids):
        raise ConfigError(f"the batch has {len(input_ids)} rows for {len(chats)} conversations.")
    places = []
    for row, chat in enumerate(chats):
        columns = mask[row].nonzero()[:, 0][: len(chat.input_ids)]
        if tuple(input_ids[row, columns].tolist()) != chat.input_ids:
            raise ConfigError(
                f"row {row} of the batch does not begin with the tokens of conversation {row}: "
                "keep their order, and pass the attention mask if rows are padded."
            )
        places.append(columns.tolist())
    return places


def _streams(
    model: nn.Module, reference: ResidualReference | nn.Module | None
) -> ResidualReference:
    if isinstance(reference, ResidualReference):
        return reference
    return ResidualReference(model, reference)


def _at(layers: Sequence[int], streams: Sequence[ResidualStream]) -> ResidualStream:
    """The given layers, and the tokens of all streams one after the other.

    Raises:
        ConfigError: a layer was not run at these tokens.
    """
    idle = sorted({layer for layer in layers for stream in streams if layer not in stream})
    if idle:
        raise ConfigError(
            f"layers {idle} reuse keys and values of earlier layers, so nothing depends on their "
            "residual stream before the last token: patch earlier layers."
        )
    return {layer: torch.cat([stream[layer] for stream in streams]) for layer in layers}
