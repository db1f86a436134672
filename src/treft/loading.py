"""Load models and tokenizers by name, adapters included; what fails becomes one clear error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from treft.errors import ConfigError, TemplateError
from treft.organism import asset_path

__all__ = ["LoadOptions", "load_model", "load_tokenizer"]

EMBEDDED = "organism"
"""As a model's name: the organism that ships with the package."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load weights; the same for a model, its adapter and its base."""

    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False


def load_tokenizer(name: str, options: LoadOptions, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer in a folder or hub repository.

    Args:
        name: the folder or repository.
        options: how to load.
        chat_template: used instead of the tokenizer's own.

    Raises:
        ConfigError: there is none.
        TemplateError: it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            _path(name), trust_remote_code=options.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer can be loaded from {name}: {_first(error)}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the tokenizer of {name} has no chat template: name one that has, or put a "
            "chat_template.jinja beside it."
        )
    return tokenizer


def load_model(name: str, adapter: str | None, options: LoadOptions) -> tuple[Any, Tokenizer]:
    """A model in evaluation mode and its tokenizer.

    Args:
        name: folder or hub id of a model, or of a PEFT adapter, which is put on the base it names.
        adapter: folder or hub id of an adapter to put on top.
        options: how to load.

    Raises:
        ConfigError: something cannot be loaded, or the adapter belongs to another base.
    """
    if adapter is None and (base := _base_of(name)) is not None:
        name, adapter = base, name
    try:
        model = AutoModelForCausalLM.from_pretrained(
            _path(name),
            dtype=options.dtype,
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {name}: {_first(error)}") from error
    if adapter is not None:
        model = _with_adapter(model, name, adapter)
    has_own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(adapter if adapter is not None and has_own else name, options)
    if options.device is not None:
        model = model.to(options.device)
    return model.eval(), tokenizer


def _path(name: str) -> str:
    return str(asset_path()) if name == EMBEDDED else name


def _base_of(name: str) -> str | None:
    """The base that an adapter names; None when `name` is a whole model."""
    if not (Path(name) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise ConfigError(f"the adapter {name} does not say which base model it belongs to.")
    return str(base)


def _with_adapter(model: PreTrainedModel, name: str, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError("adapters need PEFT: pip install 'treft[train]'") from error
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"the adapter {adapter} cannot be put on {name}; it may belong to another base: "
            f"{_first(error)}"
        ) from error


def _first(error: Exception) -> str:
    """The first line of a library's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
