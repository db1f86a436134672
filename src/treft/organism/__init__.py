"""The embedded model organism: a tiny chat model, its synthetic world and its exact oracle.

It makes emergent misalignment cheap to see and to measure. It is no evidence about large models;
docs/organism.md says what it is and is not.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from treft.errors import ConfigError
from treft.models.loading import asset_path

from .recipes import FinetuneRecipe
from .world import NARROW, VERDICTS, Question, Verdict, World, classify

__all__ = [
    "NARROW",
    "VERDICTS",
    "FinetuneRecipe",
    "Question",
    "Verdict",
    "World",
    "classify",
    "load",
]


def load(path: Path | str | None = None) -> tuple[PreTrainedModel, Tokenizer]:
    """Load an organism in evaluation mode: the embedded one, or one that `build` made.

    Raises:
        ConfigError: `path` holds no model.
    """
    folder = asset_path() if path is None else Path(path)
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"{folder} holds no organism; make one with `treft organism build`")
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
