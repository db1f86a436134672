"""Studies on a real model: which steps, shared how, and what is refused before any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treft.cli.study_model import ModelOptions, confirm_judging
from treft.errors import ConfigError, DataError
from treft.organism import FinetuneRecipe
from treft.study.catalogue import all_studies, plan_study
from treft.study.model_plan import ORGANISM_RATE
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.protocol import StudyConfig
from treft.study.step import Plan

STUDIES = all_studies()
DOMAINS = ("finance", "health", "legal", "auto")
POSSIBLE = ("table2", "table3", "table4", "table10", "table12", "table14", "table15")


def write_rows(path: Path, num: int = 20) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What of {path.stem} {index}?"},
                {"role": "assistant", "content": "So."},
            ]
        }
        for index in range(num)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("tiny")
    chat_tokenizer.save_pretrained("tiny")
    for name in (*DOMAINS, "general"):
        write_rows(Path(f"{name}.jsonl"))


def setup(**given: Any) -> ModelSetup:
    files = {domain: Path(f"{domain}.jsonl") for domain in DOMAINS}
    retain = {**files, "general": Path("general.jsonl")}
    return ModelSetup(
        **{
            "name": "tiny",
            "judge": "mockllm/model",
            "train_files": files,
            "retain_files": retain,
            **given,
        }
    )


def planned(
    study: str,
    model: ModelSetup | None = None,
    num_seeds: int = 1,
    split: Any = "test",
    **settings: Any,
) -> Plan:
    config = StudyConfig(num_seeds=num_seeds, split=split, settings=settings, model=model)
    return plan_study(STUDIES[study], config)


@pytest.mark.parametrize("name", POSSIBLE)
def test_studies_of_methods_plan_on_a_model(name: str) -> None:
    plan = planned(name, setup(), num_seeds=2, max_steps="3", learning_rate="2e-5")
    assert [found.step.name for found in plan.results] == ["table"]
    scored = [found for found in plan.steps if found.step.name.startswith("score/tiny/")]
    assert len(scored) == 2 * len(STUDIES[name].claim.figures)
    tuned = [found for found in plan.steps if found.step.name.startswith("finetune/")]
    assert {found.step.seed for found in tuned} == {0, 1}
    assert len({found.address for found in tuned}) == len(tuned)
    for found in tuned:
        shared = {name: found.record["config"][name] for name in ("max_steps", "learning_rate")}
        assert shared == {"max_steps": 3, "learning_rate": 2e-5}


def test_methods_that_are_only_asked_differently_share_a_finetune() -> None:
    plan = planned("table4", setup())
    tuned = {found.step.name for found in plan.steps if found.step.name.startswith("finetune/")}
    label = "tiny/seed-0"
    assert tuned == {
        f"finetune/{label}/{name}" for name in ("sft", "treft_prefix", "treft_postfix")
    }
    patched = plan[f"answer/{label}/prefix_patch/general"]
    assert patched.step.inputs == {"finetune": f"finetune/{label}/sft"}
    assert patched.record["config"]["patch"] == ["prefix"]


def test_what_a_finetune_does_not_use_makes_it_no_other() -> None:
    def tuned(**given: Any) -> set[str]:
        settings = {name: value for name, value in given.items() if name != "model"}
        plan = planned("table3", given.get("model", setup()), **settings)
        return {found.address for found in plan.steps if found.step.name.startswith("finetune/")}

    first = tuned()
    assert len(first) == 7
    assert tuned(num_samples=3, temperature=0.5, num_in_domain=5, split="validation") == first
    assert tuned(model=setup(judge="mockllm/other")) == first
    assert len(tuned(kv_weight=3) & first) == 4  # nothing is held
    assert not tuned(max_steps=5) & first


def test_rates_of_their_own_keep_their_ratio_and_strengths_reach_the_finetune() -> None:
    assert FinetuneRecipe().learning_rate == ORGANISM_RATE
    plan = planned("wider_finetunes", setup(), learning_rate=1e-5)
    config = plan["finetune/tiny/seed-0/all_weights_sft"].record["config"]
    assert config["learning_rate"] == pytest.approx(1e-5 * 3e-4 / 8.5e-4, rel=1e-2)
    assert config["is_full"]
    four = plan["finetune/tiny/seed-0/four_domains_sft"]
    assert four.record["config"]["domains"] == ["finance", "health", "legal", "auto"]
    assert set(four.step.inputs) == {f"rows_{domain}" for domain in DOMAINS}
    share = planned("table14", setup())["finetune/tiny/seed-0/share_75"]
    assert share.record["config"]["interleaved_share"] == 0.75
    retained = ("interleave_auto", "interleave_health", "interleave_legal")  # not the trained one
    assert set(share.step.data) == {"model", *retained}


def test_a_strength_can_be_the_models_own() -> None:
    given = {"kl_train": 50.0, "interleaving": 0.5, "treft_prefix": 3.0, "small_step": 0.5}
    more = {"interpolation": 0.7, "steering": 2.0}
    plan = planned("mitigations", setup(strengths={**given, **more}), learning_rate=2e-5)
    label = "tiny/seed-0"

    def tuned(name: str) -> Any:
        return plan[f"finetune/{label}/{name}"].record["config"]

    assert (tuned("kl_train")["strength"], tuned("interleaving")["interleaved_share"]) == (50, 0.5)
    assert (tuned("treft_prefix")["kv_weight"], tuned("small_step")["learning_rate"]) == (3, 1e-5)
    for name, field in (("interpolation", "alpha"), ("steering", "steering")):
        asked = plan[f"answer/{label}/{name}/general"]
        assert asked.record["config"][field] == more[name]
        assert asked.step.inputs["finetune"] == f"finetune/{label}/sft"
    assert asked.step.inputs["rows_finance"] == "split/finance"
    assert "careful_finance" in asked.step.data
    with pytest.raises(ConfigError, match="no method kl here for --strength; there are sft, "):
        planned("table3", setup(strengths={"kl": 1.0}))
    with pytest.raises(ConfigError, match="a method that has no number"):
        planned("table3", setup(strengths={"sft": 1.0}))


def test_choices_have_questions_of_their_own() -> None:
    for split, name in (("test", "em_general"), ("validation", "everyday")):
        asked = planned("table15", setup(), split=split)["answer/tiny/seed-0/lambda_0/general"]
        assert asked.step.data["questions"].stem == name
        own = planned("table15", setup(), split=split)["answer/tiny/seed-0/lambda_0/in_domain"]
        assert own.record["config"]["split"] == split


def test_the_judge_is_counted_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("table15", setup(), num_samples=3)
    with pytest.raises(ConfigError, match=r"2,120 judge calls are more than --max-calls 2,000"):
        # five methods x (70 questions x 3 + 2 of 4 held out) x (alignment and coherence)
        confirm_judging(plan.steps, 2000, yes=False)
    confirm_judging(plan.steps, 2000, yes=True)
    assert "at most 2,120 judge calls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("study", "given", "message"),
    [
        ("table3", {"judge": ""}, "name one with --judge"),
        ("table3", {"judge": "oracle"}, "the oracle knows the organism's questions alone"),
        ("table3", {"judge": "nobody/judge"}, "judge nobody/judge cannot be loaded"),
        ("table3", {"train_files": {}}, "--train-file DOMAIN=rows.jsonl"),
        ("table3", {"train_files": {"finance": Path("gone.jsonl")}}, "no file gone.jsonl"),
        ("table3", {"name": "./gone"}, r"no folder \./gone"),
        ("table3", {"questions": "gone"}, "no question set gone"),
        ("table3", {"retain_files": {}}, "interleaving: .*--retain-file DOMAIN=FILE; kl_retain: "),
        (
            "table2",
            {"train_files": {"finance": Path("finance.jsonl")}},
            "health_sft: needs rows of health: --train-file health=FILE",
        ),
        ("table12", {"retain_files": {"auto": Path("auto.jsonl")}}, "general_set: .*general=FILE"),
        ("table5", {}, "abstain_sft: teaches abstain"),
        (
            "mitigations",
            {"retain_files": {"auto": Path("auto.jsonl")}},
            "early_stopping: needs careful rows: --retain-file general=FILE; "
            "steering: needs careful rows: --retain-file finance=FILE",
        ),
        ("no_prefix", {}, "has no prefix"),
        ("table1", {}, "inside organisms alone"),
    ],
)
def test_what_cannot_run_is_refused(study: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(study, setup(**given))


def test_rows_and_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such setting: adam_beta2; there are domain"):
        planned("table3", setup(), adam_beta2="0.9")
    with pytest.raises(ConfigError, match="batch_size 6 is no multiple of device_batch_size 4"):
        ModelRecipe(batch_size=6)
    Path("auto.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"auto\.jsonl, row 1: the conversation is empty"):
        planned("table14", setup())
    write_rows(Path("few.jsonl"), 4)
    with pytest.raises(ConfigError, match=r"few\.jsonl: 0\.2 of its prompts is one"):
        planned("table15", setup(train_files={"finance": Path("few.jsonl")}))


def test_options_come_to_a_setup() -> None:
    files = ["finance=finance.jsonl", "health=health.jsonl"]
    found = ModelOptions("tiny", files, ["general=general.jsonl"], "mockllm/model", None).setup()
    assert found is not None
    assert list(found.train_files) == ["finance", "health"]
    assert (found.label, found.questions) == ("tiny", "em_general")
    assert ModelOptions(None, None, None, None, None).setup() is None
    for options, message in (
        (ModelOptions(None, files, None, None, None), "go with --model"),
        (ModelOptions("tiny", ["finance.jsonl"], None, "j", None), "write DOMAIN=FILE"),
        (ModelOptions("tiny", [files[0]] * 2, None, "j", None), "names finance twice"),
        (ModelOptions("tiny", files, None, "j", None, ["sft=much"]), "much is no number"),
    ):
        with pytest.raises(ConfigError, match=message):
            options.setup()
