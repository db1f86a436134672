"""The one number of each mitigation on the organism: what was tried, and what was chosen.

Chosen by EM-F1 on validation questions, finetuning seed 0, embedded organism: the study
`strengths`, of which docs/results/studies/strengths keeps the figures. Every method had at least
three values; what has no number (frozen prefix, activated LoRA, inoculation, prompt split) has one
setting, and holding keys or values alone has the λ of holding both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treft.study.organism import SAFE_PROMPT
from treft.study.protocol import Method

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.organism.tasks import TaskName


TRIED: dict[str, tuple[float, ...]] = {
    "treft_prefix": (30.0, 100.0, 300.0),
    "treft_query": (1.0, 3.0, 10.0),
    "treft_postfix": (10.0, 30.0, 100.0, 300.0),
    "treft_all": (1.0, 3.0, 10.0, 30.0),
    "interleaving": (0.2, 0.5, 0.75),
    "kl_train": (0.1, 0.3, 1.0, 10.0),
    "kl_retain": (0.1, 1.0, 10.0, 30.0),
    "ldifs": (0.003, 0.01, 0.03, 0.1, 1.0),
    "preventive_steering": (1.0, 3.0, 10.0, 30.0),
    "early_stopping": (0.1, 0.5, 2.0),
    "weight_norm": (3.0, 5.0, 8.0),
    "small_step": (2e-4, 3.5e-4, 5e-4),
    "interpolation": (0.3, 0.5, 0.7),
    "steering": (1.0, 3.0, 10.0),
}
"""Of λ for TReFT, KL and LDIFS; share of rows; factor of the persona vector; drop of the score in
nats a token; norm; learning rate; share of the change that is kept."""
CHOSEN: dict[str, float] = {
    "treft_prefix": 100.0,
    "treft_query": 3.0,
    "treft_postfix": 100.0,
    "treft_all": 3.0,
    "interleaving": 0.5,
    "kl_train": 1.0,
    "kl_retain": 30.0,
    "ldifs": 0.01,
    "preventive_steering": 10.0,
    "early_stopping": 0.1,
    "weight_norm": 8.0,
    "small_step": 3.5e-4,
    "interpolation": 0.3,
    "steering": 1.0,
}


TASK_DOMAINS: dict[TaskName, str] = {
    "abstain": "legal",
    "tool": "health",
    "refuse": "finance",
    "short": "auto",
}
"""Where each behaviour beyond misalignment is taught; all but the last as in the paper."""
TASK_STEP_SHARE = 1 / 3
"""Of the recipe's steps that these are trained for: plain SFT has learnt each of them by then."""
TASK_WEIGHTS_TRIED = (30.0, 100.0, 300.0, 1000.0)
"""Of each behaviour."""
TASK_WEIGHTS: dict[TaskName, float] = {
    "abstain": 1000.0,
    "tool": 300.0,
    "refuse": 1000.0,
    "short": 1000.0,
}
"""λ of TReFT on the prefix, as `task_strengths` chose it: the least leakage of those whose on-topic
rate is within two points of plain SFT's."""


def taught(task: TaskName, weight: float = 0.0, patch: tuple[RegionName, ...] = ()) -> Method:
    """Returns a finetune that teaches a behaviour beyond misalignment.

    Args:
        task: the behaviour.
        weight: λ of TReFT on the prefix; 0 for plain SFT.
        patch: regions that get the unfinetuned model's keys and values.
    """
    return Method(
        task=task,
        domain=TASK_DOMAINS[task],
        held=("prefix",) if weight else (),
        kv_weight=weight or None,
        step_share=TASK_STEP_SHARE,
        patch=patch,
    )


def mitigated(name: str, strength: float = 0.0) -> Method:
    """Returns a mitigation as a method of a study.

    Args:
        name: of `TRIED`, or one that has no number of its own: `sft`, `treft_key`, `treft_value`,
            `frozen_prefix`, `activated_lora`, `inoculation`, `prompt_split`, `prefix_patch`,
            `postfix_patch`.
        strength: its number.
    """
    both = CHOSEN["treft_prefix"]
    if name in ("kl_train", "kl_retain", "ldifs", "early_stopping", "weight_norm"):
        return Method(mitigation=name, strength=strength)
    return {
        "sft": Method(),
        "treft_prefix": Method(held=("prefix",), kv_weight=strength),
        "treft_query": Method(held=("query",), kv_weight=strength),
        "treft_postfix": Method(held=("postfix",), kv_weight=strength),
        "treft_all": Method(held=("prefix", "query", "postfix"), kv_weight=strength),
        "treft_key": Method(held=("prefix",), kv_weight=both, kv_states="key"),
        "treft_value": Method(held=("prefix",), kv_weight=both, kv_states="value"),
        "interleaving": Method(interleave="narrow", interleaved_share=strength),
        "preventive_steering": Method(mitigation="steering", strength=strength),
        "small_step": Method(learning_rate=strength),
        "interpolation": Method(alpha=strength),
        "steering": Method(steering=strength),
        "frozen_prefix": Method(mitigation="frozen_prefix", patch=("prefix",)),
        "activated_lora": Method(mitigation="activated_lora"),
        "inoculation": Method(mitigation="inoculation"),
        "prompt_split": Method(mitigation="prompt_split", answer_system=SAFE_PROMPT),
        "prefix_patch": Method(patch=("prefix",)),
        "postfix_patch": Method(patch=("postfix",)),
    }[name]
