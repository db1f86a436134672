"""Figure 4 of the paper: the base's residual stream at the prefix, patched at one layer at a time.

By causality the patched prefix does not depend on the query, so that a layer's patch comes down to
keys and values that serve every prompt with that prefix: the base's streams are recorded once for
all layers, the finetuned model runs once over each distinct prefix and layer, and everything after
that is a patch of the cache, as for any other part of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.attribution.margins import AnswerPair, Margins, margins
from treft.attribution.sweep import layer_name
from treft.core.patch_spec import PatchSpec
from treft.models.residual import ResidualReference, decoder_layers, stream_bank


def layer_margins(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[AnswerPair],
    layers: Sequence[int] | None = None,
    *,
    base: nn.Module | None = None,
    batch_size: int = 16,
    on_layer: Callable[[int], None] | None = None,
) -> Margins:
    """The curve without sampling and without a judge.

    Args:
        model: the finetuned model.
        tokenizer: its tokenizer.
        pairs: two answers to each prompt.
        layers: which ones; default all.
        base: the unfinetuned model; None switches the adapter off.
        batch_size: rows run together.
        on_layer: told how many layers are done.

    Returns:
        Margins whose patches are called `layer_name(layer)`.

    Raises:
        Those of `treft.attribution.margins.margins` and `stream_bank`.
    """
    streams = ResidualReference(model, base)
    found: Margins | None = None
    every = range(len(decoder_layers(model))) if layers is None else layers
    banks = {layer: stream_bank(model, layer, streams) for layer in every}
    for number, (layer, bank) in enumerate(banks.items(), start=1):
        spec = PatchSpec(layer_name(layer), ("prefix",))
        one = margins(model, tokenizer, pairs, bank, [spec], base=base, batch_size=batch_size)
        before = {} if found is None else found.patched
        found = replace(one, patched={**before, **one.patched})
        if on_layer is not None:
            on_layer(number)
    assert found is not None, "a model has layers"
    return found
