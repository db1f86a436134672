"""Activation patching: the unfinetuned model's residual stream at some tokens, layer by layer.

The residual stream *at layer l* is what decoder layer l puts out, l counted from 0: (B, T, D), read
by layer l + 1 (and after the last layer by the final norm). A token patched at layer l keeps the
finetuned model's keys and values up to layer l; those of all later layers are computed by the
finetuned model from the patched stream. Patching the last layer thus changes no answer.

    for layer, repaired in sweep_layers(model, tokenizer):
        answers = repaired.generate(conversations, max_new_tokens=200)

    with patched_residual(model, batch, chats, layers=10):
        logits = model(**batch).logits

Shapes: B batch rows, T columns of the batch, D hidden size, N patched tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from treft.errors import AttentionError, ConfigError
from treft.generation import RepairedModel, check_origin
from treft.recording import (
    RecordedStates,
    ReferenceRequest,
    adapter_off,
    other_model,
    record,
)
from treft.reference import MAX_CACHED_TOKENS, ReferenceBank, identify
from treft.regions import ChatRegions, RegionName
from treft.requests import PostfixReference, region_requests
from treft.states import pretrained_model

__all__ = [
    "ResidualReference",
    "ResidualStream",
    "activation_patch",
    "patched_residual",
    "residual_stream",
    "sweep_layers",
]

ResidualStream = dict[int, Tensor]
"""Layer -> residual stream at that layer, (B, T, D) of a forward or (N, D) of chosen tokens."""


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
    chosen = _resolve(model, layers)
    streams = _streams(model, reference)

    def source(requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        return [_prefix_states(model, streams, request, chosen) for request in requests]

    return RepairedModel(model, tokenizer, ReferenceBank(source), ("prefix",))


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
    every = range(len(_decoder_layers(model))) if layers is None else layers
    numbers = [number for layer in every for number in _resolve(model, layer)]
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
        postfix_reference: "empty_query" (nothing of the query leaks in), or one training row.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
        ConfigError: no such layer, no adapter to switch off, or rows that are not these
            conversations; within the block, a forward that is not of the whole batch; at its end,
            that there was none.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
        TemplateError: a conversation lacks a region.
    """
    chosen = _resolve(model, layers)
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
    patch = _Patch(
        rows, columns, {layer: torch.cat([part[layer] for part in found]) for layer in chosen}
    )
    with _replaced(model, patch, len(chats), batch["input_ids"].shape[1]):
        yield


@contextmanager
def residual_stream(model: nn.Module) -> Iterator[ResidualStream]:
    """Collect the residual stream of every layer, (B, T, D), in each forward inside the block.

    The tensors are those of the model's own graph. A second forward overwrites the first.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
    """
    found: ResidualStream = {}

    def keeper(layer: int) -> Callable[..., None]:
        return lambda module, args, output: found.__setitem__(layer, _hidden(output))

    with ExitStack() as stack:
        for layer, module in enumerate(_decoder_layers(model)):
            stack.callback(module.register_forward_hook(keeper(layer)).remove)
        yield found


class ResidualReference:
    """The unfinetuned model's residual streams, recorded when first asked for and kept.

    One object serves all layers, so that a sweep records each prefix once.

    Args:
        model: the finetuned model.
        reference: the unfinetuned one; None switches the adapter of `model` off to get at it.
        max_tokens: kept tokens before the least recently used are dropped.

    Raises:
        ConfigError: there is no adapter to switch off.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None = None,
        max_tokens: int = MAX_CACHED_TOKENS,
    ) -> None:
        if reference is None:
            self._runs, self._source = model, adapter_off(model)
        else:
            self._runs, self._source = reference, other_model(reference)
            check_origin(ReferenceBank(identity=identify(reference)), model)
        self._max_tokens = max_tokens
        self._known: OrderedDict[ReferenceRequest, ResidualStream] = OrderedDict()

    def get(self, request: ReferenceRequest) -> ResidualStream:
        """The stream of every layer at the kept tokens of a request, (N, D) a layer.

        Raises:
            ReferenceStatesError: a recorded key or value is NaN, infinite or zero.
        """
        if request not in self._known:
            with residual_stream(self._runs) as found:
                self._source([request])
            keep = list(request.keep)
            self._known[request] = {layer: hidden[0, keep] for layer, hidden in found.items()}
        self._known.move_to_end(request)
        num_tokens = sum(len(held.keep) for held in self._known)
        while num_tokens > self._max_tokens and len(self._known) > 1:
            oldest, _ = self._known.popitem(last=False)
            num_tokens -= len(oldest.keep)
        return self._known[request]


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
        hidden = _hidden(output)
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
    modules = _decoder_layers(model)
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
    """Keys and values of `model` at a prefix whose stream is patched, (H, N, d) a layer."""
    known = streams.get(request)
    columns = list(request.keep)
    patch = _Patch([0] * len(columns), columns, {layer: known[layer] for layer in layers})
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


def _hidden(output: Any) -> Tensor:
    """The residual stream in what a decoder layer returns; some families add further outputs."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the text decoder, in order."""
    pretrained = pretrained_model(model)
    layers: list[nn.Module] = [
        module
        for module in pretrained.get_decoder().modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    expected = pretrained.config.get_text_config(decoder=True).num_hidden_layers
    if len(layers) != expected:
        raise AttentionError(
            f"the decoder layers of {type(pretrained).__name__} cannot be told apart "
            f"({len(layers)} found, {expected} expected), so its residual stream cannot be "
            "patched: use a model class that Transformers ships."
        )
    return layers


def _resolve(model: nn.Module, layers: int | Sequence[int]) -> list[int]:
    """Ascending layer indices, counted from 0."""
    wanted = [layers] if isinstance(layers, int) else list(layers)
    num_layers = len(_decoder_layers(model))
    unknown = [layer for layer in wanted if not -num_layers <= layer < num_layers]
    if unknown or not wanted:
        raise ConfigError(
            f"layers to patch are some of 0 to {num_layers - 1} (negative from the last), not "
            f"{unknown or wanted}."
        )
    return sorted({layer % num_layers for layer in wanted})
