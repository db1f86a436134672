"""The residual stream: its capture, and the unfinetuned model's put in its place.

The residual stream *at layer l* is what decoder layer l puts out, l counted from 0: (B, T, D), read
by layer l + 1 and, after the last layer, by the final norm. A token patched there (activation
patching) keeps the finetuned model's keys and values up to layer l; those of all later layers are
computed by the finetuned model from the patched stream. Patching the last layer changes no answer.

    streams = ResidualReference(model, base)  # recorded once, for all layers
    for layer in range(num_layers):
        repaired = patch(model, tokenizer, reference=stream_bank(model, layer, streams))
        answers = repaired.generate(conversations, max_new_tokens=200)

    with patched_residual(model, batch, chats, layers=10):
        logits = model(**batch).logits

Shapes: B batch rows, T columns of the batch, D hidden size, N kept or patched tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from treft.chat.regions import REGION_CODES, ChatRegions, RegionName
from treft.core.conversations import region_requests
from treft.core.identity import identify
from treft.core.recording import RecordedStates, ReferenceRequest, record
from treft.core.reference import MAX_CACHED_TOKENS, ReferenceBank
from treft.core.states import pretrained_model, resolve_layers
from treft.errors import AttentionError, ConfigError
from treft.models.adapters import base_source

ResidualStream = dict[int, Tensor]
"""Layer -> residual stream at that layer, (B, T, D) of a forward or (N, D) of chosen tokens."""


@contextmanager
def residual_stream(model: nn.Module) -> Iterator[ResidualStream]:
    """Collect the residual stream of every layer, (B, T, D), in each forward inside the block.

    The tensors are those of the model's own graph. A second forward overwrites the first.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
    """
    found: ResidualStream = {}

    def keeper(layer: int) -> Callable[..., None]:
        return lambda module, args, output: found.__setitem__(layer, hidden_of(output))

    with ExitStack() as stack:
        for layer, module in enumerate(decoder_layers(model)):
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
        self._runs = model if reference is None else reference
        self._source = base_source(model, reference)
        if reference is not None:
            ReferenceBank(identity=identify(reference)).check_origin(model)
        self._max_tokens = max_tokens
        self._known: OrderedDict[ReferenceRequest, ResidualStream] = OrderedDict()

    @classmethod
    def of(
        cls, model: nn.Module, reference: ResidualReference | nn.Module | None
    ) -> ResidualReference:
        """Returns recorded streams as they are, and those of a model that are not recorded yet."""
        if isinstance(reference, ResidualReference):
            return reference
        return cls(model, reference)

    def get(self, request: ReferenceRequest) -> ResidualStream:
        """Returns the stream of the layers at the kept tokens of a request, (N, D) a layer.

        Layers that reuse the keys and values of earlier ones may run at a prompt's last token only
        (Gemma-4), since nothing depends on their stream elsewhere; those are left out.

        Raises:
            ReferenceStatesError: a recorded key or value is NaN, infinite or zero.
        """
        if request not in self._known:
            with residual_stream(self._runs) as found:
                self._source([request])
            keep = list(request.keep)
            self._known[request] = {
                layer: hidden[0, keep]
                for layer, hidden in found.items()
                if hidden.shape[1] >= len(request.token_ids)
            }
        self._known.move_to_end(request)
        num_tokens = sum(len(held.keep) for held in self._known)
        while num_tokens > self._max_tokens and len(self._known) > 1:
            oldest, _ = self._known.popitem(last=False)
            num_tokens -= len(oldest.keep)
        return self._known[request]


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a decoder layer returns; some families add further outputs."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.dim() != 3:
        raise AttentionError(
            f"this model's layers pass on {tuple(hidden.shape)}, not one residual stream of (rows, "
            "tokens, hidden size), so it cannot be patched; keys and values can (treft.patch)."
        )
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Returns what a decoder layer returns, with another residual stream in it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of the text decoder, in order."""
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


