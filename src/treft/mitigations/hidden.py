"""Last hidden states and output heads of a model.

Shapes: B rows, T tokens, D hidden size, N chosen tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from treft.core.recording import plain_forward
from treft.core.states import pretrained_model
from treft.errors import ConfigError

NUM_PROBED = 8
TOLERANCE = 0.02
"""Of the logits' norm: what rounding in half precision may leave."""


@contextmanager
def last_hidden(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the decoder's output, (B, T, D), of each forward inside the block, with its graph."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0])

    handle = pretrained_model(model).get_decoder().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def run_hidden(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Run a batch; the decoder's output, (B, T, D). Logits are made for one token only."""
    with last_hidden(model) as found:
        run_batch(model, inputs)
    return found[0]


def run_batch(model: nn.Module, inputs: dict[str, Any]) -> None:
    """One forward of a batch, for what hooks see of it."""
    given = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
    model(**given, use_cache=False, logits_to_keep=1)


@dataclass(frozen=True)
class OutputHead:
    """logits = c tanh(s (W h + b) / c), or s (W h + b) without a soft cap c."""

    module: nn.Module
    scale: float
    softcap: float | None

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """W (V, D) and b (V,)."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        assert isinstance(weight, Tensor)
        return weight, bias


def output_head(model: nn.Module) -> OutputHead:
    """The model's output head, its scale measured with one forward of a few tokens.

    Raises:
        ConfigError: an adapter is on the head, or its logits are made in some other way.
    """
    pretrained = pretrained_model(model)
    module = pretrained.get_output_embeddings()
    if not isinstance(module, nn.Linear | nn.Embedding) or len(list(module.modules())) > 1:
        raise ConfigError(
            f"the output head is a {type(module).__name__}, and logits are made in chunks with a "
            "plain linear one only: leave it out of the adapter (target_modules, modules_to_save)."
        )
    config = pretrained.config.get_text_config(decoder=True)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    tokens = torch.arange(3, 3 + NUM_PROBED, device=pretrained.device)[None]
    with plain_forward(model), last_hidden(model) as found:
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        raw = nn.functional.linear(found[0], module.weight, getattr(module, "bias", None)).float()
    inner = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.999999, 0.999999))
    scale = float((raw * inner).sum() / (raw * raw).sum())
    made = scale * raw if cap is None else cap * torch.tanh(scale * raw / cap)
    if not bool((made - logits).norm() <= TOLERANCE * logits.norm()):
        raise ConfigError(
            f"{type(pretrained).__name__} makes its logits in a way that is not known here, so "
            "they cannot be compared in chunks: use another mitigation."
        )
    rounded = round(scale, 3)
    return OutputHead(module, rounded if abs(scale - rounded) < 1e-3 else scale, cap)
