"""Options of what is done with single conversations: generate, regions, reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from treft.chat import PATCHABLE
from treft.cli.options.groups import (
    Answering,
    Chat,
    Command,
    Positive,
    Rendering,
    Temperature,
    WritesFile,
    split_names,
)
from treft.errors import ConfigError
from treft.models.load_options import LoadOptions

SHARED = ("prefix", "postfix")
"""Regions whose states other conversations can share."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What is patched, and from what.

    Attributes:
        patch: prefix, postfix, query, or several: prefix,postfix.
        base: Unfinetuned model to patch from; default: adapter off.
        reference: File of `treft reference record` to patch from.

    Raises:
        ConfigError: a region is unknown, or the options contradict each other.
    """

    patch: tuple[str, ...] = ()
    base: str | None = None
    reference: Path | None = None

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if unknown := [region for region in self.regions if region not in PATCHABLE]:
            raise ConfigError(f"--patch is one of {', '.join(PATCHABLE)}, not {unknown[0]}.")
        if self.base is not None and self.reference is not None:
            raise ConfigError("give one of --base and --reference: what to patch from.")
        if not self.patch and (self.base is not None or self.reference is not None):
            raise ConfigError("--base and --reference are what to patch from: name a --patch.")

    @property
    def regions(self) -> tuple[str, ...]:
        """All that are patched."""
        return split_names(self.patch)


@dataclass(frozen=True, kw_only=True)
class Answers(Answering):
    """How answers are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus.
        num_samples: Answers to each prompt.
        seed: Of all that is drawn at random; parts of a long run count up from it.

    Raises:
        ConfigError: an option has no effect without sampling, or is out of range.
    """

    max_new_tokens: Positive = 256
    temperature: Temperature = 0.0
    top_p: float = 1.0
    num_samples: Positive = 1

    def __post_init__(self) -> None:
        """Refuse what greedy decoding would silently ignore."""
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; it must be between 0 and 1.")
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                "greedy answers to a prompt are all the same: --num-samples needs a --temperature."
            )
        if self.temperature == 0 and self.top_p != 1:
            raise ConfigError("--top-p goes with sampling: give a --temperature above 0.")


@dataclass(frozen=True, kw_only=True)
class Generate(WritesFile):
    """Answer with a model, by choice with the unfinetuned model's keys and values in its cache.

    Attributes:
        model: Folder or hub id; an adapter works, too.
        adapter: Adapter to put on the model.
        prompt: The user's words.
        output: JSONL file to write; an interrupted run goes on.
        stream: Print the one answer while it is generated.
    """

    model: str
    adapter: str | None = None
    prompt: str | None = None
    chat: Chat = field(default_factory=Chat)
    rendering: Rendering = field(default_factory=Rendering)
    repair: Repair = field(default_factory=Repair)
    answers: Answers = field(default_factory=Answers)
    loading: LoadOptions = field(default_factory=LoadOptions)
    output: Path | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        self.chat.check(self.prompt)
        several = self.answers.num_samples > 1 or self.chat.input is not None
        if self.stream and (self.json or self.output is not None or several):
            raise ConfigError(
                "--stream prints one answer: drop --json, --output or further prompts."
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Regions(Command):
    """Show which tokens of a chat are prefix, query, postfix and response.

    Attributes:
        tokenizer: Folder or hub id with a tokenizer, or organism.
        prompt: The user's words.
        row: Which row of --input, from 1.
        generation_prompt: End with a response's header; default: if no assistant message ends the
            chat.
        trust_remote_code: Run code that comes with the model.
    """

    tokenizer: str
    prompt: str | None = None
    chat: Chat = field(default_factory=Chat)
    row: Positive = 1
    rendering: Rendering = field(default_factory=Rendering)
    generation_prompt: bool | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        self.chat.check(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Record(WritesFile):
    """Record each distinct prefix (and postfix) of the rows, for repair and for training.

    Without --input, the prefix of a chat with the given system message, or the template's default
    one, is recorded. A postfix is recorded after an empty query, at each place that it has in the
    rows, and therefore needs a file.

    Attributes:
        model: The unfinetuned model: folder, hub id or organism.
        output: Safetensors file to write.
        adapter: Adapter that the model had before this finetune.
        region: prefix (default), postfix, or prefix,postfix.
    """

    model: str
    output: Path
    adapter: str | None = None
    region: tuple[str, ...] = ()
    chat: Chat = field(default_factory=Chat)
    rendering: Rendering = field(default_factory=Rendering)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        if unknown := [name for name in self.regions if name not in SHARED]:
            raise ConfigError(f"--region is one of {', '.join(SHARED)}, not {', '.join(unknown)}.")
        if "postfix" in self.regions and self.chat.input is None:
            raise ConfigError("a postfix is recorded where rows have it: name them with --input.")
        self.chat.check(self.words)
        super().__post_init__()

    @property
    def regions(self) -> tuple[str, ...]:
        """All that are recorded."""
        return split_names(self.region or ("prefix",))

    @property
    def words(self) -> str | None:
        """The user's words where no file has them; any will do, since the prefix comes before."""
        return "x" if self.chat.input is None else None


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show whose keys and values a file holds, and at which tokens.

    Attributes:
        file: File written by `treft reference record`.
        tokenizer: Folder or hub id, to show tokens as text.
    """

    file: Annotated[Path, "FILE"]
    tokenizer: str | None = None
