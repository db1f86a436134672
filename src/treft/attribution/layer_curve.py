"""Figure 4 of the paper: the base's residual stream at the prefix, patched at one layer at a time.

By causality the patched prefix does not depend on the query, so that a layer's patch comes down to
keys and values that serve every prompt with that prefix: the base's streams are recorded once for
all layers, the finetuned model runs once over each distinct prefix and layer, and everything after
that is a patch of the cache, as for any other part of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from treft.attribution.margins import AnswerPair, Margins, margins
from treft.attribution.sweep import layer_name
from treft.core.patch_spec import PatchSpec
from treft.core.reference import ReferenceBank
from treft.models.activation import sweep_layers
from treft.models.residual import ResidualReference


def layer_banks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[int] | None = None,
    *,
    reference: ResidualReference | nn.Module | None = None,
) -> Iterator[tuple[int, ReferenceBank]]:
    """For each layer, the prefix's keys and values that follow from its patched stream.

    Args:
        model: the finetuned model; an adapter may be on top.
        tokenizer: its tokenizer.
        layers: which ones; default all, from the first.
        reference: the unfinetuned model, or its recorded streams; None switches the adapter off.

    Raises:
        ConfigError: no such layer, or there is no adapter to switch off.
        ReferenceMismatchError: `reference` is not what the model was finetuned from.
    """
    for layer, repaired in sweep_layers(model, tokenizer, layers, reference=reference):
        assert repaired.bank is not None
        yield layer, repaired.bank


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
        Those of `treft.attribution.margins.margins` and `layer_banks`.
    """
    streams = ResidualReference(model, base)
    found: Margins | None = None
    banks = layer_banks(model, tokenizer, layers, reference=streams)
    for number, (layer, bank) in enumerate(banks, start=1):
        spec = PatchSpec(layer_name(layer), ("prefix",))
        one = margins(model, tokenizer, pairs, bank, [spec], base=base, batch_size=batch_size)
        before = {} if found is None else found.patched
        found = replace(one, patched={**before, **one.patched})
        if on_layer is not None:
            on_layer(number)
    assert found is not None, "a model has layers"
    return found
