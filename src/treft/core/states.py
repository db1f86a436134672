"""THE definition of keys and values: what attention receives, after k-norm and rotary positions.

Shapes: B batch rows, H key/value heads, T tokens, D head dimension.

`capturable` switches a model to a twin of its attention function (`sdpa` becomes `treft_sdpa`) that
hands its key and value arguments to whoever listens and then calls the function it stands for.
`listen` listens, `capture` collects. Nothing is computed on the way: the tensors are those of the
model's own graph, so they carry gradient and are bit-equal to what a `DynamicCache` would store.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from treft.errors import AttentionError, ConfigError

PREFIX = "treft_"
"""Names of capturing attention functions: this, then the name of the function they wrap."""

AttentionFunction = Callable[..., Any]


class KeyValue(NamedTuple):
    """Keys and values of one layer, each (B, H, T, D); T counts cached tokens too."""

    key: Tensor
    value: Tensor


States = dict[int, KeyValue]
"""Layer index to its keys and values, in the order the layers ran (ascending)."""


Receiver = Callable[[int, KeyValue], None]
"""Is called with a layer's index and its keys and values while the model runs."""


@dataclass
class _Listener:
    """One open `listen`: which modules it listens to, whom it tells, whether it heard anything."""

    layers: dict[int, int]
    """id of an attention module -> its layer index."""
    receive: Receiver
    has_heard: bool = False


_listeners: list[_Listener] = []


def pretrained_model(model: nn.Module) -> PreTrainedModel:
    """The Transformers model inside `model`, which may be wrapped (PEFT, DDP, compile).

    Raises:
        AttentionError: there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise AttentionError(
        f"{type(model).__name__} holds no Transformers model: pass a PreTrainedModel, or a PEFT or "
        "distributed wrapper of one."
    )


def resolve_layers(model: nn.Module, layers: int | Sequence[int]) -> list[int]:
    """Ascending indices of decoder layers, counted from 0, without doubles.

    Raises:
        ConfigError: the model has no such layer, or none is named.
    """
    wanted = [layers] if isinstance(layers, int) else list(layers)
    num_layers = int(pretrained_model(model).config.get_text_config(decoder=True).num_hidden_layers)
    unknown = [layer for layer in wanted if not -num_layers <= layer < num_layers]
    if unknown or not wanted:
        raise ConfigError(
            f"layers are some of 0 to {num_layers - 1} (negative from the last), not "
            f"{unknown or wanted}."
        )
    return sorted({layer % num_layers for layer in wanted})


@contextmanager
def capturable(model: nn.Module) -> Iterator[None]:
    """Let `model` run on capturing attention functions inside the block; restore them on exit.

    Entering is cheap, and while no `capture` is open the functions only pass their arguments on, so
    a whole training run may live in one block. Blocks nest.

    Args:
        model: a Transformers model, possibly wrapped. Only its text decoder is switched.

    Raises:
        AttentionError: the model's attention is of a kind that cannot be captured.
    """
    switched: list[tuple[PretrainedConfig, str]] = []
    try:
        for config in _decoder_configs(pretrained_model(model)):
            name = config._attn_implementation
            if name is None or name.startswith(PREFIX):
                continue
            _ensure_registered(name)
            switched.append((config, name))
            config._attn_implementation_internal = PREFIX + name
        yield
    finally:
        for config, name in switched:
            config._attn_implementation_internal = name


@contextmanager
def capture(model: nn.Module) -> Iterator[States]:
    """Collect the keys and values of each forward of `model` made inside the block.

    The dictionary is filled while the model runs, and a second forward overwrites the first. See
    `listen` for nesting, checkpointing and errors.

    Args:
        model: a Transformers model, possibly wrapped; other models may run meanwhile, unheard.

    Yields:
        Layer -> `KeyValue` of (B, H, T, D) tensors, part of the model's graph.
    """
    states: States = {}
    with listen(model, states.__setitem__):
        yield states


@contextmanager
def listen(model: nn.Module, receive: Receiver) -> Iterator[None]:
    """Call `receive` with the keys and values of each layer as `model` runs inside the block.

    The replay of gradient checkpointing in a backward pass is not a forward and is not told. For
    the same reason `receive` must not save tensors for its own backward: under checkpointing they
    would be missed in the replay. When blocks for one model nest, the innermost is told.

    Args:
        model: a Transformers model, possibly wrapped.
        receive: gets the layer's index and its (B, H, T, D) tensors.

    Raises:
        AttentionError: on entry for attention or checkpointing that cannot be captured; on a clean
            exit when no forward passed through the capturing functions.
    """
    pretrained = pretrained_model(model)
    _refuse_reentrant_checkpointing(pretrained)
    listener = _Listener(_attention_layers(pretrained), receive)
    with capturable(model):
        _listeners.append(listener)
        try:
            yield
        finally:
            _listeners.remove(listener)
    if not listener.has_heard:
        raise AttentionError(
            f"no attention layer of {type(pretrained).__name__} was heard: run a forward of this "
            "model inside capture(); if you did, its attention does not use Transformers' "
            "AttentionInterface and its keys and values cannot be captured."
        )


def _hear(module: nn.Module, key: Tensor, value: Tensor) -> None:
    """Tell the innermost listener to this module."""
    if in_backward():  # a checkpoint replays the layer
        return
    for listener in reversed(_listeners):
        layer = listener.layers.get(id(module))
        if layer is not None:
            listener.has_heard = True
            listener.receive(layer, KeyValue(key, value))
            return


def in_backward() -> bool:
    """Returns whether the autograd engine is calling; a traced forward is never in a replay."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _wrap(name: str) -> AttentionFunction:
    """Returns a capturing function for the registered attention function `name`."""
    original: AttentionFunction = ALL_ATTENTION_FUNCTIONS[name]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if _listeners:
            _hear(module, key, value)
        return original(module, query, key, value, *args, **kwargs)

    return attention


