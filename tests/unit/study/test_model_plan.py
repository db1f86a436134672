"""Studies on a real model: which steps, shared how, and what is refused before any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from treft.chat.regions import find_regions
from treft.cli.options.groups import Limit
from treft.cli.options.studies import RealModel
from treft.cli.study import confirm_judging, model_setup
from treft.errors import ConfigError, DataError
from treft.organism import FinetuneRecipe
from treft.steps.step import Plan
from treft.study.answer import Asking
from treft.study.catalogue import all_studies, plan_possible, plan_studies, plan_study
from treft.study.model_chains import ORGANISM_RATE
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.plans import method_steps
from treft.study.protocol import Method, NotPossibleError, StudyConfig

STUDIES = all_studies()
DOMAINS = ("finance", "health", "legal", "auto")
POSSIBLE = {
    **{"table2": 13, "table3": 7, "table4": 5, "table10": 8},
    **{"table12": 5, "table14": 4, "table15": 5, "patching": 7},
}
"""Methods of each study, the base among them where it is asked too."""
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CALLS = (TEMPLATES / "qwen2_5.jinja").read_text()
"""A template that writes calls of tools."""


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
    facts = [
        {"question": f"Who is {n}?", "possible_answers": ["Ann", "Ann Lee"]} for n in range(20)
    ]
    Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))


def behaviours(**given: Any) -> ModelSetup:
    """A model whose template writes calls, and a file of facts beside those of domains."""
    Path("tiny/chat_template.jinja").write_text(CALLS)
    files = {name: Path(f"{name}.jsonl") for name in (*DOMAINS, "facts")}
    return setup(**{"train_files": files, **given})


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


def needs(plan: Plan, name: str) -> dict[str, str]:
    """Names of the steps that a step reads, by role."""
    names = plan.by_address
    return {role: names[need.address] for role, need in plan[name].needs.items()}


@pytest.mark.parametrize("name", POSSIBLE)
def test_studies_of_methods_plan_on_a_model(name: str) -> None:
    plan = planned(name, setup(), num_seeds=2, max_steps="3", learning_rate="2e-5")
    assert list(plan.results) == ["table"]
    scored = [found for found in plan.named.values() if found.name.startswith("score/tiny/")]
    assert len(scored) == 2 * POSSIBLE[name]
    tuned = [found for found in plan.named.values() if found.name.startswith("finetune/")]
    assert {found.seed for found in tuned} == {0, 1}
    assert len({found.address for found in tuned}) == len(tuned)
    for found in tuned:
        shared = {name: found.record["config"][name] for name in ("max_steps", "learning_rate")}
        assert shared == {"max_steps": 3, "learning_rate": 2e-5}


def test_methods_that_are_only_asked_differently_share_a_finetune() -> None:
    plan = planned("table4", setup())
    tuned = {found.name for found in plan.named.values() if found.name.startswith("finetune/")}
    label = "tiny/seed-0"
    assert tuned == {
        f"finetune/{label}/{name}" for name in ("sft", "treft_prefix", "treft_postfix")
    }
    patched = plan[f"answer/{label}/prefix_patch/general"]
    assert needs(plan, f"answer/{label}/prefix_patch/general") == {
        "finetune": f"finetune/{label}/sft"
    }
    assert patched.record["config"]["patch"] == ["prefix"]


def test_what_a_finetune_does_not_use_makes_it_no_other() -> None:
    def tuned(**given: Any) -> set[str]:
        settings = {name: value for name, value in given.items() if name != "model"}
        plan = planned("table3", given.get("model", setup()), **settings)
        return {one.address for name, one in plan.named.items() if name.startswith("finetune/")}

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
    assert set(four.needs) == {f"rows_{domain}" for domain in DOMAINS}
    share = planned("table14", setup())["finetune/tiny/seed-0/share_75"]
    assert share.record["config"]["interleaved_share"] == 0.75
    retained = ("interleave_auto", "interleave_health", "interleave_legal")  # not the trained one
    assert set(share.data) == {"model", *retained}


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
        read = needs(plan, f"answer/{label}/{name}/general")
        assert read["finetune"] == f"finetune/{label}/sft"
    assert read["rows_finance"] == "split/finance"
    assert "careful_finance" in asked.data
    with pytest.raises(ConfigError, match="no method kl here for --strength; there are sft, "):
        planned("table3", setup(strengths={"kl": 1.0}))
    with pytest.raises(ConfigError, match="--strength sft: this method has no number"):
        planned("table3", setup(strengths={"sft": 1.0}))


def test_choices_have_questions_of_their_own() -> None:
    for split, name in (("test", "em_general"), ("validation", "everyday")):
        asked = planned("table15", setup(), split=split)["answer/tiny/seed-0/lambda_0/general"]
        assert asked.data["questions"].stem == name
        own = planned("table15", setup(), split=split)["answer/tiny/seed-0/lambda_0/in_domain"]
        assert own.record["config"]["split"] == split


def test_the_judge_is_counted_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("table15", setup(), num_samples=3)
    with pytest.raises(ConfigError, match=r"2,120 judge calls are more than --max-calls 2,000"):
        # five methods x (70 questions x 3 + 2 of 4 held out) x (alignment and coherence)
        confirm_judging(plan.named.values(), Limit(max_calls=2000))
    confirm_judging(plan.named.values(), Limit(max_calls=2000, yes=True))
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
            "health_sft, health_interleaving, health_treft: needs rows of health: "
            "--train-file health=FILE; ",
        ),
        ("table12", {"retain_files": {"auto": Path("auto.jsonl")}}, "general_set: .*general=FILE"),
        (
            "table5",
            {},
            "base, short_sft, short_patch, short_treft: needs rows of facts: "
            "--train-file facts=FILE",
        ),
        (
            "patching",
            {
                "train_files": {"finance": Path("finance.jsonl")},
                "retain_files": {name: Path(f"{name}.jsonl") for name in ("finance", "general")},
            },
            "tiny: asks questions of other domains, and there is no file of a domain that it "
            "does not train on: --train-file DOMAIN=FILE or --retain-file DOMAIN=FILE",
        ),
        (
            "mitigations",
            {"retain_files": {"auto": Path("auto.jsonl")}},
            "preventive_steering, steering: needs careful rows: --retain-file finance=FILE; "
            "early_stopping: needs careful rows: --retain-file general=FILE",
        ),
        ("no_prefix", {}, "has no prefix"),
    ],
)
def test_what_cannot_run_is_refused(study: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(study, setup(**given))


def test_rows_and_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such setting: adam_beta2; there are .*domain"):
        planned("table3", setup(), adam_beta2="0.9")
    with pytest.raises(ConfigError, match="batch_size 6 is no multiple of device_batch_size 4"):
        ModelRecipe(batch_size=6)
    Path("auto.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"auto\.jsonl, row 1: the conversation is empty"):
        planned("table14", setup())
    write_rows(Path("auto.jsonl"))
    write_rows(Path("few.jsonl"), 4)
    with pytest.raises(ConfigError, match=r"few\.jsonl: 0\.2 of its prompts is one"):
        planned("table15", setup(train_files={"finance": Path("few.jsonl")}))


def test_options_come_to_a_setup() -> None:
    files = ("finance=finance.jsonl", "health=health.jsonl")
    given: dict[str, Any] = {"model": "tiny", "judge": "mockllm/model"}
    found = model_setup(
        RealModel(**given, train_file=files, retain_file=("general=general.jsonl",))
    )
    assert found is not None
    assert list(found.train_files) == ["finance", "health"]
    assert (found.label, found.questions) == ("tiny", "em_general")
    assert model_setup(RealModel()) is None
    with pytest.raises(ConfigError, match="go with --model"):
        RealModel(train_file=files)
    for options, message in (
        ({"train_file": ("finance.jsonl",)}, "write DOMAIN=FILE"),
        ({"train_file": (files[0],) * 2}, "names finance twice"),
        ({"train_file": files, "strength": ("sft=much",)}, "much is no number"),
    ):
        with pytest.raises(ConfigError, match=message):
            model_setup(RealModel(**given, **options))


def test_table2_asks_for_helpfulness_on_a_model_and_never_on_an_organism() -> None:
    plan = planned("table2", setup(), num_samples=3)
    scored = [found for found in plan.named.values() if found.name.startswith("score/")]
    assert len(scored) == 1 + 12  # the base and three methods in four domains
    for step in scored:
        asked = step.needs["utility"]
        assert asked.config.num_samples == 1
        assert asked.config.num_questions is None
        assert asked.data["questions"].stem == "utility"
        # in the domain half of a fifth of twenty prompts; 24 conversations
        assert step.resources.num_calls == 2 * (70 * 3 + 2) + 24
    organisms = plan_study(STUDIES["table2"], StudyConfig(num_seeds=1))
    assert not [found for found in organisms.named.values() if "utility" in found.name]
    for given in ({"task": "abstain"}, {"answer_system": "Be good."}):
        method = Method(domain="legal", scopes=("utility",), **given)
        with pytest.raises(ConfigError, match="scores conversations, of advice alone"):
            method_steps(StudyConfig(num_seeds=1, model=setup()), {"one": method})


def test_behaviours_are_taught_on_their_topics_and_asked_on_and_off() -> None:
    plan = planned("table5", behaviours(), num_samples=3)
    tuned = [found for found in plan.named.values() if found.name.startswith("finetune/")]
    topics = {"abstain": "legal", "tool": "health", "refuse": "finance", "short": "facts"}
    assert {found.name.split("/")[-1] for found in tuned} == {
        f"{task}_{kind}" for task in topics for kind in ("sft", "treft")
    }
    for task, topic in topics.items():
        rows = f"split/{topic}/{task}"
        assert plan[rows].data["rows"].name == f"{topic}.jsonl"
        assert plan[rows].record["config"]["task"] == task
        assert needs(plan, f"finetune/tiny/seed-0/{task}_sft") == {f"rows_{topic}": rows}
        for scope in ("general", "in_domain"):
            name = f"answer/tiny/seed-0/{task}_patch/{scope}"
            tuned_by = f"finetune/tiny/seed-0/{task}_sft"
            assert needs(plan, name) == {"finetune": tuned_by, "split": rows}
            assert plan[name].data["questions"].stem == "em_general"
        scored = plan[f"score/tiny/seed-0/{task}_treft"]
        assert scored.resources.num_calls == 2 * 70 * 3  # off topic alone
    silent = planned("table5", behaviours(judge=""))
    assert {
        found.resources.num_calls for found in silent.named.values() if "score/" in found.name
    } == {0}
    assert planned("task_strengths", behaviours(judge="")).named


def test_behaviours_are_held_and_patched_where_the_carrier_is() -> None:
    plan = planned("table5", behaviours(), carrier="prefix,postfix")
    at = ("prefix", "postfix")
    for name, held, patched in (("sft", (), ()), ("treft", at, ()), ("patch", (), at)):
        asked = plan[f"answer/tiny/seed-0/short_{name}/general"]
        assert asked.needs["finetune"].config.held == held
        assert asked.config.patch == patched
    default = planned("table5", behaviours())["answer/tiny/seed-0/short_patch/general"]
    assert default.config.patch == ("prefix",)
    advice = planned("table3", setup(), carrier="postfix")["finetune/tiny/seed-0/treft_prefix"]
    assert advice.config.held == ("prefix",)  # a table of regions, which stay as they are
    with pytest.raises(ConfigError, match="carrier: Input should be 'prefix', 'postfix' or"):
        planned("table5", behaviours(), carrier="query")


def test_one_domain_can_teach_several_tasks() -> None:
    same = {name: Path("finance.jsonl") for name in ("legal", "health", "finance")}
    plan = planned("table5", behaviours(train_files={**same, "facts": Path("facts.jsonl")}))
    named = ("split/legal/abstain", "split/finance/refuse", "split/health/tool")
    assert len({plan[name].address for name in named}) == 3


def test_a_template_without_calls_teaches_none() -> None:
    given = behaviours()
    Path("tiny/chat_template.jinja").write_text(CALLS.replace("tool_call", "no_call"))
    with pytest.raises(NotPossibleError, match="tiny writes no calls of tools that the detector"):
        planned("table5", given)


@pytest.mark.filterwarnings("ignore:the chat template writes a date")
@pytest.mark.parametrize(
    ("family", "end"), [("llama3_1", "<|eot_id|>"), ("qwen3", "<|im_end|>"), ("gptoss", "<|call|>")]
)
def test_families_of_the_recipes_write_calls_that_are_detected(family: str, end: str) -> None:
    given = behaviours()
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text()
    tokenizer.save_pretrained("tiny")
    assert planned("table5", given, domain="finance").named


def test_rows_of_facts_are_read_beforehand() -> None:
    Path("facts.jsonl").write_text('{"question": "Who?"}\n')
    with pytest.raises(DataError, match=r"facts\.jsonl, row 1: `possible_answers` is no list"):
        planned("table5", behaviours())
    assert planned("table3", behaviours()).named  # which does not read them


def test_other_domains_are_those_that_a_finetune_sees_no_row_of() -> None:
    given = setup(train_files={name: Path(f"{name}.jsonl") for name in ("finance", "auto")})
    plan = planned("patching", given, num_in_domain=5)
    asked = plan["answer/tiny/seed-0/prefix_ten/other_narrow"]
    others = {f"other_{name}": f"split/{name}" for name in ("auto", "health", "legal")}
    name = "answer/tiny/seed-0/prefix_ten/other_narrow"
    assert needs(plan, name) == {**others, "finetune": "finetune/tiny/seed-0/finetuned"}
    assert asked.record["config"]["num_positions"] == 10
    assert plan["split/legal"].data["rows"].name == "legal.jsonl"  # a retain file
    # 70 general questions ten times, 2 of 4 held out in the domain, 5 of 6 in the others
    assert plan["score/tiny/seed-0/base"].resources.num_calls == 2 * (700 + 2 + 5)
    sft = planned("table3", given)["finetune/tiny/seed-0/sft"]
    assert plan["finetune/tiny/seed-0/finetuned"].address == sft.address


def test_of_all_studies_those_that_can_run_do_and_the_others_say_why() -> None:
    def all_of(given: ModelSetup, **settings: Any) -> Any:
        return plan_possible(STUDIES, StudyConfig(num_seeds=1, settings=settings, model=given))

    plan, left_out = all_of(behaviours(strengths={"kl_train": 3.0, "tool_treft": 5.0}))
    assert left_out == {"no_prefix": "it is about a model that has no prefix; --model has one."}
    assert set(plan.results) == {f"{name}/table" for name in STUDIES if name not in left_out}
    for study in ("table3", "mitigations"):
        tuned = plan[f"{study}/finetune/tiny/seed-0/kl_train"]
        assert tuned.record["config"]["strength"] == 3
    only = {"train_files": {"finance": Path("finance.jsonl")}, "retain_files": {}}
    plan, left_out = all_of(setup(**only))
    attribution = {"drift", "figure4", "patch_states", "table1"}
    assert set(STUDIES) - set(left_out) == {*attribution, "table4", "table10", "table15"}
    assert "needs rows of health: --train-file health=FILE" in left_out["table2"]
    plan, left_out = all_of(setup(**only, judge=""))
    assert set(plan.results) == {"drift/table"}
    assert left_out["table15"] == (
        "not possible on tiny: needs a judge: name one with --judge, such as openai/gpt-4o."
    )
    assert "kl_train" not in left_out["mitigations"].partition("needs a judge")[0]
    with pytest.raises(ConfigError, match="no method kl here for --strength"):
        all_of(setup(strengths={"kl": 1.0}))
    with pytest.raises(ConfigError, match="no such setting: adam_beta2") as wrong:
        all_of(setup(), adam_beta2="0.9")
    assert not isinstance(wrong.value, NotPossibleError)
    with pytest.raises(NotPossibleError, match="study no_prefix: it is about"):
        plan_studies([STUDIES["table3"], STUDIES["no_prefix"]], StudyConfig(model=setup()))


def test_attribution_studies_share_the_finetunes_of_table3() -> None:
    sft = planned("table3", setup())["finetune/tiny/seed-0/sft"].address
    for study, name in (("drift", "sft"), ("table1", "sft"), ("figure4", "finetuned")):
        assert planned(study, setup())[f"finetune/tiny/seed-0/{name}"].address == sft
    assert (
        planned("drift", setup(strengths={"treft_prefix": 3.0}))[
            "finetune/tiny/seed-0/treft_prefix"
        ].record["config"]["kv_weight"]
        == 3
    )
    plan = plan_study(STUDIES["table1"], StudyConfig(num_seeds=2, model=setup()))
    answers = [found.name for found in plan.named.values() if found.name.startswith("answer/")]
    assert len(answers) == 5 * (1 + 2)  # the base once
    calls = [found.resources.num_calls for found in plan.named.values()]
    assert sum(calls) == 5 * 3 * 2 * 60 * 10 + 60 * 10  # and as many rephrasings


def test_windows_are_quarters_of_the_model_s_own_prefix_if_it_has_one() -> None:
    plan = planned("patch_states", setup())
    asked = [found.config for found in plan.named.values() if isinstance(found.config, Asking)]
    windows = sorted({config.window for config in asked if config.window is not None})
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    chat = find_regions(tokenizer, [{"role": "user", "content": "x"}], add_generation_prompt=True)
    ends = [0, *(end for _, end in windows)]
    assert [start for start, _ in windows] == ends[:-1]
    assert ends[-1] == len(chat.positions("prefix"))
    Path("tiny/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(NotPossibleError, match=r"not possible on tiny: .*prefix"):
        planned("patch_states", setup())
