"""Repair after the fact: weights between the finetuned model and its base."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from treft.errors import ConfigError, DataError

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
