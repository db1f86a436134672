"""Section 4.2, Figure 4 and equations (2) and (3): whose keys and values stand in a finetune."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from treft.steps.step import Step
from treft.study.attribution import REGIONS
from treft.study.claims import Listing, listings
from treft.study.figures import (
    HELD,
    NOT_SHOWN,
    ONE_RUN,
    basis,
    figure_rows,
    find_row,
    gain_rows,
    held,
    measured,
    rise_rows,
    with_further,
    worded,
)
from treft.study.model_rows import curve_layers, num_prefix_tokens
from treft.study.plans import BASE, FINETUNED, drift_steps, patch_steps
from treft.study.plots import drift_plot, interval_plot, layer_plot
from treft.study.protocol import Method, Row, StudyConfig
from treft.study.studies import listed

WHOLE = "prefix"
PREFIX = Method(patch=("prefix",))

PREFIX_TEN, QUERY_TEN = "prefix_ten", "query_ten"
PATCHES = {
    WHOLE: PREFIX,
    PREFIX_TEN: Method(patch=("prefix",), num_positions=10),
    QUERY_TEN: Method(patch=("query",), num_positions=10),
    "query": Method(patch=("query",)),
    "postfix": Method(patch=("postfix",)),
}
"""The ten tokens are random ones of the region in every prompt; the postfix is patched with the
states that it has after an empty query."""
SCOPES = {"general": "general", "in_domain": "in-domain", "other_narrow": "other-domain"}


def patching_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Alignment under each patch, scope by scope, what each regains, and how the prefix compares.

    `…_rise` is over the unpatched finetunes. `general_gain` is that of the prefix over the query
    and the postfix, and of ten tokens of the prefix over ten of the query.
    """
    incoherent = measured(runs, [f"{scope}_incoherent" for scope in SCOPES])
    rows = [
        *figure_rows(runs, [*SCOPES, *incoherent], told.claim.figures),
        *rise_rows(runs, PATCHES, FINETUNED, SCOPES),
        *gain_rows(runs, WHOLE, ("query", "postfix"), ("general",)),
        *gain_rows(runs, PREFIX_TEN, (QUERY_TEN,), ("general",)),
    ]
    return with_further(rows, told.further)


def patching_verdict(rows: Sequence[Row]) -> str:
    """Held where the prefix regains alignment in each scope, and more than query and postfix."""
    rises = {scope: find_row(rows, WHOLE, f"{scope}_rise") for scope in SCOPES}
    gains = {name: find_row(rows, name, "general_gain") for name in (QUERY_TEN, "postfix")}
    first = rises["general"]
    if first["low"] is None:
        answer = ONE_RUN
    elif first["low"] <= 0:
        answer = NOT_SHOWN
    elif unclear := [name for name, row in gains.items() if row["low"] <= 0]:
        answer = f"{NOT_SHOWN} against {' and '.join(unclear)}"
    elif lacking := [SCOPES[scope] for scope, row in rises.items() if row["low"] <= 0]:
        answer = f"Held on the organism, but not shown on {' and '.join(lacking)} queries"
    else:
        answer = HELD
    regained = ", ".join(
        f"{worded(row, signed=True)} on {SCOPES[scope]} queries" for scope, row in rises.items()
    )
    return (
        f"{answer}: the prefix patch changes alignment by {regained}; on general ones ten tokens "
        f"of the prefix are {worded(gains[QUERY_TEN], signed=True)} over ten of the query, and "
        f"the prefix {worded(gains['postfix'], signed=True)} over the postfix ({basis(first)})."
    )


def patching_plot(rows: Sequence[Row], title: str) -> Figure:
    """Returns a panel for each kind of query, a line for each patch."""
    headings = {scope: f"{words} ↑" for scope, words in SCOPES.items()}
    shown = [row for row in rows if row["method"] in (BASE, FINETUNED, *PATCHES)]
    return interval_plot(shown, title, headings)


KEYS, VALUES = "prefix_keys", "prefix_values"
STATES = {
    WHOLE: PREFIX,
    KEYS: Method(patch=("prefix",), kinds=("key",)),
    VALUES: Method(patch=("prefix",), kinds=("value",)),
}
NUM_TOKENS = 28
"""Of an organism's default prefix."""
NUM_WINDOWS = 4
"""Which together are the prefix."""
WINDOW = "tokens_"
"""How their names begin; then the first and the last token."""


