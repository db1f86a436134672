"""Weights that are elsewhere between forwards: on disk or, beside a GPU, in the host's memory.

Accelerate's hooks bring them in for a module's forward and leave placeholders without data in
between. Whoever reads weights himself asks for them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from treft.errors import ConfigError


def is_offloaded(module: nn.Module) -> bool:
    """Returns whether some of a module's weights, or of those within it, are elsewhere now."""
    return any(parameter.is_meta for parameter in module.parameters())


@contextmanager
def weights_at_hand(*modules: nn.Module) -> Iterator[None]:
    """Inside, all weights of these modules have their data.

    They are in memory together: name no more modules than are needed at a time. Where nothing is
    elsewhere, nothing is done.

    Raises:
        ConfigError: nothing knows where the weights are.
    """
    away = [
        part
        for module in modules
        for part in module.modules()
        if any(parameter.is_meta for parameter in part.parameters(recurse=False))
    ]
    with ExitStack() as stack:
        if away:
            from accelerate.utils import align_module_device

            for part in away:
                stack.enter_context(align_module_device(part))
        if any(is_offloaded(part) for part in away):
            raise ConfigError(
                "some weights have no data (they are on the device `meta`) and no hook of "
                "Accelerate brings them: load the model anew, in memory if it fits."
            )
        yield
