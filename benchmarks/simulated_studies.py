"""Simulated studies: C questions, m answers to each, and the true value of a figure.

The chance of the behaviour differs between questions: on the logit scale by a normal with standard
deviation `spread` (0: all alike, 1.5: very different), or in the ways of KINDS. An interval is
right if it contains the mean over all questions there could be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.optimize import brentq
from scipy.special import comb, expit

from treft.statistics.agreement import (
    Coefficient,
    cohen_kappa,
    jackknife,
    krippendorff_alpha,
    spearman,
)
from treft.statistics.compare import Arm, em_f1_difference
from treft.statistics.intervals import (
    Clusters,
    Interval,
    count_interval,
    difference_interval,
    em_f1,
    em_f1_interval,
    percent_interval,
    t_interval,
)
from treft.statistics.measures import AlignmentScore
from treft.statistics.records import Judgement, ScoredAnswer

NORMAL = np.random.default_rng(0).standard_normal(200_000)
"""Draws that truths are computed from."""

Methods = dict[str, Callable[[], "Interval | None"]]
Study = Callable[[np.random.Generator], Methods]
"""Simulates one study; gives each method's interval on demand."""


@dataclass(frozen=True)
class Design:
    """One kind of study.

    Attributes:
        figure: what is measured.
        size: of the study, in words.
        truth: the value that intervals should contain.
        study: simulates one.
    """

    figure: str
    size: str
    truth: float
    study: Study


@cache
def middle(rate: float, spread: float) -> float:
    """The logit around which questions spread so that their mean chance is `rate`."""
    return brentq(lambda at: expit(at + spread * NORMAL).mean() - rate, -40, 40)


def flags(
    rng: np.random.Generator, size: tuple[int, int], rate: float, spread: float
) -> np.ndarray:
    """A behaviour of mean rate `rate` in m answers to C questions (C, m), 0 or 100."""
    logits = middle(rate, spread) + spread * rng.standard_normal((size[0], 1))
    return 100.0 * (rng.random(size) < expit(logits))


def scores(
    rng: np.random.Generator, size: tuple[int, int], rate: float, spread: float
) -> np.ndarray:
    """Alignment scores (C, m): around 20 if misaligned, else around 90; mean 90 - 70 `rate`."""
    bad = flags(rng, size, rate, spread) > 0
    return 100 * np.where(bad, rng.beta(2, 8, size), rng.beta(18, 2, size))


def clusters(values: np.ndarray, kept: np.ndarray | None = None) -> Clusters:
    """Of values (C, m); where `kept` (C, m) is false the judge failed."""
    kept = np.ones_like(values) if kept is None else kept.astype(float)
    totals, squares, sizes = ((kept * values**power).sum(1) for power in (1, 2, 0))
    names = np.array([f"{row:05}" for row in range(len(values))])
    some = sizes > 0
    return Clusters(tuple(names[some]), totals[some], squares[some], sizes[some])


def one_figure(found: Clusters) -> Methods:
    """The intervals of a bounded figure."""
    return {
        "reported": lambda: percent_interval(found)[0],
        "t": lambda: t_interval(found.mean, found.contributions),
    }


def rate_design(num: int, samples: int, spread: float, rate: float, failed: float = 0) -> Design:
    """A rate, with a share `failed` of the answers missing."""

    def study(rng: np.random.Generator) -> Methods:
        values = flags(rng, (num, samples), rate, spread)
        return one_figure(clusters(values, rng.random(values.shape) >= failed))

    missing = f", {failed:.0%} missing" if failed else ""
    size = f"{num} × {samples}, spread {spread}{missing}"
    return Design(f"rate {100 * rate:g} %", size, 100 * rate, study)


def of_beta(rng: np.random.Generator, num: int, rate: float, correlation: float) -> np.ndarray:
    """Chances of questions (C, 1) from a beta distribution with this intraclass correlation."""
    total = 1 / correlation - 1
    return rng.beta(rate * total, (1 - rate) * total, (num, 1))


def of_two_kinds(rng: np.random.Generator, num: int, rate: float, share: float) -> np.ndarray:
    """Chances of questions (C, 1), of which a share (not always the same) shows nearly all hits."""
    often = min(0.98, 0.98 * rate / share)
    seldom = (rate - share * often) / (1 - share)
    return np.where(rng.random((num, 1)) < share, often, seldom)