def patch_states_steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes with keys, values, and quarters of the prefix patched."""
    num = NUM_TOKENS if config.model is None else num_prefix_tokens(config, config.model)
    ends = [num * part // NUM_WINDOWS for part in range(NUM_WINDOWS + 1)]
    windows = {
        f"{WINDOW}{start}_{end - 1}": Method(patch=("prefix",), window=(start, end))
        for start, end in pairwise(ends)
        if start < end
    }
    return patch_steps(config, {**STATES, **windows}, ("general",))


def patch_states_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Alignment under each patch, and what it regains over the unpatched finetunes.

    `general_gain` in the row of the keys is what the values have more than they.
    """
    patched = (*STATES, *_windows(runs))
    return [
        *figure_rows(runs, measured(runs, ("general", "general_incoherent")), told.claim.figures),
        *rise_rows(runs, patched, FINETUNED, ("general",)),
        *gain_rows(runs, VALUES, (KEYS,), ("general",)),
    ]


def patch_states_verdict(rows: Sequence[Row]) -> str:
    """Values or keys carry more where the interval of their difference leaves out zero."""
    gain = find_row(rows, KEYS, "general_gain")
    if gain["low"] is None:
        answer = "One run cannot tell which carries more"
    elif gain["low"] > 0:
        answer = "The values of the prefix carry more than its keys on the organism"
    elif gain["high"] < 0:
        answer = "The keys of the prefix carry more than its values on the organism"
    else:
        answer = "Not shown on the organism that keys or values carry more"
    whole, keys, values = (
        worded(find_row(rows, name, "general_rise"), signed=True) for name in (WHOLE, KEYS, VALUES)
    )
    windows = _windows(rows)
    best = max(windows, key=lambda name: float(find_row(rows, name, "general_rise")["value"]))
    window = worded(find_row(rows, best, "general_rise"), signed=True)
    first, last = best.removeprefix(WINDOW).split("_")
    return (
        f"{answer}: patching both changes alignment by {whole}, values alone by {values}, keys "
        f"alone by {keys}; the best quarter of the prefix, tokens {first} to {last}, by {window} "
        f"({basis(gain)})."
    )


def patch_states_plot(rows: Sequence[Row], title: str) -> Figure:
    """Alignment on general questions, patch by patch."""
    patched = (*STATES, *_windows(rows))
    shown = [row for row in rows if row["method"] in (BASE, FINETUNED, *patched)]
    headings = {"general": "general ↑", "general_incoherent": "incoherent"}
    return interval_plot(shown, title, headings)


def _windows(rows: Sequence[Row]) -> list[str]:
    """Methods that patch part of the prefix."""
    return list(dict.fromkeys(row["method"] for row in rows if row["method"].startswith(WINDOW)))


NUM_LAYERS = 4
"""Of every organism."""
LAYER = "layer_"
"""How the names of single layers begin."""


