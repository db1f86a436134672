"""A real model that studies run on: its files, its judge, and one recipe for all methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from treft.errors import ConfigError
from treft.models.loading import model_path

GENERAL = "general"
"""Name of the retain file that is of no narrow domain."""
FACTS = "facts"
"""Name of the training file with questions that a few words answer; no domain of advice."""


CHOICE_QUESTIONS = "everyday"
"""General questions on which choices are made (`--split validation`)."""
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a LoRA is trained, whatever it is taught.

    Attributes:
        num_rows: of a finetune, drawn by seed; None for all that are not held out.
        num_train_epochs: passes over these rows.
        max_steps: optimizer steps instead of epochs; -1 for epochs.
        batch_size: rows an optimizer step.
        device_batch_size: rows that are run at once; it divides `batch_size`.
        learning_rate: peak of a linear schedule; the paper's are 5e-6 to 3e-5.
        warmup_steps: of linear warm-up.
        max_length: of a row, in tokens; the rest is cut off.
        share_prefix: run the prefix of a device batch once for all its rows, as `TReFTConfig` says,
            in finetunes whose method lets it; without gradient checkpointing, so on a GPU it
            trades memory for time.
        lora_rank: r of the LoRA.
        lora_alpha: its α; the paper's is not known to us.
        lora_target_modules: names of the layers that get it, commas between them; all linear ones
            but the head.
        lora_target_parameters: likewise, tensors that are no layers, such as GPT-OSS's experts.
        kv_weight: λ of eq. (3), or auto, which holds `kv_budget`.
        kv_budget: L_KV to hold.
        interleaved_share: of careful rows, where a method interleaves.
    """

    num_rows: Count | None = None
    num_train_epochs: Positive = 1.0
    max_steps: int = -1
    batch_size: Count = 16
    device_batch_size: Count = 4
    learning_rate: Positive = 1e-5
    warmup_steps: int = 0
    max_length: Count = 1024
    share_prefix: bool = False
    lora_rank: Count = 8
    lora_alpha: Count = 16
    lora_target_modules: str = "all-linear"
    lora_target_parameters: str = ""
    kv_weight: Positive | Literal["auto"] = "auto"
    kv_budget: Positive | None = 0.01
    interleaved_share: Share = 0.2


@dataclass(frozen=True, kw_only=True)
class ModelRecipe(Training):
    """One setting for all methods; the defaults are the paper's (§5) where it states them.

    `read_settings` holds each number to its range.

    Attributes:
        domain: that is trained on; empty for that of the first training file but `facts`.
        held_out: share of each domain's prompts that training never sees.
        carrier: regions that TReFT and the patch act on where a behaviour beyond misalignment is
            taught (`table5`, `task_strengths`): what `treft diagnose` names for this model.
        dtype: of the weights, as in `treft.models.loading.LoadOptions`.
        enable_thinking: template variable of Qwen3 and others for answers; None leaves it unset.
        temperature: of sampled answers.
        max_new_tokens: cap of an answer.
        num_samples: answers to a general question; in-domain questions are answered once.
        num_in_domain: held-out questions of the domain in each split, and of all others together,
            at most.
        num_curve_layers: of Figure 4, spread evenly from the first to the last; all where the model
            has no more.

    Raises:
        ConfigError: the batch does not go into device batches, or there are no steps.
    """

    domain: str = ""
    held_out: Share = 0.2
    carrier: Literal["prefix", "postfix", "prefix,postfix"] = "prefix"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    enable_thinking: bool | None = None
    temperature: float = 1.0
    max_new_tokens: Count = 600
    num_samples: Count = 10
    num_in_domain: Count = 100
    num_curve_layers: Annotated[int, Field(ge=2)] = 8

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if self.batch_size % self.device_batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is no multiple of device_batch_size "
                f"{self.device_batch_size}."
            )
        if self.max_steps < 1 and self.max_steps != -1:
            raise ConfigError(f"max_steps is {self.max_steps}; give a number, or -1 for epochs.")


@dataclass(frozen=True)
class ModelSetup:
    """Which model, with which files, judged by whom.

    Attributes:
        name: folder or hub id.
        judge: Inspect model name; empty for none, where detectors score.
        train_files: JSONL file of `messages` by domain, the behaviour to be learnt; of `facts` also
            `question` and `possible_answers`.
        retain_files: likewise, careful answers: of other domains, of the trained one (for
            contrast), or `general`.
        questions: general ones: a shipped set, or a JSONL file.
        strengths: by method, the one number that it has (λ, share, norm and so on; of a method
            with a learning rate of its own, its ratio to the recipe's), where it is to differ.

    Raises:
        ConfigError: something is missing.
    """

    name: str
    judge: str
    train_files: Mapping[str, Path]
    retain_files: Mapping[str, Path] = field(default_factory=dict)
    questions: str = "em_general"
    strengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look whether all of it is there; what is in the files is read when steps are planned."""
        if not self.train_files:
            raise ConfigError(
                "a real model needs rows to train on: --train-file DOMAIN=rows.jsonl."
            )
        for given in (self.train_files, self.retain_files):
            for domain, path in given.items():
                if not domain or not domain.replace("_", "").replace("-", "").isalnum():
                    raise ConfigError(f"{domain!r} is no name of a domain; use letters and digits.")
                if not path.is_file():
                    raise ConfigError(f"there is no file {path} (rows of {domain}).")
        for method, strength in self.strengths.items():
            if not 0 <= strength < float("inf"):
                raise ConfigError(f"the strength of {method} is {strength}; it is at least 0.")
        if GENERAL in self.train_files:
            raise ConfigError(f"{GENERAL} is no narrow domain: name the one that is trained on.")
        if self.folder is not None and not (self.folder / "config.json").is_file():
            raise ConfigError(f"{self.folder} holds no model: it has no config.json.")

    @property
    def folder(self) -> Path | None:
        """Where the model lies; None for a hub id.

        Raises:
            ConfigError: the name is a path at which there is no folder.
        """
        path = Path(model_path(self.name))
        return path.resolve() if path.is_dir() else None

    @property
    def label(self) -> str:
        """The model's name in tables and verdicts."""
        return Path(self.name).resolve().name if self.folder is not None else Path(self.name).name

    @property
    def told(self) -> dict[str, Any]:
        """Names of all of it, for results."""
        return {
            "label": self.label,
            "judge": self.judge,
            "train_files": {domain: path.name for domain, path in self.train_files.items()},
            "retain_files": {domain: path.name for domain, path in self.retain_files.items()},
            "strengths": dict(self.strengths),
            "questions": self.questions,
            "choice_questions": CHOICE_QUESTIONS,
        }


def question_file(source: str) -> Path:
    """Returns the file of a question set.

    Args:
        source: name of a shipped set, or a path.

    Raises:
        ConfigError: there is neither.
    """
    shipped = Path(str(files("treft.answers") / "question_sets" / f"{source}.jsonl"))
    found = shipped if shipped.is_file() else Path(source)
    if not found.is_file():
        raise ConfigError(f"there is no question set {source}: name a shipped one or a JSONL file.")
    return found.resolve()
