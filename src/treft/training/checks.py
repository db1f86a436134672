"""Refuse, before anything is computed, what TReFT training cannot do right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from treft.core.states import capture, pretrained_model
from treft.errors import AttentionError, ConfigError, DataError
from treft.models.adapters import is_peft
from treft.training.collator import REGION_COLUMNS
from treft.training.config import TReFTConfig
from treft.training.dataset import column_names
from treft.training.masking import text_tokenizer
from treft.training.reference_source import ReferenceKind

if TYPE_CHECKING:
    from treft.training.trainer import TReFTTrainer


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


def packed_length(config: TReFTConfig, packing: bool) -> None:
    """Packing needs a row length.

    Raises:
        ConfigError: there is none.
    """
    if packing and config.max_length is None:
        raise ConfigError("packing needs max_length, the number of tokens of a packed row.")


def after_loading(trainer: TReFTTrainer) -> None:
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


def sharding(trainer: TReFTTrainer, kind: ReferenceKind) -> None:
    """With sharded weights the model cannot be run or copied before training sets it up.

    Raises:
        ConfigError: it would have to be.
    """
    if _is_sharded(trainer) and kind in ("snapshot", "kept_model"):
        raise ConfigError(
            "all weights train and are sharded, so the reference cannot be taken from the model: "
            "record it beforehand (treft reference record) and pass kv_reference."
        )


def _is_sharded(trainer: TReFTTrainer) -> bool:
    plugin = trainer.args.deepspeed_plugin
    return bool(trainer.is_fsdp_enabled) or (plugin is not None and plugin.zero_stage == 3)


def isolation(trainer: TReFTTrainer) -> None:
    """In a flattened batch each conversation must be read as if it were alone.

    Not every model does so with every attention: Transformers' GPT-OSS, for one, needs flash
    attention. The model is asked: does a second conversation's last layer notice what the first one
    says? Two forwards of a dozen tokens.

    Raises:
        ConfigError: it does, so its prefix is not the reference's from the first step on.
    """
    if not trainer.padding_free or _is_sharded(trainer):
        return
    model = trainer.model
    device = next(model.parameters()).device
    half = torch.arange(3, 3 + NUM_PROBED, device=device)
    positions = torch.arange(NUM_PROBED, device=device).repeat(2)[None]
    heard = []
    was_training = model.training
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        for first in (half, half.flip(0)):
            with capture(model) as states:
                model(torch.cat([first, half])[None], position_ids=positions, use_cache=False)
            heard.append(states[max(states)].value[:, :, NUM_PROBED:].float())
    model.train(was_training)
    if not torch.allclose(heard[0], heard[1], rtol=1e-2, atol=1e-3):
        raise ConfigError(
            f"{type(pretrained_model(model)).__name__} with this attention implementation lets "
            "conversations of one flattened row see each other, so their prefixes are not what "
            "they are alone: use packing=False and padding_free=False, or flash attention."
        )
