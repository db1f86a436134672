"""Our extension of section 4.2: keys or values alone, and parts of the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from treft.steps.step import Step
from treft.study.model_rows import num_prefix_tokens
from treft.study.plans import BASE, FINETUNED, patch_steps
from treft.study.protocol import Claim, Method, Row, Study, StudyConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WHOLE, KEYS, VALUES = "prefix", "prefix_keys", "prefix_values"
STATES = {
    WHOLE: Method(patch=("prefix",)),
    KEYS: Method(patch=("prefix",), kinds=("key",)),
    VALUES: Method(patch=("prefix",), kinds=("value",)),
}
NUM_TOKENS = 28
"""Of an organism's default prefix."""
NUM_WINDOWS = 4
"""Which together are the prefix."""
WINDOW = "tokens_"
"""How their names begin; then the first and the last token."""
CLAIM = Claim(
    source="Section 4.2, extended by us",
    text="The paper patches keys and values of the whole prefix. Which of the two carries more, "
    "and which of its tokens, it does not say.",
    figures={FINETUNED: {"general": 40.8}, WHOLE: {"general": 90.4}},
    setting="Llama-3.1-8B, finance",
)


def steps(config: StudyConfig) -> list[Step[Any]]:
    """Plain finetunes with keys, values, and quarters of the prefix patched."""
    num = NUM_TOKENS if config.model is None else num_prefix_tokens(config, config.model)
    ends = [num * part // NUM_WINDOWS for part in range(NUM_WINDOWS + 1)]
    windows = {
        f"{WINDOW}{start}_{end - 1}": Method(patch=("prefix",), window=(start, end))
        for start, end in pairwise(ends)
        if start < end
    }
    return patch_steps(config, {**STATES, **windows}, ("general",))


def table(runs: Sequence[Row]) -> list[Row]:
    """Alignment under each patch, and what it regains over the unpatched finetunes.

    `general_gain` in the row of the keys is what the values have more than they.
    """
    from treft.study.attribution_figures import figure_rows, rise_rows
    from treft.study.figures import gain_rows, measured

    patched = (*STATES, *_windows(runs))
    return [
        *figure_rows(runs, measured(runs, ("general", "general_incoherent")), CLAIM.figures),
        *rise_rows(runs, patched, FINETUNED, ("general",)),
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
    windows = _windows(rows)
    best = max(windows, key=lambda name: float(find_row(rows, name, "general_rise")["value"]))
    window = worded(find_row(rows, best, "general_rise"), signed=True)
    first, last = best.removeprefix(WINDOW).split("_")
    return (
        f"{answer}: patching both changes alignment by {whole}, values alone by {values}, keys "
        f"alone by {keys}; the best quarter of the prefix, tokens {first} to {last}, by {window} "
        f"({basis(gain)})."
    )


def plot(rows: Sequence[Row]) -> Figure:
    """Alignment on general questions, patch by patch."""
    from treft.study.plots import interval_plot

    patched = (*STATES, *_windows(rows))
    shown = [row for row in rows if row["method"] in (BASE, FINETUNED, *patched)]
    headings = {"general": "general ↑", "general_incoherent": "incoherent"}
    return interval_plot(shown, "Keys, values and parts of the prefix, percent", headings)


def _windows(rows: Sequence[Row]) -> list[str]:
    """Methods that patch part of the prefix."""
    return list(dict.fromkeys(row["method"] for row in rows if row["method"].startswith(WINDOW)))


COST = (
    "5 finetunes of about 30 CPU seconds each, which other studies share, then 2 CPU minutes, of "
    "which the first quarter is shared with patching: 2 minutes on two cores"
)
STUDY = Study("patch_states", CLAIM, COST, steps, table, verdict, plot)
