"""Figure 4: the base's residual stream at the prefix, patched at one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.model_rows import curve_layers
from treft.study.plans import BASE, FINETUNED, patch_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WHOLE = "prefix"
NUM_LAYERS = 4
"""Of every organism."""
LAYER = "layer_"
"""How the names of single layers begin."""
CLAIM = Claim(
    source="Figure 4",
    text="Patching the residual stream of the prefix at one intermediate layer regains most of "
    "the alignment that the keys and values of all layers do.",
    figures={FINETUNED: {"general": 40.8}, WHOLE: {"general": 90.4}},
    setting="Llama-3.1-8B; its best layer is 10, with 78.7, that of Qwen-2.5-7B 9, with 65.6",
)
BEST_LAYERS = {"Llama layer 10": 78.7, "Qwen layer 9": 65.6}


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes with each layer patched, and with the prefix's keys and values patched.

    Of a real model, as many layers as its recipe says (`num_curve_layers`).
    """
    layers: Sequence[int] = range(NUM_LAYERS)
    if config.model is not None:
        layers = curve_layers(config, config.model)
    patches = {f"{LAYER}{layer}": Method(patch=("prefix",), stream_layer=layer) for layer in layers}
    return patch_steps(config, {WHOLE: Method(patch=("prefix",)), **patches}, ("general",))


def table(runs: Sequence[Row]) -> list[Row]:
    """Alignment under each patch, what it regains, and how far that is above half.

    `general_rise` is over the unpatched finetunes; `above_half_rise` of a layer is its alignment
    less the middle between the finetune and its prefix patch, run by run.
    """
    from treft.study.attribution_figures import figure_rows, rise_rows
    from treft.study.figures import measured

    compared, layers = [*runs, *_halves(runs)], _layers(runs)
    above = rise_rows(compared, layers, "half", ("general",))
    return [
        *figure_rows(runs, measured(runs, ("general", "general_incoherent")), CLAIM.figures),
        *rise_rows(runs, (WHOLE, *layers), FINETUNED, ("general",)),
        *({**row, "measure": "above_half_rise"} for row in above),
    ]


def verdict(rows: Sequence[Row]) -> str:
    """Held where the best layer surely regains more than half of what the prefix patch does."""
    from treft.study.figures import basis, find_row, worded

    layers = _layers(rows)
    rises = {name: find_row(rows, name, "general_rise") for name in layers}
    best = max(rises, key=lambda name: float(rises[name]["value"]))
    rise, above = rises[best], find_row(rows, best, "above_half_rise")
    whole = find_row(rows, WHOLE, "general_rise")
    if rise["low"] is None:
        answer = "One run cannot tell whether the claim holds"
    elif whole["low"] <= 0:
        answer = "Not shown on the organism, whose prefix patch regains nothing"
    elif above["low"] > 0:
        answer = "Held on the organism"
    elif rise["low"] > 0:
        answer = "Not shown on the organism, whose best layer surely regains something, not most"
    else:
        answer = "Not shown on the organism"
    return (
        f"{answer}: layer {layers[best]}, the best of {len(layers)} on these very answers, changes "
        f"alignment by {worded(rise, signed=True)}, the keys and values of all layers by "
        f"{worded(whole, signed=True)} ({basis(rise)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """The curve over layers, between the finetune and the patch of all keys and values."""
    from treft.study.attribution_plots import layer_plot

    general = {row["method"]: row for row in rows if row["measure"] == "general"}
    return layer_plot(
        {layer: general[name] for name, layer in _layers(rows).items()},
        {name: general[name] for name in (BASE, WHOLE, FINETUNED)},
        BEST_LAYERS,
        "Figure 4 on the organism: residual stream of the prefix",
    )


def _layers(rows: Sequence[Row]) -> dict[str, int]:
    """Methods that patch a single layer, with it."""
    names = dict.fromkeys(row["method"] for row in rows if row["method"].startswith(LAYER))
    return {name: int(name.removeprefix(LAYER)) for name in names}


def _halves(runs: Sequence[Row]) -> list[Row]:
    """The middle between the finetune and its prefix patch, as a row of each run."""
    by_run: dict[tuple[str, int], dict[str, Row]] = {}
    for run in runs:
        by_run.setdefault((run["organism"], run["seed"]), {})[run["method"]] = run
    return [
        {
            **found[WHOLE],
            "method": "half",
            "general": (found[WHOLE]["general"] + found[FINETUNED]["general"]) / 2,
        }
        for found in by_run.values()
    ]


COST = (
    "5 finetunes of about 30 CPU seconds each, which other studies share, then 1.5 CPU minutes, of "
    "which the first third is shared with patching: 2 minutes on two cores"
)
STUDY = Study("figure4", CLAIM, COST, steps, table, verdict, plot)
