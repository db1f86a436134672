"""A finetuned model beside its base.

Shapes: V rows of the input embedding, D its size, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import template_hash
from treft.core.identity import identify
from treft.core.recording import Source, eval_mode
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.adapters import base_source, find_peft, without_adapter

Arm = Literal["finetuned", "base"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True)
class ModelPair:
    """A finetuned model and the model it was finetuned from.

    Attributes:
        finetuned: the finetuned model; an adapter may be on top.
        base: the unfinetuned model; None for the finetuned one with its adapter off.
    """

    finetuned: nn.Module
    base: nn.Module | None = None

    def __post_init__(self) -> None:
        """Find out now whether there is an adapter.

        Raises:
            ConfigError: there is neither a base nor an adapter to switch off.
        """
        if self.base is None and self.adapter is None:
            raise ConfigError(
                "the finetuned model has no adapter that could be switched off: name the "
                "unfinetuned model (--base)."
            )

    @contextmanager
    def use(self, arm: Arm) -> Iterator[nn.Module]:
        """Yields the model of one arm, in evaluation mode, as long as the context lasts."""
        if arm == "base" and self.base is None:
            with without_adapter(self.finetuned), eval_mode(self.finetuned):
                yield self.finetuned
            return
        model = self.base if arm == "base" and self.base is not None else self.finetuned
        with eval_mode(model):
            yield model

    @property
    def source(self) -> Source:
        """Records what the unfinetuned model has."""
        return base_source(self.finetuned, self.base)

    @property
    def adapter(self) -> str | None:
        """Name of the finetuned model's adapter, if it has one."""
        wrapper = find_peft(self.finetuned)
        return None if wrapper is None else str(wrapper.active_adapters[0])

    def identities(self, tokenizer: PreTrainedTokenizerBase) -> dict[Arm, dict[str, Any]]:
        """Returns whose weights, template and software these are, by arm, as JSON has it."""
        hashed, found = template_hash(tokenizer), {}
        for arm in ARMS:
            with self.use(arm) as model:
                adapter = self.adapter if arm == "finetuned" else None
                found[arm] = asdict(identify(model, hashed, adapter=adapter))
        return found

    @property
    def num_positions(self) -> int | None:
        """Of the smaller context; None if no config says."""
        models = [self.finetuned, *([] if self.base is None else [self.base])]
        found = [num_positions(model) for model in models]
        return min((num for num in found if num is not None), default=None)

    @property
    def embedding(self) -> Tensor:
        """(V, D) input embedding matrix of the finetuned model."""
        weight: Tensor = pretrained_model(self.finetuned).get_input_embeddings().weight
        return weight.detach()

    @torch.no_grad()
    def check_differ(self, token_ids: Sequence[int]) -> None:
        """See that the finetune changed anything at all.

        Args:
            token_ids: (T,) a prompt.

        Raises:
            ConfigError: both models give the very same logits after the prompt.
        """
        found = []
        for arm in ARMS:
            with self.use(arm) as model:
                ids = torch.tensor([list(token_ids)], device=pretrained_model(model).device)
                found.append(model(input_ids=ids, use_cache=False).logits[0, -1].cpu())
        if torch.equal(*found):
            raise ConfigError(
                "the finetuned model is equal to its base (drift 0): its answers cannot differ. "
                "Was the right adapter or folder given?"
            )


def check_same_prompts(
    tokenizer: PreTrainedTokenizerBase, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    """See that two models read the same token ids as the same prompt.

    Raises:
        ConfigError: their vocabularies or chat templates differ.
    """
    if tokenizer.get_vocab() != base_tokenizer.get_vocab():
        raise ConfigError(
            "finetuned model and base have different tokenizers, so they cannot be given the same "
            "tokens: name the very model that was finetuned as the base."
        )
    if template_hash(tokenizer) != template_hash(base_tokenizer):
        raise ConfigError(
            "finetuned model and base have different chat templates: name one for both "
            "(--template FILE)."
        )


def num_positions(model: nn.Module) -> int | None:
    """Tokens that a model's context takes; None if its config does not say."""
    config = pretrained_model(model).config.get_text_config(decoder=True)
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found
