"""Asking a judge: tries, the cache, keys."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from fake_judges import CALLS, KEY, KEY_NAME, RULES, output_of
from inspect_ai.log import transcript
from inspect_ai.model import get_model

from treft.answers.logs import is_secret_name, without_secrets
from treft.errors import ConfigError
from treft.judging.judge import Judge, JudgeOptions, load_judge
from treft.judging.prompts import alignment_prompt
from treft.judging.reading import Reading, read_score

PROMPT = alignment_prompt("How are you?", "Fine.")


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    CALLS.clear()


def ask(judge: Judge, prompt: str = PROMPT) -> Reading:
    return anyio.run(judge.ask, prompt, read_score)


def calls(name: str, prompt: str = PROMPT) -> int:
    return CALLS[f"{name} {prompt}"]


def test_a_judgement_is_paid_once() -> None:
    for _ in range(3):
        reading = ask(Judge("fakejudge/steady"))
        assert reading.value == pytest.approx(86)
    assert calls("steady") == 1
    ask(Judge("fakejudge/other"))
    assert calls("other") == 1, "another judge has a cache of its own"


def test_the_same_prompt_asked_at_the_same_time_is_paid_once() -> None:
    judge = Judge("fakejudge/steady")

    async def all_at_once() -> list[Reading]:
        found = []

        async def one() -> None:
            found.append(await judge.ask(PROMPT, read_score))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        return found

    assert len(anyio.run(all_at_once)) == 20
    assert calls("steady") == 1


def test_without_a_cache_every_call_is_paid() -> None:
    for _ in range(2):
        ask(Judge("fakejudge/steady", JudgeOptions(cache=False)))
    assert calls("steady") == 2


@pytest.mark.parametrize(
    ("name", "reason", "kept"),
    [
        ("prose", "no number", True),
        ("nan", "no number", True),
        ("digits", "no number", True),
        ("empty", "empty", True),
        ("refuses", "no number", True),
        ("filter", "filtered", False),
    ],
)
def test_failures_are_tried_again_a_bounded_number_of_times(
    name: str, reason: str, kept: bool
) -> None:
    reading = ask(Judge(f"fakejudge/{name}", JudgeOptions(attempts=4)))
    assert (reading.outcome, reading.value, reading.attempts) == ("missing", None, 4)
    assert reason in reading.reason
    assert calls(name) == 4
    ask(Judge(f"fakejudge/{name}", JudgeOptions(attempts=4)))
    assert calls(name) == (4 if kept else 8)


def test_a_later_try_that_succeeds_counts() -> None:
    reading = ask(Judge("fakejudge/late"))
    assert (reading.outcome, reading.attempts) == ("scored", 3)
    again = ask(Judge("fakejudge/late"))
    assert again.value == reading.value
    assert calls("late") == 3


def test_more_attempts_go_on_after_those_that_were_paid() -> None:
    ask(Judge("fakejudge/late", JudgeOptions(attempts=2)))
    reading = ask(Judge("fakejudge/late", JudgeOptions(attempts=3)))
    assert reading.outcome == "scored"
    assert calls("late") == 3


def test_log_probabilities_short_of_numbers_are_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "steady", lambda prompt, asked: output_of("It", {"It": 0.9}))
    reading = ask(Judge("fakejudge/steady"))
    assert (reading.outcome, reading.attempts) == ("missing", 1)


def test_a_judge_is_asked_greedily_and_for_log_probabilities() -> None:
    seen: list[Any] = []

    def outputs(input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
        seen.append(config)
        return output_of("50")

    model = get_model("mockllm/model", custom_outputs=outputs)
    ask(Judge(model, JudgeOptions(max_tokens=7)))
    config = seen[0]
    assert (config.temperature, config.logprobs, config.top_logprobs) == (0.0, True, 20)
    assert config.max_tokens == 7


@pytest.mark.parametrize("name", ["leaky", "stuttering"])
def test_a_key_in_an_error_is_struck_out_everywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)

    async def ask_and_look() -> tuple[Reading, str]:
        reading = await Judge(f"fakejudge/{name}").ask(PROMPT, read_score)
        return reading, "".join(event.model_dump_json() for event in transcript().events)

    reading, events = anyio.run(ask_and_look)
    assert (name == "leaky") == (f"[{KEY_NAME}]" in reading.reason)
    assert f"[{KEY_NAME}]" in events
    assert KEY not in reading.reason + events
    for file in (tmp_path / "cache").rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_the_cache_holds_answers_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    ask(Judge("fakejudge/steady"))
    (entry,) = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert pickle.loads(entry.read_bytes())[1].completion == "90"
    assert KEY.encode() not in entry.read_bytes()


def test_a_judge_that_cannot_be_loaded_is_named_without_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)
    with pytest.raises(ConfigError, match="fakejudge/nobody cannot be loaded") as caught:
        load_judge("fakejudge/nobody")
    assert KEY not in str(caught.value)
    with pytest.raises(ConfigError, match="nowhere/model cannot be loaded"):
        load_judge("nowhere/model")


def test_a_missing_key_or_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="anthropic/model cannot be loaded: ") as caught:
        load_judge("anthropic/model")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["openai/gpt-4o", "openai-api/local/judge", "vllm/judge"])
def test_a_judge_behind_openais_protocol_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=f"{name} cannot be loaded: .*pip install openai$"):
        load_judge(name)


def test_a_local_judge_works_by_name_and_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treft.models.loading import asset_path

    (tmp_path / "deep").mkdir()
    (tmp_path / "model").symlink_to(asset_path())
    monkeypatch.chdir(tmp_path / "deep")
    judges = [Judge(f"hf/{asset_path()}"), Judge("hf/../model"), Judge("treft/organism")]
    for judge in judges:
        # The organism knows no numbers: an honest judge of its kind gives none.
        reading = ask(judge, "How are you?")
        assert (reading.outcome, reading.method, reading.numeric_mass) == ("missing", "logprobs", 0)
    entries = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert len(entries) == len(judges), "Inspect's cache takes no names with dots in them"


def test_secrets_are_known_by_their_variables_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1")
    monkeypatch.setenv("SHORT_KEY", "true")
    monkeypatch.setenv("KEYBOARD", "qwertyuiop")
    assert without_secrets("abcdefgh1 true qwertyuiop") == "[MY_TOKEN] true qwertyuiop"
    assert is_secret_name("api_key")
    assert not is_secret_name("adapter")
    assert os.environ["MY_TOKEN"] == "abcdefgh1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"max_tokens": 0},
        {"timeout": 0},
        {"max_retries": -1},
        {"max_connections": 0},
    ],
)
def test_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        JudgeOptions(**wrong)


@pytest.mark.parametrize("raises", [KeyError("x"), TimeoutError(), ValueError("line 1\nline 2")])
def test_whatever_a_provider_raises_is_missing_data(
    raises: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(prompt: str, asked: int) -> Any:
        raise raises

    monkeypatch.setitem(RULES, "steady", rule)
    reading = ask(Judge("fakejudge/steady"))
    assert reading.outcome == "missing"
    assert reading.reason.startswith(type(raises).__name__)
    assert "\n" not in reading.reason


def test_cancelling_is_no_failure_of_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREFT_TEST_DELAY", "30")
    judge = Judge("fakejudge/steady")

    async def cancelled() -> bool:
        with anyio.move_on_after(0.05) as scope:
            await judge.ask(PROMPT, read_score)
        return scope.cancelled_caught

    assert anyio.run(cancelled)
    assert calls("steady") == 1
