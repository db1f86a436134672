"""Whose keys and values patches put in.

Those of the base, at the prompt's own tokens or at random ones; and those that follow from its
residual stream at one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from treft.attribution.patches import Patch
from treft.chat.regions import ChatRegions, RegionName
from treft.core.conversations import region_requests
from treft.core.patch_spec import random_tokens_source
from treft.core.recording import ReferenceRequest, Source
from treft.core.reference import MAX_CACHED_TOKENS, ReferenceBank
from treft.models.pair import ModelPair
from treft.models.perturbation import ordinary_tokens
from treft.models.repair import RepairedModel
from treft.models.residual import ResidualReference, stream_bank

MAX_KEPT_TOKENS = MAX_CACHED_TOKENS
"""Tokens of one region over all prompts whose states are kept from one patch to the next."""


@dataclass(frozen=True)
class BaseStates:
    """The states that patches take from the unfinetuned model, recorded once for all patches.

    Where those of a region are too many to keep (`MAX_KEPT_TOKENS`), they are recorded batch by
    batch.

    Attributes:
        pair: the models.
        tokenizer: the finetuned model's tokenizer.
        chats: the prompts that are patched.
        regions: the regions of them that are patched.
        seed: draws the random tokens.
    """

    pair: ModelPair
    tokenizer: PreTrainedTokenizerBase
    chats: Sequence[ChatRegions]
    regions: Sequence[RegionName]
    seed: int = 0

    def repaired(self, patch: Patch) -> RepairedModel:
        """Returns the finetuned model under a patch."""
        model = self.pair.finetuned
        if patch.stream_layer is not None:
            bank = stream_bank(model, patch.stream_layer, self._streams)
        else:
            bank = self._random if patch.source == "random" else self.base
        return RepairedModel(model, self.tokenizer, bank, patch.spec)

    @cached_property
    def base(self) -> ReferenceBank:
        """The unfinetuned model's states."""
        return self._filled(self.pair.source)

    @cached_property
    def _random(self) -> ReferenceBank:
        words = ordinary_tokens(self.tokenizer, len(self.pair.embedding))
        return self._filled(random_tokens_source(self.pair.source, words, self.seed))

    @cached_property
    def _streams(self) -> ResidualReference:
        return ResidualReference(self.pair.finetuned, self.pair.base)

    def _filled(self, source: Source) -> ReferenceBank:
        """Returns a bank that keeps the states of each region, unless they are too many."""
        bank = ReferenceBank(source)
        for region in self.regions:
            found = (request for chat in self.chats for request in region_requests(chat, region))
            requests: list[ReferenceRequest] = list(dict.fromkeys(found))
            if sum(len(request.keep) for request in requests) <= MAX_KEPT_TOKENS:
                bank.pin(requests)
        return bank
