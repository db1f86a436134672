"""Attribution of models whose weights lie elsewhere: partly on disk, or quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from finetuned import adapted, pair
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from treft.attribution.diagnose import diagnose
from treft.attribution.diagnosis_plan import DiagnoseOptions, DiagnosisPlan, Subject
from treft.attribution.drift_map import drift_map
from treft.attribution.grid import Grid
from treft.attribution.grid_run import run_grid
from treft.attribution.margins import AnswerPair, margins
from treft.attribution.options import (
    GridRequest,
    PatchOptions,
    Perturbation,
    PerturbOptions,
    Rendering,
)
from treft.attribution.scoring import panel_for
from treft.attribution.weights import adapter_scales
from treft.chat.regions import find_regions
from treft.core.conversations import region_requests
from treft.core.identity import identify
from treft.core.offloading import is_offloaded, weights_at_hand
from treft.core.patch_spec import PatchSpec
from treft.core.recording import record
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError
from treft.judging.oracle import organism_questions
from treft.models.loading import LoadOptions, load_model
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel

TinyModel = Callable[..., Any]
QUESTIONS = organism_questions("general", split="validation", num=2).questions
SHORT = Rendering(max_new_tokens=4, batch_size=2)
PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
SPECS = [PatchSpec("prefix", ("prefix",)), PatchSpec("values", ("query",), kinds=("value",))]


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def full_pair(tiny_model: TinyModel, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a finetune of all weights and of its base."""
    tuned, base = pair(tiny_model, "llama", num_hidden_layers=3)
    return saved(tuned.float(), tmp_path / "tuned"), saved(base.float(), tmp_path / "base")


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def on_disk(folder: Path, off: Path) -> Any:
    """A layer and the head lie on disk and come to the processor for their forward."""
    model = load(folder, device_map=PLACES, offload_folder=str(off))
    assert is_offloaded(model)
    return model


def answers(pair: ModelPair, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, Any]:
    """What a sweep over everything and a perturbation say."""
    groups: Any = ("regions", "kinds", "windows", "layers", "curve")
    asked = (GridRequest(SHORT, temperature=0), QUESTIONS, tokenizer, pair, panel_for(QUESTIONS))
    sweep = Grid(PatchOptions(groups, ("prefix",), window_width=64), *asked)
    pairs = (Perturbation("prefix"), Perturbation("query", "random"))
    drawn = (GridRequest(SHORT), *asked[1:])
    perturbed = Grid(PerturbOptions(pairs, num_tokens=2, num_trials=2), *drawn)
    found: dict[str, Any] = {}
    for grid, name in ((sweep, "sweep"), (perturbed, "perturbed")):
        for arm, cells in run_grid(grid, folder / name).scored.items():
            for cell, scored in cells.items():
                found[f"{arm}/{cell}"] = sorted((one.question_id, one.answer) for one in scored)
    return found


