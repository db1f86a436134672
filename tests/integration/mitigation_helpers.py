"""What the tests of mitigations share: one batch, its loss by parts, gradients, a float64 twin."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treft.training import TReFTTrainer

REFERENCE_TOLERANCE = {"rtol": 2e-4, "atol": 2e-6}
"""float32 against float64."""


def first_batch(trainer: TReFTTrainer) -> dict[str, Any]:
    """The first rows of the training set, collated as in training."""
    num = trainer.args.per_device_train_batch_size
    rows = [trainer.train_dataset[index] for index in range(num)]
    return dict(trainer.data_collator(rows))


def gradients(trainer: TReFTTrainer, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of each weight that trains; zeros where there is none."""
    named = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(named.items(), found, strict=True)
    }


def num_columns_run(trainer: TReFTTrainer, inputs: dict[str, Tensor]) -> list[int]:
    """Columns of the batch in each forward of a loss."""
    found: list[int] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["input_ids"].shape[1])

    handle = trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        trainer.compute_loss(trainer.model, dict(inputs))
    finally:
        handle.remove()
    return found


def added_by(trainer: TReFTTrainer) -> tuple[float, dict[str, Tensor]]:
    """What the mitigations add to the loss of the first batch, and to its gradient."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    whole = trainer.compute_loss(trainer.model, first_batch(trainer))
    kept, trainer.mitigations = trainer.mitigations, ()
    plain = trainer.compute_loss(trainer.model, first_batch(trainer))
    trainer.mitigations = kept
    with_terms, without = gradients(trainer, whole), gradients(trainer, plain)
    return float(whole - plain), {n: with_terms[n] - without[n] for n in without}


def double_twin(trainer: TReFTTrainer) -> nn.Module:
    """A float64 copy of the trained model, without what TRL put on its forward."""
    twin = copy.deepcopy(trainer.model).double()
    for module in twin.modules():
        vars(module).pop("forward", None) if isinstance(module, PreTrainedModel) else None
    return twin.train()


def assert_same_gradients(found: dict[str, Tensor], loss: Tensor, twin: nn.Module) -> None:
    """`found` is the gradient of `loss`, computed on the twin, and is not nothing."""
    named = {n: p for n, p in twin.named_parameters() if n in found}
    expected = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    assert sum(float(value.norm()) for value in found.values()) > 1e-3
    for name, grad in zip(named, expected, strict=True):
        wanted = torch.zeros_like(named[name]) if grad is None else grad
        torch.testing.assert_close(found[name].double(), wanted, rtol=2e-3, atol=2e-5)
