"""Load models and tokenizers by name; what cannot be loaded becomes one clear error.

A name is a folder, a hub id, or `organism` for the one that ships with the package.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from treft.core.offloading import is_offloaded
from treft.core.states import pretrained_model
from treft.errors import ConfigError, TemplateError, first_line, needs_extra
from treft.models.adapters import put_adapter_on
from treft.models.load_options import SPREAD
from treft.models.load_options import LoadOptions as LoadOptions

EMBEDDED = "organism"
"""As a model's name: the organism that ships with the package."""


def torch_device(options: LoadOptions) -> torch.device:
    """Returns where the model goes, or its first layers if it is spread.

    Raises:
        ConfigError: there is no such device, it cannot be used here, or bitsandbytes is missing.
    """
    if options.quantize is not None and find_spec("bitsandbytes") is None:
        raise ConfigError("quantised weights need bitsandbytes: pip install 'treft[quant]'")
    try:
        if options.device not in (None, SPREAD):
            found = torch.device(options.device)
        elif torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator() or torch.device("cpu")
        else:
            found = torch.device("cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the device {options.device} cannot be used here: {first_line(error)}"
        ) from error
    return found


def asset_path() -> Path:
    """Folder of the organism that ships with the package (safetensors, tokenizer, template)."""
    return Path(str(files("treft"))) / "organism" / "assets"


def model_path(name: str) -> str:
    """Returns what to hand to `from_pretrained`: a local folder goes before the organism's name.

    Raises:
        ConfigError: `name` is a path at which there is no folder.
    """
    if Path(name).is_dir():
        return name
    if name == EMBEDDED:
        if not (asset_path() / "model.safetensors").is_file():
            raise ConfigError(
                "the organism is missing from this installation: build one with "
                "`treft organism build --output FOLDER` and give the folder."
            )
        return str(asset_path())
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ConfigError(f"there is no folder {name}.")
    return name


def load_tokenizer(
    name: str,
    options: LoadOptions,
    chat_template: str | None = None,
    adapter: str | None = None,
) -> Tokenizer:
    """Returns the tokenizer of a model; that of the adapter, if there is one and has one.

    Args:
        name: a model, or a PEFT adapter.
        options: how to load.
        chat_template: used instead of the tokenizer's own.
        adapter: an adapter to put on top.

    Raises:
        ConfigError: there is none, or the adapter belongs to another base.
        TemplateError: it has no chat template.
    """
    owner, adapter = _base_and_adapter(name, adapter, options)
    if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file():
        owner = adapter
    with _loading("tokenizer", owner):
        tokenizer = AutoTokenizer.from_pretrained(
            model_path(owner), trust_remote_code=options.trust_remote_code
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the tokenizer of {owner} has no chat template: put a chat_template.jinja beside it, "
            "or name a template file."
        )
    return cast(Tokenizer, tokenizer)


def load_model(
    name: str, adapter: str | None, options: LoadOptions, chat_template: str | None = None
) -> tuple[Any, Tokenizer]:
    """Returns a model in evaluation mode and its tokenizer, as `load_tokenizer` finds it.

    Args:
        name: a model, or a PEFT adapter, which is put on the base it names.
        adapter: an adapter to put on top.
        options: how to load.
        chat_template: used instead of the tokenizer's own.

    Raises:
        ConfigError: something cannot be loaded, or the adapter belongs to another base.
        TemplateError: the tokenizer has no chat template.
    """
    device = torch_device(options)
    tokenizer = load_tokenizer(name, options, chat_template, adapter)
    base, adapter = _base_and_adapter(name, adapter, options)
    placement = _placement(options)
    with _loading("model", base):
        model = AutoModelForCausalLM.from_pretrained(
            model_path(base),
            dtype=options.dtype,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            **placement,
        )
    if is_offloaded(model.get_input_embeddings()):
        raise ConfigError(
            f"{base} is so large for this machine that even its input embedding was offloaded, "
            "which prompts go through first: free memory, or quantise it as it loads."
        )
    if adapter is not None:
        model = put_adapter_on(model, base, adapter)
    if "device_map" not in placement:
        model = model.to(device)
    return model.eval(), tokenizer


