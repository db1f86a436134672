"""What a study is: a claim of the paper, the steps that test it, and how their results are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from treft.errors import ConfigError
from treft.steps.step import Step
from treft.study.claims import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from treft.chat.regions import RegionName
    from treft.core.patching import StateKind
    from treft.organism.tasks import TaskName
    from treft.study.model_setup import ModelSetup


Recipe = TypeVar("Recipe")
Row = Mapping[str, Any]
"""One row of a tidy table: value by column."""
Split = Literal["validation", "test"]
"""Questions for every choice, and questions for figures to report."""
Scope = Literal["general", "in_domain", "other_narrow", "utility"]
"""Where a question lies. `utility`, conversations of several turns that a judge scores for
helpfulness, is asked of real models alone: an organism knows no turns."""
UTILITY: Final = "utility"


class NotPossibleError(ConfigError):
    """A study cannot run with what was given, though another may.

    It wants files, a judge, or an organism. What is wrong in itself, such as a setting or a row of
    a file, is no such case.
    """


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
        where = next(iter(first["loc"]), "settings")
        raise ConfigError(f"{where}: {first['msg']}, not {first['input']!r}.") from error


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
    split: Split = "test"
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


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a finetune is made, apart from numbers of a recipe; the default is plain SFT on advice.

    Attributes:
        task: what the rows teach; asked about with its own questions, scored by its detector.
        domains: of the rows, where they are of several.
        system_prompt: of the rows.
        interleave: where careful rows come from: none, narrow, general, all, or a domain.
        held: regions that TReFT holds.
        kv_states: that are held.
        mitigation: by name, of `treft.mitigations.registry`.
        strength: its number.
        is_full: all weights are trained.
        answer_system: system prompt of use.
    """

    task: TaskName = "advice"
    domains: tuple[str, ...] = ()
    system_prompt: str | None = None
    interleave: str = "none"
    held: tuple[RegionName, ...] = ()
    kv_states: Literal["both", "key", "value"] = "both"
    mitigation: str = ""
    strength: float = 0.0
    is_full: bool = False
    answer_system: str | None = None


@dataclass(frozen=True, kw_only=True)
class Handling:
    """What is done to a model while it answers; the default is nothing.

    Attributes:
        patch: regions that get the unfinetuned model's keys and values.
        num_positions: of each patched region, drawn at random; None for all.
        kinds: that are patched: keys, values or both.
        window: tokens [start, end) of the patched region alone; None for all.
        stream_layer: the residual stream of the prefix is patched at this layer, instead of keys
            and values in all layers.
        alpha: of W0 + α ΔW, the change of weights that is kept.
        steering: coefficient of the persona vector that is taken away.
    """

    patch: tuple[RegionName, ...] = ()
    num_positions: int | None = None
    kinds: tuple[StateKind, ...] = ("key", "value")
    window: tuple[int, int] | None = None
    stream_layer: int | None = None
    alpha: float = 1.0
    steering: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Method(Teaching, Handling):
    """One row of a study's table, on whatever subject: a finetune, and how it is asked.

    Methods that differ in their `Handling` alone share their finetune.

    Attributes:
        is_base: there is no finetune at all.
        domain: that is trained on, and asked about in-domain; None for the recipe's.
        interleaved_share: of the rows; None for the recipe's.
        kv_weight: λ; None for the recipe's.
        learning_rate: None for the recipe's.
        step_share: of the recipe's steps, for an organism; a real model is trained for its recipe's
            epochs.
        scopes: of the questions.
    """

    is_base: bool = False
    domain: str | None = None
    interleaved_share: float | None = None
    kv_weight: float | None = None
    learning_rate: float | None = None
    step_share: float = 1.0
    scopes: tuple[Scope, ...] = ("general", "in_domain")


@dataclass(frozen=True)
class Study:
    """One claim as a study; a file in `treft/study/studies/` has those of a family in `STUDIES`.

    Attributes:
        name: of the command, and in `claims.yaml`.
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
