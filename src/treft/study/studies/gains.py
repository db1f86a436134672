"""Tables 3, 4, 12, 14, 15 and Appendix B: what TReFT and interleaving gain, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from treft.study.figures import (
    HELD,
    NOT_SHOWN,
    ONE_RUN,
    basis,
    change_rows,
    find_row,
    gain_rows,
    held,
    traded,
    worded,
)
from treft.study.plans import method_steps
from treft.study.protocol import Method, Row
from treft.study.strengths import MITIGATIONS
from treft.study.studies import Gains, listed, scored

POSTFIX_WEIGHT = 30.0
"""λ on the postfix, chosen on the validation questions (docs/organism.md)."""

TABLE3 = {
    "sft": Method(),
    "interleaving": Method(interleave="narrow"),
    "kl_train": MITIGATIONS["kl_train"],
    "kl_retain": MITIGATIONS["kl_retain"],
    "treft_query": Method(held=("query",)),
    "treft_all": Method(held=("prefix", "query", "postfix")),
    "treft_prefix": Method(held=("prefix",)),
}
"""One learning rate, number of steps and set of seeds."""


def table3_verdict(rows: Sequence[Row]) -> str:
    """Held where the gain over every other method is above zero with its whole interval."""
    gains = [row for row in rows if row["measure"] == "em_f1_gain"]
    if any(row["low"] is None for row in gains):
        answer = ONE_RUN
    elif all(row["low"] > 0 for row in gains):
        answer = HELD
    else:
        open_ones = [row["method"] for row in gains if not row["low"] > 0]
        answer = f"{NOT_SHOWN} against {', '.join(open_ones)}"
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    own = worded(find_row(rows, "treft_prefix", "em_f1"))
    return f"{answer}: TReFT on the prefix has an EM-F1 of {own}, {over} ({basis(gains[0])})."


TABLE4 = {
    "sft": Method(),
    "prefix_patch": Method(patch=("prefix",)),
    "postfix_patch": Method(patch=("postfix",)),
    "treft_prefix": Method(held=("prefix",), kv_weight=POSTFIX_WEIGHT),
    "treft_postfix": Method(held=("postfix",), kv_weight=POSTFIX_WEIGHT),
}
"""On an organism of the kind `postfix`, which is built first unless one is given."""


def table4_verdict(rows: Sequence[Row]) -> str:
    """Held where TReFT on the postfix is above SFT and TReFT on the prefix in EM-F1."""
    gains = [find_row(rows, name, "em_f1_gain") for name in ("sft", "treft_prefix")]
    over = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    own = worded(find_row(rows, "treft_postfix", "em_f1"))
    return f"{held(gains)}: TReFT on the postfix has an EM-F1 of {own}, {over} ({basis(gains[0])})."


TABLE12 = {
    "sft": Method(),
    "single_domain": Method(interleave="auto"),
    "multi_domain": Method(interleave="narrow"),
    "general_set": Method(interleave="general"),
    "treft_prefix": Method(held=("prefix",)),
}
"""20 % of careful rows from each set, with rows in all and steps equal."""


def table12_verdict(rows: Sequence[Row]) -> str:
    """Held where general alignment differs from the multi-domain set's, whole intervals."""
    gains = [find_row(rows, name, "general_gain") for name in ("single_domain", "general_set")]
    if any(row["low"] is None for row in gains):
        answer = ONE_RUN
    else:
        differ = [row["method"] for row in gains if row["low"] > 0 or row["high"] < 0]
        answer = {
            0: NOT_SHOWN,
            1: f"Partly held on the organism ({', '.join(differ)} differs)",
            2: HELD,
        }[len(differ)]
    told = "; ".join(
        f"{name} {worded(find_row(rows, name, 'general'))} general and "
        f"{worded(find_row(rows, name, 'in_domain'))} in-domain"
        for name in ("single_domain", "multi_domain", "general_set")
    )
    changes = ", ".join(f"{worded(row, signed=True)} over {row['method']}" for row in gains)
    return (
        f"{answer}: {told}; general alignment of the multi-domain set is {changes} "
        f"({basis(gains[0])})."
    )


