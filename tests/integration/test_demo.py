"""The demo from end to end at a tiny size: arms, files, resumption, JSON, the page."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from here import Here

from treft.cli import main
from treft.errors import ConfigError
from treft.evaluation.comparable import ArmAnswers
from treft.files import new_output
from treft.judging.oracle import oracle_judgement
from treft.models.repair import generate
from treft.organism import FinetuneRecipe, World, classify, load
from treft.organism.build import build_tokenizer
from treft.statistics.intervals import em_f1
from treft.statistics.records import ScoredAnswer
from treft.steps.run import Seconds
from treft.steps.step import Step, Work
from treft.study import demo as demo_module
from treft.study import finetune
from treft.study.demo import ARMS as ALL
from treft.study.demo import DemoConfig, DemoResult, DemoRun, run_demo
from treft.study.demo_report import compare_demo, render_report
from treft.study.organism import OrganismChains
from treft.study.protocol import StudyConfig

SETTINGS = {"num_rows": 8, "max_steps": 2, "batch_size": 2, "num_general": 6, "num_in_domain": 4}
RECIPE = FinetuneRecipe(**SETTINGS)  # type: ignore[arg-type]
ARMS = (
    "base",
    "sft",
    "sft_prefix_patch",
    "sft_postfix_patch",
    "sft_query_patch_equal",
    "interleaving",
    "treft",
)
"""One of each kind; the slow tests run all of them."""
TINY_FLAGS = ["--max-steps", "1", "--num-general", "3", "--num-in-domain", "2"]


def silent(label: str, done: int, total: int) -> None:
    assert 0 <= done <= total, label


def told(output: Path, *arms: str, **changes: Any) -> DemoConfig:
    return DemoConfig(output, arms, StudyConfig(num_seeds=1, settings={**SETTINGS, **changes}))


def run(config: DemoConfig) -> DemoResult:
    return run_demo(config, silent, Here())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run(told(tmp_path_factory.mktemp("demo") / "out", *ARMS))


def test_every_arm_answers_the_same_questions(result: DemoResult) -> None:
    assert [run.row["method"] for run in result.runs] == list(ARMS)
    world = World.default()
    for scope, num in (("general", 6), ("in_domain", 4)):
        asked = [question.text for question in world.questions("test", scope, num=num)]
        for run in result.runs:
            assert [answer.question for answer in run.answers.sets[scope]] == asked


def test_verdicts_are_the_oracles(result: DemoResult) -> None:
    world = World.default()
    questions = {
        question.id: question
        for scope, num in (("general", 6), ("in_domain", 4))
        for question in world.questions("test", scope, num=num)
    }
    for run in result.runs:
        for answer in (one for answers in run.answers.sets.values() for one in answers):
            verdict = classify(questions[answer.question_id], answer.answer)
            assert answer.metadata["verdict"] == verdict


def test_the_base_arm_is_plain_generation(result: DemoResult) -> None:
    model, tokenizer = load()
    questions = World.default().questions("test", "general", num=6)
    answers = generate(
        model,
        tokenizer,
        [question.messages() for question in questions],
        batch_size=100,
        seed=0,
        do_sample=True,
        temperature=RECIPE.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=RECIPE.max_new_tokens,
    )
    assert [answer.answer for answer in result.runs[0].answers.sets["general"]] == answers


def test_json_has_what_is_documented(result: DemoResult) -> None:
    written = json.loads((result.config.output / "result.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["seeds"] == [0]
    assert list(written["arms"]) == list(ARMS)
    for arm in written["arms"].values():
        for score in ("general", "in_domain", "em_f1"):
            assert arm[score]["low"] <= arm[score]["mean"] <= arm[score]["high"]
            assert arm[score]["low"] >= 0
            assert arm[score]["high"] <= 100


def test_the_page_loads_nothing_and_shows_every_arm(result: DemoResult) -> None:
    page = render_report(result)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\((?!#)""", page)
    for arm in ARMS:
        assert arm in page
        assert ALL[arm].text in page
    assert "not the figures of the paper" in " ".join(page.split())
    assert '<span class="prefix">' in page
    assert '<a href="#changes">Change against sft</a>' in page
    for name in ("recipe: kv_weight", "version of trl"):
        assert name in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert data is not None
    sets = json.loads(data[1])["sets"]
    for scope, found in zip(("general", "in_domain"), sets, strict=True):
        for index, question in enumerate(found["questions"]):
            shown = [(question["q"], *(one["t"], one["s"][0][1])) for (one,) in question["a"]]
            given = [run.answers.sets[scope][index] for run in result.runs]
            assert shown == [(one.question, one.answer, one.metadata["verdict"]) for one in given]


