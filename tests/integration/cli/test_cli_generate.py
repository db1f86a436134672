"""`treft generate`: what it answers, from what, and where it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from cli_helpers import WORDS, Command, Refused, read_rows, user, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from treft import RepairedModel, patch

SHORT = ("--max-new-tokens", 6)
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def greedy(folder: Path, model: Any, words: str) -> str:
    """The answer of Transformers' own `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": words}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return str(
        tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    )


def test_answers_are_those_of_transformers(folder: Path, treft: Command) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    expected = greedy(folder, base, WORDS[0])
    one = treft("generate", "--model", folder / "base", "--prompt", WORDS[0], *SHORT)
    assert one.out == expected + "\n"
    assert "answering" in one.err
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    expected = greedy(folder, adapted, WORDS[0])
    for origin in (
        ("--model", folder / "base", "--adapter", folder / "adapter"),
        ("--model", folder / "adapter"),
    ):
        assert treft("generate", *origin, "--prompt", WORDS[0], *SHORT).out == expected + "\n"


def test_streaming_prints_the_same(folder: Path, treft: Command) -> None:
    for patched in ((), ("--patch", "prefix")):
        question = ("generate", "--model", folder / "adapter", "--prompt", WORDS[0], *SHORT)
        assert treft(*question, *patched, "--stream").out == treft(*question, *patched).out


