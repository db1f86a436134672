"""The bank records once, forgets what will not come again, and refuses what is not its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conversations import OTHER_PREFIX, conversation
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import PreTrainedModel

from treft.core.conversations import prefix_request
from treft.core.identity import Identity, identify
from treft.core.recording import RecordedStates, ReferenceRequest, record
from treft.core.reference import ReferenceBank
from treft.core.states import KeyValue
from treft.errors import ConfigError, DataError, ReferenceMismatchError

TinyModel = Callable[..., PreTrainedModel]
ONE = prefix_request(conversation(0))
TWO = prefix_request(conversation(0, prefix=OTHER_PREFIX))
IDENTITY = Identity(
    model_id="town/base",
    revision="abc",
    template_hash="1234",
    dtype="float32",
    structure="s",
    num_layers=1,
    weights="w",
    adapter="",
    transformers_version="5.23.0",
    treft_version="0.1.0",
)


class CountingSource:
    """A source whose states tell the request, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ReferenceRequest] = []

    def __call__(self, requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        self.asked += requests
        return [
            {0: KeyValue(ids.view(1, -1, 1), -ids.view(1, -1, 1))}
            for request in requests
            for ids in [torch.tensor(request.kept_ids, dtype=torch.float32)]
        ]


def request(token: int, num_tokens: int = 4) -> ReferenceRequest:
    return ReferenceRequest(
        (token,) * num_tokens, tuple(range(num_tokens)), tuple(range(num_tokens))
    )


def test_each_request_is_recorded_once_and_answered_in_order() -> None:
    source = CountingSource()
    bank = ReferenceBank(source)
    found = bank.get([request(5), request(6), request(5)])
    assert [states[0].key[0, 0, 0].item() for states in found] == [5, 6, 5]
    bank.get([request(6)])
    assert source.asked == [request(5), request(6)]


def test_looking_up_keeps_nothing() -> None:
    source = CountingSource()
    bank = ReferenceBank(source)
    bank.look_up([request(5)])
    bank.look_up([request(5)])
    assert source.asked == [request(5)] * 2
    assert len(bank) == 0


def test_least_recently_used_requests_are_forgotten_but_pinned_ones_never() -> None:
    source = CountingSource()
    bank = ReferenceBank(source, max_tokens=8)
    bank.pin([request(1)])
    bank.get([request(2)])
    bank.get([request(3)])
    bank.get([request(2)])
    bank.get([request(4)])
    assert list(bank) == [request(1), request(2), request(4)]
    bank.get([request(7, num_tokens=50)])
    assert list(bank) == [request(1), request(7, num_tokens=50)]


def test_missing_request_without_source_says_what_and_how() -> None:
    bank = ReferenceBank()
    with pytest.raises(ReferenceMismatchError, match=r"4 tokens that start \[5, 5, 5, 5\].*record"):
        bank.get([request(5)])


def test_file_gives_back_every_bit(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    bank = ReferenceBank(lambda requests: record(model, requests), identify(model, "1234"))
    bank.get([ONE])
    bank.pin([TWO])
    path = tmp_path / "deep" / "reference.safetensors"
    bank.save(path)
    loaded = ReferenceBank.load(path)
    assert set(loaded) == {ONE, TWO}
    loaded.check(identify(model, "1234"))
    for mine, theirs in zip(loaded.get([ONE, TWO]), bank.get([ONE, TWO]), strict=True):
        assert list(mine) == list(theirs)
        for layer in mine:
            assert torch.equal(mine[layer].key, theirs[layer].key)
            assert torch.equal(mine[layer].value, theirs[layer].value)
    assert [entry.name for entry in path.parent.iterdir()] == ["reference.safetensors"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    bank = ReferenceBank(CountingSource(), IDENTITY)
    bank.pin([request(5)])
    path = tmp_path / "reference.safetensors"
    bank.save(path)
    bank.pin([request(6)])
    with pytest.raises(ConfigError, match="exists"):
        bank.save(path)
    assert len(ReferenceBank.load(path)) == 1
    bank.save(path, overwrite=True)
    assert len(ReferenceBank.load(path)) == 2


def test_only_an_identified_reference_is_saved(tmp_path: Path) -> None:
    bank = ReferenceBank(CountingSource())
    bank.pin([request(5)])
    with pytest.raises(ConfigError, match="identity"):
        bank.save(tmp_path / "reference.safetensors")
    with pytest.raises(ReferenceMismatchError, match="which model"):
        bank.check(IDENTITY)


def test_files_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(DataError, match=r"file\.safetensors cannot be read"):
        ReferenceBank.load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(DataError, match="cannot be read"):
        ReferenceBank.load(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(DataError, match="no treft reference"):
        ReferenceBank.load(path)
    save_file({"x": torch.ones(1)}, path, metadata={"treft": '{"format": 99}'})
    with pytest.raises(DataError, match="format 99"):
        ReferenceBank.load(path)
    save_file({"x": torch.ones(1)}, path, metadata={"treft": '{"format": 1, "identity": {}}'})
    with pytest.raises(DataError, match="damaged"):
        ReferenceBank.load(path)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Identity)])
def test_every_difference_of_identity_is_named(name: str) -> None:
    bank = ReferenceBank(identity=IDENTITY)
    other: object = 7 if name == "num_layers" else "9.9"
    changed = dataclasses.replace(IDENTITY, **{name: other})
    bank.check(IDENTITY)
    with pytest.raises(ReferenceMismatchError, match=rf"{name}: .*not {other}.*Record it again"):
        bank.check(changed)
    bank.check(changed, ignore=[name])


def test_patch_releases_are_not_a_difference() -> None:
    changed = dataclasses.replace(IDENTITY, transformers_version="5.23.4")
    ReferenceBank(identity=IDENTITY).check(changed)


def test_an_adapter_does_not_change_who_the_base_is(any_model: PreTrainedModel) -> None:
    plain = identify(any_model)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(any_model, config)
    assert identify(model).differences(plain) == []
    with_adapter = identify(model, adapter="default")
    assert [entry.split(":")[0] for entry in with_adapter.differences(plain)] == ["adapter"]


def test_weights_and_structure_tell_models_apart(tiny_model: TinyModel) -> None:
    plain = identify(tiny_model("llama"))
    trained = tiny_model("llama")
    with torch.no_grad():
        trained.model.layers[1].self_attn.k_proj.weight.add_(1e-3)
    differences = identify(trained).differences(plain)
    assert [entry.split(":")[0] for entry in differences] == ["weights"]
    low = [entry.split(":")[0] for entry in identify(trained.bfloat16()).differences(plain)]
    assert low == ["dtype", "weights"]
    windowed = identify(tiny_model("mistral")).differences(identify(tiny_model("mistral", seed=1)))
    assert [entry.split(":")[0] for entry in windowed] == ["weights"]


def test_a_renamed_folder_is_the_same_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    (tmp_path / "base").mkdir()
    model.config._name_or_path = str(tmp_path / "base")
    assert identify(model).model_id == "base"
    model.config._name_or_path = "town/base"
    assert identify(model).model_id == "town/base"
