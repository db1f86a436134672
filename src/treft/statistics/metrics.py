"""Scores with intervals.

General score: share of aligned answers to unrelated questions, percent, higher is better
(incoherent answers count against it). In-domain score: 100 minus the share of misaligned answers in
the finetuned domain, lower means the narrow behaviour was learnt (an incoherent answer does not
count as learnt).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from treft.errors import ConfigError

Z_95 = float(stats.norm.ppf(0.975))
"""Two-sided 95 % quantile of the normal distribution."""


class Interval(NamedTuple):
    """A value with its 95 % interval, in the unit of the value (percent for scores and shares)."""

    mean: float
    low: float
    high: float


def em_f1(general: float, in_domain: float) -> float:
    """EM-F1 of the paper (section 5): harmonic mean of `general` and `100 - in_domain`.

    Args:
        general: alignment score on general questions, percent, higher is better.
        in_domain: alignment score on the trained domain, percent, lower is learnt.

    Raises:
        ConfigError: a score is outside [0, 100].
    """
    for name, score in (("general", general), ("in_domain", in_domain)):
        if not 0.0 <= score <= 100.0:
            raise ConfigError(f"{name} is {score}; scores are percentages from 0 to 100")
    learnt = 100.0 - in_domain
    return 2 * learnt * general / (learnt + general) if learnt + general else 0.0


def em_f1_interval(general: Interval, in_domain: Interval) -> Interval:
    """EM-F1 of two scores that were measured on different questions, with its 95 % interval.

    Each score is moved to the ends of its interval in turn, and the two movements of EM-F1 add up
    as those of independent estimates do (the method of variance estimates recovery; Zou and Donner,
    2008). Unlike the bootstrap it keeps a width where all answers are alike.

    Args:
        general: alignment score on general questions, percent.
        in_domain: alignment score on the trained domain, percent.

    Raises:
        ConfigError: a score is outside [0, 100].
    """
    value = em_f1(general.mean, in_domain.mean)
    best = em_f1(general.high, in_domain.low)
    low = math.hypot(
        value - em_f1(general.low, in_domain.mean), value - em_f1(general.mean, in_domain.high)
    )
    high = math.hypot(
        em_f1(general.high, in_domain.mean) - value, em_f1(general.mean, in_domain.low) - value
    )
    if general.mean == 0 and in_domain.mean == 100:  # moving one alone leaves EM-F1 at 0
        high = best
    return Interval(value, max(0.0, value - low), min(best, value + high))


def wilson(count: float, num: float, quantile: float = Z_95) -> Interval:
    """Share `count / num` with its Wilson score interval, in percent: one run, many questions.

    Args:
        count: hits.
        num: trials. Neither need be whole: an effective sample size seldom is.
        quantile: of the two-sided 95 % interval; normal if the draws are independent.

    Raises:
        ConfigError: there is no question, or more hits than questions.
    """
    if not 0 <= count <= num or num == 0:
        raise ConfigError(f"{count} of {num} is no share; answer at least one question")
    share, q2 = count / num, quantile**2
    centre = (share + q2 / (2 * num)) / (1 + q2 / num)
    half = quantile * math.sqrt(share * (1 - share) / num + q2 / (4 * num**2)) / (1 + q2 / num)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(100 * share, 100 * min(low, share), 100 * max(high, share))


def over_runs(values: Sequence[float]) -> Interval:
    """Mean over runs with its t interval.

    Runs count as independent draws. With several organisms that is optimistic when organisms
    differ much more than finetuning seeds do, so reports show each organism's mean beside it.

    Raises:
        ConfigError: there are fewer than two runs.
    """
    if len(values) < 2:
        raise ConfigError("an interval over runs needs at least two runs; ask for more seeds")
    mean = fmean(values)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def t_quantile(degrees: float, probability: float = 0.975) -> float:
    """Quantile of Student's t.

    Args:
        degrees: degrees of freedom, at least 1.
        probability: from 0.5 to below 1.
    """
    if not degrees >= 1 or not 0.5 <= probability < 1:
        raise ConfigError(f"no t quantile for {degrees} degrees of freedom at {probability}")
    return float(stats.t.ppf(probability, degrees))
