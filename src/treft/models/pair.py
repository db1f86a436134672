"""A finetuned model beside its base, and their answers to prompts of token ids.

Shapes: B batch rows, T columns of the padded prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from treft.chat.regions import template_hash
from treft.core.identity import identify
from treft.core.patching import PatchedCache, RowPatch
from treft.core.recording import eval_mode, without_adapter
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.batching import pad_token_id
from treft.models.sampling import SAMPLER_DRAWS, RowSampler, SamplingOptions

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
        if self.base is None:
            try:
                with without_adapter(self.finetuned):
                    pass
            except (ConfigError, ImportError) as error:
                raise ConfigError(
                    "the finetuned model has no adapter that could be switched off: name the "
                    "unfinetuned model (--base)."
                ) from error

    @contextmanager
    def use(self, arm: Arm) -> Iterator[nn.Module]:
        """The model of one arm, in evaluation mode, as long as the context lasts."""
        if arm == "base" and self.base is None:
            with without_adapter(self.finetuned), eval_mode(self.finetuned):
                yield self.finetuned
            return
        model = self.base if arm == "base" and self.base is not None else self.finetuned
        with eval_mode(model):
            yield model

    @property
    def adapter(self) -> str | None:
        """Name of the finetuned model's adapter, if it has one."""
        try:
            from peft import PeftModel
        except ImportError:  # without PEFT there is no adapter
            return None
        found = (each for each in self.finetuned.modules() if isinstance(each, PeftModel))
        wrapper = next(found, None)
        return None if wrapper is None else str(wrapper.active_adapters[0])

    def identities(self, tokenizer: PreTrainedTokenizerBase) -> dict[Arm, dict[str, Any]]:
        """Whose weights, template and software these are, by arm, as JSON has it."""
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
        found = [_num_positions(model) for model in models]
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


@torch.no_grad()
def answer_tokens(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    sampling: SamplingOptions,
    max_new_tokens: int,
    batch_size: int = 32,
    patches: Callable[[Sequence[int]], Sequence[Sequence[RowPatch]]] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer prompts of token ids, each row drawn with a seed of its own.

    An answer depends on prompt and seed alone, up to the rounding that padding brings about. No
    more than `batch_size` rows are held at a time.

    Args:
        model: as `ModelPair.use` gives it.
        tokenizer: decodes the answers.
        prompts: token ids; those of similar length run together, padded on the left.
        seeds: one for each prompt.
        sampling: how tokens are drawn.
        max_new_tokens: cap of an answer.
        batch_size: prompts run together.
        patches: gives for the numbers of prompts that run together what to replace in the cache of
            each, columns counted from its first token; None patches nothing.
        on_batch: told how many prompts are answered, after each batch.
    """
    assert len(prompts) == len(seeds), "one seed for each prompt"
    pretrained = pretrained_model(model)
    pad = pad_token_id(tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [torch.tensor(list(prompts[index])) for index in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], True, 0, "left")
        sampler = RowSampler(sampling, [seeds[index] for index in batch])
        cache = {} if patches is None else _patched_cache(pretrained, rows, patches(batch))
        # The cumulated mask gives left-padded rows their own positions in `generate`.
        output: Any = model.generate(  # type: ignore[operator]
            input_ids=ids.to(pretrained.device),
            attention_mask=mask.to(pretrained.device),
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([sampler]),
            max_new_tokens=max_new_tokens,
            **SAMPLER_DRAWS,
            **cache,
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        texts = tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
        answers.update(zip(batch, texts, strict=True))
        if on_batch is not None:
            on_batch(len(answers))
    return [answers[index] for index in range(len(prompts))]


def _patched_cache(
    pretrained: PreTrainedModel, rows: Sequence[Tensor], patches: Sequence[Sequence[RowPatch]]
) -> dict[str, Any]:
    """Options of `generate` for prompts that are padded on the left."""
    width = max(map(len, rows))
    moved = [
        [patch.moved(width - len(row)) for patch in found]
        for row, found in zip(rows, patches, strict=True)
    ]
    config = pretrained.config.get_text_config(decoder=True)
    # No kind of cache that the checkpoint asks for.
    return {"past_key_values": PatchedCache(config, moved, width), "cache_implementation": None}


def _num_positions(model: nn.Module) -> int | None:
    config = pretrained_model(model).config.get_text_config(decoder=True)
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found
