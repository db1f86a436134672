"""Area under the ROC curve with an interval that has a width where the separation is perfect."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import optimize, stats

from treft.statistics.intervals import Z_95, Interval

EDGE = 1e-9
"""0 and 1 themselves solve the interval's equation where the observed area is there."""


def auroc(positive: Sequence[float], negative: Sequence[float]) -> Interval:
    """Chance that a positive item scores above a negative one, ties counting half; 95 % interval.

    Newcombe's score interval (2006, his method 5): all areas θ from which the observed one lies no
    more than 1.96 standard errors away, with the standard error that θ itself implies (Hanley and
    McNeil 1982, group sizes replaced by their mean). DeLong's interval and the bootstrap have no
    width at 1, which is where good judges are.

    Args:
        positive: scores of at least one item.
        negative: likewise.
    """
    sizes = len(positive), len(negative)
    area = float(stats.mannwhitneyu(positive, negative).statistic) / (sizes[0] * sizes[1])

    def beyond(theta: float) -> float:
        return (area - theta) ** 2 - Z_95**2 * _variance(theta, *sizes)

    # Negative beside the observed area, positive at the far bound: each end is a root between.
    inside = min(max(area, EDGE), 1 - EDGE)
    low = 0.0 if area == 0 else float(optimize.brentq(beyond, 0.0, inside))
    high = 1.0 if area == 1 else float(optimize.brentq(beyond, inside, 1.0))
    return Interval(area, low, high)


def _variance(area: float, num_positive: int, num_negative: int) -> float:
    """Of the estimated area, for scores distributed as negative exponentials."""
    others = (num_positive + num_negative) / 2 - 1
    factor = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * factor / (num_positive * num_negative)
