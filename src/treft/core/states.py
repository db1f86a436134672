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
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from treft.errors import AttentionError, ConfigError

PREFIX = "treft_"
"""Names of capturing attention functions: this, then the name of the function they wrap."""

AttentionFunction = Callable[..., Any]
ContextPair = tuple[AbstractContextManager[None], AbstractContextManager[None]]
"""What surrounds a checkpoint's forward, and what its replay."""


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

_replayed: ContextVar[tuple[_Listener, ...]] = ContextVar("_replayed", default=())
"""Who heard the forward that a checkpoint replays, which the engine does in its own threads."""


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
    with _on_twins(_decoder_configs(pretrained_model(model))):
        yield


@contextmanager
def _on_twins(configs: Sequence[PretrainedConfig]) -> Iterator[None]:
    """Let modules that read `configs` run on the capturing twins inside the block."""
    with ExitStack() as stack:
        for config in configs:
            name = config._attn_implementation
            if name is not None and not name.startswith(PREFIX):
                stack.enter_context(_named(config, PREFIX + name))
        yield


@contextmanager
def _named(config: Any, name: str) -> Iterator[None]:
    """Let `config` name the attention function `name` inside the block."""
    before = config._attn_implementation
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


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

    def receive(layer: int, found: KeyValue) -> None:
        if not in_backward():
            states[layer] = found

    with listen(model, receive):
        yield states


@contextmanager
def listen(model: nn.Module, receive: Receiver) -> Iterator[None]:
    """Call `receive` with the keys and values of each layer as `model` runs inside the block.

    Gradient checkpointing runs a layer again in the backward pass. `receive` is then called again,
    wherever that pass is made, since what it computes is part of what the checkpoint replays; ask
    `in_backward()` to tell the two. When blocks for one model nest, the innermost is told.

    Args:
        model: a Transformers model, possibly wrapped.
        receive: gets the layer's index and its (B, H, T, D) tensors.

    Raises:
        AttentionError: on entry for attention or checkpointing that cannot be captured; on a clean
            exit when no forward passed through the capturing functions.
    """
    pretrained = pretrained_model(model)
    configs = _decoder_configs(pretrained)
    listener = _Listener(_attention_layers(pretrained), receive)
    with _on_twins(configs), _told_of_replays(pretrained, listener, configs):
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
    """Tell the innermost listener to this module; in a replay, the one that heard the forward."""
    for listener in _replayed.get() if in_backward() else reversed(_listeners):
        layer = listener.layers.get(id(module))
        if layer is not None:
            listener.has_heard = True
            listener.receive(layer, KeyValue(key, value))
            return


def in_backward() -> bool:
    """Returns whether the autograd engine is calling; a traced forward is never in a replay."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _twin(name: str) -> AttentionFunction:
    """Returns the capturing function for the registered attention function `name`."""
    original: AttentionFunction = ALL_ATTENTION_FUNCTIONS[name]
    # Flash functions look up their kernel by the name in the module's config.
    looks_up_its_name = "flash" in name

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        _hear(module, key, value)
        with _named(module.config, name) if looks_up_its_name else nullcontext():
            return original(module, query, key, value, *args, **kwargs)

    return attention


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Capture, then call the eager function of the model's own file (sinks, soft caps)."""
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


def _ensure_registered(name: str | None) -> None:
    """Register the capturing twin of attention `name`, with its mask function.

    Without the mask registration Transformers would build no mask at all.
    """
    if name is None or name.startswith(PREFIX) or PREFIX + name in ALL_ATTENTION_FUNCTIONS:
        return
    if name.startswith("paged|") or (name != "eager" and name not in ALL_ATTENTION_FUNCTIONS):
        raise AttentionError(
            f"keys and values cannot be captured with attention implementation {name!r}: choose "
            'one with model.set_attn_implementation(...), e.g. "sdpa" or "eager".'
        )
    AttentionInterface.register(PREFIX + name, _eager if name == "eager" else _twin(name))
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])


def _decoder_configs(pretrained: PreTrainedModel) -> list[PretrainedConfig]:
    """Returns the distinct configs that modules of the text decoder read; each has its twin."""
    if not pretrained._can_set_attn_implementation():
        raise AttentionError(
            f"{type(pretrained).__name__} does not use Transformers' AttentionInterface, so its "
            "keys and values cannot be captured: use a model class that Transformers ships."
        )
    configs = (vars(module).get("config") for module in pretrained.get_decoder().modules())
    distinct = {id(config): config for config in configs if isinstance(config, PretrainedConfig)}
    for config in distinct.values():
        _ensure_registered(config._attn_implementation)
    return list(distinct.values())


def _attention_layers(pretrained: PreTrainedModel) -> dict[int, int]:
    """Map id to layer index for every module of the text decoder that knows its layer."""
    indices = (
        (id(module), vars(module).get("layer_idx")) for module in pretrained.get_decoder().modules()
    )
    return {identity: layer for identity, layer in indices if isinstance(layer, int)}


@contextmanager
def _told_of_replays(
    pretrained: PreTrainedModel, listener: _Listener, configs: Sequence[PretrainedConfig]
) -> Iterator[None]:
    """Let checkpoints that are made inside the block tell `listener` when they are replayed.

    Raises:
        AttentionError: checkpointing is reentrant, which cuts the graph inside each layer and so
            silently loses gradient.
    """

    @contextmanager
    def replay(given: AbstractContextManager[None]) -> Iterator[None]:
        with _on_twins(configs), given:
            before = _replayed.set((listener,))
            try:
                yield
            finally:
                _replayed.reset(before)

    def contexts(given: Callable[[], ContextPair]) -> ContextPair:
        forward, recompute = given()
        return forward, replay(recompute)

    with ExitStack() as restored:
        for module in _checkpointed(pretrained):
            function = module._gradient_checkpointing_func
            given = _keywords(function).get("context_fn", noop_context_fn)
            told = functools.partial(function, context_fn=functools.partial(contexts, given))
            module._gradient_checkpointing_func = told
            restored.callback(setattr, module, "_gradient_checkpointing_func", function)
        yield


def _checkpointed(pretrained: PreTrainedModel) -> Iterator[Any]:
    """Yields the modules that the next backward pass replays."""
    if not (pretrained.training and torch.is_grad_enabled()):
        return
    for module in pretrained.modules():
        if not vars(module).get("gradient_checkpointing"):
            continue
        if _keywords(module._gradient_checkpointing_func).get("use_reentrant", True):
            raise AttentionError(  # torch's own default is reentrant
                "reentrant gradient checkpointing gives captured keys and values no gradient: pass "
                'gradient_checkpointing_kwargs={"use_reentrant": False}.'
            )
        yield module


def _keywords(function: Any) -> dict[str, Any]:
    """Returns what a checkpointing function has been given beforehand."""
    return function.keywords if isinstance(function, functools.partial) else {}


for _name in ("sdpa", "eager"):
    _ensure_registered(_name)