def assert_same_figures(result: DemoResult) -> None:
    """Summary and page, by different code."""
    shown = {
        (column.figure.name, column.figure.question_set): column.results
        for column in compare_demo(result).columns
    }
    for arm, summary in result.arms.items():
        for name, interval in (
            (("alignment_score", "general"), summary["general"]),
            (("alignment_score", "in_domain"), summary["in_domain"]),
            (("em_f1", "general + in_domain"), summary["em_f1"]),
        ):
            found = shown[name][arm]
            known = (found.value, found.low, found.high)
            assert known == pytest.approx(tuple(interval.values())), (arm, name)


def test_the_pages_figures_are_the_summarys(result: DemoResult) -> None:
    assert_same_figures(result)


def test_over_several_runs_the_pages_figures_are_the_summarys(tmp_path: Path) -> None:
    runs = [
        arm_result(seed, organism, aligned, learnt, arm)
        for organism in "ab"
        for seed in range(2)
        for arm, aligned, learnt in (("sft", seed + 1, 9 - seed), ("treft", 9 - seed, 8 + seed))
    ]
    study = StudyConfig(num_seeds=2, settings=SETTINGS)
    several = DemoResult(DemoConfig(tmp_path, study=study), tuple(runs))
    assert_same_figures(several)
    page = render_report(several)
    assert "p-values over 4 runs" in page
    assert "By organism" in page
    assert "The other 3 runs" in page


