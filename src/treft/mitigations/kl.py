"""KL to the unfinetuned model, on the training rows or on a retain set.

Shapes: B rows, T tokens, D hidden size, N learnt tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from treft.core.recording import plain_forward
from treft.core.states import pretrained_model
from treft.errors import ConfigError
from treft.models.generation import pad_token_id
from treft.training.checks import text_tokenizer
from treft.training.config import TReFTConfig
from treft.training.forward import run_batch, shortened
from treft.training.reference_source import unfinetuned
from treft.training.terms import LossBatch, Mitigation, Rows, flag, read_rows

DEFAULT_WEIGHT = 50.0
"""The paper's λ. Its code also divides by V, so its 50 is 50 / V of ours: sweep."""
NUM_PROBED = 8
TOLERANCE = 0.02
"""Of the logits' norm: what rounding in half precision may leave."""
WEIGHT = flag("kl_weight", float, off=0.0, needs="strength")


class _KL(Mitigation):
    """What both have: λ Σ_t KL(p⁰_t ‖ p_t), p⁰ the unfinetuned model's next-token distribution.

    The sum over the vocabulary is whole; chunks of tokens and vocabulary bound its memory (TRL's
    kernel). Logits are float32.
    """

    has_term: ClassVar[bool] = True
    weight: float

    def __post_init__(self) -> None:
        """Validate."""
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"{self.name}_weight must be a positive number, not {self.weight}.")

    def prepare(self, trainer: SFTTrainer) -> None:
        """Find the unfinetuned model and the output heads."""
        self.reference = unfinetuned(trainer)
        self._head = output_head(trainer.model)
        is_copy = self.reference.model is not trainer.model
        self._reference_head = output_head(self.reference.model) if is_copy else self._head

    def divergence(self, batch: LossBatch, hidden: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Σ over learnt tokens of KL(p⁰ ‖ p), a scalar.

        Args:
            batch: of the step.
            hidden: of the trained model for the last columns of `inputs`, all that are learnt among
                them, with gradient, (B, ≤ T, D).
            inputs: of whole rows, with labels (B, T).
        """
        num = hidden.shape[1]
        learnt = inputs["labels"][:, 1 - num :].to(hidden.device) != -100
        student = hidden[:, :-1][learnt]
        if not len(student):
            return hidden.sum() * 0
        with self.reference.running() as reference:
            teacher = _hidden(batch, reference, inputs)[:, -num:-1][learnt]
        head, other = self._head, self._reference_head
        with batch.trainer.accelerator.autocast():
            per_token, _ = ChunkedDivergenceFunction.apply(
                student,
                head.weight,
                head.bias,
                teacher,
                other.weight,
                other.bias,
                0.0,  # β: KL(teacher ‖ student)
                1.0,
                head.scale,
                head.softcap,
                other.scale,
                other.softcap,
            )
        total: Tensor = per_token.sum()
        return total


@dataclass(eq=False)
class KLOnTrain(_KL):
    """λ times the mean over learnt tokens of KL(p⁰ ‖ p) on the training rows themselves.

    Source: the paper's baseline "KL train" (§5; λ = 50, one epoch); Kaczér et al., arXiv
    2508.06249. Formula: L_SFT + λ / N Σ_t Σ_v p⁰_t(v) log(p⁰_t(v) / p_t(v)), N the learnt tokens of
    the optimizer step. Cost: one forward of the unfinetuned model a step; no data.

    Attributes:
        weight: λ of kl_train and kl_retain_file; 0 is off.
    """

    name: ClassVar[str] = "kl_train"

    weight: float = field(default=DEFAULT_WEIGHT, metadata=WEIGHT)

    @contextmanager
    def around_forward(self, batch: LossBatch, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Keep the decoder's output of the SFT loss's own forward."""
        with last_hidden(batch.trainer.model) as found:
            yield inputs
        batch.kept.setdefault(self.name, found[0])

    def term(self, batch: LossBatch) -> Tensor:
        """λ KL of the micro-batch's share of the step."""
        hidden = batch.kept.pop(self.name)
        return self.weight * self.divergence(batch, hidden, batch.inputs) * batch.per_token


@dataclass(eq=False)
class KLOnRetain(_KL):
    """λ times the mean over learnt tokens of KL(p⁰ ‖ p) on batches of a retain set.

    Source: the paper's baseline "KL retain" (§5; λ = 50). Formula: as `KLOnTrain`, over a batch of
    retain rows beside each micro-batch; the mean is over that batch's learnt tokens (responses,
    with assistant_only_loss). Rows are drawn without repeats until all were used, by seed and step,
    so that a resumed run goes on with the same ones. Not in evaluation. Cost: one more forward and
    backward of the model and one forward of the unfinetuned one a step; a retain set.

    Attributes:
        retained: A retain set: JSONL file of `messages`; in Python also rows.
        weight: λ of kl_train and kl_retain_file; 0 is off.
        batch_size: Retain rows beside a micro-batch; default the training batch size.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the file of the rows cannot be used.
    """

    name: ClassVar[str] = "kl_retain"

    retained: Rows = field(metadata=flag("kl_retain_file", str, needs="retained"))
    weight: float = field(default=DEFAULT_WEIGHT, metadata=WEIGHT)
    batch_size: int | None = field(default=None, metadata=flag("kl_batch_size", int))

    def __post_init__(self) -> None:
        """Validate, and read the rows."""
        super().__post_init__()
        self.retained = read_rows(self.retained)
        size = self.batch_size
        if not self.retained:
            raise ConfigError("kl_retain needs rows of a retain set: give at least one.")
        if size is not None and size < 1:
            raise ConfigError(f"kl_retain's batch_size is {size}; it must be at least 1.")

    def prepare(self, trainer: SFTTrainer) -> None:
        """Tokenise the retain set as the training set was."""
        super().prepare(trainer)
        rows = Dataset.from_list(read_rows(self.retained), on_mixed_types="use_json")
        tokenizer = trainer.processing_class
        prepared = trainer._prepare_dataset(rows, tokenizer, trainer.args, False, None, "retain")
        self._rows: list[dict[str, Any]] = [
            {"input_ids": row["input_ids"], "labels": row["labels"]} for row in prepared
        ]
        self._collate = DataCollatorForLanguageModeling(pad_token_id(text_tokenizer(tokenizer)))
        self._step, self._in_step = -1, 0

    def retain_batch(self, number: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """Returns the rows of a retain batch by its number, counted from 0 over the whole run."""
        num = len(self._rows)
        found = []
        for index in range(number * batch_size, (number + 1) * batch_size):
            order = list(range(num))
            random.Random(f"{seed}/{index // num}").shuffle(order)
            found.append(self._rows[order[index % num]])
        return found

    def term(self, batch: LossBatch) -> Tensor | None:
        """λ KL of the next retain batch."""
        if not batch.is_training:
            return None
        trainer = batch.trainer
        step = trainer.state.global_step
        self._in_step = self._in_step + 1 if step == self._step else 0
        self._step = step
        accelerator = trainer.accelerator
        micro = step * trainer.args.gradient_accumulation_steps + self._in_step
        number = micro * accelerator.num_processes + accelerator.process_index
        size = self.batch_size or trainer.args.per_device_train_batch_size
        inputs = self._collate(self.retain_batch(number, size, trainer.args.seed))
        inputs = send_to_device(inputs, accelerator.device)
        hidden = _hidden(batch, trainer.model, inputs)
        num_learnt = (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
        mean = self.divergence(batch, hidden, inputs) / num_learnt
        term: Tensor = self.weight * mean * batch.per_batch
        return term


def _hidden(batch: LossBatch, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The decoder's output, (B, ≤ T, D), of rows behind their shared prefix if that is shared."""
    shares = cast(TReFTConfig, batch.trainer.args).share_prefix
    given = shortened(model, inputs) if shares else inputs
    with last_hidden(model) as found:
        run_batch(model, given)
    return found[0]


@contextmanager
def last_hidden(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the decoder's output, (B, T, D), of each forward inside the block, with its graph."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0])

    handle = pretrained_model(model).get_decoder().register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


class OutputHead(NamedTuple):
    """logits = c tanh(s (W h + b) / c), or s (W h + b) without a soft cap c.

    Attributes:
        weight: W, (V, D).
        bias: b, (V,).
        scale: s.
        softcap: c.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def output_head(model: nn.Module) -> OutputHead:
    """Returns the model's output head, its scale measured with one forward of a few tokens.

    Raises:
        ConfigError: an adapter is on the head, or its logits are made in some other way.
    """
    pretrained = pretrained_model(model)
    module = pretrained.get_output_embeddings()
    if not isinstance(module, nn.Linear | nn.Embedding) or len(list(module.modules())) > 1:
        raise ConfigError(
            f"the output head is a {type(module).__name__}, and logits are made in chunks with a "
            "plain linear one only: leave it out of the adapter (target_modules, modules_to_save)."
        )
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    config = pretrained.config.get_text_config(decoder=True)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    tokens = torch.arange(3, 3 + NUM_PROBED, device=pretrained.device)[None]
    with plain_forward(model), last_hidden(model) as found:
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        raw = nn.functional.linear(found[0], weight, bias).float()
    inner = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-0.999999, 0.999999))
    scale = float((raw * inner).sum() / (raw * raw).sum())
    made = scale * raw if cap is None else cap * torch.tanh(scale * raw / cap)
    if not bool((made - logits).norm() <= TOLERANCE * logits.norm()):
        raise ConfigError(
            f"{type(pretrained).__name__} makes its logits in a way that is not known here, so "
            "they cannot be compared in chunks: use another mitigation."
        )
    rounded = round(scale, 3)
    return OutputHead(weight, bias, rounded if abs(scale - rounded) < 1e-3 else scale, cap)