def figure4_steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes with each layer patched, and with the prefix's keys and values patched.

    Of a real model, as many layers as its recipe says (`num_curve_layers`).
    """
    layers: Sequence[int] = range(NUM_LAYERS)
    if config.model is not None:
        layers = curve_layers(config, config.model)
    patches = {f"{LAYER}{layer}": Method(patch=("prefix",), stream_layer=layer) for layer in layers}
    return patch_steps(config, {WHOLE: PREFIX, **patches}, ("general",))


def figure4_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """Alignment under each patch, what it regains, and how far that is above half.

    `general_rise` is over the unpatched finetunes; `above_half_rise` of a layer is its alignment
    less the middle between the finetune and its prefix patch, run by run.
    """
    compared, layers = [*runs, *_halves(runs)], _layers(runs)
    above = rise_rows(compared, layers, "half", ("general",))
    return [
        *figure_rows(runs, measured(runs, ("general", "general_incoherent")), told.claim.figures),
        *rise_rows(runs, (WHOLE, *layers), FINETUNED, ("general",)),
        *({**row, "measure": "above_half_rise"} for row in above),
    ]


def figure4_verdict(rows: Sequence[Row]) -> str:
    """Held where the best layer surely regains more than half of what the prefix patch does."""
    layers = _layers(rows)
    rises = {name: find_row(rows, name, "general_rise") for name in layers}
    best = max(rises, key=lambda name: float(rises[name]["value"]))
    rise, above = rises[best], find_row(rows, best, "above_half_rise")
    whole = find_row(rows, WHOLE, "general_rise")
    if rise["low"] is None:
        answer = ONE_RUN
    elif whole["low"] <= 0:
        answer = "Not shown on the organism, whose prefix patch regains nothing"
    elif above["low"] > 0:
        answer = HELD
    elif rise["low"] > 0:
        answer = "Not shown on the organism, whose best layer surely regains something, not most"
    else:
        answer = NOT_SHOWN
    return (
        f"{answer}: layer {layers[best]}, the best of {len(layers)} on these very answers, changes "
        f"alignment by {worded(rise, signed=True)}, the keys and values of all layers by "
        f"{worded(whole, signed=True)} ({basis(rise)})."
    )


def figure4_plot(rows: Sequence[Row], title: str) -> Figure:
    """Returns the curve over layers, between the finetune and the patch of all keys and values."""
    general = {row["method"]: row for row in rows if row["measure"] == "general"}
    best = listings()["figure4"].further["best_layers"]
    return layer_plot(
        {layer: general[name] for name, layer in _layers(rows).items()},
        {name: general[name] for name in (BASE, WHOLE, FINETUNED)},
        {name: row["general"] for name, row in best.items()},
        title,
    )


def _layers(rows: Sequence[Row]) -> dict[str, int]:
    """Methods that patch a single layer, with it."""
    names = dict.fromkeys(row["method"] for row in rows if row["method"].startswith(LAYER))
    return {name: int(name.removeprefix(LAYER)) for name in names}


def _halves(runs: Sequence[Row]) -> list[Row]:
    """Returns the middle between the finetune and its prefix patch, as a row of each run."""
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


SFT, TREFT = "sft", "treft_prefix"
DRIFTING = {SFT: Method(), TREFT: Method(held=("prefix",))}


def drift_rows(runs: Sequence[Row], told: Listing) -> Sequence[Row]:
    """L_KV of each region, L_K and L_V of each layer (`prefix_key_0`), and what SFT has more.

    Dimensionless. `…_gain` is that of SFT over TReFT, in the latter's row.
    """
    measures = [name for name in runs[0] if name.startswith(REGIONS) and f"{name}_low" in runs[0]]
    return [
        *figure_rows(runs, measures, told.claim.figures, highest=float("inf")),
        *gain_rows(runs, SFT, (TREFT,), REGIONS),
    ]


def drift_verdict(rows: Sequence[Row]) -> str:
    """Held where SFT surely moves the prefix further than TReFT does."""
    gain = find_row(rows, TREFT, "prefix_gain")
    parts = ", ".join(
        f"{_worded(find_row(rows, TREFT, region))} at the {region} against "
        f"{_worded(find_row(rows, SFT, region))}"
        for region in REGIONS
    )
    unit = "one run" if gain["num_runs"] == 1 else f"{gain['num_runs']} runs, 95 % intervals"
    return f"{held([gain])}: after TReFT on the prefix L_KV is {parts} after SFT ({unit})."


def drift_curves(rows: Sequence[Row], title: str) -> Figure:
    """Returns a panel for each region: keys and values by layer, for both methods."""
    return drift_plot(rows, REGIONS, (SFT, TREFT), title)


def _worded(row: Row) -> str:
    return f"{row['value']:.2g} [{row['low']:.2g}, {row['high']:.2g}]"


STUDIES = (
    listed(
        "patching",
        partial(patch_steps, patches=PATCHES),
        patching_rows,
        patching_verdict,
        patching_plot,
    ),
    listed(
        "patch_states",
        patch_states_steps,
        patch_states_rows,
        patch_states_verdict,
        patch_states_plot,
    ),
    listed("figure4", figure4_steps, figure4_rows, figure4_verdict, figure4_plot),
    listed(
        "drift", partial(drift_steps, methods=DRIFTING), drift_rows, drift_verdict, drift_curves
    ),
)
