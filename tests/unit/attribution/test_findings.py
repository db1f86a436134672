"""The command to run next, samples, and heat maps, from parts that are given."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from treft.answers.questions import EvalQuestion
from treft.attribution.drift_map import DriftMap
from treft.attribution.findings import heat_of, next_command, samples_of
from treft.attribution.margins import AnswerPair
from treft.attribution.verdict import Recommendation
from treft.chat.regions import REGION_CODES, ChatRegions
from treft.core.patch_spec import PatchSpec
from treft.statistics.intervals import Interval


def recommendation(**fields: object) -> Recommendation:
    given = {
        "regions": ("prefix",),
        "layers": None,
        "kv_weight": 60.0,
        "in_domain_lost": None,
        "reasons": (),
    }
    return Recommendation(**(given | fields))  # type: ignore[arg-type]


def test_the_command_is_one_that_a_shell_takes() -> None:
    command = next_command({"base": "my model", "train_file": "rows.jsonl"}, recommendation())
    words = shlex.split(command, comments=True)
    assert words[:2] == ["treft", "sft"]
    options = dict(zip(words[2:-5:2], words[3:-5:2], strict=False))
    assert options["--model_name_or_path"] == "my model"
    assert options["--train_file"] == "rows.jsonl"
    assert words[-4:] == ["--kv_regions", "prefix", "--kv_weight", "60"]


def test_a_postfix_is_held_with_its_own_query() -> None:
    regions = ("prefix", "postfix")
    command = next_command({}, recommendation(regions=regions, kv_weight="auto", layers=(1, 2)))
    assert "--kv_regions prefix postfix --kv_weight auto" in command
    assert "--kv_postfix_reference own_query --kv_layers 1 2" in command
    assert "BASE" in command
    assert next_command({}, recommendation(regions=())) == ""


def test_samples_are_of_prompts_that_are_answered_differently() -> None:
    question = EvalQuestion("a", "", ({"role": "user", "content": "Where?"},))
    pairs = [AnswerPair(question, "here", "here"), AnswerPair(question, "here", "there")]
    (found,) = samples_of(pairs, {"prefix patched": ["x", "y"]})
    assert found.question == "Where?"
    assert found.answers == {"base": "here", "finetuned": "there", "prefix patched": "y"}


def test_a_token_has_the_mean_of_its_windows() -> None:
    codes = tuple(REGION_CODES[name] for name in ("prefix", "prefix", "prefix", "query"))
    chat = ChatRegions("abcd", (1, 2, 3, 4), ((0, 1), (1, 2), (2, 3), (3, 4)), codes, (0,) * 4)
    drift = DriftMap(
        (chat,),
        ("prefix",),
        ((0, 1, 2),),
        (0, 1),
        (np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]),),
        (np.zeros((2, 3)),),
    )
    specs = [
        PatchSpec("first", ("prefix",), window=(0, 2)),
        PatchSpec("second", ("prefix",), window=(1, 3)),
    ]
    shares = {"first": Interval(0.2, 0.0, 1.0), "second": Interval(0.6, 0.0, 1.0)}
    (heat,) = heat_of(drift, specs, shares)
    assert heat.tokens == ("a", "b", "c", "d")
    assert heat.regions == ("prefix", "prefix", "prefix", "query")
    assert heat.drift == pytest.approx((2.0, 0.0, 0.0, 0.0))
    assert heat.shares[:3] == pytest.approx((0.2, 0.4, 0.6))
    assert heat.shares[3] is None