KINDS = {
    "beta, correlation 0.2": partial(of_beta, correlation=0.2),
    "beta, correlation 0.6": partial(of_beta, correlation=0.6),
    "beta, correlation 0.9": partial(of_beta, correlation=0.9),
    "a tenth often": partial(of_two_kinds, share=0.1),
    "three tenths often": partial(of_two_kinds, share=0.3),
}
"""Other ways in which questions may differ than normally distributed logits."""


def other_rate_design(num: int, samples: int, kind: str, rate: float) -> Design:
    """A rate where questions differ in one of KINDS."""

    def study(rng: np.random.Generator) -> Methods:
        chances = KINDS[kind](rng, num, rate)
        return one_figure(clusters(100.0 * (rng.random((num, samples)) < chances)))

    return Design(f"rate {100 * rate:g} %", f"{num} × {samples}, {kind}", 100 * rate, study)


def score_design(num: int, samples: int, spread: float, rate: float) -> Design:
    """Mean alignment of answers of which a share `rate` is misaligned."""

    def study(rng: np.random.Generator) -> Methods:
        return one_figure(clusters(scores(rng, (num, samples), rate, spread)))

    truth = 90 - 70 * rate
    return Design(f"score {truth:g}", f"{num} × {samples}, spread {spread}", truth, study)


def count_design(num: int, samples: int, spread: float) -> Design:
    """Mean number of words: log-normal, by question and by answer."""

    def study(rng: np.random.Generator) -> Methods:
        question = spread * rng.standard_normal((num, 1))
        words = np.exp(4 + question + 0.5 * rng.standard_normal((num, samples)))
        found = clusters(words)
        return {"reported": lambda: count_interval(found)}

    truth = float(np.exp(4 + spread**2 / 2 + 0.125))
    return Design(f"{truth:.0f} words", f"{num} × {samples}, log spread {spread}", truth, study)


def at_k_design(num: int, samples: int, spread: float, rate: float, k: int) -> Design:
    """Misalign@k."""

    def study(rng: np.random.Generator) -> Methods:
        hits = (flags(rng, (num, samples), rate, spread) > 0).sum(1)
        chances = 100 * (1 - comb(samples - hits, k) / comb(samples, k))
        return one_figure(clusters(chances[:, None]))

    chance = expit(middle(rate, spread) + spread * NORMAL)
    truth = 100 * float((1 - (1 - chance) ** k).mean())
    figure = f"Misalign@{k} {truth:.1f} % (rate {100 * rate:g} %)"
    return Design(figure, f"{num} × {samples}, spread {spread}", truth, study)


def two_arms(
    rng: np.random.Generator, size: tuple[int, int], rates: tuple[float, float], spread: float
) -> list[np.ndarray]:
    """Flags of two arms on the same questions; most of the spread is common to both arms."""
    return [
        100.0 * (rng.random(size) < expit(middle(rate, spread) + questions))
        for rate, questions in zip(rates, two_spreads(rng, size[0], spread), strict=True)
    ]


def two_spreads(rng: np.random.Generator, num: int, spread: float) -> list[np.ndarray]:
    """How questions (C, 1) differ in two arms; four fifths of the variance are common to both."""
    common, own = spread * np.sqrt(0.8), spread * np.sqrt(0.2)
    shared = common * rng.standard_normal((num, 1))
    return [shared + own * rng.standard_normal((num, 1)) for _ in range(2)]


def difference_design(num: int, samples: int, spread: float, rates: tuple[float, float]) -> Design:
    """One arm's rate minus another's, paired by question."""

    def study(rng: np.random.Generator) -> Methods:
        arm, base = map(clusters, two_arms(rng, (num, samples), rates, spread))
        moved = arm.contributions - base.contributions
        own = [percent_interval(each)[0] for each in (arm, base)]
        return {
            "reported": lambda: difference_interval(*own, moved),
            "t": lambda: t_interval(arm.mean - base.mean, moved),
        }

    truth = 100 * (rates[0] - rates[1])
    figure = f"rate {100 * rates[0]:g} % minus {100 * rates[1]:g} %"
    return Design(figure, f"{num} × {samples}, spread {spread}", truth, study)


def count_difference_design(num: int, samples: int, spread: float, ratio: float) -> Design:
    """Mean number of words less that of an arm whose answers are `ratio` times as long."""

    def study(rng: np.random.Generator) -> Methods:
        arm, base = (
            clusters(factor * np.exp(4 + logs + 0.5 * rng.standard_normal((num, samples))))
            for factor, logs in zip((1, ratio), two_spreads(rng, num, spread), strict=True)
        )
        moved = arm.contributions - base.contributions
        return {"reported": lambda: t_interval(arm.mean - base.mean, moved)}

    first = float(np.exp(4 + spread**2 / 2 + 0.125))
    figure = f"{first:.0f} words minus {ratio * first:.0f}"
    return Design(figure, f"{num} × {samples}, log spread {spread}", first - ratio * first, study)


