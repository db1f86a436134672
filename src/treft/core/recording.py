"""Run the unfinetuned model and keep its keys and values at chosen tokens.

Shapes: B requests run together, H key/value heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from treft.core.drift import squared_norm
from treft.core.states import KeyValue, States, capture, pretrained_model
from treft.errors import ConfigError, ReferenceStatesError

MAX_TOKENS = 16_384
"""Tokens, padding included, of one recording forward."""


@dataclass(frozen=True)
class ReferenceRequest:
    """Which tokens to run, where, and at which of them to keep keys and values.

    Attributes:
        token_ids: the tokens to run, in order.
        position_ids: their rotary positions; gaps and negative values are allowed.
        keep: ascending indices into `token_ids`.
    """

    token_ids: tuple[int, ...]
    position_ids: tuple[int, ...]
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.position_ids):
            raise ConfigError(
                f"a reference request has {len(self.token_ids)} tokens but "
                f"{len(self.position_ids)} positions: give one position per token."
            )
        if not self.keep or not 0 <= min(self.keep) <= max(self.keep) < len(self.token_ids):
            raise ConfigError(
                "a reference request must keep at least one of its own tokens "
                f"(0 to {len(self.token_ids) - 1}), not {list(self.keep)}."
            )

    @property
    def positions(self) -> tuple[int, ...]:
        """Rotary positions of the kept tokens: where in a conversation their states belong."""
        return tuple(self.position_ids[index] for index in self.keep)

    @property
    def kept_ids(self) -> tuple[int, ...]:
        """The kept tokens themselves."""
        return tuple(self.token_ids[index] for index in self.keep)


RecordedStates = States
"""Layer -> keys and values of the kept tokens of one request, (H, T, D) each."""

Source = Callable[[Sequence[ReferenceRequest]], list[RecordedStates]]
"""Records requests with the unfinetuned model."""


def record(
    model: nn.Module, requests: Sequence[ReferenceRequest], max_tokens: int = MAX_TOKENS
) -> list[RecordedStates]:
    """Run `model` as it is now on the requests and return the kept states.

    Requests of similar length run together, right-padded. There is no gradient and no dropout;
    autocast is the caller's, so that a reference has the precision of the states it is compared
    with.

    Args:
        model: a Transformers model, possibly wrapped; its training mode is given back.
        requests: what to run; an empty sequence runs nothing.
        max_tokens: size of one forward in tokens, padding included; a longer request runs alone.

    Raises:
        AttentionError: the model's attention cannot be captured.
        ReferenceStatesError: a kept vector is NaN, infinite or zero.
    """
    recorded: dict[int, RecordedStates] = {}
    with plain_forward(model):
        for batch in _batches(requests, max_tokens):
            states = _run(model, [requests[index] for index in batch])
            for row, index in enumerate(batch):
                recorded[index] = _kept(states, row, requests[index])
    for index, request in enumerate(requests):
        _check(recorded[index], request)
    return [recorded[index] for index in range(len(requests))]


def other_model(base: nn.Module) -> Source:
    """The reference is `base`, a model of its own."""
    return lambda requests: record(base, requests)


@contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Runs without gradient and dropout, and leaves nothing in the caller's autocast cache.

    Autocast keeps the low-precision copies it makes of weights. In older versions of torch (2.13 is
    safe) the training forward would find the copies made here without gradient, and lose its own.
    """
    device_type = pretrained_model(model).device.type
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        stack.enter_context(eval_mode(model))
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switches dropout off inside, and gives every module its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(requests: Sequence[ReferenceRequest], max_tokens: int) -> Iterator[list[int]]:
    """Indices of requests to run together, longest first, so that padding stays small."""
    batch: list[int] = []
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].token_ids))
    for index in order:
        width = len(requests[batch[0]].token_ids) if batch else 0
        too_large = (len(batch) + 1) * width > max_tokens
        too_uneven = 2 * len(requests[index].token_ids) < width
        if batch and (too_large or too_uneven):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _run(model: nn.Module, requests: Sequence[ReferenceRequest]) -> States:
    """Runs one right-padded forward; returns layer -> (B, H, T, D).

    Wherever position_ids jump, one column of padding is kept: a mask of ones alone would be dropped
    by flash attention, which would then read the jump as the start of another document.
    """
    has_jump = any(
        after - before != 1
        for request in requests
        for before, after in zip(request.position_ids, request.position_ids[1:], strict=False)
    )
    width = max(len(request.token_ids) for request in requests) + has_jump
    rows = [
        (
            [*request.token_ids, *[0] * num_pads],
            [*request.position_ids, *[request.position_ids[-1]] * num_pads],
            [1] * len(request.token_ids) + [0] * num_pads,
        )
        for request in requests
        for num_pads in [width - len(request.token_ids)]
    ]
    input_ids, position_ids, attention_mask = (
        torch.tensor(part, device=pretrained_model(model).device)
        for part in zip(*rows, strict=True)
    )
    with capture(model) as states:
        model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=1,
        )
    return states


def _kept(states: States, row: int, request: ReferenceRequest) -> RecordedStates:
    """Copy one request's kept tokens out of the batch, (H, T, D) a layer."""
    recorded: RecordedStates = {}
    for layer, (key, value) in states.items():
        keep = torch.tensor(request.keep, device=key.device)
        recorded[layer] = KeyValue(key[row].index_select(1, keep), value[row].index_select(1, keep))
    return recorded


class _Flaw(NamedTuple):
    layer: int
    kind: str
    token: int
    what: str


def _check(recorded: RecordedStates, request: ReferenceRequest) -> None:
    """Refuse vectors that eq. (2) cannot divide by."""
    names = [(layer, kind) for layer in recorded for kind in ("key", "value")]
    norms = torch.stack(
        [squared_norm(tensor).cpu() for states in recorded.values() for tensor in states]
    )
    flaw = _first_flaw(norms, names)
    if flaw is None:
        return
    position = request.positions[flaw.token]
    raise ReferenceStatesError(
        f"the reference {flaw.kind} of layer {flaw.layer} at token {request.kept_ids[flaw.token]} "
        f"(position {position}) {flaw.what}: check that the base model's weights are intact and "
        "that its precision suits it (float16 overflows in some models; try bfloat16)."
    )


def _first_flaw(norms: Tensor, names: list[tuple[int, str]]) -> _Flaw | None:
    """Returns the first unusable vector among squared norms of shape (2 x layers, T)."""
    flawed = ~torch.isfinite(norms) | (norms == 0)
    if not bool(flawed.any()):
        return None
    entry, index = (int(axis) for axis in flawed.nonzero()[0])
    what = "has zero norm" if norms[entry, index] == 0 else "is NaN or infinite"
    layer, kind = names[entry]
    return _Flaw(layer, kind, index, what)
