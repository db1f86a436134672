"""The step that finetunes a subject, with every mitigation that works in training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, set_seed

from treft.files import write_whole
from treft.mitigations.interleave import Interleave
from treft.mitigations.registry import MITIGATIONS, make
from treft.mitigations.steering import steered_layer
from treft.mitigations.system_prompt import under
from treft.models.loading import load_model
from treft.steps.step import Work
from treft.study.answer import ADAPTER, MODEL, Rows, Subject, model_name
from treft.study.model_setup import Training
from treft.study.protocol import Teaching
from treft.training import TReFTConfig, TReFTTrainer
from treft.training.terms import Mitigation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME_NAME = (
    *("num_train_epochs", "max_steps", "learning_rate", "warmup_steps", "max_length"),
    *("adam_beta2", "kv_weight", "kv_budget", "kv_states"),
)
"""Fields of a finetune that TReFTConfig has as they are."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Training, Teaching):
    """One finetune.

    What the method does not use is at its default, or at nothing, so that equal finetunes of two
    studies are one step.

    Attributes:
        subject: is finetuned.
        domain: that questions in the domain will be of.
        adam_beta2: of AdamW.
    """

    subject: Subject
    domain: str
    adam_beta2: float = 0.999


def finetune(work: Work[Finetune]) -> None:
    """Train; the adapter, or the model with its tokenizer, as safetensors, and the log."""
    config = work.config
    model, tokenizer = load_model(model_name(work), None, config.subject.options)
    stored = model.dtype
    trainer = train(model, tokenizer, work)
    folder = work.folder / (MODEL if config.is_full else ADAPTER)
    if config.is_full:
        trainer.model.to(stored)
        tokenizer.save_pretrained(folder)
    trainer.model.save_pretrained(folder, safe_serialization=True)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_whole(work.folder / "log.json", json.dumps(steps))


def train(model: PreTrainedModel, tokenizer: Any, work: Work[Finetune]) -> TReFTTrainer:
    """A trainer that is done; λ = 0 makes it TRL's SFTTrainer.

    Args:
        model: the subject, changed in place where it lies; with `is_full` in float32.
        tokenizer: its own.
        work: the finetune, and where its rows are; the seed is of LoRA weights, rows and order.
    """
    config = work.config
    set_seed(work.seed)
    modules, parameters = config.lora_target_modules, config.lora_target_parameters
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=modules if modules == "all-linear" else modules.split(","),
        target_parameters=parameters.split(",") if parameters else None,
    )
    mitigations = _mitigations(work, model)
    shares = config.share_prefix and not any(method.whole_rows for method in mitigations)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(config, model.device.type == "cuda")
        trainer = TReFTTrainer(
            model.float() if config.is_full else model,
            TReFTConfig(scratch, **arguments, share_prefix=shares, seed=work.seed),
            train_dataset=Dataset.from_list(training_rows(work), on_mixed_types="use_json"),
            processing_class=tokenizer,
            peft_config=None if config.is_full else lora,
            mitigations=mitigations,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer


def training_rows(work: Work[Finetune]) -> Rows:
    """The rows of a finetune, under its system prompt if it has one."""
    rows, system = work.config.subject.training_rows(work), work.config.system_prompt
    return rows if system is None else [under(row, system, keeps=False) for row in rows]


def _arguments(config: Finetune, has_gpu: bool) -> dict[str, Any]:
    """Options of TReFTConfig that are the recipe's, of what is held, or the same for all."""
    return {
        **{name: getattr(config, name) for name in SAME_NAME},
        **({"kv_regions": list(config.held)} if config.held else {}),
        "per_device_train_batch_size": config.device_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.device_batch_size,
        "lr_scheduler_type": "linear",
        "assistant_only_loss": True,
        "learnt_tokens_only": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "bf16": has_gpu,
        "use_cpu": not has_gpu,
        "gradient_checkpointing": has_gpu and not config.share_prefix,
    }


def _mitigations(work: Work[Finetune], model: Any) -> list[Mitigation]:
    config, subject = work.config, work.config.subject
    sets = subject.interleaved(work)
    supplies = {
        "strength": lambda: config.strength,
        "layer": lambda: steered_layer(model),
        "training_prompt": lambda: subject.training_prompt,
        "use_prompt": lambda: config.answer_system or "",
        "sets": lambda: sets,
        "share": lambda: config.interleaved_share,
        "seed": lambda: work.seed,
        "retained": lambda: subject.retained(work),
        "general": lambda: subject.general(work),
        "trait": lambda: subject.contrast(work, work.seed)[0],
        "careful": lambda: subject.contrast(work, work.seed)[1],
    }
    names = [*([Interleave.name] if sets else []), *filter(None, [config.mitigation])]
    return [make(MITIGATIONS[name], supplies) for name in names]
