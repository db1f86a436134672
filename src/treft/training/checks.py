"""Before anything is computed: refuse what cannot be done right, and decide whose loss mask it is.

TRL masks by `{% generation %}` markers and swaps stock templates that lack them for marked twins.
Where it can, TRL's way is kept, twin included, so that the SFT loss stays SFTTrainer's bit for bit.
Where it raises (Llama-3.1, Llama-3.2, Gemma-4 and any unmarked template of a user's own), the
template is used as it is and the labels are restricted to the response regions instead.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.utils import get_config_model_id

from treft.core.recording import plain_forward
from treft.core.states import capture, pretrained_model
from treft.errors import AttentionError, ConfigError, DataError, TemplateError
from treft.models.adapters import is_peft
from treft.training.config import TReFTConfig
from treft.training.dataset import REGION_COLUMNS, column_names
from treft.training.reference_source import is_sharded

NUM_PROBED = 6
"""Tokens of each of the two conversations that `isolation` runs."""


def before_loading(config: TReFTConfig, model: Any, peft_config: Any) -> None:
    """Checks that need neither the model nor the data.

    Raises:
        AttentionError: TRL would turn on reentrant checkpointing (an adapter with ZeRO-3).
    """
    if not config.holds or config.deepspeed_plugin is None:
        return
    has_adapter = peft_config is not None or (not isinstance(model, str) and is_peft(model))
    is_sharded = config.deepspeed_plugin.zero_stage == 3
    if has_adapter and is_sharded and config.gradient_checkpointing:
        raise AttentionError(
            "an adapter under DeepSpeed ZeRO-3 makes TRL use reentrant gradient checkpointing, "
            "under which captured keys and values have no gradient: set "
            "gradient_checkpointing=False, or use ZeRO-2."
        )


def after_loading(trainer: SFTTrainer) -> None:
    """Checks of the loaded model and the prepared datasets.

    Raises:
        DataError: a dataset has no regions.
        ConfigError: the batch, or a key vector, is split over processes.
    """
    text_tokenizer(trainer.processing_class)
    if not is_peft(trainer.model) and pretrained_model(trainer.model)._hf_peft_config_loaded:
        raise ConfigError(
            "the model was loaded from an adapter's folder without PEFT's wrapper, so it cannot be "
            "told what trains: load the base, then PeftModel.from_pretrained(base, adapter, "
            "is_trainable=True)."
        )
    evaluated = trainer.eval_dataset
    datasets = {
        "train": trainer.train_dataset,
        **(evaluated if isinstance(evaluated, dict) else {"eval": evaluated}),
    }
    for name, dataset in datasets.items():
        if dataset is not None and not set(REGION_COLUMNS) <= set(column_names(dataset)):
            raise DataError(
                f"the {name} dataset was not prepared here (skip_prepare_dataset, or images), so "
                f"its regions are unknown: add the columns {' and '.join(REGION_COLUMNS)}, let the "
                "trainer prepare text conversations, or set kv_weight=0."
            )
    parallel = trainer.accelerator.parallelism_config
    if parallel is not None and (
        parallel.cp_enabled or parallel.sp_enabled or parallel.tp_size > 1
    ):
        raise ConfigError(
            "context, sequence and tensor parallelism split conversations or key vectors over "
            "processes, where drift cannot be measured: use data parallelism, or kv_weight=0."
        )


def isolation(trainer: SFTTrainer) -> None:
    """Refuse flattened batches whose conversations are not read as if each were alone.

    Not every model does so with every attention: Transformers' GPT-OSS, for one, needs flash
    attention. The model is asked: does a second conversation's last layer notice what the first one
    says? Two forwards of a dozen tokens.

    Raises:
        ConfigError: it does, so its prefix is not the reference's from the first step on.
    """
    if not trainer.padding_free or is_sharded(trainer):
        return
    model = trainer.model
    device = next(model.parameters()).device
    half = torch.arange(3, 3 + NUM_PROBED, device=device)
    positions = torch.arange(NUM_PROBED, device=device).repeat(2)[None]
    heard = []
    with trainer.accelerator.autocast(), plain_forward(model):
        for first in (half, half.flip(0)):
            with capture(model) as states:
                model(torch.cat([first, half])[None], position_ids=positions, use_cache=False)
            heard.append(states[max(states)].value[:, :, NUM_PROBED:].float())
    if not torch.allclose(heard[0], heard[1], rtol=1e-2, atol=1e-3):
        raise ConfigError(
            f"{type(pretrained_model(model)).__name__} with this attention implementation lets "
            "conversations of one flattened row see each other, so their prefixes are not what "
            "they are alone: use packing=False and padding_free=False, or flash attention."
        )


def needs_region_mask(processor: Any) -> bool:
    """Returns whether TRL has no loss mask for the chat template of a processing class.

    Raises:
        TemplateError: there is no chat template.
    """
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


def in_force(processing_class: Any, config: TReFTConfig) -> Any:
    """The processing class with the chat template that the training will have.

    `chat_template_path` names a Jinja file or another tokenizer.
    """
    path = config.chat_template_path
    if path is None:
        return processing_class
    found = copy.copy(processing_class)
    if path.endswith((".jinja", ".j2")) and Path(path).is_file():
        found.chat_template = Path(path).read_text(encoding="utf-8")
    else:
        found.chat_template = AutoTokenizer.from_pretrained(path).chat_template
    return found


def load_processing_class(model: Any, config: TReFTConfig) -> Any:
    """Returns the processing class that TRL would load for `model` (a name or a loaded model)."""
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
