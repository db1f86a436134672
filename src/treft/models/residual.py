"""THE definition of the residual stream at a layer, its capture, and the unfinetuned model's.

The residual stream *at layer l* is what decoder layer l puts out, l counted from 0: (B, T, D), read
by layer l + 1 and, after the last layer, by the final norm.

Shapes: B batch rows, T columns of the batch, D hidden size, N kept tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from treft.core.identity import identify
from treft.core.origin import check_origin
from treft.core.recording import ReferenceRequest, adapter_off, other_model
from treft.core.reference import MAX_CACHED_TOKENS, ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import AttentionError

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
        if reference is None:
            self._runs, self._source = model, adapter_off(model)
        else:
            self._runs, self._source = reference, other_model(reference)
            check_origin(ReferenceBank(identity=identify(reference)), model)
        self._max_tokens = max_tokens
        self._known: OrderedDict[ReferenceRequest, ResidualStream] = OrderedDict()

    def get(self, request: ReferenceRequest) -> ResidualStream:
        """The stream of the layers at the kept tokens of a request, (N, D) a layer.

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


def decoder_layers(model: nn.Module) -> list[nn.Module]:
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
