"""The one number of each mitigation on the organism: what was tried, and what was chosen.

Chosen by EM-F1 on validation questions, finetuning seed 0, embedded organism: the study
`strengths`, of which docs/results/studies/strengths keeps the figures. Every method had at least
three values; what has no number (frozen prefix, activated LoRA, inoculation, prompt split) has one
setting, and holding keys or values alone has the λ of holding both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from treft.organism.tasks import TASK_DOMAINS
from treft.study.organism import SAFE_PROMPT
from treft.study.protocol import Method

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.organism.tasks import TaskName


class Number(NamedTuple):
    """The number of a mitigation.

    Attributes:
        chosen: λ for TReFT, KL and LDIFS; share of rows; factor of the persona vector; drop of the
            score in nats a token; norm; learning rate; share of the change that is kept.
        tried: All values.
        method: With a value.
    """

    chosen: float
    tried: tuple[float, ...]
    method: Callable[[float], Method]


def _held(*regions: RegionName) -> Callable[[float], Method]:
    return lambda weight: Method(held=regions, kv_weight=weight)


def _trained(name: str) -> Callable[[float], Method]:
    return lambda strength: Method(mitigation=name, strength=strength)


NUMBERS: dict[str, Number] = {
    "treft_prefix": Number(100.0, (30.0, 100.0, 300.0), _held("prefix")),
    "treft_query": Number(3.0, (1.0, 3.0, 10.0), _held("query")),
    "treft_postfix": Number(100.0, (10.0, 30.0, 100.0, 300.0), _held("postfix")),
    "treft_all": Number(3.0, (1.0, 3.0, 10.0, 30.0), _held("prefix", "query", "postfix")),
    "interleaving": Number(
        0.5, (0.2, 0.5, 0.75), lambda share: Method(interleave="narrow", interleaved_share=share)
    ),
    "kl_train": Number(1.0, (0.1, 0.3, 1.0, 10.0), _trained("kl_train")),
    "kl_retain": Number(30.0, (0.1, 1.0, 10.0, 30.0), _trained("kl_retain")),
    "ldifs": Number(0.01, (0.003, 0.01, 0.03, 0.1, 1.0), _trained("ldifs")),
    "preventive_steering": Number(10.0, (1.0, 3.0, 10.0, 30.0), _trained("steering")),
    "early_stopping": Number(0.1, (0.1, 0.5, 2.0), _trained("early_stopping")),
    "weight_norm": Number(8.0, (3.0, 5.0, 8.0), _trained("weight_norm")),
    "small_step": Number(3.5e-4, (2e-4, 3.5e-4, 5e-4), lambda rate: Method(learning_rate=rate)),
    "interpolation": Number(0.3, (0.3, 0.5, 0.7), lambda alpha: Method(alpha=alpha)),
    "steering": Number(1.0, (1.0, 3.0, 10.0), lambda factor: Method(steering=factor)),
}
CHOSEN = {name: number.chosen for name, number in NUMBERS.items()}
BOTH = Method(held=("prefix",), kv_weight=CHOSEN["treft_prefix"])
MITIGATIONS = {
    "sft": Method(),
    **{name: number.method(number.chosen) for name, number in NUMBERS.items()},
    "treft_key": replace(BOTH, kv_states="key"),
    "treft_value": replace(BOTH, kv_states="value"),
    "frozen_prefix": Method(mitigation="frozen_prefix", patch=("prefix",)),
    "activated_lora": Method(mitigation="activated_lora"),
    "inoculation": Method(mitigation="inoculation"),
    "prompt_split": Method(mitigation="prompt_split", answer_system=SAFE_PROMPT),
    "prefix_patch": Method(patch=("prefix",)),
    "postfix_patch": Method(patch=("postfix",)),
}
"""Plain SFT and all methods, each with the number that was chosen."""
TASK_STEP_SHARE = 1 / 3
"""Of the recipe's steps that behaviours beyond misalignment are trained for: plain SFT has learnt
each of them by then."""
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
