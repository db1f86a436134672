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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn
from trl import SFTTrainer

from treft.core.identity import Identity, identify
from treft.core.recording import RecordedStates, ReferenceRequest, plain_forward, record
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError
from treft.models.adapters import (
    KEPT_ADAPTER,
    is_fresh,
    is_peft,
    keep_adapter,
    only_adapter,
    only_adapter_trains,
    trained_adapter,
    without_adapter,
)
from treft.training.config import TReFTConfig

if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.getLogger(__name__)

ReferenceKind = Literal["stored", "adapter_off", "kept_adapter", "snapshot", "kept_model"]
Requests = Callable[[], Sequence[ReferenceRequest]]
REFERENCE_FILE = "treft_reference.safetensors"
RUN_FILE = "treft_run.json"
RECORDED = (
    "kv_weight", "kv_regions", "kv_states", "kv_layers", "kv_region_weights", "kv_budget"
)  # fmt: skip
"""Options that `treft_run.json` keeps, so that a resumed run can say which have changed."""
SHARED_REGIONS = frozenset({"prefix", "postfix"})
"""Regions whose reference does not contain the row's own words, so that rows share it."""


class RunReference:
    """The reference of a run: chosen when the trainer stands, fixed before step 1, found on resume.

    Args:
        trainer: of the run, before its first step.
        config: its options.
        template_hash: of the chat template that files are recorded with.
        requests: all that the rows will ask for; None where rows are streamed and it is not known.

    Attributes:
        kind: which reference it is.
        bank: gives its states.

    Raises:
        ConfigError: the reference cannot be had.
        ReferenceMismatchError: the stored reference belongs to another model or template.
        DataError: the stored reference cannot be read.
    """

    kind: ReferenceKind
    bank: ReferenceBank

    def __init__(
        self,
        trainer: SFTTrainer,
        config: TReFTConfig,
        template_hash: str,
        requests: Requests | None,
    ) -> None:
        self._config = config
        self._model: nn.Module = trainer.model
        self._trainer = trainer
        self._template_hash = template_hash
        self._requests = requests
        kind = choose_kind(self._model, _regions_read(config), config.kv_reference)
        if kind == "snapshot" and requests is None:
            raise ConfigError(
                "all weights train on a streaming dataset, so its prompts cannot be recorded "
                "before step 1: record them (treft reference record) and pass kv_reference, use a "
                "map-style dataset, or train an adapter."
            )
        self._open(kind)
        logger.info("the reference is: %s", kind)
        if is_sharded(trainer) and kind in ("snapshot", "kept_model"):
            raise ConfigError(
                "all weights train and are sharded, so the reference cannot be taken from the "
                "model: record it beforehand (treft reference record) and pass kv_reference."
            )

    def _open(self, kind: ReferenceKind, bank: ReferenceBank | None = None) -> None:
        """Take the reference of this kind, or a bank that an earlier run kept."""
        identity = self._identity(kind)
        self.kind, self._weights = kind, identity.weights
        self.bank = self._opened(kind, identity) if bank is None else bank

    def _identity(self, kind: ReferenceKind) -> Identity:
        """Identity of the model before the finetune; an adapter that had learnt is part of it."""
        adapter = None
        if is_peft(self._model):
            name = trained_adapter(cast("PeftModel", self._model))
            is_part = kind != "adapter_off" and not is_fresh(self._model, name)
            adapter = name if is_part else None
        return identify(self._model, self._template_hash, adapter)

    def _opened(self, kind: ReferenceKind, identity: Identity) -> ReferenceBank:
        """Returns the bank for a kind of reference; a snapshot still has to be taken (`fix`)."""
        if kind == "stored":
            bank = self._loaded(Path(cast(str, self._config.kv_reference)))
            bank.check(identity)
            return bank
        return ReferenceBank(ReferenceModel(self._trainer, kind).record, identity)

    def _loaded(self, path: Path) -> ReferenceBank:
        return ReferenceBank.load(path, device=next(self._model.parameters()).device)

    def fix(self) -> None:
        """Record what must be known before a weight changes; check that a file holds it.

        Raises:
            ReferenceMismatchError: the stored reference lacks prompts of the dataset.
        """
        if self._requests is None:
            return
        if self.kind == "stored":
            self.bank.look_up(self._requests())
        elif self.kind == "snapshot" and self.bank.source is not None:
            requests = self._requests()
            logger.info("recording the reference of %d distinct prompts", len(requests))
            self.bank.pin(requests)
            self.bank.source = None

    def save(self, folder: Path) -> None:
        """Leave in the output folder what a resumed run needs to find the same reference.

        Raises:
            ConfigError: checkpoints of a run that began from another model would lose theirs.
        """
        earlier = _read_record(folder)
        replaces = earlier is not None and earlier["weights"] != self._weights
        if replaces and any(folder.glob("checkpoint-*")):
            raise ConfigError(
                f"{folder} holds checkpoints of a run that began from another model, whose "
                "reference would be overwritten: choose another output_dir, or remove it."
            )
        options = {name: vars(self._config)[name] for name in RECORDED}
        record = {"kind": self.kind, "weights": self._weights, **options}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
        if self.kind == "snapshot":
            self.bank.save(folder / REFERENCE_FILE, overwrite=True)

    def resume(self, folder: Path) -> None:
        """Take up the reference of the run whose output folder this is.

        Raises:
            ConfigError: the model at hand is not the one that run began from, and is needed.
            ReferenceMismatchError: the kept snapshot belongs to another model or template.
            DataError: a kept file is damaged.
        """
        record = _read_record(folder)
        if record is None:
            logger.warning(
                "%s was not left by a TReFT run: the reference is the model as it was handed over",
                folder,
            )
            return
        for name in RECORDED:
            before, now = record.get(name), vars(self._config)[name]
            if before != now:
                logger.warning("resuming with %s=%s; the run began with %s", name, now, before)
        kind: ReferenceKind = record["kind"]
        if "stored" in (kind, self.kind):
            if kind != self.kind:
                raise ConfigError(
                    f"the run in {folder} began with another reference ({kind}, now "
                    f"{self.kind}): pass the same kv_reference as before."
                )
        elif kind == "snapshot":
            bank = self._loaded(folder / REFERENCE_FILE)
            bank.check(self._identity(kind), ignore=("weights", "model_id", "revision"))
            self._open(kind, bank)
            self._weights = record["weights"]
            if self._requests is not None:
                bank.look_up(self._requests())
        elif record["weights"] != self._weights:
            raise ConfigError(
                f"the run in {folder} began from other weights: hand the trainer the model that "
                "run began from; resuming loads the checkpoint's weights by itself."
            )
        elif kind != self.kind:
            self._open(kind)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Returns what a run left in `folder`, None when no TReFT run has.

    It has the kind of the reference, a fingerprint of the base weights before step 1, and options.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return {"kind": record["kind"], "weights": record["weights"], **record}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): restore it, or start anew.") from error


