"""Answer conversations, with or without the unfinetuned model's keys and values at chosen regions.

    repaired = patch(model, tokenizer, regions=("prefix",))
    answers = repaired.generate(conversations, max_new_tokens=200)

Shapes: B batch rows, T columns of the padded prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from treft.chat.regions import ChatRegions, RegionName, find_regions, template_hash
from treft.core.identity import identify
from treft.core.origin import check_origin
from treft.core.patch_spec import PatchSpec, row_patches
from treft.core.patching import (
    PatchedCache,
    RowPatch,
    has_sliding_window,
    prefix_cache,
)
from treft.core.recording import (
    RecordedStates,
    adapter_off,
    eval_mode,
    other_model,
)
from treft.core.reference import ReferenceBank
from treft.core.requests import PostfixReference
from treft.core.states import pretrained_model
from treft.errors import ConfigError, DataError
from treft.models.batching import batches_by_length, pad_left, pad_token_id
from treft.models.generation_options import check_options, repeats_rows

Messages = Sequence[dict[str, Any]]
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
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        include_think_block: bool = True,
        batch_size: int = 32,
        seed: int | None = None,
        streamer: Any = None,
        on_batch: Callable[[int], None] | None = None,
        **generate_kwargs: Any,
    ) -> list[str]:
        """Answer each conversation.

        Conversations of similar length run together, padded on the left; the order of answers is
        that of the conversations. With `num_return_sequences` n each has n answers in a row.

        Args:
            conversations: messages, each ending with a user or tool message.
            tools: JSON schemas or functions given to the template.
            chat_template: used instead of the tokenizer's own.
            template_kwargs: further template variables.
            include_think_block: an empty think block after the query counts as postfix.
            batch_size: conversations run together.
            seed: set before the first batch; sampled answers then repeat.
            streamer: a Transformers streamer; one conversation only.
            on_batch: told how many conversations are answered, after each batch.
            **generate_kwargs: for the model's `generate`.

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
        check_options(pretrained_model(self.model), generate_kwargs, bool(self.regions))
        self._check_identity(chat_template)
        chats = [
            find_regions(
                self.tokenizer,
                messages,
                tools=tools,
                chat_template=chat_template,
                add_generation_prompt=True,
                include_think_block=include_think_block,
                template_kwargs=template_kwargs,
            )
            for messages in conversations
        ]
        for chat in chats:
            for region in self.regions:
                chat.require(region)
        if seed is not None:
            set_seed(seed)
        answers: dict[int, list[str]] = {}
        for batch in batches_by_length(chats, batch_size):
            found = self._answer(
                [chats[index] for index in batch], batch, streamer, generate_kwargs
            )
            answers.update(zip(batch, found, strict=True))
            if on_batch is not None:
                on_batch(len(answers))
        return [text for index in range(len(chats)) for text in answers[index]]

    def _check_identity(self, chat_template: str | None) -> None:
        """Refuse a bank that says it belongs to another model or template."""
        if self.regions and self.bank is not None and self.bank.identity is not None:
            check_origin(self.bank, self.model, template_hash(chat_template or self.tokenizer))

    @torch.no_grad()
    def _answer(
        self,
        chats: Sequence[ChatRegions],
        indices: Sequence[int],
        streamer: Any,
        generate_kwargs: dict[str, Any],
    ) -> list[list[str]]:
        """One batch; the answers of each row."""
        pretrained = pretrained_model(self.model)
        config = pretrained.config.get_text_config(decoder=True)
        patches = self._patches(chats, indices)
        shared = self._shared_prefix(chats, patches, generate_kwargs)
        head = 0 if shared is None else len(chats[0].positions("prefix"))
        pad = pad_token_id(self.tokenizer)
        ids, mask = pad_left(chats, head, pad)
        width = len(ids[0])
        options: dict[str, Any] = {"use_cache": True, "pad_token_id": pad, **generate_kwargs}
        if "stop_strings" in options:
            options["tokenizer"] = self.tokenizer
        if shared is not None:
            options["past_key_values"] = prefix_cache(shared, config, len(chats))
        elif self.regions:
            rows = [
                [found.moved(width - len(chat.input_ids)) for found in row]
                for chat, row in zip(chats, patches, strict=True)
            ]
            options["past_key_values"] = PatchedCache(config, rows, width)
        if self.regions:
            options["cache_implementation"] = None  # not the kind that the checkpoint asks for
        with eval_mode(self.model):
            output: Any = self.model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(ids, device=pretrained.device),
                attention_mask=torch.tensor(mask, device=pretrained.device),
                streamer=streamer,
                **options,
            )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        texts = self.tokenizer.batch_decode(sequences[:, width:], skip_special_tokens=True)
        repeats = len(texts) // len(chats)
        return [texts[row * repeats : (row + 1) * repeats] for row in range(len(chats))]

    def _patches(
        self, chats: Sequence[ChatRegions], indices: Sequence[int]
    ) -> list[list[RowPatch]]:
        """What to replace in each conversation; columns count from its first token."""
        if not self.regions:
            return [[] for _ in chats]
        assert self.bank is not None
        return row_patches(self.spec, chats, indices, self.bank, self.postfix_reference)

    def _shared_prefix(
        self,
        chats: Sequence[ChatRegions],
        patches: Sequence[Sequence[RowPatch]],
        generate_kwargs: dict[str, Any],
    ) -> RecordedStates | None:
        """The prefix states when a ready-made cache can serve the whole batch."""
        if self.regions != ("prefix",) or not self.spec.is_whole:
            return None
        pretrained = pretrained_model(self.model)
        if has_sliding_window(pretrained.config.get_text_config(decoder=True)):
            return None
        if repeats_rows(pretrained, generate_kwargs):
            return None
        states = patches[0][0].states
        if next(iter(states.values())).key.dtype != pretrained.dtype:
            return None  # PatchedCache converts
        prefixes = {chat.input_ids[: len(chat.positions("prefix"))] for chat in chats}
        return states if len(prefixes) == 1 else None


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    *,
    patch: Sequence[RegionName] = (),
    bank: ReferenceBank | None = None,
    num_positions: int | None = None,
    position_seed: int = 0,
    postfix_reference: PostfixReference = "empty_query",
    **options: Any,
) -> list[str]:
    """Answer conversations, patched at the regions in `patch` or, by default, not at all.

    `PatchSpec` and `RepairedModel` document the arguments, `RepairedModel.generate` the further
    options.
    """
    repaired = _repaired(
        model, tokenizer, patch, bank, num_positions, position_seed, postfix_reference
    )
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
    repaired = _repaired(model, tokenizer, regions, bank, None, 0, postfix_reference)
    repaired._check_identity(None)
    return repaired


