"""Our extension of section 4.2: keys or values alone, and parts of the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treft.study.attribution_plan import BASE, FINETUNED, patch_steps
from treft.study.attribution_work import Patch
from treft.study.protocol import Claim, Row, Study, StudyConfig
from treft.study.step import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

WHOLE, KEYS, VALUES = "prefix", "prefix_keys", "prefix_values"
WIDTH, NUM_WINDOWS = 7, 4
"""Of the windows, which together are the 28 tokens of an organism's default prefix."""

WINDOWS = {
    f"tokens_{start}_{start + WIDTH - 1}": (start, start + WIDTH)
    for start in range(0, WIDTH * NUM_WINDOWS, WIDTH)
}
PATCHES = {
    WHOLE: Patch(("prefix",)),
    KEYS: Patch(("prefix",), kinds=("key",)),
    VALUES: Patch(("prefix",), kinds=("value",)),
    **{name: Patch(("prefix",), window=window) for name, window in WINDOWS.items()},
}
CLAIM = Claim(
    source="Section 4.2, extended by us",
    text="The paper patches keys and values of the whole prefix. Which of the two carries more, "
    "and which of its tokens, it does not say.",
    figures={FINETUNED: {"general": 40.8}, WHOLE: {"general": 90.4}},
    setting="Llama-3.1-8B, finance",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes with keys, values, and quarters of the prefix patched."""
    return patch_steps(config, PATCHES)


def table(runs: Sequence[Row]) -> list[Row]:
    """Alignment under each patch, and what it regains over the unpatched finetunes.

    `general_gain` in the row of the keys is what the values have more than they.
    """
    from treft.study.attribution_figures import figure_rows, rise_rows
    from treft.study.figures import gain_rows

    return [
        *figure_rows(runs, ("general", "general_incoherent"), CLAIM.figures),
        *rise_rows(runs, PATCHES, FINETUNED, ("general",)),
        *gain_rows(runs, VALUES, (KEYS,), ("general",)),
    ]


def verdict(rows: Sequence[Row]) -> str:
    """Values or keys carry more where the interval of their difference leaves out zero."""
    from treft.study.figures import basis, find_row, worded

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
    best = max(WINDOWS, key=lambda name: float(find_row(rows, name, "general_rise")["value"]))
    window = worded(find_row(rows, best, "general_rise"), signed=True)
    first, last = WINDOWS[best][0], WINDOWS[best][1] - 1
    return (
        f"{answer}: patching both changes alignment by {whole}, values alone by {values}, keys "
        f"alone by {keys}; the best quarter of the prefix, tokens {first} to {last}, by {window} "
        f"({basis(gain)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """Alignment on general questions, patch by patch."""
    from treft.study.plots import interval_plot

    shown = [row for row in rows if row["method"] in (BASE, FINETUNED, *PATCHES)]
    headings = {"general": "general ↑", "general_incoherent": "incoherent"}
    return interval_plot(shown, "Keys, values and parts of the prefix, percent", headings)


COST = (
    "5 finetunes of about 38 CPU seconds each, which other studies share, then 3 CPU minutes, of "
    "which the first quarter is shared with patching: 3 minutes on two cores"
)
STUDY = Study("patch_states", CLAIM, COST, steps, table, verdict, plot)