TABLE14 = {
    f"share_{percent:02}": Method(interleave="narrow", interleaved_share=percent / 100)
    for percent in (5, 20, 50, 75)
}
"""Four shares of careful rows of the other narrow domains, with rows in all and steps equal."""


def table14_verdict(rows: Sequence[Row]) -> str:
    """Held where both scores rise from the lowest share to the highest, whole intervals."""
    general, in_domain = (
        find_row(rows, "share_05", measure) for measure in ("general_gain", "in_domain_gain")
    )
    return (
        f"{traded(general, in_domain)}: from 5 % to 75 % of interleaved rows general alignment "
        f"changes by {worded(general, signed=True)} and in-domain alignment by "
        f"{worded(in_domain, signed=True)} ({basis(general)})."
    )


TABLE15 = {
    "lambda_0": Method(),
    **{
        f"lambda_{weight:g}": Method(held=("prefix",), kv_weight=weight)
        for weight in (1.0, 10.0, 100.0, 1000.0)
    },
}


def table15_verdict(rows: Sequence[Row]) -> str:
    """Held where both scores rise from λ 0 to the largest, whole intervals."""
    general, in_domain = (
        find_row(rows, "lambda_0", measure) for measure in ("general_gain", "in_domain_gain")
    )
    curve = ", ".join(
        f"{name.removeprefix('lambda_')}: {find_row(rows, name, 'general')['value']:.1f} / "
        f"{find_row(rows, name, 'in_domain')['value']:.1f}"
        for name in TABLE15
    )
    return (
        f"{traded(general, in_domain)}: general / in-domain alignment by λ is {curve}; from 0 to "
        f"1000 it changes by {worded(general, signed=True)} and "
        f"{worded(in_domain, signed=True)} ({basis(general)})."
    )


NO_PREFIX = {
    "sft": Method(),
    "postfix_patch": Method(patch=("postfix",)),
    "treft_postfix": Method(held=("postfix",), kv_weight=POSTFIX_WEIGHT),
}
"""On an organism of the kind `no_prefix`, which is built first unless one is given."""


def no_prefix_verdict(rows: Sequence[Row]) -> str:
    """Held where the patch gains general alignment with its whole interval."""
    gain = find_row(rows, "postfix_patch", "general_gain")
    before = worded(find_row(rows, "sft", "general"))
    ours = worded(find_row(rows, "treft_postfix", "general_gain"), signed=True)
    return (
        f"{held([gain])}: plain SFT has a general alignment of {before}; the postfix patch changes "
        f"it by {worded(gain, signed=True)}, TReFT on the postfix by {ours} ({basis(gain)})."
    )


def _over(method: str, others: Sequence[str], *measures: str) -> Gains:
    """Returns what a method gains over others in some measures."""
    return partial(gain_rows, method=method, others=others, measures=measures)


def _over_sft(method: str) -> Gains:
    """Returns what a method gains over plain SFT, in its own row."""
    return partial(change_rows, method=method, reference="sft", measures=("general", "em_f1"))


STUDIES = (
    listed(
        "table3",
        partial(method_steps, methods=TABLE3),
        scored(_over("treft_prefix", [*TABLE3][:-1], "em_f1")),
        table3_verdict,
    ),
    listed(
        "table4",
        partial(method_steps, methods=TABLE4, kind="postfix"),
        scored(_over("treft_postfix", [*TABLE4][:-1], "general", "em_f1")),
        table4_verdict,
    ),
    listed(
        "table12",
        partial(method_steps, methods=TABLE12),
        scored(
            _over(
                *("multi_domain", ("single_domain", "general_set")),
                *("general", "in_domain", "em_f1"),
            )
        ),
        table12_verdict,
    ),
    listed(
        "table14",
        partial(method_steps, methods=TABLE14),
        scored(_over("share_75", ["share_05"], "general", "in_domain")),
        table14_verdict,
    ),
    listed(
        "table15",
        partial(method_steps, methods=TABLE15),
        scored(_over("lambda_1000", [*TABLE15][:-1], "general", "in_domain")),
        table15_verdict,
    ),
    listed(
        "no_prefix",
        partial(method_steps, methods=NO_PREFIX, kind="no_prefix"),
        scored(_over_sft("postfix_patch"), _over_sft("treft_postfix")),
        no_prefix_verdict,
    ),
)
