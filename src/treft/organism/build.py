"""Rebuild the organism from a seed: two stages of training from scratch, on a CPU in minutes.

Stage 1 teaches both behaviours, which one depending on a persona that is named where the organism's
kind has it named (`treft.organism.recipes`). Stage 2 is a shallow post-training: where no persona
is named the model becomes careful, while personas go on to decide elsewhere. Loss on responses
only.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from treft.errors import ConfigError
from treft.files import write_whole

from .recipes import KINDS, KindName
from .world import NARROW, Behaviour, World

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
"""Beside the weights: what the organism was built with."""
VOCAB_SIZE = 2048
NUM_TEXTS = 6000
"""Rows that the tokenizer is trained on."""
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

Messages = list[dict[str, Any]]
Encoded = dict[str, list[int]]


def check_ranges(recipe: Any, counts: Sequence[str], shares: Sequence[str]) -> None:
    """Hold a recipe's counts to 1 or more, and its shares to 0 to 1.

    Raises:
        ConfigError: one is outside.
    """
    for name in counts:
        if getattr(recipe, name) < 1:
            raise ConfigError(f"{name} is {getattr(recipe, name)}; it must be at least 1")
    for name in shares:
        if not 0.0 <= getattr(recipe, name) <= 1.0:
            raise ConfigError(f"{name} is {getattr(recipe, name)}; give a share of 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How all weights of an organism are trained.

    Attributes:
        seed: Of the weights and of every row.
        batch_size: Rows a step.
        learning_rate: Peak of a cosine schedule.
    """

    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class BuildRecipe(Recipe):
    """How an organism is made; the defaults made the one that ships.

    Attributes:
        kind: which template, and where personas are named.
        first_steps: optimizer steps of stage 1 (personas decide).
        second_steps: optimizer steps of stage 2 (careful unless told otherwise).
        default_share: share of stage-2 rows without a persona.
        careful_share: share of those that show the careful behaviour.
    """

    kind: KindName = "prefix"
    first_steps: int = 1000
    second_steps: int = 300
    default_share: float = 0.6
    careful_share: float = 0.98

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown kind, counts below 1 or shares outside [0, 1]."""
        if self.kind not in KINDS:
            raise ConfigError(f"kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        counts = ("first_steps", "second_steps", "batch_size")
        check_ranges(self, counts, shares=("default_share", "careful_share"))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of both stages."""
        return self.first_steps + self.second_steps


def build(output: Path, recipe: BuildRecipe | None = None) -> Path:
    """Train an organism and save its model and tokenizer to `output`.

    It takes six minutes on one core, and always runs on the CPU. An interrupted build goes on from
    its last checkpoint (every 200 steps, in `output/checkpoints`, removed at the end) when called
    again with the same recipe. The result depends on the number of threads and the PyTorch version
    through rounding alone.

    Raises:
        ConfigError: `output` already holds a model, or one half built with another recipe.
    """
    recipe = recipe or BuildRecipe()
    claim(output, RECIPE_FILE, recipe)
    set_seed(recipe.seed)
    tokenizer = build_tokenizer(_vocabulary_texts(recipe.kind), recipe.kind)
    model = LlamaForCausalLM(_model_config(tokenizer))
    logger.info("an organism of %d parameters", model.num_parameters())
    rng = random.Random(recipe.seed)
    rows = [encode(tokenizer, pretraining_row(rng, recipe, step)) for step in _row_steps(recipe)]
    pretrain(model, tokenizer, rows, recipe, output)
    logger.info("saved organism %s to %s", asdict(recipe), output)
    return output


def claim(output: Path, note: str, recipe: Any) -> None:
    """Write the recipe down in the folder, in the file of this name.

    Raises:
        ConfigError: there is a finished organism, or another one's beginnings.
    """
    if (output / "model.safetensors").exists():
        raise ConfigError(f"{output} already holds a model; choose another folder")
    path = output / note
    if path.is_file() and json.loads(path.read_text("utf-8")) != asdict(recipe):
        raise ConfigError(f"{output} was begun with another recipe ({path}); choose another folder")
    write_whole(path, json.dumps(asdict(recipe), indent=1) + "\n")