@pytest.mark.parametrize("regions", [("prefix",), ("postfix",), ("query", "prefix")])
def test_patching_from_adapter_off_base_and_library_agree(
    folder: Path, treft: Command, regions: tuple[Any, ...]
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tuned = AutoModelForCausalLM.from_pretrained(folder / "tuned").eval()
    repaired = patch(tuned, tokenizer, regions, reference=base)
    questions = [row["messages"] for row in user(*WORDS)]
    expected = repaired.generate(questions, max_new_tokens=6, do_sample=False)
    asked = ("--input", folder / "rows.jsonl", *SHORT, "--json")
    chosen = [part for region in regions for part in ("--patch", region)]
    plain = treft("generate", "--model", folder / "tuned", *asked).json
    for origin in (
        ("--model", folder / "adapter"),
        ("--model", folder / "adapter", "--base", folder / "base"),
        ("--model", folder / "tuned", "--base", folder / "base"),
    ):
        result = treft("generate", *origin, *chosen, *asked).json
        assert result["patched"] == list(regions)
        assert [record["answer"] for record in result["answers"]] == expected
        assert result["answers"] != plain["answers"]
    joined = treft("generate", *origin, "--patch", ",".join(regions), *asked).json
    assert joined == result


def test_a_base_saved_in_another_precision_is_run_in_the_models_own(
    folder: Path, treft: Command
) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    base.bfloat16().float().save_pretrained(folder / "base")
    asked = ("--model", folder / "tuned", "--base", folder / "base", "--patch", "prefix")
    asked = ("generate", *asked, "--prompt", WORDS[1], *SHORT)
    expected = treft(*asked).out
    base.bfloat16().save_pretrained(folder / "base")
    assert treft(*asked).out == expected


def test_the_json_object_is_all_of_stdout(folder: Path, treft: Command) -> None:
    model, rows = folder / "base", folder / "rows.jsonl"
    result = treft("generate", "--model", model, "--input", rows, *SHORT, "--json").json
    assert [record["messages"] for record in result["answers"]] == [
        row["messages"] for row in user(*WORDS)
    ]  # an answer that ended a row is gone
    assert [(record["row"], record["sample"]) for record in result["answers"]] == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    del result["answers"]
    assert result == {
        "command": "generate",
        "model": str(model),
        "adapter": None,
        "patched": [],
        "base": None,
        "reference": None,
        "max_new_tokens": 6,
        "temperature": 0.0,
        "top_p": 1.0,
        "num_samples": 1,
        "seed": 0,
        "output": None,
    }


def test_several_prompts_are_shown_with_their_answers(folder: Path, treft: Command) -> None:
    asked = ("generate", "--model", folder / "base", "--input", folder / "rows.jsonl", *SHORT)
    answers = [record["answer"] for record in treft(*asked, "--json").json["answers"]]
    shown = treft(*asked).out
    for words, answer in zip(WORDS, answers, strict=True):
        assert f"> {words}\n{answer}\n" in shown


def test_samples_repeat_with_their_seed_and_differ_otherwise(folder: Path, treft: Command) -> None:
    asked = ("generate", "--model", folder / "base", "--input", folder / "rows.jsonl", *SHORT)
    drawn = (*asked, "--temperature", 1, "--num-samples", 3, "--json")
    records = treft(*drawn).json["answers"]
    assert [(record["row"], record["sample"]) for record in records] == [
        (row, sample) for row in (1, 2, 3) for sample in (1, 2, 3)
    ]
    assert len({record["answer"] for record in records}) == 9
    assert treft(*drawn).json["answers"] == records
    assert treft(*drawn, "--seed", 1).json["answers"] != records


def test_system_template_and_its_variables_reach_the_prompt(folder: Path, treft: Command) -> None:
    (folder / "t.jinja").write_text(
        "{{ mood }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    )
    asked = ("generate", "--model", folder / "base", "--prompt", WORDS[0], *SHORT)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    text = f"calm[system]Be kind.[user]{WORDS[0]}[assistant]"
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rendering = ("--template", folder / "t.jinja", "--template-kwargs", '{"mood": "calm"}')
    told = treft(*asked, "--system", "Be kind.", *rendering)
    assert told.out == expected + "\n"


def test_rows_with_different_tools_each_get_theirs(
    folder: Path, treft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def schema(name: str) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": name, "parameters": {}}}]

    rows = user(*WORDS)
    rows[0]["tools"] = schema("first")
    rows[1]["tools"] = schema("second")
    (folder / "tools.json").write_text(json.dumps(schema("third")))
    seen = []
    generate = RepairedModel.generate

    def watched(self: RepairedModel, conversations: Any, **options: Any) -> list[str]:
        seen.append(options["tools"])
        return generate(self, conversations, **options)

    monkeypatch.setattr(RepairedModel, "generate", watched)
    told = treft(
        "generate", "--model", folder / "base", "--input", write_rows(folder / "t.jsonl", rows),
        "--tools", folder / "tools.json", "--template", TEMPLATES / "qwen2_5.jinja", *SHORT,
        "--json",
    )  # fmt: skip
    assert len(told.json["answers"]) == 3
    assert [tools[0]["function"]["name"] for tools in seen] == ["first", "second", "third"]


def test_output_holds_one_row_an_answer(folder: Path, treft: Command) -> None:
    asked = ("generate", "--model", folder / "base", "--input", folder / "rows.jsonl", *SHORT)
    expected = treft(*asked, "--json").json["answers"]
    output = folder / "new" / "answers.jsonl"
    told = treft(*asked, "--output", output)
    assert told.out == ""
    assert f"3 answers in {output}" in told.err
    assert read_rows(output) == expected
    assert [path.name for path in output.parent.iterdir()] == ["answers.jsonl"]
    again = treft("generate", "--model", folder / "base", "--input", output, *SHORT, "--json")
    assert again.json["answers"] == expected  # answers can be asked again


def test_output_is_not_overwritten_unasked(folder: Path, treft: Command, refused: Refused) -> None:
    (folder / "out.jsonl").write_text("precious")
    asked = ("generate", "--model", folder / "base", "--prompt", "Hi", *SHORT)
    assert "--overwrite" in refused(*asked, "--output", folder / "out.jsonl")
    assert (folder / "out.jsonl").read_text() == "precious"
    treft(*asked, "--output", folder / "out.jsonl", "--overwrite")
    assert len(read_rows(folder / "out.jsonl")) == 1
    assert "folder" in refused(*asked, "--output", folder / "base", "--overwrite")
    assert "cannot be written" in refused(*asked, "--output", folder / "out.jsonl" / "x")
