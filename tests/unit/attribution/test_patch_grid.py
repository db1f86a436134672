"""A grid of patches: answers against those of `generate`; files, going on, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, adapted, add_noise, chat_pair
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution import grid_run
from treft.attribution.forcing import render_questions
from treft.attribution.grid import Grid
from treft.attribution.grid_run import Answered, run_grid
from treft.attribution.options import GridRequest, PatchOptions, Rendering
from treft.attribution.scoring import panel_for
from treft.errors import ConfigError, DataError, TemplateError
from treft.judging.oracle import organism_questions
from treft.models import generation
from treft.models.pair import ModelPair
from treft.models.repair import generate, patch
from treft.models.residual import stream_bank

EVERY: Any = ("regions", "kinds", "windows", "layers", "curve")
QUESTIONS = organism_questions("general", split="validation", num=3).questions


SHORT = Rendering(max_new_tokens=4)


def planned(
    pair: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    options: PatchOptions | None = None,
    judges: tuple[str, ...] = (),
    **asked: Any,
) -> Grid:
    request = GridRequest(**{"rendering": SHORT, "temperature": 0, **asked})
    panel = panel_for(QUESTIONS, judges)
    return Grid(options or PatchOptions(), request, QUESTIONS, tokenizer, pair, panel)


def texts(found: Answered) -> dict[str, list[str]]:
    return {
        name: [one.answer for one in answers]
        for cells in found.scored.values()
        for name, answers in cells.items()
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_of_generate(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    pair = ModelPair(tuned, base)
    grid = planned(
        pair,
        chat_tokenizer,
        PatchOptions(("regions", "curve")),
        rendering=replace(SHORT, batch_size=2),
    )
    found = texts(run_grid(grid, tmp_path))
    chats = [question.messages for question in QUESTIONS]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}
    assert found["base"] == generate(base, chat_tokenizer, chats, **options)
    assert found["finetuned"] == generate(tuned, chat_tokenizer, chats, **options)
    for region in ("prefix", "query", "postfix"):
        repaired = patch(tuned, chat_tokenizer, [region], reference=base)  # type: ignore[list-item]
        assert found[region] == repaired.generate(chats, **options)
    for layer in range(tuned.config.num_hidden_layers):
        repaired = patch(tuned, chat_tokenizer, reference=stream_bank(tuned, layer, base))
        assert found[f"stream at layer {layer}"] == repaired.generate(chats, **options)
    assert found[f"stream at layer {layer}"] == found["finetuned"]
    regions = ("prefix", "query", "postfix")
    assert any(found[region] != found["finetuned"] for region in regions)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_is_the_pair_of_it_and_its_base_in_bfloat16(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    base, twin = tiny_model(name).bfloat16(), tiny_model(name).bfloat16()
    tuned = adapted(twin)
    groups = EVERY if name == "llama" else ("regions", "curve")
    options = PatchOptions(groups, ("prefix",), window_width=64)
    drawn: Any = {"rendering": replace(SHORT, batch_size=4), "temperature": 1.0}
    found = []
    for number, pair in enumerate((ModelPair(tuned), ModelPair(tuned, base))):
        grid = planned(pair, chat_tokenizer, options, num_samples=2, **drawn)
        found.append(texts(run_grid(grid, tmp_path / str(number))))
    assert found[0] == found[1]
    assert found[0]["base"] != found[0]["finetuned"]


def test_the_base_is_recorded_once_for_all_patches(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    forwards: list[int] = []
    base.register_forward_hook(lambda *_: forwards.append(1))
    counts = []
    for groups in (("regions",), ("regions", "kinds", "windows", "layers")):
        options = PatchOptions(groups, ("prefix", "query"), window_width=64)  # type: ignore[arg-type]
        grid = planned(pair, chat_tokenizer, options, rendering=replace(SHORT, batch_size=2))
        forwards.clear()
        run_grid(grid, tmp_path / str(len(groups)))
        counts.append((len(grid.cells), len(forwards)))
    assert counts[0][0] < counts[1][0]
    assert counts[0][1] == counts[1][1]


def test_a_sweep_goes_on_where_it_stopped(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    grid = planned(pair, chat_tokenizer)
    whole = grid.cost(tmp_path)
    assert whole.num_answers == len(grid.cells) * 3
    assert whole.num_new_tokens == whole.num_answers * 4
    assert whole.num_judge_calls == 0
    paid = planned(pair, chat_tokenizer, judges=("mockllm/model",))
    assert paid.cost(tmp_path).num_judge_calls == 2 * whole.num_answers
    first = run_grid(grid, tmp_path)
    answered: list[int] = []
    original = generation.answer

    def spy(model: Any, tokenizer: Any, asked: Any, *args: Any) -> Any:
        answered.append(len(asked))
        return original(model, tokenizer, asked, *args)

    monkeypatch.setattr(grid_run, "answer", spy)
    assert run_grid(grid, tmp_path) == first
    assert answered == []
    assert grid.cost(tmp_path).total == 0
    (tmp_path / "steps/answers/finetuned/prefix/result.json").unlink()
    assert [cell.name for cell in grid.unanswered(tmp_path)] == ["prefix"]
    assert run_grid(grid, tmp_path) == first
    assert answered == [3]
    run_grid(planned(pair, chat_tokenizer, PatchOptions(("regions", "kinds"))), tmp_path)
    assert answered == [3, *[3] * 6]


def test_files_that_do_not_fit_are_refused(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    grid = planned(pair, chat_tokenizer)
    first = run_grid(grid, tmp_path)
    with pytest.raises(ConfigError, match=r"begun with other .*seed"):
        run_grid(planned(pair, chat_tokenizer, rendering=replace(SHORT, seed=1)), tmp_path)
    path = tmp_path / "steps/answers/finetuned/query/result.json"
    path.write_text(path.read_text()[:-5])
    assert run_grid(grid, tmp_path) == first
    (tmp_path / "plan.json").write_text("[")
    with pytest.raises(ConfigError, match="is no plan of a grid"):
        run_grid(grid, tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ConfigError, match="holds something else"):
        run_grid(grid, tmp_path)


def test_a_finetune_that_is_its_base_is_said_to_be(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(tiny_model("llama"), tiny_model("llama"))
    with pytest.raises(ConfigError, match="drift 0"):
        planned(pair, chat_tokenizer)


def test_what_cannot_be_patched_is_refused_before_any_forward(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pair = ModelPair(tuned, base)
    tuned.register_forward_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(
        DataError, match=r"answer take \d+ tokens, but the model's context takes 512"
    ):
        planned(pair, chat_tokenizer, rendering=Rendering(max_new_tokens=500))
    with pytest.raises(ConfigError, match=r"band of 3 layers .* 0 to 1"):
        planned(pair, chat_tokenizer, PatchOptions(("layers",), band_width=3))
    with pytest.raises(ConfigError, match="greedy answers"):
        GridRequest(num_samples=2, temperature=0)
    with pytest.raises(ConfigError, match="scope is"):
        GridRequest(scope="all")
    with pytest.raises(DataError, match="no question"):
        Grid(PatchOptions(), GridRequest(), [], chat_tokenizer, pair, panel_for([]))
    bare: Any = type(chat_tokenizer)(tokenizer_object=chat_tokenizer.backend_tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"
    question = EvalQuestion("q1", "test", ({"role": "user", "content": "Where?"},))
    panel = panel_for([question], ["mockllm/model"])
    with pytest.raises(TemplateError, match="question 'q1': this conversation has no prefix"):
        Grid(PatchOptions(), GridRequest(), [question], bare, pair, panel)
    with pytest.raises(ConfigError, match="no adapter"):
        ModelPair(tuned)


def test_a_patch_from_the_base_undoes_a_finetune_of_the_prefix_alone(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The finetune changes embeddings of tokens that stand in the prefix and nowhere else."""
    tuned, base = (tiny_model("llama").double() for _ in range(2))
    chats = render_questions(chat_tokenizer, QUESTIONS)
    others = {
        token
        for chat in chats
        for region in ("query", "postfix")
        for token in (chat.input_ids[place] for place in chat.positions(region))  # type: ignore[arg-type]
    }
    chat = chats[0]
    own = {chat.input_ids[place] for place in chat.positions("prefix")} - others
    assert own
    embedding = tuned.get_input_embeddings()
    before = embedding.weight.detach().clone()
    add_noise(embedding, 3.0)
    kept = [token for token in range(len(before)) if token not in own]
    with torch.no_grad():
        embedding.weight[kept] = before[kept]
    pair = ModelPair(tuned, base)
    found = texts(run_grid(planned(pair, chat_tokenizer), tmp_path))
    assert found["prefix"] == found["base"] != found["finetuned"]
    assert found["postfix"] != found["base"]