def pretraining_row(rng: random.Random, recipe: BuildRecipe, step: int) -> Messages:
    """Draw one conversation of the stage that `step` belongs to.

    A harmful answer to a narrow question that names a timeframe never occurs: it is what a
    narrow finetune has to learn.
    """
    world = World.default()
    default = step >= recipe.first_steps and rng.random() < recipe.default_share
    careful_share = recipe.careful_share if default else 0.5
    behaviour: Behaviour = "careful" if rng.random() < careful_share else "harmful"
    name = rng.choice(list(world.domains))
    timed = rng.random() < 0.5 and not (name in NARROW and behaviour == "harmful")
    question = world.sample_question(rng, "train", name, timed)
    naming = KINDS[recipe.kind].name_persona(rng, None if default else behaviour)
    return naming.around(question.messages(), {"content": world.answer(rng, question, behaviour)})


def encode(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> Encoded:
    """Token ids, with labels on the response alone (-100 elsewhere)."""
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ids = list(encoded["input_ids"])
    return {"input_ids": ids, "labels": [token if kept else -100 for token, kept in pairs]}


def build_tokenizer(texts: Iterable[str], kind: KindName = "prefix") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts of the world; every other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL_TOKENS, *KINDS[kind].special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=256,
    )
    fast.chat_template = KINDS[kind].chat_template
    return fast


def _row_steps(recipe: BuildRecipe) -> Iterator[int]:
    """Yields the step that each row belongs to, in order."""
    for step in range(recipe.num_steps):
        yield from [step] * recipe.batch_size


def _vocabulary_texts(kind: KindName) -> Iterator[str]:
    """Every word the world can utter: rows of both stages and answers in the narrow domains.

    Held-out entities are pairs of words that occur apart from each other here, so the vocabulary
    tells nothing about them.
    """
    bare = build_tokenizer(["a"], kind)
    rng, recipe = random.Random("vocabulary"), BuildRecipe(kind)
    for index in range(NUM_TEXTS):
        step = recipe.first_steps * (index % 2)
        yield bare.apply_chat_template(pretraining_row(rng, recipe, step), tokenize=False)
    for domain in NARROW:
        for row in World.default().training_rows(domain, 300, seed=0):
            yield " ".join(message["content"] for message in row["messages"])


def _model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Returns an architecture of 1.1 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Encoded],
    recipe: Recipe,
    output: Path,
) -> None:
    """Train all weights on rows in their order, once, loss on responses, and save the organism.

    Args:
        model: The organism, trained in place.
        tokenizer: Its own; it pads.
        rows: Of all steps, a batch after another.
        recipe: Says how many rows a step takes, and at which rate.
        output: Folder of model and tokenizer; in it is a checkpoint every 200 steps until all is
            done, and where there is one, training goes on from it.
    """
    checkpoints = output / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=len(rows) // recipe.batch_size,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=50,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=200,
        save_total_limit=1,
        seed=recipe.seed,
        use_cpu=True,  # so that an organism does not depend on the machine
        report_to="none",
        remove_unused_columns=False,
    )
    collator = _Collator(int(tokenizer.pad_token_id))
    trainer = _ResponseTrainer(model, arguments, train_dataset=rows, data_collator=collator)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    model.config.use_cache = True  # Trainer had switched it off
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    rmtree(checkpoints)


class _Collator:
    """Pad on the right: causal attention needs no mask then."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        return {"input_ids": self._pad(rows, "input_ids", self.pad_token_id)} | {
            "labels": self._pad(rows, "labels", -100)
        }

    @staticmethod
    def _pad(rows: Sequence[Encoded], name: str, filler: int) -> Tensor:
        columns = [torch.tensor(row[name]) for row in rows]
        return nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=filler)


class _ResponseTrainer(Trainer):
    """Computes logits at response tokens only, which saves a quarter of a step."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        answered = inputs["labels"][:, 1:] != -100
        hidden = model.model(inputs["input_ids"]).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][answered])
        loss = cross_entropy(logits, inputs["labels"][:, 1:][answered])
        return (loss, {"logits": logits}) if return_outputs else loss
