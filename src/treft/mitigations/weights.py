"""How far weights go: SFT held to a norm of its change, and weights between finetune and base.

Shapes: R rank, I and O a layer's input and output size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from treft.errors import ConfigError, DataError
from treft.models.adapters import is_peft
from treft.training.terms import Mitigation, flag


@dataclass(eq=False)
class WeightNormCap(Mitigation, TrainerCallback):
    """After each step, shrink the adapter to a norm if it is above: SFT matched for weight change.

    Source: a control: does a method do more than move weights less? Formula: with ΔW = s B A in
    every adapted layer and n = √Σ‖ΔW‖²_F, B ← B m / n if n > m. A smaller step size is the softer
    form of the same control (`learning_rate`). Cost: R × R products a step; no forward, no data.

    Attributes:
        norm: m > 0, to which the LoRA's weight change is held: `adapter_norm` of another adapter.

    Raises:
        ConfigError: m is out of range.
    """

    name: ClassVar[str] = "weight_norm"

    norm: float = field(metadata=flag("weight_norm", float, needs="strength"))

    def __post_init__(self) -> None:
        """Validate."""
        if not 0 < self.norm < float("inf"):
            raise ConfigError(f"weight_norm must be a positive number, not {self.norm}.")

    def prepare(self, trainer: SFTTrainer) -> None:
        """Shrink after each step."""
        if not is_peft(trainer.model) or not adapted_layers(trainer.model):
            raise ConfigError("weight_norm measures a LoRA: train one (use_peft).")
        self._model: nn.Module = trainer.model
        trainer.add_callback(self)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Shrink what has grown beyond the norm."""
        shrink = self.norm / adapter_norm(self._model).clamp(min=self.norm)
        with torch.no_grad():
            for _, second, _ in adapted_layers(self._model):
                second.mul_(shrink.to(second))


def adapted_layers(model: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """Returns a (R, I), B (O, R) and the scale s of each layer under an active LoRA."""
    return [
        (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


def adapter_norm(model: nn.Module) -> Tensor:
    """√Σ‖s B A‖²_F over the adapted layers, a scalar, without making the (O, I) products."""
    total = torch.zeros((), dtype=torch.float32)
    with torch.no_grad():
        for first, second, scale in adapted_layers(model):
            inner = (first.float() @ first.float().T) * (second.float().T @ second.float())
            total = total.to(inner.device) + scale**2 * inner.sum()
    return total.clamp(min=0).sqrt()


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def interpolate_adapter(adapter: str | Path, alpha: float, output: str | Path) -> None:
    """Write the LoRA that leads to W0 + α ΔW: α 1 is the finetune, 0 the base.

    Source: WiSE-FT, Wortsman et al., arXiv 2109.01903, where W = (1 − α) W0 + α W1; here, with
    ΔW = s B A, the factor B is scaled by α, its bias included. Cost: reading and
    writing the adapter; in use, none.

    Args:
        adapter: folder of a PEFT LoRA in safetensors.
        alpha: 0 ≤ α; above 1 extrapolates.
        output: a folder that does not exist yet; tokenizer files are copied too.

    Raises:
        ConfigError: α is out of range, the output exists, or it is no plain LoRA.
        DataError: the adapter's files are missing or damaged.
    """
    source, target = Path(adapter), Path(output)
    if not 0 <= alpha < float("inf"):
        raise ConfigError(f"alpha must be a number of at least 0, not {alpha}.")
    if target.exists():
        raise ConfigError(f"{target} exists: name a new folder.")
    try:
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(source / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{source} cannot be read as an adapter: {error}; it needs {CONFIG} and {WEIGHTS}."
        ) from error
    others = [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]
    if config.get("peft_type") != "LORA" or config.get("use_dora") or others:
        found = others[0] if others else "DoRA" if config.get("use_dora") else config["peft_type"]
        raise ConfigError(
            f"{source} is no plain LoRA ({found}): merge it into its base and interpolate weights."
        )
    scaled = {name: w * alpha if ".lora_B." in name else w for name, w in weights.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / "adapter"
        whole.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt"):
                shutil.copyfile(path, whole / path.name)
        save_file(scaled, whole / WEIGHTS, metadata={"format": "pt"})
        whole.rename(target)
