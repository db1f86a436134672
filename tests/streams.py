"""Activation patching without treft: models of two halves, and layers run one after the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from stepwise import states_by_position
from torch import Tensor, nn

from treft.chat.regions import ChatRegions


def padded_batch(chats: Sequence[ChatRegions], side: str = "left") -> dict[str, Tensor]:
    width = max(len(chat.input_ids) for chat in chats) + 1

    def fill(values: Sequence[int]) -> list[int]:
        pads = [0] * (width - len(values))
        return [*pads, *values] if side == "left" else [*values, *pads]

    mask = torch.tensor([fill([1] * len(chat.input_ids)) for chat in chats])
    return {
        "input_ids": torch.tensor([fill(chat.input_ids) for chat in chats]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }


def hybrid(tuned: Any, base: Any, layer: int) -> Any:
    """The base up to `layer`, the finetuned model from there on."""
    model = copy.deepcopy(tuned)
    decoder, other = model.get_decoder(), base.get_decoder()
    decoder.embed_tokens = other.embed_tokens
    for index in range(layer + 1):
        decoder.layers[index] = other.layers[index]
    return model


def prefix_states_by_hand(
    tuned: Any, base: Any, chat: ChatRegions, layers: Sequence[int]
) -> dict[int, Any]:
    """Up to the first patched layer the model's own, after each the hybrid's that meets there."""
    prefix = [chat.input_ids[place] for place in chat.positions("prefix")]
    states = states_by_position(tuned, prefix)
    for layer in layers:
        mixed = states_by_position(hybrid(tuned, base, layer), prefix)
        states = {
            place: tuple(
                torch.cat([old[: layer + 1], new[layer + 1 :]])
                for old, new in zip(states[place], mixed[place], strict=True)
            )
            for place in states
        }
    return states


@torch.no_grad()
def by_layers(tuned: Any, base: Any, chat: ChatRegions, layer: int, region: Any) -> Tensor:
    """Run the layers up to `layer`, replace their output, run the others on that; (T, V)."""

    def stream(model: Any, positions: Sequence[int]) -> Tensor:
        ids = torch.tensor([[chat.input_ids[place] for place in positions]])
        # A mask keeps a gap in the positions from being read as a new document.
        output = model(
            input_ids=torch.cat([ids, ids[:, -1:]], 1),
            position_ids=torch.tensor([[*positions, positions[-1] + 1]]),
            attention_mask=torch.tensor([[1] * len(positions) + [0]]),
            output_hidden_states=True,
        )
        hidden: Tensor = output.hidden_states[layer + 1][:, :-1]
        return hidden

    everything = range(len(chat.input_ids))
    patched = stream(tuned, everything)
    for turn in sorted({chat.turns[place] for place in chat.positions(region)}):
        places = chat.positions(region, turn)
        seen = [*chat.positions("prefix"), *places] if region == "postfix" else [*everything]
        replacement = stream(base, seen)
        patched[:, places] = replacement[:, [seen.index(place) for place in places]]
    rest = copy.deepcopy(tuned)
    rest.model.layers = nn.ModuleList(rest.model.layers[layer + 1 :])
    logits: Tensor = rest(inputs_embeds=patched, use_cache=False).logits[0]
    return logits
