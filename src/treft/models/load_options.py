"""What is asked of weights as they are loaded; no heavy import, since commands state it, too."""

from __future__ import annotations

from dataclasses import dataclass

from treft.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")
SPREAD = "auto"
"""As a device: layers are spread over what there is (a `device_map` of Accelerate)."""


@dataclass(frozen=True)
class LoadOptions:
    """How weights are loaded; the same for a model, its adapter and its base.

    Attributes:
        dtype: Precision of the weights: auto (as they were saved), float32, bfloat16 or float16.
        device: Where the model goes, such as cpu or cuda:0; auto spreads its layers over all
            there are. By default a GPU if there is one.
        quantize: 8bit or 4bit: bitsandbytes quantises the weights as they load.
        trust_remote_code: Run code that comes with the model.
        allow_other_base: Put the adapter on a base that is not the one it names.

    Raises:
        ConfigError: there is no such dtype or quantisation, or bitsandbytes is missing.
    """

    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False
    allow_other_base: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; use one of {', '.join(DTYPES)}.")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"quantize is {self.quantize!r}; use one of {', '.join(QUANTIZATIONS)}."
            )
