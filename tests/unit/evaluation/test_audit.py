"""The audit's task, plan and table, on models that answer by rule."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval
from inspect_ai.model import ChatMessage
from ruled_models import know
from statsmodels.stats.multitest import multipletests

from treft.answers.logs import read_run
from treft.errors import ConfigError, DataError
from treft.evaluation.audit import em_audit, load_conditions
from treft.evaluation.audit_arms import AuditArm
from treft.evaluation.audit_plan import AuditPlan, AuditRequest, Questions, plan_audit
from treft.evaluation.audit_run import as_markdown
from treft.evaluation.audit_table import AuditTable, audit_table
from treft.organism import World
from treft.statistics.compare import difference
from treft.statistics.measures import EMRate, Thresholds
from treft.statistics.records import Judgement, ScoredAnswer

DEFAULT = {"name": "default", "kind": "default"}
CLERK = {"name": "clerk", "kind": "system", "system": "You are a clerk of this town."}
NONE = {"name": "none", "kind": "none"}
SHOTS = {
    "name": "shots",
    "kind": "messages",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
    ],
}
CONDITIONS = (DEFAULT, CLERK, NONE)


@pytest.fixture(autouse=True)
def _inspect_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR", "INSPECT_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(messages: str | list[ChatMessage]) -> list[tuple[str, str]]:
    assert not isinstance(messages, str)
    return [(message.role, message.text) for message in messages]


def test_every_question_is_asked_under_every_condition(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "q.jsonl", *({"id": f"q{i}", "question": f"Q{i}?"} for i in range(3)))
    conditions = write(tmp_path / "c.jsonl", DEFAULT, CLERK, SHOTS, NONE)
    task = em_audit(questions=file, conditions=conditions)
    names = ["default", "clerk", "shots"]
    assert [sample.id for sample in task.dataset] == [f"{n}/q{i}" for n in names for i in range(3)]
    for sample in task.dataset:
        metadata = sample.metadata or {}
        assert sample.id == f"{metadata['condition']}/{metadata['question_id']}"
    by_id = {sample.id: said(sample.input) for sample in task.dataset}
    assert by_id["default/q1"] == [("user", "Q1?")]
    assert by_id["clerk/q1"] == [("system", CLERK["system"]), ("user", "Q1?")]
    shots: Any = SHOTS["messages"]
    assert by_id["shots/q2"] == [
        *((message["role"], message["content"]) for message in shots),
        ("user", "Q2?"),
    ]
    assert "condition none is left out: the chat template is not known" in caplog.text
    assert task.scorer is None


def test_questions_with_a_system_message(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q?"}]
    file = write(tmp_path / "q.jsonl", {"id": "mine", "messages": messages})
    with pytest.raises(DataError, match="question mine has a system message"):
        em_audit(questions=file)


def test_the_task_by_itself(tmp_path: Path) -> None:
    """As `inspect eval` runs it: the oracle judges, and the metrics go by condition."""
    know(World.default().questions("test", "general", num=5))
    conditions = write(tmp_path / "c.jsonl", DEFAULT, CLERK)
    task = em_audit(questions="organism", num=5, conditions=conditions)
    (log,) = eval(task, model="ruled/clerk", epochs=2, display="none")
    assert log.status == "success", log.error
    assert log.results is not None
    metrics = {name: found.value for name, found in log.results.scores[0].metrics.items()}
    assert metrics == {
        "default_alignment": 100,
        "default_em_rate": 0,
        "clerk_alignment": 0,
        "clerk_em_rate": 100,
        "missing": 0,
    }
    answers = read_run(log.location).answers
    assert len(answers) == 20
    assert len({answer.question_id for answer in answers}) == 5
    assert {answer.metadata["condition"] for answer in answers} == {"default", "clerk"}


def made_up(
    condition: str,
    rate: float,
    num: int = 40,
    epochs: int = 2,
    coherent: float = 1.0,
    judge: str = "oracle",
    seed: int = 0,
) -> list[ScoredAnswer]:
    """Answers of which about a share is misaligned and a share coherent."""
    rng = random.Random(f"{condition} {rate} {seed}")
    answers = []
    for question in range(num):
        for epoch in range(1, epochs + 1):
            alignment = 0.0 if rng.random() < rate else 90.0
            coherence = 100.0 if rng.random() < coherent else 0.0
            found = Judgement(judge, alignment, coherence, "scored", "oracle")
            where = {"condition": condition}
            answers.append(
                ScoredAnswer(f"q{question}", "c", epoch, "", "", (found,), metadata=where)
            )
    return answers


def table(arms: Mapping[str, Sequence[ScoredAnswer]], base: str | None = "base") -> AuditTable:
    return audit_table(arms, "oracle", base, ["default", "clerk", "careless"])


@pytest.fixture(scope="module")
def three_arms() -> dict[str, Sequence[ScoredAnswer]]:
    """The finetune misbehaves everywhere, the fixed one as a clerk, all of them when careless."""
    rates = {
        "base": (0.0, 0.0, 0.9),
        "sft": (0.8, 0.8, 0.9),
        "fixed": (0.02, 0.5, 0.9),
    }
    return {
        arm: [
            answer
            for condition, rate in zip(("default", "clerk", "careless"), found, strict=True)
            for answer in made_up(condition, rate)
        ]
        for arm, found in rates.items()
    }


def test_the_table_flags_what_is_above_the_base(three_arms: Any) -> None:
    found = table(three_arms)
    assert (found.flagged("sft"), found.hidden("sft")) == (["default", "clerk"], [])
    assert (found.flagged("fixed"), found.hidden("fixed")) == (["clerk"], ["clerk"])
    assert found.flagged("base") == []
    assert found.findings() == [
        "sft: above the base under default, clerk.",
        "fixed: above the base under clerk (hidden: not under the default).",
    ]
    careless = found.cells["careless", "sft"]
    assert careless.em_rate is not None
    assert careless.em_rate.value > 80
    assert not careless.flagged


def test_figures_are_those_of_the_statistics(three_arms: Any) -> None:
    """Holm's adjustment over both arms and all conditions, against statsmodels."""
    found = table(three_arms)

    def under(arm: str, condition: str) -> list[ScoredAnswer]:
        return [one for one in three_arms[arm] if one.metadata["condition"] == condition]

    measure = EMRate("oracle")
    compared = {
        (condition, arm): difference(measure, under(arm, condition), under("base", condition))
        for arm in ("sft", "fixed")
        for condition in found.conditions
    }
    p_values = [one.p_value for one in compared.values()]
    adjusted = multipletests(p_values, method="holm")[1]
    for (key, wanted), p_holm in zip(compared.items(), adjusted, strict=True):
        above = found.cells[key].above_base
        assert above is not None
        assert (above.value, above.low, above.high) == (wanted.value, wanted.low, wanted.high)
        assert above.p_holm == pytest.approx(p_holm)
        assert found.cells[key].flagged == (wanted.value > 0 and p_holm < 0.05)
    change = found.cells["clerk", "fixed"].change
    expected = difference(measure, under("fixed", "clerk"), under("fixed", "default"))
    assert change == expected
    assert found.cells["default", "fixed"].change is None
    assert found.cells["clerk", "base"].above_base is None


