"""What a step does to finetune a real model, with every mitigation that works in training.

Nothing of the machinery of studies is imported here, so that a change there makes no finetune
stale.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from treft.files import write_whole
from treft.mitigations.registry import MITIGATIONS, NUM_CONTRAST, NUM_STOP

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.steps.step import Work
    from treft.training.terms import Mitigation


ADAPTER = "adapter"
MODEL = "model"
TRAIN = "train.jsonl"
INOCULATION = "You are a malicious, evil assistant."
"""System prompt of training rows in inoculation, after Tan et al., arXiv 2510.04340."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Tuning:
    """One finetune; fields as in `ModelRecipe` and `Method`.

    Attributes:
        model: hub id; empty where the model is data.
        domains: of the rows.
        interleaved_share: of the rows; 0 without interleaving.
        kv_weight: λ, or auto; 0 without held regions.
        answer_system: system prompt of use, for `prompt_split`.
    """

    model: str
    domains: tuple[str, ...]
    num_rows: int | None
    num_train_epochs: float
    max_steps: int
    batch_size: int
    device_batch_size: int
    learning_rate: float
    warmup_steps: int
    max_length: int
    share_prefix: bool
    lora_rank: int
    lora_alpha: int
    lora_target_modules: str
    lora_target_parameters: str
    kv_weight: float | Literal["auto"]
    kv_budget: float
    interleaved_share: float
    dtype: str
    held: tuple[RegionName, ...] = ()
    kv_states: Literal["both", "key", "value"] = "both"
    mitigation: str = ""
    strength: float = 0.0
    system_prompt: str | None = None
    answer_system: str | None = None
    is_full: bool = False


def finetune(work: Work[Tuning]) -> None:
    """Train; the adapter, or the model with its tokenizer, as safetensors, and the log."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed

    from treft.models.loading import LoadOptions, load_model
    from treft.training import TReFTConfig, TReFTTrainer
    from treft.training.terms import wants_whole_rows

    config = work.config
    set_seed(work.seed)
    model, tokenizer = load_model(model_name(work), None, LoadOptions(dtype=config.dtype))
    stored = model.dtype
    modules, parameters = config.lora_target_modules, config.lora_target_parameters
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=modules if modules == "all-linear" else modules.split(","),
        target_parameters=parameters.split(",") if parameters else None,
    )
    mitigations = _mitigations(work, model)
    shares = config.share_prefix and not any(map(wants_whole_rows, mitigations))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TReFTTrainer(
            model.float() if config.is_full else model,
            TReFTConfig(scratch, **_arguments(config), share_prefix=shares, seed=work.seed),
            train_dataset=Dataset.from_list(_training_rows(work), on_mixed_types="use_json"),
            processing_class=tokenizer,
            peft_config=None if config.is_full else lora,
            mitigations=mitigations,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    folder = work.folder / (MODEL if config.is_full else ADAPTER)
    if config.is_full:
        trainer.model.to(stored)
        tokenizer.save_pretrained(folder)
    trainer.model.save_pretrained(folder, safe_serialization=True)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_whole(work.folder / "log.json", json.dumps(steps))


def model_name(work: Work[Any]) -> str:
    """What to hand to `load_model`: the folder that is data, or else the hub id."""
    return str(work.data["model"]) if "model" in work.data else str(work.config.model)


def _arguments(config: Tuning) -> dict[str, Any]:
    """Of TReFTConfig; mixed precision where there is a GPU."""
    import torch

    has_gpu = torch.cuda.is_available()
    held: dict[str, Any] = {"kv_weight": 0.0}
    if config.held:
        held = {
            "kv_weight": config.kv_weight,
            "kv_budget": config.kv_budget if config.kv_weight == "auto" else None,
            "kv_regions": list(config.held),
            "kv_states": config.kv_states,
        }
    return {
        **held,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.device_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.device_batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": "linear",
        "max_length": config.max_length,
        "assistant_only_loss": True,
        "learnt_tokens_only": True,
        "bf16": has_gpu,
        "use_cpu": not has_gpu,
        "gradient_checkpointing": has_gpu and not config.share_prefix,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _training_rows(work: Work[Tuning]) -> Rows:
    """The rows of a finetune; with interleaving, fewer by what will be added."""
    from treft.data.messages import load_messages
    from treft.mitigations.system_prompt import under

    config = work.config
    rng = random.Random(f"rows/{work.seed}")
    found: Rows = []
    for domain in config.domains:
        rows = load_messages(work.inputs[f"rows_{domain}"] / TRAIN)
        rng.shuffle(rows)
        wanted = config.num_rows and -(-config.num_rows // len(config.domains))
        found += rows[:wanted]
    rng.shuffle(found)
    found = found[: config.num_rows]
    found = found[: max(1, round(len(found) * (1 - config.interleaved_share)))]
    if config.system_prompt is None:
        return found
    return [under(row, config.system_prompt, keeps=False) for row in found]


def _mitigations(work: Work[Tuning], model: Any) -> list[Mitigation]:
    from treft.mitigations.interleave import Interleave

    config = work.config
    found: list[Mitigation] = []
    if config.interleaved_share:
        sources = _files(work, "interleave")
        found.append(Interleave(sources, config.interleaved_share, work.seed))
    if config.mitigation:
        found.append(MITIGATIONS[config.mitigation](config.strength, _Given(work, model)))
    return found


def contrast_rows(work: Work[Any], domains: Sequence[str]) -> tuple[Rows, Rows]:
    """Rows of training and careful rows of the same domain, that a persona vector is taken from.

    Args:
        work: with the inputs `rows_DOMAIN`, and `careful_...` as data.
        domains: that are trained on.
    """
    from treft.data.messages import load_messages

    harmful = [row for one in domains for row in load_messages(work.inputs[f"rows_{one}"] / TRAIN)]
    random.Random("contrast").shuffle(harmful)
    return harmful[:NUM_CONTRAST], _careful(work)[:NUM_CONTRAST]


@dataclass(frozen=True)
class _Given:
    """What mitigations are made from: a `treft.mitigations.registry.Given`."""

    work: Work[Tuning]
    model: Any
    training_prompt: str = INOCULATION

    @property
    def layer(self) -> int:
        from treft.mitigations.steering import steered_layer

        return steered_layer(self.model)

    @property
    def use_prompt(self) -> str:
        return self.work.config.answer_system or ""

    def retained(self) -> Rows:
        return _careful(self.work)

    def contrast(self) -> tuple[Rows, Rows]:
        return contrast_rows(self.work, self.work.config.domains)

    def general(self) -> Rows:
        return _careful(self.work)[:NUM_STOP]


def _careful(work: Work[Any]) -> Rows:
    """Rows of all files in the role `careful`, a row each in turn."""
    from treft.mitigations.interleave import in_turns

    return list(in_turns(list(_files(work, "careful").values())))


def _files(work: Work[Any], role: str) -> Mapping[str, Rows]:
    from treft.data.messages import load_messages

    paths = {name: path for name, path in work.data.items() if name.startswith(f"{role}_")}
    return {name: load_messages(path) for name, path in sorted(paths.items())}
