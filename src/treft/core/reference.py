"""The unfinetuned model's keys and values: a bank that records, keeps, stores and checks them.

Which tokens are recorded is decided in `treft.core.conversations`, how in `treft.core.recording`.

Shapes: H key/value heads, T kept tokens of one request, D head dimension.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from treft.core.identity import Identity, has_adapter, identify
from treft.core.recording import RecordedStates, ReferenceRequest, Source
from treft.core.states import KeyValue
from treft.errors import ConfigError, DataError, ReferenceMismatchError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the file layout; files of another version are refused."""

CHANGED_BY_FINETUNE = ("weights", "model_id", "revision", "adapter")
"""Fields of an identity that differ between a fully finetuned model and the one it was before."""

MAX_CACHED_TOKENS = 4096
"""Kept tokens of recorded requests before the least recently used are dropped."""


class ReferenceBank:
    """Reference states by request: recorded when first asked for, or loaded from a file.

    What is added, pinned or loaded stays for good. What `get` records stays until it was not asked
    for in a long while, so that many different prompts do not fill the memory.

    Args:
        source: records what the bank does not hold; without one, that is an error.
        identity: whose states these are; needed to save.
        max_tokens: kept tokens of unpinned entries.
    """

    def __init__(
        self,
        source: Source | None = None,
        identity: Identity | None = None,
        max_tokens: int = MAX_CACHED_TOKENS,
    ) -> None:
        self.source = source
        self.identity = identity
        self.max_tokens = max_tokens
        self._pinned: dict[ReferenceRequest, RecordedStates] = {}
        self._recent: OrderedDict[ReferenceRequest, RecordedStates] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pinned) + len(self._recent)

    def __iter__(self) -> Iterator[ReferenceRequest]:
        yield from self._pinned
        yield from self._recent

    def __contains__(self, request: object) -> bool:
        return request in self._pinned or request in self._recent

    def get(self, requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        """Returns the states of each request; those missing are recorded in one go and kept.

        Raises:
            ReferenceMismatchError: a request is missing and the bank has no source.
            ReferenceStatesError: a recorded vector is NaN, infinite or zero.
        """
        found = self.look_up(requests)
        for request, states in zip(requests, found, strict=True):
            if request not in self._pinned:
                self._recent[request] = states
                self._recent.move_to_end(request)
        self._forget()
        return found

    def look_up(self, requests: Sequence[ReferenceRequest]) -> list[RecordedStates]:
        """Returns what `get` does and keeps nothing new: for prompts that will not come again."""
        held = {request: self._held(request) for request in requests}
        missing = [request for request, states in held.items() if states is None]
        fresh = dict(zip(missing, self._record(missing), strict=True)) if missing else {}
        return [held[request] or fresh[request] for request in requests]

    def pin(self, requests: Sequence[ReferenceRequest]) -> None:
        """Record and keep for good, e.g. before the weights start to change."""
        for request, states in zip(requests, self.look_up(requests), strict=True):
            self.add(request, states)

    def add(self, request: ReferenceRequest, states: RecordedStates) -> None:
        """Keep states for good, replacing what the bank held for the request."""
        self._recent.pop(request, None)
        self._pinned[request] = states

    def check(self, identity: Identity, ignore: Collection[str] = ()) -> None:
        """Refuse to serve another model, template or software than the bank was recorded with.

        Args:
            identity: of the model in use, from `identify`.
            ignore: fields that may differ, e.g. "weights" for a fully finetuned model.

        Raises:
            ReferenceMismatchError: names each field that differs.
        """
        if self.identity is None:
            raise ReferenceMismatchError(
                "this reference does not say which model it belongs to: record it with an identity."
            )
        differences = self.identity.differences(identity, ignore)
        if differences:
            raise ReferenceMismatchError(
                "the reference was recorded with " + "; ".join(differences) + ". Record it again "
                "from the model you finetune (treft reference), or load the model it belongs to."
            )

    def check_origin(self, model: nn.Module, template: str = "") -> None:
        """Refuse to serve a model that was not finetuned from the one that was recorded.

        An adapter's base must be the recorded model. A full finetune changed the weights on
        purpose, so there only structure, precision, template and versions can be compared.

        Args:
            model: the finetuned model, possibly wrapped.
            template: hash of the chat template in use, as in the bank's identity.

        Raises:
            ReferenceMismatchError: names each field that differs.
        """
        ignore = ("adapter",) if has_adapter(model) else CHANGED_BY_FINETUNE
        self.check(identify(model, template), ignore)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write all entries to one safetensors file; a reader never sees half of it.

        Raises:
            ConfigError: the bank is empty or has no identity, or the file exists and `overwrite`
                is false.
        """
        path = Path(path)
        if self.identity is None or not len(self):
            raise ConfigError("only a reference with an identity and at least one entry is saved.")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists: choose another name, or allow overwriting.")
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {**self._pinned, **self._recent}
        header = {
            "format": FORMAT,
            "identity": asdict(self.identity),
            "requests": [asdict(request) for request in entries],
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(_flatten(entries), temporary, metadata={"treft": json.dumps(header)})
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        logger.info("saved the reference of %d requests to %s", len(entries), path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu"
    ) -> ReferenceBank:
        """Read a file written by `save`; call `check` before use.

        Raises:
            DataError: the file is missing, damaged, or no reference.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = _header(path, file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a reference: {error}") from error
        try:
            bank = cls(identity=Identity(**header["identity"]))
            for index, fields in enumerate(header["requests"]):
                request = ReferenceRequest(**{name: tuple(value) for name, value in fields.items()})
                bank.add(request, _unflatten(tensors, index))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is a damaged reference ({error}): record it again.") from error
        return bank

    def _held(self, request: ReferenceRequest) -> RecordedStates | None:
        return self._pinned.get(request) or self._recent.get(request)

    def _record(self, missing: list[ReferenceRequest]) -> list[RecordedStates]:
        if self.source is None:
            tokens = list(missing[0].kept_ids)
            raise ReferenceMismatchError(
                f"the reference holds no states for {len(missing)} of the prompts in use, e.g. for "
                f"{len(tokens)} tokens that start {tokens[:12]} (system prompt, tools or template "
                "differ from those recorded): record it with these prompts too "
                "(treft reference), or give the bank a source."
            )
        return self.source(missing)

    def _forget(self) -> None:
        num_tokens = sum(len(request.keep) for request in self._recent)
        while num_tokens > self.max_tokens and len(self._recent) > 1:
            request, _ = self._recent.popitem(last=False)
            num_tokens -= len(request.keep)


def _flatten(entries: dict[ReferenceRequest, RecordedStates]) -> dict[str, Tensor]:
    """Tensors named request.layer.kind, each (H, T, D)."""
    return {
        f"{index}.{layer}.{kind}": tensor.contiguous()
        for index, states in enumerate(entries.values())
        for layer, pair in states.items()
        for kind, tensor in zip(KeyValue._fields, pair, strict=True)
    }


def _unflatten(tensors: dict[str, Tensor], index: int) -> RecordedStates:
    """Returns the states of request `index`, in ascending order of layers."""
    prefix = f"{index}."
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith(prefix)})
    return {
        layer: KeyValue(*(tensors[f"{index}.{layer}.{kind}"] for kind in KeyValue._fields))
        for layer in layers
    }


def _header(path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, Any]:
    """Our part of the file's metadata."""
    if "treft" not in metadata:
        raise DataError(f"{path} is a safetensors file but no treft reference.")
    header: dict[str, Any] = json.loads(metadata["treft"])
    if header.get("format") != FORMAT:
        raise DataError(
            f"{path} has reference format {header.get('format')}, this treft reads {FORMAT}: "
            "record the reference again."
        )
    return header