def _bank(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    reference: ReferenceBank | nn.Module | str | os.PathLike[str] | None,
) -> ReferenceBank:
    """The bank behind what the user gave as reference."""
    if isinstance(reference, ReferenceBank):
        return reference
    if isinstance(reference, nn.Module):
        identity = identify(reference, template_hash(tokenizer))
        return ReferenceBank(other_model(reference), identity)
    if reference is None:
        return ReferenceBank(adapter_off(model))
    return ReferenceBank.load(reference, pretrained_model(model).device)


def _repaired(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    regions: Sequence[RegionName],
    bank: ReferenceBank | None,
    num_positions: int | None,
    position_seed: int,
    postfix_reference: PostfixReference,
) -> RepairedModel:
    spec = PatchSpec(
        "+".join(regions),
        tuple(regions),
        num_positions=num_positions,
        position_seed=position_seed,
    )
    if regions and bank is None:
        bank = ReferenceBank(adapter_off(model))
    return RepairedModel(model, tokenizer, bank, spec, postfix_reference)


def _check_conversations(conversations: Sequence[Messages]) -> None:
    if not conversations:
        raise DataError("there is no conversation to answer.")
    for number, messages in enumerate(conversations, start=1):
        if not messages or messages[-1].get("role") not in ("user", "tool"):
            raise DataError(
                f"conversation {number} does not end with a user or tool message, so there is "
                "nothing to answer."
            )
