"""How often 95 % intervals contain the truth, over simulated studies; see docs/statistics.md."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache, partial

import numpy as np
import scipy
from simulated_studies import (
    COEFFICIENTS,
    KINDS,
    Design,
    agreement_design,
    at_k_design,
    clusters,
    count_design,
    count_difference_design,
    difference_design,
    em_f1_design,
    em_f1_difference_design,
    other_rate_design,
    rate_design,
    score_design,
    two_arms,
)

from treft.statistics.intervals import permutation_p_value


@dataclass(frozen=True)
class Coverage:
    """Of one method in one design: percent right, mean width, studies that got no interval."""

    percent: float
    width: float
    num_none: int


def measure(
    design: Design, num_studies: int, seed: int, methods: Sequence[str] = ()
) -> dict[str, Coverage]:
    """Simulate studies and count how many of each method's intervals contain the truth.

    Args:
        design: of the studies.
        num_studies: how many.
        seed: of the simulation.
        methods: names of methods; all of the design's by default.
    """
    rng = np.random.default_rng(seed)
    studies = [design.study(rng) for _ in range(num_studies)]
    found = {}
    for method in methods or studies[0]:
        given = [study[method]() for study in studies]
        intervals = [interval for interval in given if interval is not None]
        right = [each.low - 1e-9 <= design.truth <= each.high + 1e-9 for each in intervals]
        width = float(np.mean([interval.high - interval.low for interval in intervals]))
        percent = 100 * float(np.mean(right))
        found[method] = Coverage(percent, width, num_studies - len(intervals))
    return found


def figure_designs() -> Iterator[Design]:
    """Rates, scores, counts, differences, EM-F1."""
    sizes = ((50, 20), (200, 1), (30, 20), (8, 100))
    for num, samples in sizes:
        for rate in (0.003, 0.03, 0.4, 0.95):
            for spread in (0.0, 0.7, 1.5, 2.5) if samples > 1 else (1.5,):
                yield rate_design(num, samples, spread, rate)
    yield rate_design(50, 20, 1.5, 0.1, failed=0.2)
    for num, samples in ((50, 20), (30, 20), (8, 100)):
        for rate in (0.003, 0.03, 0.1, 0.4, 0.95):
            for kind in KINDS:
                yield other_rate_design(num, samples, kind, rate)
    for rate in (0.01, 0.1, 0.4):
        for num, samples in sizes:
            for spread in (1.5, 2.5):
                yield score_design(num, samples, spread, rate)
    for spread in (0.5, 1.0):
        for num, samples in ((50, 20), (200, 1), (20, 20), (8, 100)):
            yield count_design(num, samples, spread)
    for k in (2, 5, 20):
        yield at_k_design(50, 20, 1.5, 0.03, k)
        yield at_k_design(50, 20, 1.5, 0.4, k)
    for rates in ((0.4, 0.1), (0.4, 0.4), (0.03, 0.01), (0.03, 0.03), (0.99, 0.95), (0.3, 0.003)):
        for num, samples in ((50, 20), (200, 1), (20, 20), (8, 100)):
            yield difference_design(num, samples, 1.5, rates)
    for ratio in (1, 0.4):
        for num, samples in ((50, 20), (200, 1), (20, 20), (8, 100)):
            yield count_difference_design(num, samples, 0.5, ratio)
    for pair in ((0.4, 0.9), (0.9, 0.75), (0.97, 0.97), (0.8, 0.03)):
        yield em_f1_design(((50, 20), (50, 4)), 1.5, pair)
        yield em_f1_design(((200, 1), (100, 1)), 1.5, pair)
        yield em_f1_design(((8, 100), (8, 100)), 1.5, pair)
    for general, learnt in (((0.9, 0.4), (0.75, 0.9)), ((0.9, 0.9), (0.75, 0.75))):
        yield em_f1_difference_design(((50, 5), (50, 2)), 1.5, general, learnt)


def agreement_designs() -> Iterator[Design]:
    """Coefficients of agreement."""
    for name in COEFFICIENTS:
        for rate in (0.4, 0.03):
            for num, samples in ((50, 20), (50, 10), (200, 1), (20, 20), (8, 100)):
                yield agreement_design(name, num, samples, rate, noise=15)


def false_findings(
    num: int, samples: int, spread: float, rate: float, num_studies: int, seed: int
) -> float:
    """Percent of p-values up to 0.05 between two arms that don't differ."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(num_studies):
        arm, base = map(clusters, two_arms(rng, (num, samples), (rate, rate), spread))
        found += permutation_p_value([arm], [base], lambda mean: mean, 499) <= 0.05
    return 100 * found / num_studies


def print_coverage(part: str, match: str, num_studies: int, seed: int, workers: int) -> None:
    """One row a design: the interval that is reported, and others by heading."""
    others = COVERED[part][1]
    print(f"| {' | '.join(('figure', 'questions × answers', 'reported', *others.values()))} |")
    print("|---|---|---|" + "---|" * len(others))
    chosen = [at for at, design in enumerate(_designs(part)) if match in design.figure]
    with ProcessPoolExecutor(workers) as pool:
        for row in pool.map(partial(_row, part, num_studies, seed), chosen):
            print(row, flush=True)


@cache
def _designs(part: str) -> tuple[Design, ...]:
    """Once a process: some truths take seconds. Functions, so that workers are told places."""
    return tuple(COVERED[part][0]())


def _row(part: str, num_studies: int, seed: int, at: int) -> str:
    design = _designs(part)[at]
    found = measure(design, num_studies, seed)
    cells = [_cell(found.get(method)) for method in ("reported", *COVERED[part][1])]
    return f"| {design.figure} | {design.size} | {' | '.join(cells)} |"


def _cell(found: Coverage | None) -> str:
    if found is None:
        return ""
    none = f", none in {found.num_none}" if found.num_none else ""
    return f"{found.percent:.1f} ({found.width:.2f}{none})"


def print_false_findings(num_studies: int, seed: int) -> None:
    """One row a rate and size."""
    print("| rate of both arms | questions × answers | p ≤ 0.05, percent of studies |")
    print("|---|---|---|")
    for rate in (0.003, 0.03, 0.4):
        for num, samples in ((50, 20), (200, 1), (8, 100)):
            percent = false_findings(num, samples, 1.5, rate, num_studies, seed)
            print(
                f"| {100 * rate:g} % | {num} × {samples}, spread 1.5 | {percent:.1f} |", flush=True
            )


COVERED = {
    "figures": (figure_designs, {"t": "clustered t"}),
    "agreement": (agreement_designs, {}),
}
"""Designs of each part, and headings of intervals beside the reported one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=(*COVERED, "p-values"))
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; figures stay the same")
    parser.add_argument("--match", default="", help="rows whose figure has these letters")
    args = parser.parse_args()
    print(
        f"{date.today()}, {platform.machine()}, numpy {np.__version__}, scipy {scipy.__version__}; "
        f"{args.studies} studies a row, seed {args.seed}\n"
    )
    if args.part == "p-values":
        print_false_findings(args.studies, args.seed)
    else:
        print_coverage(args.part, args.match, args.studies, args.seed, args.workers)


if __name__ == "__main__":
    main()
