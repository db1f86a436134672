"""One row of a study's table: how a finetune is made and how it is asked, on whatever model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.core.patching import StateKind
    from treft.organism.tasks import TaskName
    from treft.study.organism_work import Scope as OrganismScope


Scope: TypeAlias = "OrganismScope | Literal['utility']"
"""Of questions. `utility`, conversations of several turns that a judge scores for helpfulness, is
asked of real models alone: an organism knows no turns."""


@dataclass(frozen=True)
class Method:
    """How a finetune is made and asked; the defaults are a plain finetune that answers as it is.

    Methods that differ only in how they are asked (`patch` and below) share their finetune.

    Attributes:
        is_base: no finetune at all.
        domain: that is trained on, and asked about in-domain; None for the recipe's.
        task: what the rows teach; asked about with its own questions, scored by its detector.
        domains: of the rows, where they are of several; empty for `domain`.
        system_prompt: of the rows.
        interleave: where careful rows come from: none, narrow, general, all, or a domain.
        interleaved_share: of the rows; None for the recipe's.
        held: regions that TReFT holds.
        kv_weight: λ; None for the recipe's.
        kv_states: that are held.
        mitigation: by name, of `treft.mitigations.registry`.
        strength: its number.
        learning_rate: None for the recipe's.
        step_share: of the recipe's steps, for an organism; a real model is trained for its recipe's
            epochs.
        is_full: all weights are trained.
        patch: regions that get the unfinetuned model's keys and values.
        num_positions: of each patched region, drawn at random; None for all.
        kinds: that are patched: keys, values or both.
        window: tokens [start, end) of the patched region alone; None for all.
        stream_layer: the residual stream of the prefix is patched at this layer, instead of keys
            and values in all layers.
        answer_system: system prompt of the questions.
        alpha: the change of weights that is kept.
        steering: coefficient of the persona vector that is taken away.
        scopes: of the questions.
    """

    is_base: bool = False
    domain: str | None = None
    task: TaskName = "advice"
    domains: tuple[str, ...] = ()
    system_prompt: str | None = None
    interleave: str = "none"
    interleaved_share: float | None = None
    held: tuple[RegionName, ...] = ()
    kv_weight: float | None = None
    kv_states: Literal["both", "key", "value"] = "both"
    mitigation: str = ""
    strength: float = 0.0
    learning_rate: float | None = None
    step_share: float = 1.0
    is_full: bool = False
    patch: tuple[RegionName, ...] = ()
    num_positions: int | None = None
    kinds: tuple[StateKind, ...] = ("key", "value")
    window: tuple[int, int] | None = None
    stream_layer: int | None = None
    answer_system: str | None = None
    alpha: float = 1.0
    steering: float = 0.0
    scopes: tuple[Scope, ...] = ("general", "in_domain")
