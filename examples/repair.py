"""Repair a finetuned model without training, and see which layer its prefix acts through.

    python examples/repair.py MODEL ADAPTER PROMPT

MODEL is a folder or hub id of a chat model (or `organism`), ADAPTER one of a PEFT adapter on it.
The same from the shell, but for the layers: treft generate --model MODEL --adapter ADAPTER
--patch prefix --prompt PROMPT
"""

from __future__ import annotations

import sys

import torch

from treft import find_regions, generate, patch
from treft.models.loading import LoadOptions, load_model
from treft.models.residual import ResidualReference, patched_residual, stream_bank

OPTIONS = {"max_new_tokens": 60, "do_sample": False}


def main(name: str, adapter: str, prompt: str) -> None:
    """Answer as finetuned, repaired by each region, and by the residual stream of each layer."""
    model, tokenizer = load_model(name, adapter, LoadOptions())
    chats = [[{"role": "user", "content": prompt}]]
    print("finetuned:", *generate(model, tokenizer, chats, **OPTIONS))
    for region in ("prefix", "postfix"):
        repaired = patch(model, tokenizer, [region])  # the reference: the adapter switched off
        print(f"{region} patched:", *repaired.generate(chats, **OPTIONS))

    streams = ResidualReference(model)  # recorded once, for all layers and both uses below
    layers = range(model.config.num_hidden_layers)
    for layer in layers:
        repaired = patch(model, tokenizer, reference=stream_bank(model, layer, streams))
        print(f"layer {layer} patched:", *repaired.generate(chats, **OPTIONS))

    found = find_regions(tokenizer, chats[0], add_generation_prompt=True)
    batch = {"input_ids": torch.tensor([found.input_ids], device=model.device)}
    with torch.no_grad():
        plain = model(**batch).logits[0, -1].log_softmax(-1)
        for layer in layers:
            with patched_residual(model, batch, [found], layer, reference=streams):
                patched = model(**batch).logits[0, -1].log_softmax(-1)
            divergence = torch.sum(plain.exp() * (plain - patched)).item()
            print(f"layer {layer}: first token moves by {divergence:.4f} nats (KL)")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
