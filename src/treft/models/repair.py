"""Answer conversations, with or without the unfinetuned model's keys and values at chosen regions.

repaired = patch(model, tokenizer, regions=("prefix",))
answers = repaired.generate(conversations, max_new_tokens=200)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.modeling_utils import PreTrainedModel

from treft.chat.regions import ChatRegions, RegionName, find_regions, template_hash
from treft.core.conversations import PostfixReference
from treft.core.identity import identify
from treft.core.patch_spec import PatchSpec, row_patches
from treft.core.patching import RowPatch
from treft.core.reference import ReferenceBank
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError
from treft.models.adapters import base_source
from treft.models.generation import Patches, batches_by_length, generated, setting

Messages = Sequence[dict[str, Any]]
RENDERING = ("tools", "chat_template", "template_kwargs", "include_think_block")
"""Options that `find_regions` takes."""

OWN_ARGUMENTS = (
    "past_key_values",
    "input_ids",
    "inputs",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
)
NEEDS_OWN_CACHE = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
"""Options of `generate` that do not write one prompt, then token by token, into the cache."""

WHOLE_PREFIX = PatchSpec("prefix", ("prefix",))
UNPATCHED = PatchSpec("unpatched", ())
"""The model as it is."""


@dataclass(frozen=True)
class RepairedModel:
    """A model that answers with the reference's keys and values at some regions (eq. (1)).

    Attributes:
        model: the finetuned model, possibly wrapped; it is not changed.
        tokenizer: its tokenizer.
        bank: where reference states come from.
        spec: which keys and values are replaced; none, without regions.
        postfix_reference: "empty_query" (nothing of the query leaks in), "own_query", or a
            training row.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    bank: ReferenceBank | None
    spec: PatchSpec = WHOLE_PREFIX
    postfix_reference: PostfixReference = "empty_query"

    @property
    def regions(self) -> tuple[RegionName, ...]:
        """Which tokens are patched."""
        return self.spec.regions

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        batch_size: int = 32,
        seed: int | None = None,
        streamer: Any = None,
        on_batch: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer each conversation.

        Conversations of similar length run together, padded on the left; the order of answers is
        that of the conversations. With `num_return_sequences` n each has n answers in a row.

        Args:
            conversations: messages, each ending with a user or tool message.
            batch_size: conversations run together.
            seed: set before the first batch; sampled answers then repeat.
            streamer: a Transformers streamer; one conversation only.
            on_batch: told how many conversations are answered, after each batch.
            **options: how conversations are rendered (`tools`, `chat_template`, `template_kwargs`
                and `include_think_block`, as `find_regions` takes them); all others are for the
                model's `generate`.

        Raises:
            ConfigError: an option cannot work.
            DataError: there is no conversation, or one does not end with a user or tool message.
            TemplateError: the conversation lacks a patched region.
            ReferenceMismatchError: the bank lacks a reference and cannot record it.
        """
        _check_conversations(conversations)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
        if streamer is not None and len(conversations) > 1:
            raise ConfigError(f"a streamer follows one conversation, not {len(conversations)}.")
        rendering = _taken(options, *RENDERING)
        _check_options(pretrained_model(self.model), options, bool(self.regions))
        self._check_identity(rendering.get("chat_template"))
        chats = [
            find_regions(self.tokenizer, messages, add_generation_prompt=True, **rendering)
            for messages in conversations
        ]
        for chat in chats:
            for region in self.regions:
                chat.require(region)
        if seed is not None:
            set_seed(seed)
        rows = [chat.input_ids for chat in chats]
        batches = batches_by_length(rows, batch_size)
        options["streamer"] = streamer
        patches = self.patches(chats)
        answers: dict[int, list[str]] = {}
        for batch, tokens in generated(
            self.model, self.tokenizer, rows, batches, lambda _: options, patches
        ):
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            num = len(texts) // len(batch)
            for place, index in enumerate(batch):
                answers[index] = texts[place * num : (place + 1) * num]
            if on_batch is not None:
                on_batch(len(answers))
        return [text for index in range(len(chats)) for text in answers[index]]

    def _check_identity(self, chat_template: str | None) -> None:
        """Refuse a bank that says it belongs to another model or template."""
        if self.regions and self.bank is not None and self.bank.identity is not None:
            self.bank.check_origin(self.model, template_hash(chat_template or self.tokenizer))

    def patches(
        self, chats: Sequence[ChatRegions], numbers: Sequence[int] | None = None
    ) -> Patches | None:
        """Returns what `treft.models.generation.answer` is to replace; None where nothing is.

        Args:
            chats: the rendered prompts.
            numbers: what drawn tokens depend on, a number a prompt; default its place among them.
        """
        if not self.regions:
            return None

        def of_batch(batch: Sequence[int]) -> list[list[RowPatch]]:
            assert self.bank is not None, "there is something to patch from"
            drawn = batch if numbers is None else [numbers[place] for place in batch]
            found = [chats[place] for place in batch]
            return row_patches(self.spec, found, drawn, self.bank, self.postfix_reference)

        return of_batch


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    *,
    patch: Sequence[RegionName] = (),
    bank: ReferenceBank | None = None,
    **options: Any,
) -> list[str]:
    """Answer conversations, patched at the regions in `patch` or, by default, not at all.

    Args:
        model: the finetuned model, possibly wrapped; it is not changed.
        tokenizer: its tokenizer.
        conversations: messages, each ending with a user or tool message.
        patch: regions whose keys and values are replaced.
        bank: where reference states come from; None switches the adapter of a PEFT model off.
        **options: `num_positions` and `position_seed` of `PatchSpec`, `postfix_reference` of
            `RepairedModel`, and all of `RepairedModel.generate`.
    """
    spec = PatchSpec(
        "+".join(patch), tuple(patch), **_taken(options, "num_positions", "position_seed")
    )
    if patch and bank is None:
        bank = _bank(model, tokenizer, None)
    repaired = RepairedModel(model, tokenizer, bank, spec, **_taken(options, "postfix_reference"))
    return repaired.generate(conversations, **options)


def patch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    regions: Sequence[RegionName] = ("prefix",),
    *,
    reference: ReferenceBank | nn.Module | str | os.PathLike[str] | None = None,
    postfix_reference: PostfixReference = "empty_query",
) -> RepairedModel:
    """Repair a finetuned model without training, by the base's keys and values at some regions.

    Args:
        model: the finetuned model; an adapter may be on top.
        tokenizer: its tokenizer, with a chat template.
        regions: prefix (default), postfix, query, or several.
        reference: the unfinetuned model, a bank, or a reference file; None switches the adapter of
            a PEFT model off to get at it.
        postfix_reference: see `RepairedModel`.

    Raises:
        ConfigError: a region is unknown, or there is no adapter to switch off.
        ReferenceMismatchError: the file was recorded with another model or template.
    """
    if not regions:
        raise ConfigError("name at least one region to patch: prefix, postfix or query.")
    bank = _bank(model, tokenizer, reference)
    spec = PatchSpec("+".join(regions), tuple(regions))
    repaired = RepairedModel(model, tokenizer, bank, spec, postfix_reference)
    repaired._check_identity(None)
    return repaired


def _bank(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    reference: ReferenceBank | nn.Module | str | os.PathLike[str] | None,
) -> ReferenceBank:
    """Returns the bank behind what the user gave as reference."""
    if isinstance(reference, ReferenceBank):
        return reference
    if reference is None or isinstance(reference, nn.Module):
        identity = None if reference is None else identify(reference, template_hash(tokenizer))
        return ReferenceBank(base_source(model, reference), identity)
    return ReferenceBank.load(reference, pretrained_model(model).device)


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Returns the named ones of some options, which leave them."""
    return {name: options.pop(name) for name in names if name in options}