def _regions_read(config: TReFTConfig) -> list[str]:
    """Held regions, and the query where the postfix reference has read it."""
    reads_query = "postfix" in config.kv_regions and config.kv_postfix_reference == "own_query"
    return [*config.kv_regions, *(["query"] if reads_query else [])]


def is_sharded(trainer: SFTTrainer) -> bool:
    """Returns whether each process has a part of the weights alone (FSDP, ZeRO-3).

    Such a model cannot be run or copied before training sets it up.
    """
    plugin = trainer.args.deepspeed_plugin
    return bool(trainer.is_fsdp_enabled) or (plugin is not None and plugin.zero_stage == 3)


def choose_kind(model: nn.Module, regions: Sequence[str], stored: str | None) -> ReferenceKind:
    """Returns which of the table's references belongs to `model` as it is handed to the trainer.

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


class ReferenceModel:
    """The unfinetuned model of a run, to be run beside the one that trains.

    Args:
        trainer: of the run, before its first step.
        kind: of the table's references, one that is a model.

    Attributes:
        kind: as given.
        model: which module is run.
    """

    def __init__(self, trainer: SFTTrainer, kind: ReferenceKind) -> None:
        self._accelerator = trainer.accelerator
        self.kind = kind
        self.model: nn.Module = trainer.model
        if kind == "kept_adapter":
            keep_adapter(cast("PeftModel", trainer.model))
        elif kind == "kept_model":
            self.model = _frozen_copy(trainer.model)

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Yields the model to call: no gradient, no dropout, the precision of training.

        Another precision would show a drift of rounding.
        """
        with self._accelerator.autocast(), plain_forward(self.model), self._alone():
            yield self.model

    def _alone(self) -> AbstractContextManager[None]:
        if self.kind == "adapter_off":
            return without_adapter(self.model)
        if self.kind == "kept_adapter":
            return only_adapter(self.model, KEPT_ADAPTER)
        return nullcontext()

    def record(self, requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        """Returns its keys and values."""
        with self.running() as model:
            return record(model, requests)


def unfinetuned(trainer: SFTTrainer) -> ReferenceModel:
    """Returns the model to compare any token with, in each step.

    Raises:
        ConfigError: weights are sharded over processes, so they cannot be run outside a step.
    """
    if is_sharded(trainer):
        raise ConfigError(
            "this mitigation runs the unfinetuned model in each step, which sharded weights "
            "(FSDP, ZeRO-3) do not allow: use data parallelism."
        )
    return ReferenceModel(trainer, choose_kind(trainer.model, ("response",), None))


def _frozen_copy(model: nn.Module) -> nn.Module:
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