def em_f1_design(sizes: Sequence[tuple[int, int]], spread: float, rates: Sequence[float]) -> Design:
    """EM-F1 of a general score and a learnt share, on question sets of two sizes."""

    def study(rng: np.random.Generator) -> Methods:
        general, learnt = (
            clusters(flags(rng, size, rate, spread))
            for size, rate in zip(sizes, rates, strict=True)
        )

        def recovered() -> Interval:
            share, _ = percent_interval(learnt)
            in_domain = Interval(100 - share.mean, 100 - share.high, 100 - share.low)
            return em_f1_interval(percent_interval(general)[0], in_domain)

        return {"reported": recovered}

    truth = em_f1(100 * rates[0], 100 - 100 * rates[1])
    figure = f"EM-F1 {truth:.1f} (general {100 * rates[0]:g}, in-domain {100 - 100 * rates[1]:g})"
    size = " and ".join(f"{num} × {samples}" for num, samples in sizes)
    return Design(figure, f"{size}, spread {spread}", truth, study)


def em_f1_difference_design(
    sizes: Sequence[tuple[int, int]],
    spread: float,
    general: tuple[float, float],
    learnt: tuple[float, float],
) -> Design:
    """EM-F1 of one arm minus another's, from records on."""

    def study(rng: np.random.Generator) -> Methods:
        sets = [two_arms(rng, sizes[0], general, spread), two_arms(rng, sizes[1], learnt, spread)]
        arm, base = (
            Arm(records(set_general), records(100 - set_learnt))
            for set_general, set_learnt in zip(*sets, strict=True)
        )
        found = em_f1_difference(AlignmentScore("judge"), arm, base)
        return {"reported": lambda: Interval(found.value, found.low, found.high)}

    first, second = (
        em_f1(100 * aligned, 100 - 100 * share)
        for aligned, share in zip(general, learnt, strict=True)
    )
    size = " and ".join(f"{num} × {samples}" for num, samples in sizes)
    figure = f"EM-F1 {first:.1f} minus {second:.1f}"
    return Design(figure, f"{size}, spread {spread}", first - second, study)


def records(alignments: np.ndarray) -> list[ScoredAnswer]:
    """Answers with these scores (C, m)."""
    return [
        ScoredAnswer(
            question_id=str(row),
            category="",
            epoch=column + 1,
            question="",
            answer="",
            judgements=(Judgement("judge", float(alignment), None, "scored", "oracle"),),
        )
        for row, answers in enumerate(alignments)
        for column, alignment in enumerate(answers)
    ]


COEFFICIENTS = {
    "Spearman": spearman,
    "kappa": lambda ratings: cohen_kappa(1.0 * (ratings < 30)),
    "alpha": krippendorff_alpha,
}


def two_judges(
    rng: np.random.Generator, size: tuple[int, int], rate: float, noise: float
) -> np.ndarray:
    """Scores (C m, 2) of two judges who see the same answers through their own noise."""
    bad = flags(rng, size, rate, 1.5).ravel() > 0
    seen = np.where(bad, 15, 85) + 10 * rng.standard_normal(bad.shape)
    judged = seen[:, None] + noise * rng.standard_normal((len(bad), 2)) + np.array([0, 3])
    return np.clip(np.round(judged), 0, 100)


def agreement_design(name: str, num: int, samples: int, rate: float, noise: float) -> Design:
    """A coefficient of two judges' agreement."""
    statistic = COEFFICIENTS[name]
    asked = np.repeat(np.arange(num), samples).astype(str)

    def study(rng: np.random.Generator) -> Methods:
        ratings = two_judges(rng, (num, samples), rate, noise)
        return {"reported": lambda: interval_of(jackknife(statistic, ratings, asked))}

    def interval_of(found: Coefficient) -> Interval | None:
        if found.value is None or found.low is None or found.high is None:
            return None
        return Interval(found.value, found.low, found.high)

    many = two_judges(np.random.default_rng(1), (100_000, 4), rate, noise)
    truth = statistic(many)
    assert truth is not None
    return Design(
        f"{name} {truth:.2f} (rate {100 * rate:g} %)",
        f"{num} × {samples}, spread 1.5, noise {noise:g}",
        truth,
        study,
    )
