"""Models and tokenizers by name: what a name means, and which base an adapter belongs to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.errors import ConfigError, TemplateError
from treft.models import loading
from treft.models.loading import LoadOptions, load_model, load_tokenizer, model_path, torch_device

CPU = LoadOptions(device="cpu")


@pytest.fixture
def adapter(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    chat_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """An adapter on `base`, and `other` with the same shapes."""
    for name, seed in (("base", 0), ("other", 1)):
        tiny_model("llama", seed).save_pretrained(tmp_path / name)
        chat_tokenizer.save_pretrained(tmp_path / name)
    adapted = get_peft_model(tiny_model("llama", 0), LoraConfig(target_modules=["k_proj"]))
    assert isinstance(adapted, PeftModel)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def is_base(folder: Path, name: str, options: LoadOptions = CPU) -> bool:
    """Whether the adapter in `folder` is taken for one of the model `name`."""
    try:
        load_model(name, str(folder / "adapter"), options)
    except ConfigError as error:
        if "was trained on" not in str(error):
            raise
        return False
    return True


def test_an_adapter_belongs_to_the_base_it_names(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter.parent
    monkeypatch.chdir(folder)
    assert is_base(folder, str(folder / "base"))
    assert is_base(folder, "./base")  # the same folder by another name
    assert not is_base(folder, "other")
    assert is_base(folder, "other", LoadOptions(device="cpu", allow_other_base=True))


def test_a_copy_of_the_base_is_the_base(adapter: Path) -> None:
    folder = adapter.parent
    shutil.copytree(folder / "base", folder / "copy")
    assert is_base(folder, str(folder / "copy"))
    (folder / "elsewhere").mkdir()
    (folder / "other").rename(folder / "elsewhere" / "base")
    assert not is_base(folder, str(folder / "elsewhere" / "base"))  # the name alone proves nothing


def test_a_base_that_moved_goes_by_its_name(adapter: Path) -> None:
    folder = adapter.parent
    (folder / "elsewhere").mkdir()
    (folder / "base").rename(folder / "elsewhere" / "base")
    assert is_base(folder, str(folder / "elsewhere" / "base"))
    assert not is_base(folder, str(folder / "other"))


def test_the_adapters_tokenizer_goes_before_the_bases(
    adapter: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = adapter.parent
    base, template = str(folder / "base"), chat_tokenizer.chat_template
    assert load_tokenizer(str(adapter), CPU).chat_template == template
    assert load_tokenizer(str(adapter), CPU, "mine").chat_template == "mine"
    chat_tokenizer.save_pretrained(adapter)
    (adapter / "chat_template.jinja").write_text("the adapter's")
    assert load_tokenizer(str(adapter), CPU).chat_template == "the adapter's"
    assert load_tokenizer(base, CPU).chat_template == template
    assert load_tokenizer(base, CPU, adapter=str(adapter)).chat_template == "the adapter's"
    model, tokenizer = load_model(base, str(adapter), CPU)
    assert tokenizer.chat_template == "the adapter's"
    assert isinstance(model, PeftModel)
    assert not model.training
    (folder / "base" / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError, match="no chat template"):
        load_tokenizer(base, CPU)


def test_the_organism_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assets = tmp_path / "package" / "assets"
    monkeypatch.setattr(loading, "asset_path", lambda: assets)
    with pytest.raises(ConfigError, match="treft organism build"):
        model_path("organism")
    assets.mkdir(parents=True)
    (assets / "model.safetensors").touch()
    assert model_path("organism") == str(assets)
    (tmp_path / "organism").mkdir()
    assert model_path("organism") == "organism"  # as Transformers has it: a folder goes first


def test_paths_and_hub_ids(tmp_path: Path) -> None:
    assert model_path("gpt2") == "gpt2"
    assert model_path("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert model_path(str(tmp_path)) == str(tmp_path)
    for path in ("./nowhere", "/nowhere", "~/nowhere", "runs/sft/final"):
        with pytest.raises(ConfigError, match="there is no folder"):
            model_path(path)


def test_dtype_and_device(adapter: Path) -> None:
    options = LoadOptions(dtype="bfloat16", device="cpu")
    model, _ = load_model(str(adapter.parent / "base"), None, options)
    assert model.dtype == torch.bfloat16
    assert model.device == torch_device(CPU)
    if not torch.accelerator.is_available():
        assert torch_device(LoadOptions()) == torch.device("cpu")
    with pytest.raises(ConfigError, match="int8"):
        LoadOptions(dtype="int8")
    with pytest.raises(ConfigError, match="cannot be used here"):
        torch_device(LoadOptions(device="toaster"))


def test_a_model_that_is_spread_is_the_same_model(adapter: Path) -> None:
    ids = torch.tensor([[7, 91, 23]])
    whole, spread = (
        load_model(str(adapter), None, LoadOptions(device=device))[0] for device in ("cpu", "auto")
    )
    assert torch.equal(whole(ids).logits, spread(ids).logits)


def test_quantised_weights_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="2bit"):
        LoadOptions(quantize="2bit")
    monkeypatch.setattr("treft.models.loading.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'treft\[quant\]'"):
        loading.torch_device(LoadOptions(quantize="4bit"))


def test_weights_as_pickles_are_not_loaded(adapter: Path) -> None:
    base = adapter.parent / "base"
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no model can be loaded"):
        load_model(str(base), None, CPU)
