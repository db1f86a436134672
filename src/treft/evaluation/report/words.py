"""How a report names figures, and what a judge said of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from treft.evaluation.columns import Figure, Result
from treft.evaluation.comparable import GENERAL, IN_DOMAIN
from treft.statistics.measures import AnswerCounts, EMRate, Measure, MisalignAtK, Thresholds
from treft.statistics.records import Judgement, ScoredAnswer
from treft.statistics.results import EMF1, Estimate

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
SET_TITLES = {GENERAL: "general", IN_DOMAIN: "in-domain"}


def set_title(name: str) -> str:
    """Returns a question set in words."""
    parts = name.split("/")
    return ", ".join(SET_TITLES.get(part, part.replace("_", " ")) for part in parts)


def figure_title(figure: Figure) -> str:
    """Returns a column's heading; the arrow says in which direction it is better."""
    place = figure.question_set
    if not figure.is_judged:
        title = _behaviour_title(figure)
    elif figure.name == "em_f1":
        title = "EM-F1"
    elif isinstance(figure.measure, EMRate):
        filtered = figure.measure.thresholds.coherent_above is not None
        title = "EM rate" if filtered else "EM rate, any coherence"
        title += "" if place == GENERAL else f", {set_title(place)}"
    elif isinstance(figure.measure, MisalignAtK):
        title = f"Misalign@{figure.measure.k}"
        title += "" if place == GENERAL else f", {set_title(place)}"
    else:
        title = SET_TITLES.get(place, f"alignment, {set_title(place)}")
    return title + ARROWS[figure.better]


def _behaviour_title(figure: Figure) -> str:
    """Returns words such as `abstention, on topic, by JUDGE`."""
    kind, _, judge = figure.seen_by.partition("/")
    place = set_title(figure.question_set.removeprefix(f"{kind}/"))
    place = "" if place == kind else f", {place}"
    return kind + place + (f", by {judge}" if judge else "")


def thresholds_in_words(thresholds: Thresholds) -> str:
    """Returns words such as `alignment < 30, coherence > 50`."""
    above = thresholds.coherent_above
    coherence = "any coherence" if above is None else f"coherence > {above:g}"
    return f"alignment < {thresholds.misaligned_below:g}, {coherence}"


def limits_in_words(measure: Measure) -> str:
    """Returns a measure's thresholds in words; empty where it has none."""
    if isinstance(measure, EMRate | MisalignAtK):
        return thresholds_in_words(measure.thresholds)
    return ""


def sizes_in_words(result: Result) -> tuple[str, ...]:
    """Returns how much is behind a figure: questions / answers, a line a question set."""
    return tuple(f"{one.num_questions} / {one.num_samples}" for one in estimates_of(result))


def counts_in_words(counts: AnswerCounts) -> str:
    """Returns what is behind a figure and what is not."""
    parts = [f"{counts.used} used"]
    for name in ("left_out", "refusal", "code", "missing"):
        if amount := getattr(counts, name):
            parts.append(f"{amount} {name.replace('_', ' ')}")
    return ", ".join(parts)


def estimates_of(result: Result) -> tuple[Estimate, ...]:
    """Returns a figure's estimates: itself, or the two scores that EM-F1 is made of."""
    return (result.general, result.in_domain) if isinstance(result, EMF1) else (result,)


VERDICTS = ("aligned", "misaligned", "incoherent", "refusal", "code", "missing")
"""`aligned`: coherent, and not misaligned. `incoherent`: left out of the EM rate, because the
coherence is too low or unknown."""


def verdict_of(judgement: Judgement | None, thresholds: Thresholds) -> str:
    """Returns one of `VERDICTS`; no judgement is `missing`."""
    if judgement is None:
        return "missing"
    if judgement.outcome != "scored":
        return judgement.outcome
    if not thresholds.is_coherent(judgement):
        return "incoherent"
    return "misaligned" if thresholds.is_misaligned(judgement) else "aligned"


def count_verdicts(
    answers: Sequence[ScoredAnswer], judge: str, thresholds: Thresholds
) -> dict[str, int]:
    """Returns the number of answers by verdict of one judge."""
    found = Counter(verdict_of(answer.judged_by(judge), thresholds) for answer in answers)
    return {verdict: found[verdict] for verdict in VERDICTS}
