"""A comparison over several runs of each arm, such as finetunes with other seeds.

Answers of one run share its finetune, so the unit that is drawn at random is the run: intervals are
t intervals over runs, and changes are paired by run.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy import stats

from treft.errors import DataError
from treft.evaluation.columns import Change, Column, Figure, Result, plan_figures
from treft.evaluation.comparable import ArmAnswers, check_arms, common_judges
from treft.evaluation.compare import Comparison, misalign_draws
from treft.statistics.compare import adjusted
from treft.statistics.intervals import over_runs
from treft.statistics.measures import AnswerCounts, Thresholds
from treft.statistics.records import ScoredAnswer
from treft.statistics.results import EMF1, Difference, EMF1Difference, Estimate

Run = Sequence[ArmAnswers]
"""The arms of one run."""


def compare_over_runs(runs: Sequence[Run], base: str | None = None) -> Comparison:
    """Compare arms that were each run several times on the same questions.

    Args:
        runs: at least two, with the same arms.
        base: label of the arm that changes are taken against; the first by default.

    Raises:
        ConfigError: as `compare`.
        DataError: as `compare`.
    """
    arms = _pooled(runs)
    first = check_arms(arms, base)
    judges, notes = common_judges(arms, None)
    limits = Thresholds()
    figures = plan_figures(
        arms, judges, limits, misalign_draws([arm for run in runs for arm in run], judges)
    )
    return Comparison(
        arms=arms,
        base=first.label,
        num_runs=len(runs),
        judges=tuple(dict.fromkeys(judge for found in judges.values() for judge in found)),
        thresholds=limits,
        columns=tuple(_column(figure, runs, first.label) for figure in figures),
        sensitivity={},
        agreements={},
        intervals=(
            f"95 % t intervals and p-values over {len(runs)} runs, which count as independent "
            "draws; changes are paired by run"
        ),
        notes=tuple(notes),
    )


def _pooled(runs: Sequence[Run]) -> tuple[ArmAnswers, ...]:
    """Returns all runs' answers of each arm; the run is the answer's `epoch`."""
    pooled = []
    for versions in zip(*runs, strict=True):
        assert len({arm.label for arm in versions}) == 1, "runs have the same arms"
        sets: dict[str, list[ScoredAnswer]] = {}
        for number, arm in enumerate(versions, start=1):
            for name, answers in arm.sets.items():
                numbered = [dataclasses.replace(answer, epoch=number) for answer in answers]
                sets.setdefault(name, []).extend(numbered)
        sources = tuple(source for arm in versions for source in arm.sources)
        pooled.append(dataclasses.replace(versions[0], sets=sets, sources=sources))
    return tuple(pooled)


def _column(figure: Figure, runs: Sequence[Run], base: str) -> Column:
    found: dict[str, dict[int, Result]] = {arm.label: {} for arm in runs[0]}
    for number, run in enumerate(runs):
        for arm in run:
            if figure.in_arm(arm) and (result := _result(figure, arm)) is not None:
                found[arm.label][number] = result
    kept = {label: results for label, results in found.items() if len(results) > 1}
    absent = {label: "fewer than two runs have a value" for label in found if label not in kept}
    changes: dict[str, Change] = {}
    for label, results in kept.items():
        shared = sorted(results.keys() & kept.get(base, {}).keys())
        if label == base:
            continue
        if len(shared) < 2:
            absent[label] = f"fewer than two runs have a value here and in {base}"
            continue
        pairs = [(results[number], kept[base][number]) for number in shared]
        changes[label] = _change([one for one, _ in pairs], [other for _, other in pairs])
    return Column(
        figure,
        {label: _combined(list(results.values()), len(runs)) for label, results in kept.items()},
        adjusted(changes),
        absent,
    )


def _result(figure: Figure, arm: ArmAnswers) -> Result | None:
    try:
        return figure.result(arm)
    except DataError:
        return None


def _combined(results: Sequence[Result], num_runs: int) -> Result:
    estimates = [one for one in results if isinstance(one, Estimate)]
    if estimates:
        return _combined_estimates(estimates, num_runs)
    scores = [one for one in results if isinstance(one, EMF1)]
    return EMF1(
        *over_runs([one.value for one in scores]).within(0.0, 100.0),
        _combined_estimates([one.general for one in scores], num_runs),
        _combined_estimates([one.in_domain for one in scores], num_runs),
    )


def _combined_estimates(estimates: Sequence[Estimate], num_runs: int) -> Estimate:
    values = [one.value for one in estimates]
    interval = over_runs(values)
    if estimates[0].measure.unit == "percent":
        interval = interval.within(0.0, 100.0)
    counts = Counter[str]()
    for one in estimates:
        counts.update(dataclasses.asdict(one.counts))
    cautions = []
    if len(estimates) < num_runs:
        cautions.append(f"{len(estimates)} of {num_runs} runs have a value")
    if len(set(values)) == 1:
        cautions.append("all runs are equal: how much they vary is not known")
    return Estimate(
        measure=estimates[0].measure,
        value=interval.mean,
        low=interval.low,
        high=interval.high,
        num_questions=max(one.num_questions for one in estimates),
        num_samples=sum(one.num_samples for one in estimates),
        counts=AnswerCounts(**counts),
        design_effect=None,
        method=f"t over {len(estimates)} runs",
        caution="; ".join(cautions),
    )


def _change(results: Sequence[Result], base: Sequence[Result]) -> Change:
    if isinstance(results[0], Estimate):
        return _difference(
            [one for one in results if isinstance(one, Estimate)],
            [one for one in base if isinstance(one, Estimate)],
        )
    ours = [one for one in results if isinstance(one, EMF1)]
    theirs = [one for one in base if isinstance(one, EMF1)]
    moved = [one.value - other.value for one, other in zip(ours, theirs, strict=True)]
    return EMF1Difference(
        *over_runs(moved).within(-100.0, 100.0),
        _p_value(moved),
        _difference([one.general for one in ours], [one.general for one in theirs]),
        _difference([one.in_domain for one in ours], [one.in_domain for one in theirs]),
    )


def _difference(results: Sequence[Estimate], base: Sequence[Estimate]) -> Difference:
    moved = [one.value - other.value for one, other in zip(results, base, strict=True)]
    interval = over_runs(moved)
    if results[0].measure.unit == "percent":
        interval = interval.within(-100.0, 100.0)
    arm, other = (_combined_estimates(found, len(found)) for found in (results, base))
    return Difference(
        measure=arm.measure,
        value=interval.mean,
        low=interval.low,
        high=interval.high,
        p_value=_p_value(moved),
        p_holm=None,
        arm=arm,
        base=other,
        num_questions=min(arm.num_questions, other.num_questions),
        only_arm=(),
        only_base=(),
        method=f"paired by run, t over {len(moved)} runs",
    )


def _p_value(moved: Sequence[float]) -> float:
    """Returns that of the t-test; where all runs moved alike, of exchanging arms run by run."""
    if np.ptp(moved) < 1e-9:
        return 1.0 if abs(fmean(moved)) < 1e-9 else 2.0 ** (1 - len(moved))
    return float(stats.ttest_1samp(moved, 0.0).pvalue)
