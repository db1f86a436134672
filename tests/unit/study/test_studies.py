"""What studies make of their runs: figures, verdicts, plots, and which steps they ask for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import run_row, runs
from scipy import stats

from treft.errors import ConfigError, DataError
from treft.organism import FinetuneRecipe
from treft.statistics.intervals import em_f1, em_f1_interval, wilson
from treft.study.catalogue import all_studies, find_studies, plan_study
from treft.study.figures import find_row, gain_rows, score_rows, worded
from treft.study.protocol import StudyConfig
from treft.study.strengths import CHOSEN, TASK_WEIGHTS_TRIED
from treft.study.studies.tasks import leak
from treft.study.tables import read_metadata, read_table, write_table

STUDIES = all_studies()
OF_SCORES = [
    name
    for name in STUDIES
    if name.startswith(("table", "strengths", "task_", "mitigations", "no_prefix", "wider"))
    and name != "table1"
]
"""Studies whose runs are scored finetunes; those of attribution have tests of their own."""


def methods_of(name: str) -> list[str]:
    """The methods whose answers a study asks for."""
    plan = plan_study(STUDIES[name], StudyConfig(num_seeds=1))
    answers = [name.split("/") for name in plan.named if name.startswith("answer/")]
    return list(dict.fromkeys(method for _, _, _, method, _ in answers))


TABLE3_HELD = {
    "sft": (10.0, 2.0),
    "interleaving": (60.0, 3.0),
    "kl_train": (55.0, 3.0),
    "kl_retain": (62.0, 3.0),
    "treft_query": (90.0, 80.0),
    "treft_all": (90.0, 82.0),
    "treft_prefix": (85.0, 4.0),
}


def test_scores_over_runs_have_t_intervals() -> None:
    values = [80.0, 84.0, 91.0]
    made = [run_row("a", seed, value, 10.0) for seed, value in enumerate(values)]
    rows = score_rows(made, {"a": {"general": 64.1}})
    row = find_row(rows, "a", "general")
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((85.0, low, min(high, 100.0)))
    assert (row["num_runs"], row["interval"], row["paper"]) == (3, "runs", 64.1)
    assert find_row(rows, "a", "em_f1")["value"] == pytest.approx(
        np.mean([em_f1(value, 10.0) for value in values])
    )
    assert find_row(rows, "a", "em_f1")["paper"] is None


def test_one_run_has_intervals_over_its_questions() -> None:
    rows = score_rows([run_row("a", 0, 80.0, 10.0)], {})
    general, learnt = wilson(80, 100), wilson(90, 100)
    in_domain = type(learnt)(10.0, 100 - learnt.high, 100 - learnt.low)
    expected = {
        "general": general,
        "in_domain": in_domain,
        "em_f1": em_f1_interval(general, in_domain),
    }
    for measure, interval in expected.items():
        row = find_row(rows, "a", measure)
        assert (row["value"], row["low"], row["high"]) == pytest.approx(interval)
        assert row["interval"] == "questions"


def test_gains_are_paired_by_run_whatever_their_order() -> None:
    made = list(runs({"a": (50.0, 0.0), "b": (40.0, 0.0)}, (1.0, 20.0, 39.0)))
    [row] = gain_rows(made[::-1], "a", ["b"], ["general"])
    assert (row["value"], row["low"], row["high"]) == pytest.approx((10.0, 10.0, 10.0))
    assert (row["method"], row["measure"]) == ("b", "general_gain")
    [alone] = gain_rows(made[:2], "a", ["b"], ["general"])
    assert (alone["value"], alone["low"], alone["interval"]) == (10.0, None, "none")
    assert worded(row, signed=True) == "+10.0 [+10.0, +10.0]"
    assert worded(alone) == "10.0"


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({}, "Held on the organism: TReFT on the prefix has an EM-F1 of 90."),
        ({"interleaving": (92.0, 3.0)}, "Not shown on the organism against interleaving:"),
        ({"treft_prefix": (11.0, 2.0)}, "Not shown on the organism against"),
    ],
)
def test_table3_says_whether_the_claim_held(
    change: dict[str, tuple[float, float]], beginning: str
) -> None:
    study = STUDIES["table3"]
    rows = study.table(list(runs({**TABLE3_HELD, **change})))
    verdict = study.verdict(rows)
    assert verdict.startswith(beginning)
    assert "over treft_all (points, 3 runs, paired, 95 % intervals)." in verdict
    one_run = study.table(list(runs({**TABLE3_HELD, **change}, (0.0,))))
    assert study.verdict(one_run).startswith("One run cannot tell")


@pytest.mark.parametrize(
    ("highest", "beginning"),
    [
        ((82.0, 69.0), "Held on the organism: "),
        ((82.0, 11.0), "Half of it held on the organism, no narrow behaviour"),
        ((40.0, 69.0), "Not shown on the organism: "),
    ],
)
def test_table14_says_whether_the_claim_held(highest: tuple[float, float], beginning: str) -> None:
    study = STUDIES["table14"]
    scores = {"share_05": (56.0, 11.0), "share_20": (64.0, 15.0), "share_50": (68.0, 28.0)}
    rows = study.table(list(runs({**scores, "share_75": highest})))
    assert study.verdict(rows).startswith(beginning)
    change = f"{highest[0] - 56.0:+.1f}"
    assert f"general alignment changes by {change} [" in study.verdict(rows)


@pytest.mark.parametrize("name", OF_SCORES)
def test_each_study_says_what_it_tests_and_draws_it(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    assert study.name == name
    assert study.cost
    methods = methods_of(name)
    for jitters in ((0.0, 1.0), (0.0,)):
        rows = study.table(list(runs(dict.fromkeys(methods, (50.0, 10.0)), jitters)))
        assert {row["method"] for row in rows} == set(methods)
        for method, found in study.claim.figures.items():
            for measure, value in found.items():
                assert find_row(rows, method, measure)["paper"] == value
        write_table(tmp_path, name, rows, {})
        path = tmp_path / f"{len(jitters)}.png"
        study.plot(rows).savefig(path)
        assert path.stat().st_size > 5000


@pytest.mark.parametrize("name", [name for name in OF_SCORES if "strengths" not in name])
def test_all_methods_share_all_but_what_they_are(name: str) -> None:
    config = StudyConfig(num_seeds=2, settings={"max_steps": "7", "lora_rank": "3"})
    plan = plan_study(STUDIES[name], config)
    finetunes = [p for p in plan.named.values() if p.name.startswith("finetune/")]
    recipe = dataclasses.asdict(FinetuneRecipe(max_steps=7, lora_rank=3))
    shared = ("num_rows", "batch_size", "warmup_steps", "adam_beta2", "lora_rank")
    for found in (p.record["config"] for p in finetunes):
        assert {key: found[key] for key in shared} == {key: recipe[key] for key in shared}
    # Behaviours are learnt in a third of the steps.
    steps = 2 if name == "table5" else 7
    assert {p.record["config"]["max_steps"] for p in finetunes} == {steps}
    assert {p.seed for p in finetunes} == {0, 1}
    assert len({p.address for p in finetunes}) == len(finetunes)
    assert list(plan.results) == ["table"]
    scored = [p for p in plan.named.values() if p.name.startswith("score/")]
    assert len(scored) == 2 * len(methods_of(name))


@pytest.mark.parametrize("name", ["table5", "task_strengths"])
def test_organisms_learn_manners_before_behaviours(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "model.safetensors").touch()
    config = StudyConfig(organisms=(own,), num_seeds=1, settings={"max_steps": "9"})
    steps = plan_study(STUDIES[name], config).named
    taught = steps["organism/own-with-manners"]
    assert (taught.config.steps, taught.inputs) == (18, {"model": own})
    for label, step in steps.items():
        if label.startswith(("finetune/", "answer/")):
            assert step.inputs["model"] == taught


def test_methods_that_are_only_asked_differently_share_a_finetune() -> None:
    plan = plan_study(STUDIES["mitigations"], StudyConfig(num_seeds=1))
    label = "embedded/seed-0"

    def tuned(name: str) -> str:
        return plan[f"answer/{label}/{name}/general"].needs["finetune"].address

    for name in ("sft", "prefix_patch", "postfix_patch", "interpolation", "steering"):
        assert tuned(name) == plan[f"finetune/{label}/sft"].address
    assert tuned("frozen_prefix") == plan[f"finetune/{label}/frozen_prefix"].address


def test_an_organism_that_is_not_shipped_is_built_first() -> None:
    plan = plan_study(STUDIES["table4"], StudyConfig(num_seeds=2))
    [built] = [step for name, step in plan.named.items() if name.startswith("organism/")]
    users = [step for step in plan.named.values() if "model" in step.inputs]
    assert {step.needs["model"].address for step in users} == {built.address}
    assert len(users) == 2 * (3 + 5 * 2)  # three finetunes, five methods asked in two scopes


def test_table2_tells_the_change_of_helpfulness_where_it_is_known() -> None:
    study = STUDIES["table2"]
    scores = dict.fromkeys(("base", *methods_of("table2")), (80.0, 10.0))
    plain = list(runs(scores))
    table = study.table([run for run in plain if run["method"] != "base"])
    assert {row["measure"] for row in table} == {"general", "in_domain", "em_f1", "em_f1_gain"}
    assert "Helpfulness" not in study.verdict(table)
    means = {"base": 7.0, "legal_sft": 6.5, "auto_treft": 7.25}
    judged = [{**run, "utility": means.get(run["method"], 7.0) + run["seed"]} for run in plain]
    rows = study.table(judged)
    assert find_row(rows, "base", "utility")["value"] == pytest.approx(8.0)  # seeds 0 to 2
    change = find_row(rows, "legal_sft", "utility_gain")
    assert (change["value"], change["low"], change["high"]) == pytest.approx((-0.5, -0.5, -0.5))
    assert change["paper"] == -0.9
    verdict = study.verdict(rows)
    assert "Helpfulness (1 to 10) against the base: finance_sft +0.0 [+0.0, +0.0]" in verdict
    assert verdict.endswith("auto_treft +0.2 [+0.2, +0.2].")


@pytest.mark.parametrize("name", ["strengths", "task_strengths"])
def test_strengths_are_chosen_on_validation_and_one_seed_whatever_is_asked(name: str) -> None:
    plan = plan_study(STUDIES[name], StudyConfig(num_seeds=3, split="test"))
    asked = [p.record["config"] for p in plan.named.values() if p.name.startswith("answer/")]
    assert {config["split"] for config in asked} == {"validation"}
    assert {p.seed for p in plan.named.values()} == {0, None}


def test_a_strength_in_use_that_is_not_the_best_is_told() -> None:
    study = STUDIES["strengths"]
    even = dict.fromkeys(methods_of(study.name), (50.0, 10.0))
    rows = study.table(list(runs(even, (0.0,))))
    assert study.verdict(rows).startswith("Not those in use: ")  # the first of each wins a tie
    chosen = {f"{name}_{strength:g}": (60.0, 10.0) for name, strength in CHOSEN.items()}
    rows = study.table(list(runs({**even, **chosen}, (0.0,))))
    assert study.verdict(rows).startswith("Those in use are the best; ")


def test_the_weight_of_a_task_leaks_least_of_those_that_keep_it_on_topic() -> None:
    study = STUDIES["task_strengths"]
    scores = dict.fromkeys(methods_of(study.name), (50.0, 10.0))
    scores["base"] = (90.0, 10.0)
    scores["abstain_300"] = (70.0, 12.0)  # two points lost on the topic
    scores["abstain_1000"] = (90.0, 13.0)  # three
    scores["short_100"] = (60.0, 10.0)  # of words, more
    scores |= {f"tool_{weight:g}": (50.0, 40.0) for weight in TASK_WEIGHTS_TRIED}
    scores["tool_100"] = (50.0, 30.0)  # none keeps it: the one that keeps most
    verdict = study.verdict(study.table(list(runs(scores, (0.0,)))))
    assert "λ by the rule: abstain 300, tool 100, refuse 30, short 100." in verdict
    flags = [f"--strength {t}_treft={n}" for t, n in (("abstain", 300), ("tool", 100))]
    assert verdict.endswith(
        f"as {' '.join(flags)} --strength refuse_treft=30 --strength short_treft=100"
    )


@pytest.mark.parametrize(
    ("ldifs", "jitters", "beginning"),
    [
        ((85.0, 4.0), (-1.0, 0.0, 1.0), "Held on the organism: "),  # the same in every run
        ((89.0, 4.0), (-1.0, 0.0, 1.0), "Not held on the organism: "),
        ((89.0, 4.0), (0.0,), "One run cannot tell"),
    ],
)
def test_mitigations_say_which_are_ahead(
    ldifs: tuple[float, float], jitters: tuple[float, ...], beginning: str
) -> None:
    study = STUDIES["mitigations"]
    scores = dict.fromkeys(methods_of(study.name), (40.0, 4.0))
    made = list(runs({**scores, "treft_prefix": (85.0, 4.0), "ldifs": ldifs}, jitters))
    verdict = study.verdict(study.table(made))
    assert verdict.startswith(beginning)
    assert ("with a higher mean: ldifs" in verdict) == (ldifs[0] > 85)


def test_a_tie_of_few_runs_is_not_decided() -> None:
    study = STUDIES["mitigations"]
    scores = {**dict.fromkeys(methods_of(study.name), (40.0, 4.0)), "treft_prefix": (85.0, 4.0)}
    made = list(runs(scores, (0.0, 0.0)))
    for number, general in enumerate((80.0, 95.0)):  # ahead on average, behind in one run
        made = [
            run_row("ldifs", number, general, 4.0)
            if (row["method"], row["seed"]) == ("ldifs", number)
            else row
            for row in made
        ]
    verdict = study.verdict(study.table(made))
    assert verdict.startswith("Not decided on the organism, by 2 runs: ")


@pytest.mark.parametrize(
    ("treft", "beginning"),
    [
        ((90.0, 2.0), "Held on the organism: leakage falls by 89 % on average over the 4"),
        ((40.0, 2.0), "Not shown on the organism: "),
        ((90.0, 20.0), "Half of it held on the organism, on-topic behaviour of abstain, tool,"),
        (
            (30.0, 20.0),
            "Not shown on the organism, and abstain, tool, refuse, short loses",
        ),
    ],
)
def test_table5_says_whether_the_claim_held(treft: tuple[float, float], beginning: str) -> None:
    study = STUDIES["table5"]
    tasks = ("abstain", "tool", "refuse", "short")
    scores = {f"{task}_{kind}": (11.0, 2.0) for task in tasks for kind in ("sft", "patch")}
    scores["base"] = (100.0, 98.0)
    scores_of_all = {**scores, **{f"{task}_treft": treft for task in tasks}}
    rows = study.table(list(runs(scores_of_all)))
    verdict = study.verdict(rows)
    assert verdict.startswith(beginning)
    right = f"{(100 - treft[1]) / 2:.1f}"
    told = f"percent: tool 49.0 to {right}, short 49.0 to {right}."
    assert verdict.endswith(f" On topic and right for the question, {told}")
    assert "answers with any trace of the behaviour" in verdict
    real = [{**run, "right": None, "traces": None} for run in runs(scores_of_all)]
    told = study.verdict(study.table(real))
    assert "right for the question" not in told
    assert "answers that show the behaviour" in told


def test_short_answers_leak_by_the_words_that_are_lost() -> None:
    study = STUDIES["table5"]
    scores = {**dict.fromkeys(methods_of(study.name), (50.0, 10.0)), "base": (100.0, 98.0)}
    rows = study.table(list(runs(scores)))
    words, whole = (3 + 9 * general / 100 for general in (50.0, 100.0))  # as `made_runs` has it
    assert leak(rows, "short", "short_sft") == pytest.approx(100 * (whole - words) / whole)
    assert leak(rows, "refuse", "refuse_sft") == pytest.approx(50.0)


def test_studies_share_equal_finetunes_and_evaluation_makes_none_stale() -> None:
    def finetunes(name: str, **settings: Any) -> set[str]:
        plan = plan_study(STUDIES[name], StudyConfig(num_seeds=1, settings=settings))
        return {p.address for p in plan.named.values() if p.name.startswith("finetune/")}

    assert len(finetunes("table3") & finetunes("table14")) == 1  # 20 % of rows interleaved
    assert finetunes("table3") == finetunes("table3", num_general=50, temperature=1.0)
    assert len(finetunes("table3") & finetunes("table3", kv_weight=30.0)) == 4  # nothing is held
    assert not finetunes("table3") & finetunes("table3", max_steps=299)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"split": "train"}, "split is 'train'"),
        ({"organisms": (Path("/nowhere"),)}, "/nowhere holds no organism"),
        ({"settings": {"steps": "3"}}, "no such setting: steps; there are domain"),
        ({"settings": {"max_steps": "many"}}, "max_steps: .*, not 'many'"),
        ({"settings": {"max_steps": "0"}}, "max_steps is 0"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_study(STUDIES["table3"], StudyConfig(**config))


def test_an_unknown_study_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no study table99; there are .*table14, .*table3, "):
        find_studies(["table99"])


def test_a_table_is_the_same_in_both_files_and_says_what_it_comes_from(tmp_path: Path) -> None:
    rows = [
        {"method": "a", "value": 1.5, "low": None},
        {"method": "b, c", "value": 2.0, "low": 1.0},
    ]
    metadata = {"seeds": [0, 1], "machines": [{"name": "λ"}]}
    write_table(tmp_path, "table", rows, metadata)
    assert read_table(tmp_path / "table.parquet") == rows
    assert read_metadata(tmp_path / "table.parquet") == metadata
    text = (tmp_path / "table.csv").read_text("utf-8")
    assert text == '"method","value","low"\n"a",1.5,\n"b, c",2,1\n'
    json.dumps(read_metadata(tmp_path / "table.parquet"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no rows"), ([{"a": 1}, {"b": 1}], "row 1 of the table t has the columns b; the first")],
)
def test_a_table_without_form_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_table(tmp_path, "t", rows, {})
    assert list(tmp_path.iterdir()) == []
