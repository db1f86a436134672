"""What a study is: a claim of the paper, the steps that test it, and how their results are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from treft.errors import ConfigError
from treft.steps.step import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treft.study.model_setup import ModelSetup


Recipe = TypeVar("Recipe")
Row = Mapping[str, Any]
"""One row of a tidy table: value by column."""


class NotPossibleError(ConfigError):
    """A study cannot run with what was given, though another may.

    It wants files, a judge, or an organism. What is wrong in itself, such as a setting or a row of
    a file, is no such case.
    """


@dataclass(frozen=True)
class StudyConfig:
    """What every study can be told.

    Attributes:
        organisms: folders made by `treft organism build`; empty for the embedded one.
        num_seeds: finetuning seeds 0, 1, ... on each organism.
        split: `test` for figures to report, `validation` for every choice.
        settings: of the finetune and its evaluation, by name, where they are to differ from
            `treft.organism.FinetuneRecipe` (`treft.study.model_setup.ModelRecipe` with a model);
            words are read as what the recipe has there.
        model: a real model to run on instead of organisms.

    Raises:
        ConfigError: a value is out of range, or a folder holds no organism.
    """

    organisms: tuple[Path, ...] = ()
    num_seeds: int = 5
    split: Literal["validation", "test"] = "test"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: ModelSetup | None = None

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        if self.num_seeds < 1:
            raise ConfigError(f"num_seeds is {self.num_seeds}; it must be at least 1.")
        if self.split not in ("validation", "test"):
            raise ConfigError(f"split is {self.split!r}; choose validation or test.")
        for path in self.organisms:
            if not (path / "model.safetensors").is_file():
                raise ConfigError(
                    f"{path} holds no organism; make one with `treft organism build`."
                )
        names = [path.resolve().name for path in self.organisms]
        if len(set(names)) < len(names):
            raise ConfigError(f"organism folders share a name ({', '.join(names)}); rename one.")


def read_settings(recipe: type[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with some fields given, as what they are or in words.

    Args:
        recipe: a dataclass.
        settings: value by field.

    Raises:
        ConfigError: a name is no field of the recipe, or a value is of another type or out of
            range.
    """
    known = [entry.name for entry in fields(recipe)]  # type: ignore[arg-type]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(unknown)}; there are {', '.join(known)}.")
    try:
        return TypeAdapter(recipe).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}.") from error


@dataclass(frozen=True)
class Claim:
    """What the paper says.

    Attributes:
        source: table or figure.
        text: the claim in one sentence, our words.
        figures: the paper's own, by row and measure.
        setting: model and domain they belong to.
    """

    source: str
    text: str
    figures: Mapping[str, Mapping[str, float]]
    setting: str


@dataclass(frozen=True)
class Study:
    """One claim as a study; a file in `treft/study/studies/` defines one as `STUDY`.

    Attributes:
        name: of the file and of the command.
        claim: what is tested.
        cost: of a run with default options, measured, in words.
        steps: the work; those that no other step needs write a `row.json`, one object.
        table: rows of the table from the objects in all `row.json`.
        verdict: from these rows, one sentence: whether the claim held.
        plot: of these rows.
    """

    name: str
    claim: Claim
    cost: str
    steps: Callable[[StudyConfig], Sequence[Step[Any]]]
    table: Callable[[Sequence[Row]], list[Row]]
    verdict: Callable[[Sequence[Row]], str]
    plot: Callable[[Sequence[Row]], Figure]