def load_base(
    name: str, finetuned: Any, options: LoadOptions, chat_template: str | None = None
) -> Any:
    """The unfinetuned model, in the finetuned one's precision however it was saved itself.

    Args:
        name: a model.
        finetuned: what it will be compared with, or patched into.
        options: how to load.
        chat_template: used instead of the tokenizer's own.

    Raises:
        ConfigError: it cannot be loaded.
    """
    dtype = str(pretrained_model(finetuned).dtype).removeprefix("torch.")
    return load_model(name, None, replace(options, dtype=dtype), chat_template)[0]


def _placement(options: LoadOptions) -> dict[str, Any]:
    """Returns what `from_pretrained` must know while weights are read."""
    found: dict[str, Any] = {}
    if options.device == SPREAD:
        found["device_map"] = "auto"
    if options.quantize is not None:
        dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
        found["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=options.quantize == "8bit",
            load_in_4bit=options.quantize == "4bit",
            bnb_4bit_compute_dtype=dtype,
        )
        found.setdefault("device_map", {"": torch_device(options)})
    return found


def _base_and_adapter(
    name: str, adapter: str | None, options: LoadOptions
) -> tuple[str, str | None]:
    """Returns names of the base and of the adapter on it, if any."""
    own_base = _named_base(name)
    if adapter is None and own_base is None:
        return name, None
    if adapter is None and own_base and _path_of(own_base):
        return own_base, name
    if adapter is None:
        raise ConfigError(
            f"the adapter {name} names no base that is there: give the base as the model and "
            f"{name} as the adapter."
        )
    if own_base is not None:
        raise ConfigError(
            f"{name} is an adapter itself: name its base ({own_base}), or merge the two first."
        )
    named = _named_base(adapter)
    if named is None:
        raise ConfigError(f"{adapter} is no adapter: it has no adapter_config.json.")
    if named and not options.allow_other_base and not _is_same_base(named, name):
        raise ConfigError(
            f"the adapter {adapter} was trained on {named}, not on {name}: name that base, or "
            "allow another one (--allow-other-base) if the two are the same model."
        )
    return name, adapter


def _named_base(name: str) -> str | None:
    """Returns the base that an adapter names, possibly empty; None when `name` is no adapter."""
    try:
        found = find_adapter_config_file(model_path(name))
    except (OSError, ValueError):
        return None  # whoever loads `name` says what is wrong with it
    if found is None:
        return None
    with needs_extra("train", "adapters need"):
        from peft import PeftConfig
    with _loading("adapter", name):
        return str(PeftConfig.from_pretrained(name).base_model_name_or_path or "")


def _is_same_base(named: str, given: str) -> bool:
    """Returns whether two names can mean the same weights.

    Two folders are compared by their contents; where one is gone (an adapter that moved) or is a
    hub id, only the last part of the names can be.
    """
    given_path, named_path = Path(model_path(given)), _path_of(named) or Path(named)
    if not (given_path.is_dir() and named_path.is_dir()):
        return given_path.resolve().name == named_path.name
    if given_path.resolve() == named_path.resolve():
        return True
    weights = sorted(path.name for path in named_path.glob("*.safetensors"))
    _, differing, missing = filecmp.cmpfiles(given_path, named_path, weights, shallow=False)
    return bool(weights) and not differing and not missing


def _path_of(named: str) -> Path | None:
    """Returns where an adapter's base is or would be; None where there is no such folder."""
    try:
        return Path(model_path(named))
    except ConfigError:
        return None


@contextmanager
def _loading(what: str, name: str) -> Iterator[None]:
    """Around what may find nothing to load, or nothing that can be."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ConfigError(f"no {what} can be loaded from {name}: {first_line(error)}") from error
