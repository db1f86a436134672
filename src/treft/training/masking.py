"""Decide whose loss mask `assistant_only_loss` uses: TRL's, or the response regions.

TRL masks by `{% generation %}` markers and swaps stock templates that lack them for marked twins.
Where it can, TRL's way is kept, twin included, so that the SFT loss stays SFTTrainer's bit for bit.
Where it raises (Llama-3.1, Llama-3.2, Gemma-4 and any unmarked template of a user's own), the
template is used as it is and the labels are restricted to the response regions instead.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.utils import get_config_model_id

from treft.errors import ConfigError, TemplateError
from treft.training.config import TReFTConfig


def needs_region_mask(processing_class: Any, config: TReFTConfig) -> bool:
    """Whether TRL has no loss mask for the chat template that will be in force.

    Raises:
        TemplateError: there is no chat template.
    """
    processor = _in_force(processing_class, config)
    if not processor.chat_template:
        raise TemplateError(
            "assistant_only_loss=True needs a chat template, and the tokenizer has none: use the "
            "instruct model's tokenizer, or set chat_template_path."
        )
    if has_generation_markers(processor.chat_template):
        return False
    try:
        get_training_chat_template(processor)
    except ValueError:
        return True
    return False


def tokenizer_in_force(processing_class: Any, config: TReFTConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template that the training will have.

    Raises:
        ConfigError: it is a processor for images or sound.
    """
    return text_tokenizer(_in_force(processing_class, config))


def _in_force(processing_class: Any, config: TReFTConfig) -> Any:
    template = _template_from(config.chat_template_path)
    if template is None:
        return processing_class
    processor = copy.copy(processing_class)
    processor.chat_template = template
    return processor


def _template_from(path: str | None) -> Any:
    """The template that `chat_template_path` names, a Jinja file or another tokenizer."""
    if path is None:
        return None
    if path.endswith((".jinja", ".j2")) and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    return AutoTokenizer.from_pretrained(path).chat_template


def load_processing_class(model: Any, config: TReFTConfig) -> Any:
    """The processing class that TRL would load for `model` (a name or a loaded model)."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    init_kwargs = config.model_init_kwargs if isinstance(config.model_init_kwargs, dict) else {}
    return AutoProcessor.from_pretrained(
        name, revision=init_kwargs.get("revision"), trust_remote_code=config.trust_remote_code
    )


def text_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """`processing_class`, which has to be a tokenizer: regions are regions of text.

    Raises:
        ConfigError: it is a processor for images or sound.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    raise ConfigError(
        f"regions are found in text only, but the processing class is a "
        f"{type(processing_class).__name__}: pass processing_class="
        "AutoTokenizer.from_pretrained(...), and text datasets, or set kv_weight=0."
    )