def signals(pair: ModelPair, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Margins under patches, and drift by layer and token."""
    tuned, bank = pair.finetuned, ReferenceBank(pair.source)
    pairs = [AnswerPair(question, "The bank is near.", "No.") for question in QUESTIONS]
    patched = [RepairedModel(tuned, tokenizer, bank, spec) for spec in SPECS]
    found = margins(pair, tokenizer, pairs, patched, Rendering(batch_size=2))
    chats = [
        find_regions(tokenizer, question.messages, add_generation_prompt=True)
        for question in QUESTIONS
    ]
    drift = drift_map(tuned, tokenizer, bank, chats)
    return {"finetuned": found.finetuned, **found.patched, "drift": drift.region("prefix").value}


def assert_same(found: ModelPair, expected: ModelPair, tokenizer: Any, folder: Path) -> None:
    """Every figure of a pair of models that lie elsewhere is that of the same in memory."""
    whole = answers(expected, tokenizer, folder / "whole")
    assert len({str(answer) for answer in whole.values()}) > 5  # patches do something
    assert answers(found, tokenizer, folder / "elsewhere") == whole
    moved = signals(found, tokenizer)
    for name, values in signals(expected, tokenizer).items():
        np.testing.assert_allclose(moved[name], values, atol=1e-5)
        assert np.abs(values).max() > 1e-3


def test_layers_on_disk_change_nothing(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folders = full_pair(tiny_model, tmp_path)
    parted = (on_disk(folder, tmp_path / f"off-{folder.name}") for folder in folders)
    assert_same(ModelPair(*parted), ModelPair(*map(load, folders)), chat_tokenizer, tmp_path)


def test_an_adapter_on_a_base_with_layers_on_disk_changes_nothing(
    tiny_model: TinyModel,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `--device auto` loads what does not fit; the adapter's weights follow their layers."""
    _, base = full_pair(tiny_model, tmp_path)
    chat_tokenizer.save_pretrained(base)
    expected = adapted(load(base))
    adapter = str(saved(expected, tmp_path / "adapter"))
    kept = {path.name for path in Path(adapter).iterdir()}
    off = {"device_map": PLACES, "offload_folder": str(tmp_path / "off")}
    monkeypatch.setattr("treft.models.loading._placement", lambda options: off)
    monkeypatch.chdir(tmp_path / "adapter")
    found, _ = load_model(str(base), adapter, LoadOptions(device="auto"))
    assert is_offloaded(found)
    assert {path.name for path in Path().iterdir()} == kept  # no copy of the base is written
    assert_same(ModelPair(found), ModelPair(expected), chat_tokenizer, tmp_path)
    assert adapter_scales(found) == adapter_scales(expected)
    deeper = saved(adapted(tiny_model("llama", num_hidden_layers=4)), tmp_path / "deeper")
    with pytest.raises(ConfigError, match="14 weights are missing or have no place"):
        load_model(str(base), str(deeper), LoadOptions(device="auto", allow_other_base=True))


def test_a_diagnosis_of_layers_on_disk_is_that_of_the_same_in_memory(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Sizes of weights too, which no forward brings to memory."""
    folders = full_pair(tiny_model, tmp_path)
    parted = (on_disk(folder, tmp_path / f"off-{folder.name}") for folder in folders)
    options = DiagnoseOptions(request=GridRequest(SHORT))
    expected, found = (
        diagnose(
            DiagnosisPlan.of(Subject(pair, chat_tokenizer, QUESTIONS), tmp_path / name, options)
        )
        for name, pair in (
            ("whole", ModelPair(*map(load, folders))),
            ("parted", ModelPair(*parted)),
        )
    )
    assert found.diagnosis.loss == pytest.approx(expected.diagnosis.loss, abs=1e-5)
    assert found.samples == expected.samples
    assert expected.samples
    for layer, other in zip(found.adapter, expected.adapter, strict=True):
        assert layer.delta_norms == other.delta_norms
        assert layer.drift == pytest.approx(other.drift, abs=1e-5)
        assert min(layer.delta_norms.values()) > 0


def test_a_base_whose_embedding_is_on_disk_is_refused(
    tiny_model: TinyModel,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = saved(tiny_model("llama", num_hidden_layers=3), tmp_path / "base")
    chat_tokenizer.save_pretrained(folder)
    places = {**PLACES, "model.embed_tokens": "disk"}
    off = {"device_map": places, "offload_folder": str(tmp_path / "off")}
    monkeypatch.setattr("treft.models.loading._placement", lambda options: off)
    with pytest.raises(ConfigError, match="input embedding"):
        load_model(str(folder), None, LoadOptions(device="auto"))


def test_weights_that_nothing_brings_are_refused(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    with weights_at_hand(model):
        assert not is_offloaded(model)
    lost = tiny_model("llama").to("meta")
    with pytest.raises(ConfigError, match="no hook of Accelerate brings them"):
        adapter_scales(model, lost)


def test_an_adapter_on_a_dispatched_base_changes_nothing(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Accelerate's hooks around each layer, as on several devices; here all are the processor."""
    base = saved(tiny_model("llama"), tmp_path / "base")
    places = {name: "cpu" for name, _ in load(base).named_modules() if name.count(".") <= 2}
    hooked = dispatch_model(load(base), places, main_device="cpu", force_hooks=True)
    assert hasattr(hooked.get_decoder().layers[1], "_hf_hook")
    pairs = (ModelPair(adapted(model)) for model in (hooked, load(base)))
    assert_same(*pairs, chat_tokenizer, tmp_path)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_bases_can_be_attributed(
    bits: int, tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The sweep's own control passes: its own keys and values change nothing, the base's much."""
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}  # blocks of 64 weights
    base = saved(tiny_model("llama", **wide), tmp_path / "base")
    config = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.float32
    )
    quantised = load(base, quantization_config=config, device_map={"": "cpu"})
    assert quantised.is_quantized
    tuned = ModelPair(adapted(quantised))
    found = answers(tuned, chat_tokenizer, tmp_path)
    assert len({str(answer) for answer in found.values()}) > 5
    every = signals(tuned, chat_tokenizer)
    assert all(np.isfinite(values).all() for values in every.values())
    assert np.abs(every["prefix"] - every["finetuned"]).max() > 1e-3


def test_a_reference_recorded_in_memory_serves_layers_on_disk_and_no_other_model(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its states are the same either way, and so is whose they are."""
    tuned, base = full_pair(tiny_model, tmp_path)
    whole, parted = load(base), on_disk(base, tmp_path / "off")
    chat = find_regions(chat_tokenizer, QUESTIONS[0].messages, add_generation_prompt=True)
    (request,) = region_requests(chat, "prefix")
    recorded, again = (record(model, [request])[0] for model in (whole, parted))
    for layer, states in recorded.items():
        torch.testing.assert_close(states, again[layer])
    assert identify(parted).weights == identify(whole).weights
    assert identify(parted).weights != identify(on_disk(tuned, tmp_path / "other")).weights
