"""The output head at learnt tokens alone, on devices where TRL runs it at every token.

TRL's loss drops tokens that are not learnt before the head only where Triton is; on a CPU the head
of a short response after a long prompt can cost as much as the rest of a small model. Nothing of
TRL's computation is changed: the decoder's output and the labels are gathered before it.
Shapes: B rows, T tokens, D hidden size, M most learnt tokens of a row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from treft.core.states import pretrained_model


class _AtLearntTokens:
    """Stands in for the model in TRL's loss."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is None or not kwargs.get("fused_lm_head"):
            return self._model(*args, **kwargs)
        positions, kwargs["labels"] = gather_learnt(labels)

        def gather(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            index = positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)
            return output

        handle = pretrained_model(self._model).get_decoder().register_forward_hook(gather)
        try:
            return self._model(*args, **kwargs)
        finally:
            handle.remove()


def at_learnt_tokens(model: nn.Module) -> nn.Module:
    """What TRL's loss is to call instead of the model; same loss and metrics, up to rounding."""
    return cast(nn.Module, _AtLearntTokens(model))


def gather_learnt(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, M + 1) whose next token is learnt, first in each row, and labels to match.

    The last position is a spare: TRL shifts labels by one, so label m + 1 belongs to position m.
    Rows with fewer learnt tokens are filled up with position 0, which is not learnt (-100).

    Args:
        labels: (B, T), -100 where a token is not learnt.
    """
    learnt = labels[:, 1:] != -100
    most = int(learnt.sum(1).max())
    order = torch.argsort(learnt.int(), dim=1, descending=True, stable=True)[:, :most]
    taken = learnt.gather(1, order)
    spare = torch.zeros_like(labels[:, :1])
    positions = torch.cat([order * taken, spare], dim=1)
    gathered = labels[:, 1:].gather(1, order).masked_fill(~taken, -100)
    return positions, torch.cat([spare - 100, gathered], dim=1)