def _check_conversations(conversations: Sequence[Messages]) -> None:
    if not conversations:
        raise DataError("there is no conversation to answer.")
    for number, messages in enumerate(conversations, start=1):
        if not messages or messages[-1].get("role") not in ("user", "tool"):
            raise DataError(
                f"conversation {number} does not end with a user or tool message, so there is "
                "nothing to answer."
            )


def _check_options(
    pretrained: PreTrainedModel, options: Mapping[str, Any], is_patched: bool
) -> None:
    """Refuse options that contradict what the conversations give, or that a patch cannot follow.

    Raises:
        ConfigError: names them.
    """
    given = sorted(set(OWN_ARGUMENTS) & set(options))
    if given:
        raise ConfigError(f"{given} are made from the conversations and cannot be given.")
    if not is_patched:
        return
    barred = [name for name in NEEDS_OWN_CACHE if setting(pretrained, options, name)]
    # A kind of cache that the checkpoint names by default gives way to ours.
    named = options.get("generation_config")
    if options.get("cache_implementation") or (named and named.cache_implementation):
        barred.append("cache_implementation")
    if not options.get("use_cache", True):
        barred.append("use_cache=False")
    if barred:
        raise ConfigError(
            f"patching works in the cache and cannot go with {barred}: leave them out, or turn off "
            "what the model's generation_config turns on (for instance use_mtp=None)."
        )
