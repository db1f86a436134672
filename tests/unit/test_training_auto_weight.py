"""The controller of λ on dynamics whose fixed points are known in closed form."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from statistics import fmean

import pytest

from treft.errors import ConfigError
from treft.training.auto_weight import HIGHEST, LOWEST, AutoWeight

Plant = Callable[[float], float]
"""λ -> what this step measured."""
BUDGET = 0.01
BALANCED = (1 / math.sqrt(BUDGET) - 1) / 2
"""The λ at which argmin_x (x - 1)² / 2 + λ x² has x² = BUDGET: x = 1 / (1 + 2 λ)."""


def gradient_descent(step_size: float) -> Plant:
    """x of the problem above, from 0; the drift is x²."""
    x = 0.0

    def step(weight: float) -> float:
        nonlocal x
        drift = x * x
        x -= step_size * (x - 1 + 2 * weight * x)
        return drift

    return step


def adam(step_size: float, num_steps: int) -> Plant:
    """The same with Adam and a step size that falls to 0, as in a finetune."""
    x = first = second = 0.0
    count = 0

    def step(weight: float) -> float:
        nonlocal x, first, second, count
        drift = x * x
        count += 1
        gradient = x - 1 + 2 * weight * x
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        moved = first / (1 - 0.9**count) / (math.sqrt(second / (1 - 0.98**count)) + 1e-8)
        x -= step_size * (1 - count / num_steps) * moved
        return drift

    return step


def run(
    controller: AutoWeight, plant: Plant, num_steps: int = 400, noise: float = 0.0
) -> list[float]:
    """Measured values without their (mean-one, lognormal) noise."""
    generator = random.Random(0)
    found = []
    for _ in range(num_steps):
        found.append(plant(controller.weight))
        factor = math.exp(generator.gauss(0, noise) - noise**2 / 2)
        controller.update(found[-1] * factor)
    return found


@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_reaches_the_weight_that_balances_the_problem(start: float) -> None:
    controller = AutoWeight(BUDGET, start)
    drifts = run(controller, gradient_descent(0.02), 1500)
    assert drifts[-1] == pytest.approx(BUDGET, rel=1e-3)
    assert controller.weight == pytest.approx(BALANCED, rel=1e-3)


@pytest.mark.parametrize("step_size", [0.002, 0.005, 0.02, 0.1])
def test_holds_the_budget_through_a_run_of_slow_or_fast_learning(step_size: float) -> None:
    controller = AutoWeight(BUDGET)
    drifts = run(controller, adam(step_size, 400))
    assert fmean(drifts[-100:]) == pytest.approx(BUDGET, rel=0.1)
    assert max(drifts[-100:]) < 1.5 * BUDGET
    assert controller.weight == pytest.approx(BALANCED, rel=0.25)


@pytest.mark.parametrize("step_size", [0.005, 0.02])
def test_noise_neither_shakes_nor_biases_it_much(step_size: float) -> None:
    """Each measurement is off by a factor of e^0.5 either way."""
    controller = AutoWeight(BUDGET)
    drifts = run(controller, adam(step_size, 400), noise=0.5)
    assert fmean(drifts[-100:]) == pytest.approx(BUDGET, rel=0.2)
    assert max(drifts[-100:]) < 1.5 * BUDGET


def test_damping_is_what_keeps_it_from_swinging() -> None:
    """Slow learning: without it λ falls too far before the drift arrives, then rises too far."""
    ours = run(AutoWeight(BUDGET), adam(0.002, 400))
    theirs = run(AutoWeight(BUDGET, damping=0.0), adam(0.002, 400))
    assert max(theirs) > 1.3 * max(ours)
    assert fmean(theirs[-100:]) < 0.5 * BUDGET


def test_no_windup_at_a_bound() -> None:
    """However long a bound was in force, it is left as quickly as after a short while."""

    def steps_to_leave(num_steps: int) -> int:
        controller = AutoWeight(1.0)
        for _ in range(num_steps):
            controller.update(0.0)
        bound = controller.weight
        assert bound == LOWEST
        for count in range(1, 200):
            controller.update(3.0)
            if abs(math.log(controller.weight / bound)) > math.log(10):
                return count
        raise AssertionError("the bound was never left")

    assert steps_to_leave(20_000) == steps_to_leave(2_000) < 60


def test_stays_within_its_bounds_and_steps_whatever_comes() -> None:
    generator = random.Random(1)
    controller = AutoWeight(BUDGET)
    largest = 0.02 * 2 + 0.5 * 3
    for _ in range(5000):
        before = controller.weight
        controller.update(generator.choice([0.0, 1e-12, BUDGET, 1e12]))
        assert LOWEST <= controller.weight <= HIGHEST
        assert abs(math.log(controller.weight / before)) <= largest + 1e-9


@pytest.mark.parametrize("measured", [float("nan"), float("inf")])
def test_a_broken_measurement_is_left_out(measured: float) -> None:
    controller = AutoWeight(BUDGET)
    controller.update(0.02)
    before = controller.state()
    controller.update(measured)
    assert controller.state() == before


def test_goes_on_bit_for_bit_from_its_state_as_json() -> None:
    plant = adam(0.02, 400)
    controller = AutoWeight(BUDGET)
    run(controller, plant, 123, noise=0.3)
    other = AutoWeight.from_state(json.loads(json.dumps(controller.state())))
    for measured in (0.004, 0.03, 0.011):
        controller.update(measured)
        other.update(measured)
    assert other == controller
    other.reset()
    assert other == AutoWeight(BUDGET)


def test_the_average_is_the_exponential_one_corrected_for_its_start() -> None:
    controller = AutoWeight(1.0)
    values = [3.0, 0.0, 5.0, 1.0]
    for value in values:
        controller.update(value)
    weights = [0.9 ** (len(values) - 1 - index) for index in range(len(values))]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert controller.average == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", [{"budget": 0.0}, {"budget": float("nan")}, {"budget": -1.0}])
def test_a_limit_must_be_positive(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        AutoWeight(**options)
    with pytest.raises(ConfigError, match=r"0\.001"):
        AutoWeight(BUDGET, start=1e-9)
