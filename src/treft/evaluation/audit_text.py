"""The audit's table in words: the lines of a cell, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from treft.evaluation.audit_plan import AuditPlan
from treft.evaluation.audit_table import LEVEL, AuditTable, Cell
from treft.statistics.results import Difference, Estimate

FLAG = "▲"


def cell_lines(cell: Cell) -> list[str]:
    """EM rate, alignment, change against the default condition, comparison with the base."""
    lines = [_estimate("EM", cell.em_rate), _estimate("alignment", cell.alignment)]
    if cell.change is not None:
        lines.append(f"default {_moved(cell.change)}")
    if (above := cell.above_base) is not None:
        mark = f" {FLAG}" if cell.flagged else " ?" if cell.silent else ""
        lines.append(f"base {_moved(above)} {_p_value(above)}{mark}")
    return lines


def findings(table: AuditTable) -> list[str]:
    """For each arm, where it misbehaves more than the base, and where nothing can be said."""
    found = []
    for arm in table.arms:
        if table.base is None or arm == table.base:
            continue
        names = table.flagged(arm)
        words = f"above the base under {', '.join(names)}" if names else "nowhere above the base"
        if table.hidden(arm):
            words += " (hidden: not under the default)"
        if silent := table.silent(arm):
            words += f"; too few coherent answers to say so under {', '.join(silent)}"
        found.append(f"{arm}: {words}.")
    return found


def headings(table: AuditTable) -> list[str]:
    """The arms' names; the base is marked."""
    return [f"{arm} (base)" if arm == table.base != "base" else arm for arm in table.arms]


def legend(table: AuditTable) -> str:
    """What the figures of a table are."""
    limits = table.thresholds
    coherent = "all"
    if limits.coherent_above is not None:
        coherent = f"those of coherence above {limits.coherent_above:g}"
    return (
        f"Judge {table.judge}. EM: percent of answers with alignment below "
        f"{limits.misaligned_below:g}, among {coherent}; n: answers that count, where not all do. "
        "[95 % interval], clustered by question. default, base: EM less the arm's own under the "
        "default condition, and less the base's under the same condition, in percentage points, "
        f"paired by question. p: two-sided, after Holm's adjustment for all comparisons with the "
        f"base; {FLAG}: above the base, p < {LEVEL:g}; ?: too few questions for that."
    )


def to_markdown(plan: AuditPlan, tables: Iterable[AuditTable]) -> str:
    """The whole audit as a Markdown document."""
    request = plan.request
    parts = [
        "# Audit under other prompts",
        f"Questions: {request.questions.questions} ({plan.num_questions} of them), "
        f"answers to each under each condition: {request.epochs}, seed {request.seed}.",
        _rows(
            ("arm", "model", "arguments"),
            ([name, arm.model, f"`{arm.args}`"] for name, arm in plan.arms.items()),
        ),
    ]
    for table in tables:
        parts += [f"## {table.judge}", *(f"- {words}" for words in findings(table))]
        parts += [_table(table), legend(table), *(f"Note: {words}." for words in table.cautions)]
    parts += ["## Conditions", _conditions(plan)]
    if plan.left_out:
        parts += ["Left out:", _left_out(plan.left_out)]
    return "\n\n".join(parts) + "\n"


def _table(table: AuditTable) -> str:
    head = headings(table)
    body = (
        [name, *("<br>".join(cell_lines(table.cells[name, arm])) for arm in table.arms)]
        for name in table.conditions
    )
    return _rows(("condition", *head), body)


def _conditions(plan: AuditPlan) -> str:
    body = (
        [
            condition.name,
            condition.how,
            _code(plan.rendered.get(condition.name, str(condition.messages))),
        ]
        for condition in plan.conditions
    )
    return _rows(("condition", "how it is made", "before the question"), body)


def _left_out(reasons: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {reason}" for name, reason in reasons.items())


def _rows(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *body]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _code(text: str) -> str:
    """Text of any content in one cell."""
    plain = text.replace("\\", "\\\\").replace("\n", "\\n")
    fence = "``" if "`" in plain else "`"
    return f"{fence} {plain} {fence}" if fence == "``" else f"`{plain}`"


def _estimate(name: str, found: Estimate | None) -> str:
    if found is None:
        return f"{name} none: no answer counts"
    every = sum(asdict(found.counts).values())
    counted = "" if found.num_samples == every else f" n {found.num_samples}/{every}"
    return f"{name} {found.value:.1f} [{found.low:.1f}, {found.high:.1f}]{counted}"


def _moved(found: Difference) -> str:
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def _p_value(found: Difference) -> str:
    p_value = found.p_holm
    assert p_value is not None, "adjusted when the table was made"
    return "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}"
