"""Which model answers, and what it is patched from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treft.chat.regions import ChatRegions, RegionName
from treft.core.conversations import region_requests
from treft.core.patch_spec import PATCHABLE
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.adapters import adapter_off
from treft.models.loading import LoadOptions, load_model
from treft.models.repair import UNPATCHED, RepairedModel, patch


@dataclass(frozen=True)
class Repair:
    """Names from the command line.

    Attributes:
        model: a model or an adapter.
        adapter: put on the model.
        regions: to patch.
        base: unfinetuned model to patch from.
        reference: file to patch from; without base and reference, the adapter is switched off.

    Raises:
        ConfigError: a region is unknown, or the options contradict each other.
    """

    model: str
    adapter: str | None
    regions: tuple[RegionName, ...]
    base: str | None
    reference: Path | None

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if unknown := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"--patch is one of {', '.join(PATCHABLE)}, not {unknown[0]}.")
        if self.base is not None and self.reference is not None:
            raise ConfigError("give one of --base and --reference: what to patch from.")
        if not self.regions and (self.base is not None or self.reference is not None):
            raise ConfigError("--base and --reference are what to patch from: name a --patch.")

    def load_bank(self, options: LoadOptions, chats: Iterable[ChatRegions]) -> ReferenceBank | None:
        """The reference file, if one is named: quickly read, so before the model is.

        Args:
            options: say where the model will be.
            chats: the conversations to patch, checked one by one.

        Raises:
            DataError: the file cannot be read.
            TemplateError: `chats` cannot be rendered.
            ReferenceMismatchError: the file lacks the states of a conversation.
        """
        bank = None
        if self.reference is not None:
            bank = ReferenceBank.load(self.reference, options.torch_device)
        for chat in chats:
            if bank is not None:
                for region in self.regions:
                    bank.look_up(region_requests(chat, region))
        return bank

    def load(
        self, options: LoadOptions, template: str | None, bank: ReferenceBank | None
    ) -> RepairedModel:
        """The model, patched or not.

        Raises:
            ConfigError: something cannot be loaded, or there is nothing to patch from.
            ReferenceMismatchError: the reference belongs to another model or template.
        """
        loaded, tokenizer = load_model(self.model, self.adapter, options, template)
        if not self.regions:
            return RepairedModel(loaded, tokenizer, None, UNPATCHED)
        source: Any = bank
        if self.base is not None:
            # In the precision of the finetuned model, however the base was saved.
            dtype = str(pretrained_model(loaded).dtype).removeprefix("torch.")
            source, _ = load_model(self.base, None, replace(options, dtype=dtype), template)
        elif source is None:
            self._need_adapter(loaded)
        return patch(loaded, tokenizer, self.regions, reference=source)

    def _need_adapter(self, loaded: Any) -> None:
        try:
            adapter_off(loaded)
        except ConfigError as error:
            raise ConfigError(
                f"{self.model} has no adapter that could be switched off to patch from: name the "
                "unfinetuned model (--base), or a recorded reference (--reference)."
            ) from error
