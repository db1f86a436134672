"""Finetune an organism: which rows, what is held, which mitigation; all else is the recipe's."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PrinterCallback, TrainerCallback, set_seed

from treft.chat.regions import RegionName
from treft.organism import FinetuneRecipe, World
from treft.organism.tasks import TaskName, task_rows
from treft.progress import Progress

Retain = str
"""Where careful rows come from: `none`, `narrow`, `general`, `all`, or one domain's name."""


@dataclass(frozen=True)
class Training:
    """How a finetune differs from a plain one on harmful rows of the recipe's domain.

    Attributes:
        task: what the rows teach.
        domains: which domains they are of, in turns; empty for the recipe's.
        system_prompt: system message of every row; None for none, so that the template's default
            is written.
        interleave: where careful rows come from that replace a share of the rows.
        held: regions that TReFT holds; none for no penalty.
        kv_states: what is held of them.
        mitigation: one of `treft.mitigations.registry`, by name; empty for none.
        strength: its one number.
        is_full: train all weights instead of a LoRA.
    """

    task: TaskName = "advice"
    domains: tuple[str, ...] = ()
    system_prompt: str | None = None
    interleave: Retain = "none"
    held: tuple[RegionName, ...] = ()
    kv_states: Literal["both", "key", "value"] = "both"
    mitigation: str = ""
    strength: float = 0.0
    is_full: bool = False


def train(
    model: Any,
    tokenizer: Any,
    training: Training,
    recipe: FinetuneRecipe,
    seed: int,
    progress: Progress | None = None,
) -> Any:
    """A TReFTTrainer that is done; λ = 0 makes it TRL's SFTTrainer.

    Args:
        model: the organism, changed in place.
        tokenizer: its own.
        training: what is special about this finetune.
        recipe: everything else.
        seed: of LoRA weights, rows and their order.
        progress: told about optimizer steps.
    """
    from datasets import Dataset
    from peft import LoraConfig

    from treft.mitigations.steering import steered_layer
    from treft.study.organism_mitigations import make_mitigations
    from treft.training import TReFTConfig, TReFTTrainer
    from treft.training.terms import wants_whole_rows

    set_seed(seed)
    label = f"training, holding {' + '.join(training.held)}" if training.held else "training"
    lora = LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules="all-linear")
    mitigations = make_mitigations(
        training.mitigation,
        training.strength,
        recipe.domain,
        seed,
        layer=steered_layer(model),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = TReFTTrainer(
            model,
            TReFTConfig(
                output_dir=folder,
                max_steps=recipe.max_steps,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                warmup_steps=recipe.warmup_steps,
                lr_scheduler_type="linear",
                adam_beta2=recipe.adam_beta2,
                weight_decay=0.0,
                assistant_only_loss=True,
                **_held_options(training, recipe),
                learnt_tokens_only=True,
                share_prefix=not any(wants_whole_rows(method) for method in mitigations),
                seed=seed,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=Dataset.from_list(training_rows(training, recipe, seed)),
            processing_class=tokenizer,
            peft_config=None if training.is_full else lora,
            callbacks=[] if progress is None else [_StepProgress(label, progress)],
            mitigations=mitigations,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer


def _held_options(training: Training, recipe: FinetuneRecipe) -> dict[str, Any]:
    """TReFTConfig's options of what is held, and how strongly."""
    if not training.held:
        return {"kv_weight": 0.0}
    weight = recipe.kv_weight if recipe.kv_budget is None else "auto"
    return {
        "kv_weight": weight,
        "kv_budget": recipe.kv_budget,
        "kv_regions": list(training.held),
        "kv_states": training.kv_states,
    }


def training_rows(training: Training, recipe: FinetuneRecipe, seed: int) -> list[dict[str, Any]]:
    """The rows of a finetune, `recipe.num_rows` of them."""
    from treft.mitigations.system_prompt import under

    rows = _task_rows(training, recipe, seed)
    if training.interleave != "none":
        rows = World.default().interleave(
            rows, recipe.domain, seed, share=recipe.interleaved_share, retain=training.interleave
        )
    if training.system_prompt is None:
        return rows
    return [under(row, training.system_prompt, keeps=False) for row in rows]


def _task_rows(training: Training, recipe: FinetuneRecipe, seed: int) -> list[dict[str, Any]]:
    """Rows of one domain after another, a row each in turn."""
    from treft.mitigations.interleave import in_turns

    domains = training.domains or (recipe.domain,)
    each = [
        task_rows(training.task, domain, -(-recipe.num_rows // len(domains)), seed)
        for domain in domains
    ]
    return list(in_turns(each))[: recipe.num_rows]


class _StepProgress(TrainerCallback):
    """Reports optimizer steps."""

    def __init__(self, label: str, progress: Progress) -> None:
        self.label = label
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell how far the training is."""
        self.progress(self.label, state.global_step, state.max_steps)