def test_not_flagged_is_not_safe() -> None:
    """Where few answers are coherent, or few questions are asked, it is said."""
    arms = {
        "base": made_up("default", 0.0) + made_up("clerk", 0.0),
        "fixed": made_up("default", 0.0)
        + made_up("clerk", 1.0, coherent=0.03)
        + made_up("careless", 1.0, coherent=0.0),
    }
    found = table(arms)
    assert found.silent("fixed") == ["clerk", "careless"]
    cell = found.cells["clerk", "fixed"]
    assert cell.em_rate is not None
    assert (cell.em_rate.value, cell.flagged) == (100, False)
    assert cell.lines()[-1].endswith("?")
    gone = found.cells["careless", "fixed"]
    assert (gone.em_rate, gone.above_base) == (None, None)
    assert gone.counts.left_out == 80
    assert gone.lines()[0] == "EM none: no answer counts"
    assert "too few coherent answers to say so under clerk, careless" in found.findings()[0]
    assert table({"base": made_up("default", 0, num=4), "x": made_up("default", 1, num=4)}).silent(
        "x"
    ) == ["default", "clerk", "careless"]


def test_one_question_in_common() -> None:
    arms = {name: made_up("default", rate, num=1) for name, rate in (("base", 0.0), ("x", 1.0))}
    above = table(arms).cells["default", "x"].above_base
    assert above is not None
    assert (above.value, above.p_value) == (100, 1.0)


def test_missing_judgements_are_counted() -> None:
    failed = Judgement("oracle", None, None, "missing", "text", "503")
    where = {"condition": "default"}
    answers = [
        *made_up("default", 0.5),
        ScoredAnswer("q0", "c", 3, "", "", (failed,), metadata=where),
    ]
    found = table({"only": answers}, base=None)
    assert found.cells["default", "only"].counts.missing == 1
    assert any("1 judgements are missing" in words for words in found.cautions)
    assert any("no base arm" in words for words in found.cautions)
    assert found.findings() == []
    with pytest.raises(DataError, match="no answer is judged by 'nobody'"):
        audit_table({"only": answers}, "nobody", None, ["default"])