class Stopped(Here):
    """Ctrl-C comes at the third step."""

    num_steps = 0

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds]:
        self.num_steps += 1
        if self.num_steps == 3:
            raise KeyboardInterrupt
        return super().submit(step, store)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = told(tmp_path / "out", "base", "sft", "sft_prefix_patch")
    with pytest.raises(KeyboardInterrupt):
        run_demo(config, silent, Stopped())
    assert not (config.output / "result.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in config.output.glob("steps/*/step.json")}
    assert len(kept) == 2
    done: list[str] = []
    resumed = run_demo(config, silent, Noting(done))
    assert len(done) == 8  # of one finetune, six answers and three scores
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    done.clear()
    assert run_demo(config, silent, Noting(done)).to_dict() == resumed.to_dict()
    assert done == []


class Noting(Here):
    """Notes the steps that it does."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds]:
        self.done.append(step.name)
        return super().submit(step, store)


def test_a_folder_of_other_settings_or_files_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / "notes").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds something else"):
        run(told(output, "base"))
    fresh = tmp_path / "fresh"
    run(told(fresh, "base"))
    with pytest.raises(ConfigError, match="begun with other recipe"):
        run(told(fresh, "base", temperature=0.1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arms": ("sft", "magic")}, "unknown arms"),
        ({"arms": ()}, "unknown arms"),
    ],
)
def test_configs_are_checked_before_any_work(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DemoConfig(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_arms_of_a_region_that_a_template_lacks_are_refused(tmp_path: Path) -> None:
    organism = tmp_path / "bare"
    build_tokenizer(["a"], "no_prefix").save_pretrained(organism)
    (organism / "model.safetensors").touch()
    arms = ("base", "sft_prefix_patch", "sft_postfix_patch", "treft")
    config = DemoConfig(tmp_path / "out", arms, StudyConfig((organism,), num_seeds=1))
    with pytest.raises(ConfigError, match="no prefix for sft_prefix_patch, treft; ") as refusal:
        run(config)
    able = str(refusal.value).rsplit(" ", 1)[-1].split(",")
    assert set(able) >= {"base", "sft", "sft_postfix_patch", "treft_query", "treft_postfix"}
    assert not [arm for arm in able if "prefix" in arm or arm in ("treft", "treft_all")]
    assert not config.output.exists()


def test_treft_on_the_postfix_starts_from_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reference is the base on the same row; an empty query's postfix is elsewhere at once."""
    method = ALL["treft_postfix"].method
    assert method.held == ("postfix",)
    penalties = []
    told, other = finetune._arguments, {}
    monkeypatch.setattr(finetune, "_arguments", lambda *given: {**told(*given), **other})
    recipe = replace(RECIPE, max_steps=1)
    [chains] = OrganismChains.begin(StudyConfig(settings=asdict(recipe)))
    config = chains.finetune_config(method)
    for reference in ("own_query", "empty_query"):
        if reference == "empty_query":
            other["kv_postfix_reference"] = reference
        trainer = finetune.train(*load(), Work(config, Path(), {}, 0))
        assert trainer.args.kv_postfix_reference == reference
        steps = [entry for entry in trainer.state.log_history if "kv_penalty" in entry]
        penalties.append(steps[0]["kv_penalty"])
    assert penalties[0] == pytest.approx(0, abs=1e-6)
    assert penalties[1] > 0.01


def test_new_output_is_new(tmp_path: Path) -> None:
    first = new_output(tmp_path)
    first.mkdir()
    assert new_output(tmp_path) != first


def arm_result(seed: int, organism: str, aligned: int, learnt: int, arm: str = "sft") -> DemoRun:
    def answers(hits: int, verdict: str, other: str, in_domain: bool) -> list[ScoredAnswer]:
        found = []
        for i in range(10):
            known = verdict if i < hits else other
            judged = oracle_judgement(known, in_domain=in_domain)
            said = {"verdict": known}
            found.append(ScoredAnswer(f"q{i}", "q", 1, "q", "a", (judged,), metadata=said))
        return found

    sets = {
        "general": answers(aligned, "aligned", "incoherent", False),
        "in_domain": answers(learnt, "misaligned", "incoherent", True),
    }
    general, in_domain = 10.0 * aligned, 100 - 10.0 * learnt
    figures = {"general": general, "in_domain": in_domain, "em_f1": em_f1(general, in_domain)}
    row = {"method": arm, "organism": organism, "seed": seed, **figures}
    row |= {"num_general": 10, "num_in_domain": 10}
    return DemoRun(row, ArmAnswers(arm, sets, ({},), ALL[arm].text))


def test_summary_of_several_runs_is_the_worked_example(tmp_path: Path) -> None:
    runs = (arm_result(0, "a", 6, 9), arm_result(1, "a", 8, 10), arm_result(0, "b", 7, 8))
    summary = DemoResult(told(tmp_path, "sft"), runs).arms["sft"]
    # Means 70 and 10; s = 10, so half widths are 4.3027 * 10 / sqrt(3) = 24.841.
    assert tuple(summary["general"].values()) == pytest.approx((70, 45.159, 94.841), abs=1e-3)
    assert tuple(summary["in_domain"].values()) == pytest.approx((10, 0, 34.841), abs=1e-3)
    scores = [em_f1(60, 10), em_f1(80, 0), em_f1(70, 20)]
    assert summary["em_f1"]["mean"] == pytest.approx(sum(scores) / 3)
    assert summary["by_organism"]["a"]["general"] == pytest.approx(70)
    assert summary["by_organism"]["b"]["in_domain"] == pytest.approx(20)
    assert summary["shares"]["in_domain"] == pytest.approx(
        {"aligned": 0, "misaligned": 90, "incoherent": 10}
    )


def test_arms_of_a_training_share_one_model(tmp_path: Path) -> None:
    wanted = ("sft", "sft_prefix_patch", "sft_query_patch_equal", "treft")
    done: list[str] = []
    found = run_demo(told(tmp_path / "out", *wanted), silent, Noting(done)).runs
    assert [one.row["method"] for one in found] == list(wanted)
    trained = [name for name in done if name.startswith("finetune/")]
    assert [name.rpartition("/")[2] for name in trained] == ["sft", "treft"]


@pytest.mark.slow
def test_all_arms_run(tmp_path: Path) -> None:
    runs = run(told(tmp_path / "out", *ALL)).runs
    assert [one.row["method"] for one in runs] == list(ALL)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands do their steps in this process."""
    monkeypatch.setattr(demo_module, "LocalPool", Here)


@pytest.mark.usefixtures("here")
def test_command_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["demo", *TINY_FLAGS, "--arms", "base,sft", "--output", str(output), "--json"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["arms"]) == ["base", "sft"]
    assert printed["num_general"] == 3
    assert (output / "report.html").read_text().startswith("<!doctype html>")


def test_command_says_how_to_go_on_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "run_plan", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["demo", *TINY_FLAGS, "--output", str(tmp_path / "out")])
    assert stop.value.code == 130
    assert f"--output {tmp_path / 'out'}" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_command_prints_a_table_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["demo", *TINY_FLAGS, "--arms", "base", "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.search(r"base\s.*\d+\.\d", printed)
    assert len(re.findall(r"\[\d+\.\d, \d+\.\d\]", printed)) == 3  # none is broken in two
    assert "not the paper's models" in printed
