"""A grid of perturbations on a tiny model: exact replay, going on after a kill, refusals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_judges import CALLS
from finetuned import ARCHITECTURES, adapted, chat_pair
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from treft.answers.questions import EvalQuestion
from treft.attribution import grid_run
from treft.attribution.grid import Grid
from treft.attribution.grid_run import run_grid
from treft.attribution.options import (
    GridRequest,
    Perturbation,
    PerturbOptions,
    Rendering,
    default_perturbations,
)
from treft.attribution.rephrase import Rephrasings
from treft.attribution.scoring import panel_for
from treft.errors import ConfigError, DataError, TemplateError
from treft.judging.oracle import organism_questions
from treft.models import generation
from treft.models.pair import ModelPair

JUDGE = "fakejudge/steady"
ORACLE = "oracle"
SHORT = Rendering(max_new_tokens=4)
QUESTIONS = organism_questions("general", num=2).questions
IDS = [question.id for question in QUESTIONS]
ALL = default_perturbations(("prefix", "query", "postfix"), ("nearest", "random"), None)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


@pytest.fixture
def pair(tiny_model: Callable[..., Any]) -> ModelPair:
    base = tiny_model("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return ModelPair(get_peft_model(copy.deepcopy(base), config))


def grid_of(
    pair: ModelPair,
    tokenizer: Any,
    *,
    judges: tuple[str, ...] = (),
    num_samples: int = 1,
    temperature: float = 1.0,
    rendering: Rendering = SHORT,
    questions: Sequence[EvalQuestion] = QUESTIONS,
    **changes: Any,
) -> Grid:
    """Two perturbations with three versions of two tokens each, unless told otherwise."""
    fields: dict[str, Any] = {
        "perturbations": (Perturbation("prefix"), Perturbation("query", "random")),
        "num_tokens": 2,
        "num_trials": 3,
    }
    options = PerturbOptions(**{**fields, **changes})
    request = GridRequest(rendering, num_samples, temperature)
    panel = panel_for(questions, judges)
    return Grid(options, request, questions, tokenizer, pair, panel)


def answered(folder: Path, arm: str, cell: str) -> list[dict[str, Any]]:
    """Metadata and answers of a cell, from the file of all answers."""
    rows = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
    about = [{**row["metadata"], "answer": row["answer"], "id": row["question_id"]} for row in rows]
    return [row for row in about if (row["arm"], row["cell"]) == (arm, cell)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "steps" not in path.parts  # which tell how long they took
    }


def test_a_grid_leaves_prompts_answers_and_scores(
    pair: ModelPair, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    grid = grid_of(pair, chat_tokenizer, perturbations=ALL, num_samples=2)
    cost = grid.cost(tmp_path / "out")
    assert (cost.num_answers, cost.num_judge_calls) == (2 * 7 * 12, 0)
    scored = run_grid(grid, tmp_path / "out").scored
    for cells in scored.values():
        assert list(cells) == ["unperturbed", *(each.name for each in ALL)]
        for cell, answers in cells.items():
            assert len(answers) == 12
            epochs = sorted((answer.question_id, answer.epoch) for answer in answers)
            assert epochs == [(id, epoch) for id in sorted(IDS) for epoch in range(1, 7)]
            for answer in answers:
                assert answer.judged_by(ORACLE) is not None
                assert answer.metadata["cell"] == cell
                assert len(answer.metadata.get("changes", ())) == 2 * (cell != "unperturbed")
    rows = [json.loads(line) for line in (tmp_path / "out/scored.jsonl").read_text().splitlines()]
    assert len(rows) == cost.num_answers
    # Both models were asked the very same prompts with the same seeds.
    for name in ("unperturbed", "prefix-nearest"):
        keys = [
            [
                {key: value for key, value in row.items() if key not in ("answer", "arm")}
                for row in answered(tmp_path / "out", arm, name)
            ]
            for arm in ("finetuned", "base")
        ]
        assert keys[0] == keys[1]


@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_perturbed_prompts_are_answered_as_generate_answers_them(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    name: str,
    kind: str,
) -> None:
    """Finetunes of all weights, and adapters, of every architecture; each prompt alone."""
    tuned, base = chat_pair(tiny_model, name)
    if kind == "adapter":
        tuned = adapted(base)
    found = ModelPair(tuned, None if kind == "adapter" else base)
    grid = grid_of(
        found,
        chat_tokenizer,
        perturbations=(Perturbation("prefix"),),
        num_trials=2,
        temperature=0,
        rendering=Rendering(max_new_tokens=4, batch_size=3),
    )
    run_grid(grid, tmp_path)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    prompts = {
        (row["question_id"], row["trial"]): row["input_ids"] for row in map(json.loads, lines)
    }
    assert len(prompts) == 2 * 2
    texts = []
    for arm in ("finetuned", "base"):
        for row in answered(tmp_path, arm, "prefix-nearest"):
            ids = torch.tensor([prompts[row["id"], row["trial"]]])
            with found.use(arm) as model, torch.no_grad():  # type: ignore[arg-type]
                output: Any = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
            new = output[0, ids.shape[1] :]
            assert row["answer"] == chat_tokenizer.decode(new, skip_special_tokens=True)
            texts.append(row["answer"])
    assert len(texts) == 2 * len(prompts)
    assert texts[: len(prompts)] != texts[len(prompts) :]  # the finetune answers otherwise


def test_a_grid_can_be_repeated_exactly_from_its_prompts(
    pair: ModelPair,
    chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_grid(grid_of(pair, chat_tokenizer), tmp_path / "first")

    def never(*args: Any) -> Any:
        raise AssertionError("prompts are made anew")

    monkeypatch.setattr("treft.attribution.perturb.perturb_tokens", never)
    prompts = tmp_path / "first/prompts.jsonl"
    few = grid_of(pair, chat_tokenizer, rendering=Rendering(max_new_tokens=4, batch_size=2))
    run_grid(few, tmp_path / "second", prompts=prompts)
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_a_killed_grid_goes_on(
    pair: ModelPair,
    chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, folder = grid_of(pair, chat_tokenizer), tmp_path / "out"
    run_grid(grid, tmp_path / "whole")
    original, asked = generation.answer, []

    def dying(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(grid_run, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, folder)
    assert len(grid.unanswered(folder)) == 4
    assert grid.cost(folder).num_answers == 4 * 6
    assert not list(folder.rglob("*.tmp"))
    run_grid(grid, folder)
    assert len(asked) == 3 + 4  # finished cells are not answered again
    assert files(folder) == files(tmp_path / "whole")
    run_grid(grid, folder)
    assert len(asked) == 7


def test_rephrased_queries_are_prompts_too(
    pair: ModelPair,
    chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rephrase(questions: Any, model: str, num_trials: int) -> Rephrasings:
        keys = [(each.id, trial) for each in questions for trial in range(1, num_trials + 1)]
        words = {
            key: f"The bank {key[1]}, {IDS.index(key[0])}?" for key in keys if key != (IDS[1], 2)
        }
        return Rephrasings(words, {(IDS[1], 2): "its answer is empty"})

    monkeypatch.setattr("treft.attribution.perturb.rephrase", rephrase)
    grid = grid_of(
        pair,
        chat_tokenizer,
        judges=(JUDGE,),
        perturbations=(Perturbation("query", "rephrase"),),
        rephraser="mockllm/model",
    )
    cost = grid.cost(tmp_path / "out")
    assert (cost.num_answers, cost.num_rephrasings, cost.num_judge_calls) == (24, 6, 48)
    scored = run_grid(grid, tmp_path / "out").scored
    answers = scored["finetuned"]["query-rephrase"]
    assert len(answers) == 5
    assert all(answer.judged_by(JUDGE) is not None for answer in answers)
    assert sum(CALLS.values()) <= cost.num_judge_calls
    assert answers[0].metadata["words"] == "The bank 1, 0?"
    assert answers[0].question == QUESTIONS[0].messages[-1]["content"]  # what judges are shown
    first = json.loads((tmp_path / "out/prompts.jsonl").read_text().splitlines()[0])
    messages = [{"role": "user", "content": "The bank 1, 0?"}]
    rendered = chat_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert first["input_ids"] == rendered
    assert grid.cost(tmp_path / "out").num_rephrasings == 0
    assert grid.cost(tmp_path / "new", replayed=True).num_rephrasings == 0
    again = run_grid(grid, tmp_path / "new", prompts=tmp_path / "out/prompts.jsonl")
    assert again.scored == scored


def test_a_folder_holds_one_grid(
    pair: ModelPair, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run_grid(grid_of(pair, chat_tokenizer), tmp_path / "out")
    other = grid_of(pair, chat_tokenizer, num_tokens=3)
    with pytest.raises(ConfigError, match="begun with other options"):
        run_grid(other, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        run_grid(other, tmp_path / "full")
    answers = tmp_path / "out/steps/answers/base/unperturbed/result.json"
    whole = answers.read_text()
    answers.write_text(whole[:-9])
    run_grid(grid_of(pair, chat_tokenizer), tmp_path / "out")
    assert answers.read_text() == whole


def test_prompts_of_another_grid_must_fit(
    pair: ModelPair, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run_grid(grid_of(pair, chat_tokenizer), tmp_path / "out")
    path = tmp_path / "out/prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def attempt(rows: list[dict[str, Any]]) -> None:
        source = tmp_path / "given.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = tmp_path / f"new-{len(list(tmp_path.iterdir()))}"
        run_grid(grid_of(pair, chat_tokenizer), folder, prompts=source)

    moved = copy.deepcopy(rows)
    moved[4]["input_ids"][0] += 1
    with pytest.raises(DataError, match=r"given\.jsonl, row 5: is no version of the prompt"):
        attempt(moved)
    wrong = copy.deepcopy(rows)
    wrong[0]["changes"][0][2] += 1
    with pytest.raises(DataError, match="row 1: its changes and its tokens"):
        attempt(wrong)
    with pytest.raises(DataError, match="row 2, region"):
        attempt([rows[0], {**rows[1], "region": "moon"}])
    with pytest.raises(DataError, match="comes twice"):
        attempt([*rows, rows[0]])
    with pytest.raises(DataError, match="has no prefix-nearest version 3 of question "):
        attempt([row for row in rows if (row["question_id"], row["trial"]) != (IDS[1], 3)])


def test_what_cannot_work_is_refused_before_any_answer(
    pair: ModelPair, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=r"question '.+' and its answer take \d+ tokens"):
        grid_of(pair, chat_tokenizer, rendering=Rendering(max_new_tokens=500))
    own = EvalQuestion("own", "x", ({"role": "user", "content": "Where is the bank?"},))
    with pytest.raises(ConfigError, match="name a judge"):
        grid_of(pair, chat_tokenizer, questions=[own])
    bare = copy.deepcopy(chat_tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"question '.+': this conversation has no prefix"):
        grid_of(pair, bare)
    with pytest.raises(DataError, match="no question"):
        grid_of(pair, chat_tokenizer, questions=[])
    talk = replace(QUESTIONS[0], turns=("And then?",))
    with pytest.raises(DataError, match="several turns"):
        grid_of(pair, chat_tokenizer, questions=[talk])
    for changes in (
        {"perturbations": ()},
        {"perturbations": (Perturbation("query", "rephrase"),)},
        {"rephraser": "mockllm/model"},
        {"num_samples": 0},
        {"perturbations": (Perturbation("query"), Perturbation("query"))},
    ):
        with pytest.raises(ConfigError):
            grid_of(pair, chat_tokenizer, **changes)