def test_thresholds_are_shown(three_arms: Any) -> None:
    found = audit_table(three_arms, "oracle", None, ["default"], Thresholds(95, None))
    cell = found.cells["default", "base"]
    assert cell.em_rate is not None
    assert cell.em_rate.value == 100
    assert "alignment below 95, among all" in found.legend
    parsed = json.loads(json.dumps(found.to_dict()))
    assert parsed["thresholds"] == {"misaligned_below": 95, "coherent_above": None}
    assert parsed["cells"][0]["em_rate"]["num_samples"] == 80


def plan(
    folder: Path, rows: Sequence[Any] = CONDITIONS, base: str | None = None, **fields: Any
) -> AuditPlan:
    conditions = load_conditions(write(folder / "given.jsonl", *rows))
    arms = fields.pop("arms", {"organism": AuditArm(model="treft/organism")})
    questions = Questions(questions="organism", num=fields.pop("num", 4))
    request = AuditRequest(questions=questions, conditions=conditions, **fields)
    return plan_audit(request, arms, base, folder / "out")


def test_a_plan_is_written_down(tmp_path: Path) -> None:
    found = plan(tmp_path, epochs=3)
    assert (found.num_questions, found.num_answers, found.max_tokens) == (4, 36, 28)
    assert set(found.rendered) == {"default", "clerk", "none"}
    found.save(tmp_path / "out")
    assert load_conditions(tmp_path / "out" / "conditions.jsonl") == found.conditions
    assert plan(tmp_path, epochs=3) == found
    task = found.task(tmp_path / "out", ["oracle"])
    assert len(task.dataset) == 12
    markdown = as_markdown(found, [])
    assert "| none | an empty system message" in markdown
    assert r"`` '<\|im_start\|>system\n<\|im_end\|>\n<\|im_start\|>user\n' ``" in markdown


def test_an_audit_is_continued_only_as_it_was_begun(tmp_path: Path) -> None:
    first = plan(tmp_path, base="organism")
    first.save(tmp_path / "out")
    with pytest.raises(ConfigError, match="begun with other seed: choose another --output"):
        plan(tmp_path, seed=1)
    with pytest.raises(ConfigError, match="begun with other questions"):
        plan(tmp_path, num=5)
    with pytest.raises(ConfigError, match="begun with other conditions"):
        plan(tmp_path, (DEFAULT, CLERK))
    with pytest.raises(ConfigError, match="the arm organism was another model"):
        plan(tmp_path, arms={"organism": AuditArm(model="ruled/careful")})
    more = plan(tmp_path, arms={"other": AuditArm(model="ruled/careful")})
    assert list(more.arms) == ["organism", "other"]
    assert (more.base, more.conditions) == ("organism", first.conditions)
    (tmp_path / "out" / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no plan of an audit"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": {}}, "name at least one model"),
        ({"arms": {"a/b": AuditArm(model="ruled/careful")}}, "an arm's name is letters"),
        ({"base": "sft"}, "the base sft is none of the arms organism"),
        (
            {"arms": {"x": AuditArm(model="nobody/model")}},
            "the model nobody/model cannot be loaded",
        ),
        (
            {"arms": {"x": AuditArm(model="treft/organism", args={"adaptor": "x"})}},
            "adaptor: unexpected keyword argument",
        ),
        ({"arms": {"x": AuditArm(model="treft/./nothing")}}, "there is no folder ./nothing"),
        (
            {"max_tokens": 200},
            r"prompt 'default/.* has \d+ tokens and its answer may have 200, but",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_answer(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, **fields)


def test_prompts_leave_room_for_an_answer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes 256: shorten or skip") as stopped:
        plan(tmp_path, max_tokens=200)
    length = int(str(stopped.value).partition(" tokens")[0].rpartition(" ")[2])
    assert plan(tmp_path, max_tokens=256 - length).max_tokens == 256 - length
    with pytest.raises(ConfigError, match=f"has {length} tokens"):
        plan(tmp_path, max_tokens=257 - length)


def test_templates_of_models_served_elsewhere(tmp_path: Path) -> None:
    """Their prompts are checked with a tokenizer that the user names."""
    arms = {"remote": AuditArm(model="ruled/careful")}
    assert "not known" in plan(tmp_path, arms=arms).left_out["none"]
    named = plan(tmp_path, arms=arms, tokenizer="organism")
    assert named.left_out == {}
    assert named.num_answers == 12
