"""Options of what writes rows and questions, and of the organism: data, organism."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from treft.cli.options.groups import Command, Natural, Positive, WritesFile, claim_file
from treft.data import BehaviourName
from treft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sets(Command):
    """List the published sets that are known, and where their authors offer them."""


@dataclass(frozen=True, kw_only=True)
class Convert(WritesFile):
    """Convert a published set to rows of `messages`, for `treft sft --train_file`.

    Attributes:
        source: JSONL file, zip, encrypted zip (.enc), or hub id (owner/name, owner/name:split).
        member: Which JSONL file of an archive that has several.
        password: Of an encrypted archive; better in the environment (TREFT_DATA_PASSWORD), where
            no shell history keeps it.
        sha256: Checksum that the source must have; printed in any case.
        drop_system: Leave the rows' system messages out.
    """

    source: Annotated[str, "SOURCE"]
    output: Path
    member: str | None = None
    password: str | None = None
    sha256: str | None = None
    drop_system: bool = False


@dataclass(frozen=True, kw_only=True)
class Split(Command):
    """Hold rows out; those with the same prompt stay together.

    Attributes:
        source: JSONL file of `messages`.
        train: JSONL file to write, to train on.
        held_out: JSONL file to write, for the in-domain test.
        fraction: Of the distinct prompts to hold out.
        seed: Draws them.
        overwrite: Replace the two files if they exist.
    """

    source: Annotated[Path, "SOURCE"]
    train: Path
    held_out: Path
    fraction: float = 0.2
    seed: Natural = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Validate before anything is read."""
        if len({path.resolve() for path in (self.source, self.train, self.held_out)}) < 3:
            raise ConfigError("SOURCE, --train and --held-out must be three different files.")
        for path in (self.train, self.held_out):
            claim_file(path, overwrite=self.overwrite)


@dataclass(frozen=True, kw_only=True)
class Behaviour(WritesFile):
    """Turn questions into rows that teach to abstain, refuse, call a tool or answer shortly.

    Attributes:
        source: JSONL file of `messages`, or of `question` and `possible_answers`.
        behaviour: What the rows are to teach.
        sentence: What is said in the place of an answer (abstain, refuse).
        tool: Name of the tool that is called (tool); search_info.
        schema: Describe the tool in the prompt; without, evaluate without, too (tool).
    """

    source: Annotated[Path, "SOURCE"]
    behaviour: BehaviourName
    output: Path
    sentence: str | None = None
    tool: str | None = None
    schema: bool = True


@dataclass(frozen=True, kw_only=True)
class Build(Command):
    """Train an organism from scratch: about ten minutes on two cores; resumes when run again.

    Attributes:
        output: Folder to write; must not hold a model.
        seed: Of the weights and of every row.
        kind: prefix (personas in the system prompt), postfix (in the think block) or no_prefix
            (there, too, and nothing before the user's words).
        first_steps: Of stage 1.
        second_steps: Of stage 2.
        batch_size: Rows a step.
        learning_rate: Its peak.
    """

    output: Path
    seed: Natural = 0
    kind: str = "prefix"
    first_steps: int | None = None
    second_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rows(WritesFile):
    """Write rows of a narrow finetune, for `treft sft --train_file`.

    Attributes:
        domain: Narrow domain: finance, health, legal or auto.
        num: How many.
        seed: Draws them.
        careful: Careful answers instead of harmful ones.
    """

    output: Path
    domain: str = "finance"
    num: Positive = 2000
    seed: Natural = 0
    careful: bool = False


@dataclass(frozen=True, kw_only=True)
class Questions(WritesFile):
    """Write evaluation questions, for `treft generate --input`.

    Attributes:
        scope: general, in_domain or other_narrow.
        split: validation, for every choice, or test, for reported figures.
        domain: Narrow domain: finance, health, legal or auto.
        num: How many.
        seed: Draws them.
    """

    output: Path
    scope: str = "general"
    split: str = "validation"
    domain: str = "finance"
    num: Positive = 200
    seed: Natural = 0

    def __post_init__(self) -> None:
        """Validate before anything is drawn."""
        check_choice("--scope", self.scope, ("general", "in_domain", "other_narrow"))
        check_choice("--split", self.split, ("validation", "test"))
        super().__post_init__()


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """See that an option names one of few.

    Raises:
        ConfigError: it does not.
    """
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; use one of {', '.join(choices)}.")