def stream_bank(
    model: nn.Module,
    layers: int | Sequence[int],
    reference: ResidualReference | nn.Module | None = None,
) -> ReferenceBank:
    """Returns the prefix's keys and values that follow from the reference's stream at some layers.

    No token before the query depends on it, so these are computed once per distinct prefix, and
    answering with them is a patch of the prefix as any other (eq. (1)). For other regions there is
    `patched_residual`.

    Args:
        model: the finetuned model; an adapter may be on top. It is not changed.
        layers: one layer, or several at once; negative ones count from the last.
        reference: the unfinetuned model, or its recorded streams, which a loop over layers should
            share; None switches the adapter of a PEFT model off to get at it.

    Raises:
        AttentionError: the decoder layers of the model cannot be told apart.
        ConfigError: no such layer, or there is no adapter to switch off.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
    """
    chosen = resolve_layers(model, layers)
    streams = ResidualReference.of(model, reference)

    def states(request: ReferenceRequest) -> RecordedStates:
        where = [[0] * len(request.keep), list(request.keep)]
        found = _at(chosen, [streams.get(request)])
        with _replaced(model, found, where, (1, len(request.token_ids))):
            return record(model, [request])[0]

    return ReferenceBank(lambda requests: [states(request) for request in requests])


@contextmanager
def patched_residual(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    chats: Sequence[ChatRegions],
    layers: int | Sequence[int],
    *,
    regions: Sequence[RegionName] = ("prefix",),
    reference: ResidualReference | nn.Module | None = None,
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
    streams = ResidualReference.of(model, reference)
    rows: list[int] = []
    columns: list[int] = []
    found: list[ResidualStream] = []
    for row, chat in enumerate(chats):
        for region in regions:
            for request in region_requests(chat, region):
                rows += [row] * len(request.keep)
                columns += [places[row][position] for position in request.positions]
                found.append(streams.get(request))
    shape = (len(chats), batch["input_ids"].shape[1])
    with _replaced(model, _at(chosen, found), [rows, columns], shape):
        yield


@contextmanager
def _replaced(
    model: nn.Module, streams: ResidualStream, where: list[list[int]], shape: tuple[int, int]
) -> Iterator[None]:
    """Hook the patched layers; the hooks are gone afterwards, whatever happens.

    Args:
        model: whose stream is patched, in every forward of the whole batch.
        streams: what the patched tokens get, (N, D) a layer.
        where: their rows, counted before `generate` repeats any (beams), and their columns.
        shape: rows and columns of the batch.
    """
    (num_rows, num_columns), (rows, columns) = shape, where
    modules = decoder_layers(model)
    patched: set[int] = set()

    def hook(layer: int, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        repeats, rest = divmod(hidden.shape[0], num_rows)
        if rest or hidden.shape[1] != num_columns:
            if layer in patched and hidden.shape[1] == 1:  # a step: what it sees was patched
                return None
            raise ConfigError(
                f"the residual stream was to be patched in {num_rows} rows of {num_columns} "
                f"columns, but {hidden.shape[0]} of {hidden.shape[1]} came: run the whole batch at "
                "once (no prefill in chunks, no cache from before, no assisted decoding)."
            )
        patched.add(layer)
        replaced = hidden.clone(memory_format=torch.contiguous_format)
        by_prompt = replaced.view(num_rows, repeats, *hidden.shape[1:])
        by_prompt[rows, :, columns] = streams[layer].to(hidden)[:, None]
        return with_hidden(output, replaced)

    with ExitStack() as stack:
        for layer in streams:
            stack.callback(modules[layer].register_forward_hook(partial(hook, layer)).remove)
        yield
    if patched != set(streams):
        raise ConfigError(
            "no forward of this model ran while its residual stream was to be patched: call this "
            "model inside the block (torch.compile it there, too, not before)."
        )


def _places(batch: Mapping[str, Tensor], chats: Sequence[ChatRegions]) -> list[list[int]]:
    """Returns for each row the column of each token of its conversation.

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


def _at(layers: Sequence[int], streams: Sequence[ResidualStream]) -> ResidualStream:
    """Returns the given layers, and the tokens of all streams one after the other.

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
