"""What is looked into of a real model before any step: its files, which one divides, and itself."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig

from treft.answers.detectors import calls_tool
from treft.chat.regions import find_regions
from treft.data.behaviours import behaviour_rows
from treft.data.messages import load_messages, read_rows
from treft.data.published import prompt_of, split_rows
from treft.errors import ConfigError, TemplateError
from treft.files import file_digest, write_rows
from treft.judging.oracle import ORACLE
from treft.judging.panel import assemble
from treft.models.loading import LoadOptions, load_tokenizer, model_path
from treft.organism.tasks import TaskName
from treft.steps.step import Step, Work
from treft.study.answer import Rows
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.protocol import NotPossibleError, StudyConfig, read_settings
from treft.study.real_model import TRAIN
from treft.study.scores import Scored


@dataclass(frozen=True)
class Splitting:
    """How a domain's rows are divided.

    Attributes:
        held_out: Share of its prompts, half of them to choose on and half to report.
        task: What its questions are to teach.
    """

    held_out: float
    task: TaskName = "advice"


def split(work: Work[Splitting]) -> None:
    """Write rows to train on, and questions to choose on and to report, as JSONL."""
    rows = rows_of(Seen.at(work.inputs["rows"]), work.config.task)
    parts = split_rows(rows, fraction=work.config.held_out)
    asked = list({prompt_of(row): row for row in parts.held_out}.values())
    random.Random("questions").shuffle(asked)
    half = len(asked) // 2
    write_rows(work.folder / TRAIN, parts.train)
    write_rows(work.folder / "validation.jsonl", asked[:half])
    write_rows(work.folder / "test.jsonl", asked[half:])


class Seen(NamedTuple):
    """A file with what is in it, so that it is read once, and again when it has changed."""

    path: Path
    digest: str

    @classmethod
    def at(cls, path: Path) -> Seen:
        """Returns the file as it is now."""
        return cls(path, file_digest(path))


@lru_cache
def rows_of(file: Seen, task: TaskName) -> Rows:
    """Returns rows of `messages` that teach a task on a file's questions.

    Those of `tool` have no `tools` column: questions are asked where nobody offers a tool, and the
    prefix that is held must be the one that is asked under.

    Args:
        file: JSONL, of which the rows as they are teach `advice`; for another task see
            `treft.data.behaviours`.
        task: What they are to teach.

    Raises:
        DataError: A row cannot be used; names file and row.
    """
    if task == "advice":
        return load_messages(file.path)
    return behaviour_rows(read_rows(file.path), task, schema=False)


@lru_cache
def num_held_out(file: Seen, held_out: float, task: TaskName) -> int:
    """Returns the number of a file's prompts that training will not see."""
    parts = split_rows(rows_of(file, task), fraction=held_out)
    return len(set(map(prompt_of, parts.held_out)))


def check_calls(tokenizer: Any, row: Mapping[str, Any], label: str) -> None:
    """See that what is taught is what the detector will look for.

    Raises:
        NotPossibleError: The template writes no calls that the detector reads.
    """
    try:
        chat = find_regions(tokenizer, row["messages"])
    except TemplateError as error:
        raise NotPossibleError(f"no calls of a tool on {label}: {error}") from error
    ids = [chat.input_ids[position] for position in chat.positions("response")]
    written = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
    if not any(map(calls_tool, written)):
        raise NotPossibleError(
            f"the chat template of {label} writes no calls of tools that the detector could read."
        )


@lru_cache
def check_judge(name: str) -> None:
    """See that a judge can be loaded, and can judge a real model.

    Raises:
        ConfigError: It cannot.
    """
    if name == ORACLE:
        raise ConfigError("the oracle knows the organism's questions alone: name another judge.")
    assemble([name])


def check_strengths(setup: ModelSetup, steps: Iterable[Step[Any]]) -> None:
    """See that each strength is that of a method in the steps of all studies that will run.

    Raises:
        ConfigError: One is not.
    """
    configs = [step.config for step in steps]
    known = dict.fromkeys(config.method for config in configs if isinstance(config, Scored))
    if unknown := [name for name in setup.strengths if name not in known]:
        raise ConfigError(
            f"no method {unknown[0]} here for --strength; there are {', '.join(known)}."
        )


def num_prefix_tokens(config: StudyConfig, setup: ModelSetup) -> int:
    """Tokens of the prefix that questions without a system message have.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        NotPossibleError: its template writes no prefix.
    """
    thinking = read_settings(ModelRecipe, config.settings).enable_thinking
    chat = find_regions(
        load_tokenizer(setup.name, LoadOptions()),
        [{"role": "user", "content": "x"}],
        add_generation_prompt=True,
        template_kwargs={} if thinking is None else {"enable_thinking": thinking},
    )
    try:
        return len(chat.require("prefix"))
    except TemplateError as error:
        raise NotPossibleError(f"not possible on {setup.label}: {error}") from error


def curve_layers(config: StudyConfig, setup: ModelSetup) -> list[int]:
    """Returns the layers of Figure 4: as many as the recipe says, from the first to the last.

    Raises:
        ConfigError: the model's config cannot be loaded, or a setting is out of range.
    """
    wanted = read_settings(ModelRecipe, config.settings).num_curve_layers
    try:
        found = AutoConfig.from_pretrained(model_path(setup.name))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config of {setup.name} cannot be loaded: {error}") from error
    last = int(found.get_text_config(decoder=True).num_hidden_layers) - 1
    if last < wanted:
        return list(range(last + 1))
    return [index * last // (wanted - 1) for index in range(wanted)]
