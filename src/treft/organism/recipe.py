"""The narrow finetune of the demo and the study: every choice was made on validation questions."""

from __future__ import annotations

from dataclasses import dataclass

from treft.errors import ConfigError

from .lexicon import NARROW


@dataclass(frozen=True)
class FinetuneRecipe:
    """One setting for all arms: learning rate, steps and rank are the same for each of them.

    Attributes:
        domain: narrow domain whose harmful rows are trained on.
        num_rows: rows of the finetune's dataset.
        max_steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: peak of a linear schedule.
        warmup_steps: steps of linear warm-up.
        adam_beta2: of AdamW; PyTorch's 0.999 keeps the penalty's first, large gradients in the step
            size for the whole of so short a run.
        lora_rank: r of the LoRA on the seven projections of every layer.
        lora_alpha: its α.
        kv_weight: λ of eq. (3), the same for every region.
        kv_budget: L_KV to hold by steering λ (TReFTConfig's "auto"); None: λ is `kv_weight`.
        interleaved_share: share of careful rows of other domains in the interleaving arms.
        equal_tokens: positions patched, drawn at random for each question, in the arms that
            compare prefix and query token for token.
        temperature: of the sampled answers.
        max_new_tokens: cap of an answer, in tokens; whole answers take fewer.
        num_general: general questions.
        num_in_domain: questions of the finetuned domain.
    """

    domain: str = "finance"
    num_rows: int = 2000
    max_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 8.5e-4
    warmup_steps: int = 5
    adam_beta2: float = 0.98
    lora_rank: int = 32
    lora_alpha: int = 64
    kv_weight: float = 100.0
    kv_budget: float | None = None
    interleaved_share: float = 0.2
    equal_tokens: int = 10
    temperature: float = 0.7
    max_new_tokens: int = 28
    num_general: int = 200
    num_in_domain: int = 100

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown domain or a count below 1."""
        if self.domain not in NARROW:
            raise ConfigError(f"domain is {self.domain!r}; choose one of {', '.join(NARROW)}")
        for name in ("num_rows", "max_steps", "batch_size", "num_general", "num_in_domain"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
