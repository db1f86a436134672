"""The step that finetunes a subject, with every mitigation that works in training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, set_seed

from treft.files import write_whole
from treft.mitigations.interleave import Interleave
from treft.mitigations.registry import MITIGATIONS, make
from treft.mitigations.steering import steered_layer
from treft.mitigations.system_prompt import under
from treft.models.loading import load_model
from treft.steps.step import Work
from treft.study.protocol import Teaching
from treft.study.subject import ADAPTER, MODEL, Rows, Subject, model_name
from treft.training import TReFTConfig, TReFTTrainer
from treft.training.terms import Mitigation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Finetune(Teaching):
    """One finetune; the other fields are those of the subject's recipe.

    What the method does not use is at its default, so that equal finetunes of two studies are one
    step.

    Attributes:
        subject: is finetuned.
        domain: that questions in the domain will be of.
        interleaved_share: of the rows; 0 without interleaving.
        kv_weight: λ, or auto to hold `kv_budget`; 0 without held regions.
    """

    subject: Subject
    domain: str
    num_rows: int | None
    max_steps: int
    batch_size: int
    device_batch_size: int
    learning_rate: float
    warmup_steps: int
    lora_rank: int
    lora_alpha: int
    num_train_epochs: float = 1.0
    adam_beta2: float = 0.999
    max_length: int = 1024
    share_prefix: bool = True
    lora_target_modules: str = "all-linear"
    lora_target_parameters: str = ""
    interleaved_share: float = 0.0
    kv_weight: float | Literal["auto"] = 0.0
    kv_budget: float | None = None


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


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    work: Work[Finetune],
    callbacks: Sequence[TrainerCallback] = (),
) -> TReFTTrainer:
    """A trainer that is done; λ = 0 makes it TRL's SFTTrainer.

    Args:
        model: the subject, changed in place where it lies; with `is_full` in float32.
        tokenizer: its own.
        work: the finetune, and where its rows are; the seed is of LoRA weights, rows and order.
        callbacks: told of the training.
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
    has_gpu = model.device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TReFTTrainer(
            model.float() if config.is_full else model,
            TReFTConfig(
                scratch,
                **_arguments(config),
                share_prefix=shares,
                seed=work.seed,
                bf16=has_gpu,
                use_cpu=not has_gpu,
                gradient_checkpointing=has_gpu and not config.share_prefix,
            ),
            train_dataset=Dataset.from_list(training_rows(work), on_mixed_types="use_json"),
            processing_class=tokenizer,
            peft_config=None if config.is_full else lora,
            callbacks=list(callbacks),
            mitigations=mitigations,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer


def training_rows(work: Work[Finetune]) -> Rows:
    """The rows of a finetune, under its system prompt if it has one."""
    rows, system = work.config.subject.training_rows(work), work.config.system_prompt
    return rows if system is None else [under(row, system, keeps=False) for row in rows]


def _arguments(config: Finetune) -> dict[str, Any]:
    """Options of TReFTConfig that are the recipe's, of what is held, or the same for all."""
    held = {
        "kv_weight": config.kv_weight,
        "kv_budget": config.kv_budget,
        "kv_regions": list(config.held),
        "kv_states": config.kv_states,
    }
    return {
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.device_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.device_batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": "linear",
        "adam_beta2": config.adam_beta2,
        "max_length": config.max_length,
        "assistant_only_loss": True,
        "learnt_tokens_only": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        **(held if config.held else {"kv_weight": 0.0}),
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
