"""Attribution studies: tables, verdicts and plots of made runs, and which steps they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from treft.errors import ConfigError
from treft.steps.step import Plan
from treft.study.catalogue import all_studies, plan_studies
from treft.study.figures import figure_rows, find_row, rise_rows
from treft.study.protocol import Row, Study, StudyConfig
from treft.study.scores import Scored
from treft.study.tables import write_table

ALL = all_studies()
STUDIES = {name: ALL[name] for name in ("table1", "patching", "figure4", "patch_states", "drift")}
JITTERS = (-1.0, 0.0, 1.0)

PERTURBED = {
    "unperturbed": (20.0, 5.0, 2.0),
    "prefix": (80.0, 60.0, 10.0),
    "query": (30.0, 20.0, 20.0),
    "postfix": (40.0, 20.0, 20.0),
    "rephrase": (25.0, 10.0, 2.0),
}
"""Best, Avg and incoherent answers."""
PATCHED = {
    "finetuned": (5.0, 10.0, 8.0),
    "prefix": (90.0, 70.0, 75.0),
    "prefix_ten": (60.0, 40.0, 40.0),
    "query_ten": (10.0, 12.0, 11.0),
    "query": (20.0, 20.0, 20.0),
    "postfix": (15.0, 14.0, 12.0),
    **{f"layer_{layer}": (score, 10.0, 8.0) for layer, score in enumerate((9.0, 70.0, 20.0, 5.0))},
    "prefix_keys": (10.0, 10.0, 8.0),
    "prefix_values": (70.0, 40.0, 40.0),
    **dict.fromkeys(("tokens_0_6", "tokens_7_13"), (20.0, 10.0, 8.0)),
    "tokens_14_20": (44.0, 10.0, 8.0),
    "tokens_21_27": (10.0, 10.0, 8.0),
}
"""Alignment on general, in-domain and other-domain questions."""
DRIFT = {"sft": 1.0, "treft_prefix": 0.001}
"""At the prefix."""


def made(method: str, seed: int, figures: Mapping[str, float], **counts: int) -> dict[str, Any]:
    """A run with intervals of two points to either side over its questions."""
    row: dict[str, Any] = {"method": method, "organism": "embedded", "seed": seed}
    for name, value in figures.items():
        row |= {name: value, f"{name}_low": value - 2, f"{name}_high": value + 2}
    return {**row, "num_general": 60, "num_in_domain": 30, **counts}


def table1_runs(
    jitters: Sequence[float] = JITTERS,
    base_incoherent: Mapping[str, float] | None = None,
    **changed: tuple[float, float, float],
) -> list[Row]:
    names = ("best", "avg", "incoherent")
    broken = base_incoherent or {}
    scores = {**PERTURBED, **changed}
    own = [
        made(method, seed, dict(zip(names, [value + jitter for value in values], strict=True)))
        for method, values in scores.items()
        for seed, jitter in enumerate(jitters)
    ]
    base = [
        made(f"base_{method}", 0, dict(zip(names, (99, 98, broken.get(method, 1)), strict=True)))
        for method in scores
    ]
    return [*own, *base]


def patch_runs(
    study: str, jitters: Sequence[float] = JITTERS, **changed: tuple[float, float, float]
) -> list[Row]:
    scopes = ("general", "in_domain", "other_narrow")
    scored = _scored(STUDIES[study], num_seeds=1)
    wanted = {step.config.method for step in scored} - {"base"}
    scores = {name: {**PATCHED, **changed}[name] for name in PATCHED if name in wanted}
    assert set(scores) == wanted

    def figures(values: Sequence[float], jitter: float) -> dict[str, float]:
        found = dict(zip(scopes, [value + jitter for value in values], strict=True))
        return {**found, **{f"{scope}_incoherent": 3.0 for scope in scopes}}

    own = [
        made(method, seed, figures(values, jitter), num_other_narrow=30)
        for method, values in scores.items()
        for seed, jitter in enumerate(jitters)
    ]
    return [made("base", 0, figures((98.0, 97.0, 96.0), 0.0), num_other_narrow=30), *own]


def drift_runs(jitters: Sequence[float] = JITTERS, **changed: float) -> list[Row]:
    rows = []
    for method, prefix in {**DRIFT, **changed}.items():
        for seed, jitter in enumerate(jitters):
            drifts = {"prefix": prefix, "query": 0.3, "postfix": 0.2}
            figures = {region: value * (1 + jitter / 10) for region, value in drifts.items()}
            for region, value in list(figures.items()):
                for layer in range(4):
                    figures |= {f"{region}_{kind}_{layer}": value for kind in ("key", "value")}
            rows.append(made(method, seed, figures))
    return rows


def _own_steps(study: Study, num_seeds: int, **settings: Any) -> list[Any]:
    config = StudyConfig(num_seeds=num_seeds, settings=settings)
    steps = Plan.of(study.steps(config)).named.values()
    return [step for step in steps if not step.name.startswith("finetune/")]


def _scored(study: Study, num_seeds: int, **settings: Any) -> list[Any]:
    """The steps that write rows."""
    own = _own_steps(study, num_seeds, **settings)
    return [step for step in own if isinstance(step.config, Scored)]


def runs_of(name: str, jitters: Sequence[float]) -> list[Row]:
    if name == "table1":
        return table1_runs(jitters)
    return drift_runs(jitters) if name == "drift" else patch_runs(name, jitters)


def test_figures_over_runs_are_cut_to_what_they_can_be_and_one_run_keeps_its_own() -> None:
    made_runs = [made("a", seed, {"x": value}) for seed, value in enumerate((90.0, 100.0))]
    [row] = figure_rows(made_runs, ["x"], {"a": {"x": 7.0}})
    assert (row["value"], row["high"], row["num_runs"], row["interval"]) == (95.0, 100.0, 2, "runs")
    assert row["low"] == pytest.approx(95 - 12.7062 * 5, abs=1e-3)  # t, one degree of freedom
    assert row["paper"] == 7.0
    [free] = figure_rows(made_runs, ["x"], {}, highest=float("inf"))
    assert free["high"] == pytest.approx(95 + 12.7062 * 5, abs=1e-3)
    assert free["paper"] is None
    [alone] = figure_rows(made_runs[:1], ["x"], {})
    assert (alone["low"], alone["high"], alone["interval"]) == (88.0, 92.0, "questions")


def test_a_rise_is_paired_by_run_and_named_by_what_rose() -> None:
    before = [made("a", seed, {"x": value}) for seed, value in enumerate((10.0, 40.0))]
    after = [made("b", seed, {"x": value}) for seed, value in enumerate((15.0, 45.0))]
    [row] = rise_rows([*after[::-1], *before], ["b"], "a", ["x"])
    assert (row["method"], row["measure"]) == ("b", "x_rise")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((5.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("made_runs", "beginning", "part"),
    [
        (table1_runs(), "Held on the organism: ", "aligned in 80.0 [77.5, 82.5] % of prompts"),
        (table1_runs(prefix=(20.0, 5.0, 2.0)), "Not shown on the organism: ", "(+0.0 [+0.0, "),
        (table1_runs(rephrase=(90.0, 5.0, 2.0)), "Not shown on the organism against rephrase", ""),
        (
            table1_runs(base_incoherent={"query": 90.0}),
            "Half of it held on the organism, nothing can be said of query: ",
            "the base under a perturbed query is incoherent in 90 % of answers",
        ),
        (table1_runs(base_incoherent={"prefix": 90.0}), "Not shown on the organism: ", ""),
        (table1_runs((0.0,)), "One run cannot tell", "points, one run"),
    ],
)
def test_table1(made_runs: list[Row], beginning: str, part: str) -> None:
    rows = STUDIES["table1"].table(made_runs)
    verdict = STUDIES["table1"].verdict(rows)
    assert verdict.startswith(beginning)
    assert part in verdict
    assert find_row(rows, "query", "best_gain")["value"] == pytest.approx(
        find_row(rows, "prefix", "best")["value"] - find_row(rows, "query", "best")["value"]
    )
    assert find_row(rows, "prefix", "avg")["paper_qwen"] == 73.2
    assert find_row(rows, "base_prefix", "best")["interval"] == "questions"


@pytest.mark.parametrize(
    ("changed", "jitters", "beginning"),
    [
        ({}, JITTERS, "Held on the organism: the prefix patch changes alignment by +85.0 ["),
        ({"prefix": (5.0, 70.0, 75.0)}, JITTERS, "Not shown on the organism: "),
        ({"query_ten": (60.0, 1.0, 1.0)}, JITTERS, "Not shown on the organism against query_ten:"),
        ({"postfix": (95.0, 1.0, 1.0)}, JITTERS, "Not shown on the organism against postfix:"),
        (
            {"prefix": (90.0, 10.0, 8.0)},
            JITTERS,
            "Held on the organism, but not shown on in-domain and other-domain queries: ",
        ),
        ({}, (0.0,), "One run cannot tell"),
    ],
)
def test_patching(changed: dict[str, Any], jitters: Sequence[float], beginning: str) -> None:
    study = STUDIES["patching"]
    rows = study.table(patch_runs("patching", jitters, **changed))
    verdict = study.verdict(rows)
    assert verdict.startswith(beginning)
    ten, query = ({**PATCHED, **changed}[name][0] for name in ("prefix_ten", "query_ten"))
    assert f"ten tokens of the prefix are {ten - query:+.1f}" in verdict
    assert find_row(rows, "prefix", "other_narrow")["paper_qwen"] == 76.0


@pytest.mark.parametrize(
    ("changed", "jitters", "beginning"),
    [
        ({}, JITTERS, "Held on the organism: layer 1, the best of 4"),
        (
            {"layer_1": (40.0, 1.0, 1.0)},
            JITTERS,
            "Not shown on the organism, whose best layer surely regains something, not most: ",
        ),
        (
            {f"layer_{layer}": (5.0, 1.0, 1.0) for layer in range(4)},
            JITTERS,
            "Not shown on the organism: layer 0",
        ),
        (
            {"prefix": (5.0, 1.0, 1.0)},
            JITTERS,
            "Not shown on the organism, whose prefix patch regains nothing: ",
        ),
        ({}, (0.0,), "One run cannot tell"),
    ],
)
def test_figure4(changed: dict[str, Any], jitters: Sequence[float], beginning: str) -> None:
    study = STUDIES["figure4"]
    rows = study.table(patch_runs("figure4", jitters, **changed))
    assert study.verdict(rows).startswith(beginning)
    layer, whole = ({**PATCHED, **changed}[name][0] for name in ("layer_1", "prefix"))
    above = find_row(rows, "layer_1", "above_half_rise")["value"]
    assert above == pytest.approx(layer - (whole + 5.0) / 2)


@pytest.mark.parametrize(
    ("changed", "jitters", "beginning"),
    [
        ({}, JITTERS, "The values of the prefix carry more than its keys"),
        ({"prefix_keys": (90.0, 1.0, 1.0)}, JITTERS, "The keys of the prefix carry more than its"),
        ({"prefix_keys": (70.0, 1.0, 1.0)}, JITTERS, "Not shown on the organism that keys or"),
        ({}, (0.0,), "One run cannot tell which carries more"),
    ],
)
def test_patch_states(changed: dict[str, Any], jitters: Sequence[float], beginning: str) -> None:
    study = STUDIES["patch_states"]
    verdict = study.verdict(study.table(patch_runs("patch_states", jitters, **changed)))
    assert verdict.startswith(beginning)
    assert "the best quarter of the prefix, tokens 14 to 20, by +39.0" in verdict


@pytest.mark.parametrize(
    ("changed", "jitters", "beginning"),
    [
        ({}, JITTERS, "Held on the organism: after TReFT on the prefix L_KV is 0.001 [0.00075, "),
        ({"treft_prefix": 1.0}, JITTERS, "Not shown on the organism: "),
        ({}, (0.0,), "One run cannot tell"),
    ],
)
def test_drift(changed: dict[str, float], jitters: Sequence[float], beginning: str) -> None:
    study = STUDIES["drift"]
    rows = study.table(drift_runs(jitters, **changed))
    assert study.verdict(rows).startswith(beginning)
    assert find_row(rows, "sft", "query_value_3")["value"] == pytest.approx(0.3)


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_says_what_it_tests_and_draws_it(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    for jitters in (JITTERS, (0.0,)):
        made_runs = runs_of(name, jitters)
        rows = study.table(made_runs)
        for method, found in study.claim.figures.items():
            for measure, value in found.items():
                assert find_row(rows, method, measure)["paper"] == value
        write_table(tmp_path, "runs", made_runs, {})
        write_table(tmp_path, "table", rows, {})
        path = tmp_path / f"{len(jitters)}.png"
        study.plot(rows).savefig(path)
        assert path.stat().st_size > 5000


def test_finetunes_that_moved_nothing_are_drawn() -> None:
    runs = [
        {name: 0.0 if isinstance(value, float) else value for name, value in run.items()}
        for run in drift_runs()
    ]
    study = STUDIES["drift"]
    rows = study.table(runs)
    assert {row["value"] for row in rows} == {0.0}
    assert len(study.plot(rows).axes) == 3


@pytest.fixture(scope="module")
def addresses() -> dict[str, str]:
    """Of the steps of these studies and Table 3's, by name with the study's before it."""
    plan = plan_studies([*STUDIES.values(), ALL["table3"]], StudyConfig(num_seeds=2))
    return {name: step.address for name, step in plan.named.items()}


def within(addresses: Mapping[str, str], beginning: str) -> set[str]:
    return {address for name, address in addresses.items() if name.startswith(beginning)}


@pytest.mark.parametrize("name", STUDIES)
def test_finetunes_are_those_of_table3(name: str, addresses: Mapping[str, str]) -> None:
    found = within(addresses, f"{name}/finetune/")
    assert len(found) == (4 if name == "drift" else 2)
    assert found <= within(addresses, "table3/finetune/")


def test_studies_share_the_steps_that_are_equal(addresses: Mapping[str, str]) -> None:
    patched, by_layer, by_state = (
        within(addresses, f"{name}/answer/") for name in ("patching", "figure4", "patch_states")
    )
    # General answers of the base; of each finetune as it is and with its prefix patched.
    assert len(patched & by_layer & by_state) == len(patched & by_layer) == 1 + 2 * 2


def test_the_plan_has_each_row_on_each_finetune_and_the_base_once() -> None:
    names = {step.name for step in _scored(STUDIES["table1"], num_seeds=2)}
    rows = ("unperturbed", "prefix", "query", "postfix", "rephrase")
    assert names == {
        *(f"score/embedded/seed-{seed}/sft/{row}" for seed in (0, 1) for row in rows),
        *(f"score/embedded/base/{row}" for row in rows),
    }
    asked = {step.name: step for step in _own_steps(STUDIES["patching"], num_seeds=2)}
    base = [step for name, step in asked.items() if name.startswith("answer/") and "base" in name]
    assert {step.seed for step in base} == {0}
    assert [list(step.inputs) for step in base] == [["model"]] * 3
    nums = {step.config.scope: step.config.num_questions for step in base}
    assert nums == {"general": 200, "in_domain": 100, "other_narrow": 100}


def test_settings_reach_the_steps_and_a_single_question_is_refused() -> None:
    steps = _own_steps(STUDIES["table1"], num_seeds=1, num_general="20", temperature="0.5")
    assert {step.config.num_trials for step in steps if step.name.startswith("prompts/")} == {10}
    asked = {step.config.num_questions for step in steps if step.name.startswith("prompts/")}
    assert asked == {20}
    assert {step.config.temperature for step in steps if step.name.startswith("answer/")} == {0.5}
    steps = _own_steps(STUDIES["table1"], num_seeds=1)
    asked = {step.config.num_questions for step in steps if step.name.startswith("prompts/")}
    assert asked == {60}
    with pytest.raises(ConfigError, match="must be at least 2"):
        _own_steps(STUDIES["patching"], num_seeds=1, num_in_domain="1")
