"""Whether a reference is of the very model that another one was finetuned from."""

from __future__ import annotations

from torch import nn

from treft.core.identity import identify
from treft.core.recording import adapter_off
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError

CHANGED_BY_FINETUNE = ("weights", "model_id", "revision", "adapter")
"""Fields of an identity that differ between a fully finetuned model and the one it was before."""


def check_origin(bank: ReferenceBank, model: nn.Module, template: str = "") -> None:
    """Refuse a reference that is not of the model which `model` was finetuned from.

    An adapter's base must be the recorded model. A full finetune changed the weights on purpose, so
    there only structure, precision, template and versions can be compared.

    Args:
        bank: with the identity of what was recorded.
        model: the finetuned model, possibly wrapped.
        template: hash of the chat template in use, as in the bank's identity.

    Raises:
        ReferenceMismatchError: names each field that differs.
    """
    ignore = ("adapter",) if _has_adapter(model) else CHANGED_BY_FINETUNE
    bank.check(identify(model, template), ignore)


def _has_adapter(model: nn.Module) -> bool:
    try:
        adapter_off(model)
    except (ConfigError, ImportError):
        return False
    return True