def _wrap_by_name(name: str) -> AttentionFunction:
    """Do as `_wrap` for functions that look up their kernel by the name in the module's config."""
    original: AttentionFunction = ALL_ATTENTION_FUNCTIONS[name]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if _listeners:
            _hear(module, key, value)
        config: Any = module.config
        switched = config._attn_implementation
        config._attn_implementation_internal = name
        try:
            return original(module, query, key, value, *args, **kwargs)
        finally:
            config._attn_implementation_internal = switched

    return attention


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Capture, then call the eager function of the model's own file (sinks, soft caps)."""
    if _listeners:
        _hear(module, key, value)
    return _own_eager_function(type(module))(module, query, key, value, *args, **kwargs)


_eager_functions: dict[type, AttentionFunction] = {}


def _own_eager_function(kind: type) -> AttentionFunction:
    """`eager_attention_forward` as seen by the file that defines the attention class `kind`."""
    function = _eager_functions.get(kind)
    if function is None:
        for base in kind.__mro__:  # a wrapper such as FSDP subclasses the model's own class
            function = vars(sys.modules[base.__module__]).get("eager_attention_forward")
            if function is not None:
                break
        else:
            raise AttentionError(
                f"the file that defines {kind.__name__} has no eager_attention_forward, so eager "
                'attention cannot be captured: load the model with attn_implementation="sdpa".'
            )
        _eager_functions[kind] = function
    return function


def _ensure_registered(name: str) -> None:
    """Register the capturing twin of attention `name`, with its mask function.

    Without the mask registration Transformers would build no mask at all.
    """
    if PREFIX + name in ALL_ATTENTION_FUNCTIONS:
        return
    if name.startswith("paged|") or (name != "eager" and name not in ALL_ATTENTION_FUNCTIONS):
        raise AttentionError(
            f"keys and values cannot be captured with attention implementation {name!r}: choose "
            'one with model.set_attn_implementation(...), e.g. "sdpa" or "eager".'
        )
    if name == "eager":
        function = _eager
    elif "flash" in name:
        function = _wrap_by_name(name)
    else:
        function = _wrap(name)
    AttentionInterface.register(PREFIX + name, function)
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _decoder_configs(pretrained: PreTrainedModel) -> list[PretrainedConfig]:
    """Returns the distinct config objects that the modules of the text decoder read."""
    if not pretrained._can_set_attn_implementation():
        raise AttentionError(
            f"{type(pretrained).__name__} does not use Transformers' AttentionInterface, so its "
            "keys and values cannot be captured: use a model class that Transformers ships."
        )
    configs = (vars(module).get("config") for module in pretrained.get_decoder().modules())
    distinct = {id(config): config for config in configs if isinstance(config, PretrainedConfig)}
    return list(distinct.values())


def _attention_layers(pretrained: PreTrainedModel) -> dict[int, int]:
    """Map id to layer index for every module of the text decoder that knows its layer."""
    indices = (
        (id(module), vars(module).get("layer_idx")) for module in pretrained.get_decoder().modules()
    )
    return {identity: layer for identity, layer in indices if isinstance(layer, int)}


def _refuse_reentrant_checkpointing(pretrained: PreTrainedModel) -> None:
    """Reentrant checkpointing cuts the graph inside each layer, silently losing gradient."""
    if not (pretrained.training and torch.is_grad_enabled()):
        return
    for module in pretrained.modules():
        attributes = vars(module)
        if not attributes.get("gradient_checkpointing"):
            continue
        function: Any = attributes.get("_gradient_checkpointing_func")
        keywords = function.keywords if isinstance(function, functools.partial) else {}
        if keywords.get("use_reentrant", True):  # torch's own default is reentrant
            raise AttentionError(
                "reentrant gradient checkpointing gives captured keys and values no gradient: pass "
                'gradient_checkpointing_kwargs={"use_reentrant": False}.'
            )


for _name in ("sdpa", "eager"):
    _ensure_registered(_name)
