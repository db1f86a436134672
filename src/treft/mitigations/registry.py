"""Every mitigation by a name and one number, made of what a study has at hand.

Imports are inside the makers, so that names can be looked up without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from treft.training.terms import Mitigation


NUM_CONTRAST = 100
"""Rows with the trait, and without it, that a persona vector is taken from."""
NUM_STOP = 64
"""Rows that early stopping looks at."""
STOP_EVERY = 10
Rows = list[dict[str, Any]]


class Given(Protocol):
    """What mitigations need beside their number; rows are drawn when asked for."""

    @property
    def layer(self) -> int:
        """That is steered."""

    @property
    def training_prompt(self) -> str:
        """System prompt of training rows in inoculation."""

    @property
    def use_prompt(self) -> str:
        """System prompt of use after a prompt split."""

    def retained(self) -> Rows:
        """Careful rows of other domains."""

    def contrast(self) -> tuple[Rows, Rows]:
        """Rows that show the trait, and rows that do not."""

    def general(self) -> Rows:
        """Rows with good answers, for the score of early stopping."""


Maker = Callable[[float, Given], "Mitigation"]


def _kl_train(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.kl import KLOnTrain

    return KLOnTrain(strength)


def _kl_retain(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.kl import KLOnRetain

    return KLOnRetain(given.retained(), strength)


def _frozen_prefix(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.frozen_prefix import FrozenPrefix

    return FrozenPrefix()


def _activated_lora(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.activated_lora import ActivatedLora

    return ActivatedLora()


def _ldifs(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.features import FeatureDistance

    return FeatureDistance(strength)


def _steering(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.steering import PreventiveSteering

    positive, negative = given.contrast()
    return PreventiveSteering(given.layer, strength, positive=positive, negative=negative)


def _inoculation(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.system_prompt import InoculationPrompt

    return InoculationPrompt(given.training_prompt)


def _prompt_split(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.system_prompt import PromptSplit

    return PromptSplit(given.use_prompt)


def _early_stopping(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.early_stopping import StopOnScore

    return StopOnScore(rows=given.general(), drop=strength, every=STOP_EVERY)


def _weight_norm(strength: float, given: Given) -> Mitigation:
    from treft.mitigations.weights import WeightNormCap

    return WeightNormCap(strength)


MITIGATIONS: dict[str, Maker] = {
    "kl_train": _kl_train,
    "kl_retain": _kl_retain,
    "frozen_prefix": _frozen_prefix,
    "activated_lora": _activated_lora,
    "ldifs": _ldifs,
    "steering": _steering,
    "inoculation": _inoculation,
    "prompt_split": _prompt_split,
    "early_stopping": _early_stopping,
    "weight_norm": _weight_norm,
}
"""The number is λ, coefficient, norm or drop; not used where there is none."""
