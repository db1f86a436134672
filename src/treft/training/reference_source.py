"""Find the model before this finetune, whichever way it is trained, and keep hold of it.

| what trains | the reference |
|---|---|
| any, with `kv_reference` | the stored file |
| a fresh adapter | the model with its adapter off |
| an adapter that had already learnt | a frozen copy of it, as a second adapter |
| the weights, holding what rows share | a snapshot of all its keys and values before step 1 |
| the weights, holding what is each row's own | a frozen copy of the model |

Rows share their prefix, and their postfix after an empty query or a training row's.

A run leaves `treft_run.json` (and the snapshot) in its output folder, so that a resumed run holds
to the original model and not to the checkpoint it starts from.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from treft.core.identity import Identity, identify
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError
from treft.models.adapters import (
    KEPT_ADAPTER,
    adapter_off,
    is_fresh,
    is_peft,
    keep_adapter,
    kept_adapter,
    only_adapter_trains,
    trained_adapter,
)

if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.getLogger(__name__)

ReferenceKind = Literal["stored", "adapter_off", "kept_adapter", "snapshot", "kept_model"]
REFERENCE_FILE = "treft_reference.safetensors"
RUN_FILE = "treft_run.json"
SHARED_REGIONS = frozenset({"prefix", "postfix"})
"""Regions whose reference does not contain the row's own words, so that rows share it."""


@dataclass(frozen=True)
class RunRecord:
    """What a resumed run must know of the run it continues: `treft_run.json`."""

    kind: ReferenceKind
    weights: str
    """Fingerprint of the base weights before step 1."""
    kv_weight: float | str
    kv_regions: list[str]
    kv_states: str
    kv_layers: list[int] | None
    kv_region_weights: dict[str, float] | None = None
    kv_budget: float | None = None

    def write(self, folder: Path) -> None:
        """Write `treft_run.json` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The record in `folder`; None when no TReFT run has written one.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            return None
        try:
            kept = json.loads(path.read_text())
            names = [item.name for item in fields(cls)]  # an older version wrote others beside them
            return cls(**{name: kept[name] for name in names if name in kept})
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): restore it, or start anew.") from error


def choose_kind(model: nn.Module, regions: Sequence[str], stored: str | None) -> ReferenceKind:
    """Which of the table's references belongs to `model` as it is handed to the trainer.

    Raises:
        ConfigError: the adapter is of a kind whose reference cannot be had this way.
    """
    if stored is not None:
        return "stored"
    if is_peft(model):
        adapter = trained_adapter(cast("PeftModel", model))
        if only_adapter_trains(model, adapter):
            return "adapter_off" if is_fresh(model, adapter) else "kept_adapter"
        if not is_fresh(model, adapter):
            raise ConfigError(
                "an adapter that has already learnt and base weights train together: record the "
                "reference beforehand (treft reference record) and pass kv_reference."
            )
    return "snapshot" if set(regions) <= SHARED_REGIONS else "kept_model"


def open_bank(
    model: nn.Module, kind: ReferenceKind, identity: Identity, stored: str | None
) -> ReferenceBank:
    """The bank for a kind of reference; a snapshot still has to be taken (`ReferenceBank.pin`).

    Raises:
        ReferenceMismatchError: the stored reference belongs to another model or template.
        DataError: the stored reference cannot be read.
    """
    if kind == "stored":
        assert stored is not None
        bank = ReferenceBank.load(stored, device=next(model.parameters()).device)
        bank.check(identity)
        return bank
    if kind == "adapter_off":
        source = adapter_off(model)
    elif kind == "kept_adapter":
        keep_adapter(cast("PeftModel", model))
        source = kept_adapter(model, KEPT_ADAPTER)
    elif kind == "kept_model":
        source = other_model(frozen_copy(model))
    else:
        source = other_model(model)
    return ReferenceBank(source, identity)


def identity_before(model: nn.Module, kind: ReferenceKind, template_hash: str) -> Identity:
    """Identity of the model before the finetune; an adapter that had learnt is part of it."""
    adapter = None
    if is_peft(model):
        name = trained_adapter(cast("PeftModel", model))
        adapter = None if is_fresh(model, name) or kind == "adapter_off" else name
    return identify(model, template_hash, adapter)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model that does not train."""
    num_gib = sum(item.numel() * item.element_size() for item in model.parameters()) / 2**30
    logger.warning(
        "all weights train and rows need references of their own: a frozen copy of the model is "
        "kept (%.1f GiB more); train an adapter, or hold the prefix alone, to avoid it",
        num_gib,
    )
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    # TRL put a forward on the instance that is bound to the model in training: not wanted here.
    vars(pretrained_model(frozen)).pop("forward", None)
    return frozen
