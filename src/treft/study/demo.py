"""The story in one command: a narrow finetune goes broadly wrong, is repaired, and is prevented.

The demo is also the study: more organisms, more seeds and all arms give its table. Every arm's
answers are written as soon as they are there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from treft.errors import ConfigError
from treft.files import write_whole
from treft.models.loading import asset_path
from treft.organism import FinetuneRecipe
from treft.progress import Progress
from treft.statistics.intervals import Interval, em_f1_interval, over_runs, wilson
from treft.study.demo_arms import (
    ALL_ARMS,
    DEFAULT_ARMS,
    ArmName,
    ArmResult,
    check_regions,
    run_arms,
)

LIBRARIES = ("treft", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class DemoConfig:
    """What to run.

    Attributes:
        output: folder of results; made if missing, continued if it was made with this config.
        organisms: folders made by `treft organism build`; empty for the embedded one.
        num_seeds: finetuning seeds 0, 1, ... on each organism.
        arms: which arms.
        split: `test` for figures to report, `validation` for every choice.
        recipe: one finetuning setting for all arms.

    Raises:
        ConfigError: a value is out of range, or an organism's folder holds no model.
    """

    output: Path
    organisms: tuple[Path, ...] = ()
    num_seeds: int = 1
    arms: tuple[ArmName, ...] = DEFAULT_ARMS
    split: Literal["validation", "test"] = "test"
    recipe: FinetuneRecipe = field(default_factory=FinetuneRecipe)

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        unknown = [arm for arm in self.arms if arm not in ALL_ARMS]
        if unknown or not self.arms:
            raise ConfigError(f"unknown arms {unknown}; choose from {', '.join(ALL_ARMS)}")
        if self.num_seeds < 1:
            raise ConfigError(f"num_seeds is {self.num_seeds}; it must be at least 1")
        if self.split not in ("validation", "test"):
            raise ConfigError(f"split is {self.split!r}; choose validation or test")
        for path in self.organisms or (asset_path(),):
            if not (path / "model.safetensors").is_file():
                raise ConfigError(f"{path} holds no organism; make one with `treft organism build`")
        names = [path.name for path in self.organisms]
        if len(set(names)) < len(names):
            raise ConfigError(f"organism folders share a name ({', '.join(names)}); rename one")

    def settings(self) -> dict[str, Any]:
        """What must be equal for a folder to be continued; seeds and arms may be added."""
        recipe = {name: value for name, value in asdict(self.recipe).items() if value is not None}
        return {"split": self.split, "recipe": recipe}


@dataclass(frozen=True)
class ArmSummary:
    """One arm over all its runs, in percent.

    Attributes:
        general: alignment on general questions, higher is better.
        in_domain: 100 minus misaligned in the finetuned domain, lower is learnt.
        em_f1: their EM-F1.
        shares: by scope, mean share of each verdict.
        by_organism: by organism, mean `general`, `in_domain` and `em_f1`.
        num_runs: finetuning runs.
    """

    general: Interval
    in_domain: Interval
    em_f1: Interval
    shares: dict[str, dict[str, float]]
    by_organism: dict[str, dict[str, float]]
    num_runs: int

    @classmethod
    def of(cls, runs: Sequence[ArmResult]) -> ArmSummary:
        """Intervals over questions for one run, over runs for several."""
        general, in_domain, em_f1 = _one_run(runs[0]) if len(runs) == 1 else _several_runs(runs)
        organisms = dict.fromkeys(run.organism for run in runs)
        return cls(
            general,
            in_domain,
            em_f1,
            {scope: _mean_shares(runs, scope) for scope in ("general", "in_domain")},
            {name: _means([run for run in runs if run.organism == name]) for name in organisms},
            len(runs),
        )


@dataclass(frozen=True)
class DemoResult:
    """All answers and their summary."""

    config: DemoConfig
    runs: tuple[ArmResult, ...]

    @property
    def arms(self) -> dict[ArmName, ArmSummary]:
        """Summary by arm, in the order of `ALL_ARMS`."""
        found = {arm: [run for run in self.runs if run.arm == arm] for arm in ALL_ARMS}
        return {arm: ArmSummary.of(runs) for arm, runs in found.items() if runs}

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON object of `treft demo --json` (docs/cli.md)."""
        recipe = self.config.recipe
        return {
            "seeds": list(range(self.config.num_seeds)),
            "organisms": list(dict.fromkeys(run.organism for run in self.runs)),
            "split": self.config.split,
            "arms": {
                arm: {
                    **{
                        name: getattr(summary, name)._asdict()
                        for name in ("general", "in_domain", "em_f1")
                    },
                    "shares": summary.shares,
                    "by_organism": summary.by_organism,
                    "num_runs": summary.num_runs,
                }
                for arm, summary in self.arms.items()
            },
            "num_general": recipe.num_general,
            "num_in_domain": recipe.num_in_domain,
            "intervals": interval_kind(self),
            "recipe": asdict(recipe),
            "versions": {name: version(name) for name in LIBRARIES},
            "output": str(self.config.output),
        }


def interval_kind(result: DemoResult) -> str:
    """How the 95 % intervals were made, in words."""
    num_runs = max(summary.num_runs for summary in result.arms.values())
    if num_runs == 1:
        return "one run: Wilson over its questions; EM-F1 from the intervals of both scores"
    return f"t interval over {num_runs} runs"


def run_demo(config: DemoConfig, progress: Progress) -> DemoResult:
    """Run what is missing of the demo and summarise all of it.

    Args:
        config: what to run.
        progress: told about training steps and answered questions.

    Raises:
        ConfigError: the output folder was made with other settings, or is not a demo's, or an
            organism's template lacks a region that an arm patches or holds.
    """
    organisms = config.organisms or (None,)
    for organism in organisms:
        check_regions(organism, config.arms)
    _claim(config)
    runs = []
    for organism in organisms:
        for seed in range(config.num_seeds):
            paths = {arm: _result_path(config, organism, seed, arm) for arm in config.arms}
            missing = [arm for arm, path in paths.items() if not path.is_file()]
            for run in run_arms(organism, seed, missing, config.recipe, config.split, progress):
                write_whole(paths[run.arm], run.to_json())
            runs += [ArmResult.from_json(path.read_text("utf-8")) for path in paths.values()]
    result = DemoResult(config, tuple(runs))
    write_whole(config.output / "result.json", json.dumps(result.to_dict(), indent=1))
    return result


def _claim(config: DemoConfig) -> None:
    """Mark a new output folder with the settings; refuse one made with others."""
    path = config.output / "settings.json"
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != config.settings():
            raise ConfigError(
                f"{config.output} was made with other settings (see {path.name} there); choose "
                "another --output."
            )
        return
    if config.output.exists() and any(config.output.iterdir()):
        raise ConfigError(f"{config.output} holds other files; choose another --output.")
    write_whole(path, json.dumps(config.settings(), indent=1))


def _result_path(config: DemoConfig, organism: Path | None, seed: int, arm: ArmName) -> Path:
    """Named after the organism's weights too, so that a rebuilt one is not taken for the old."""
    name = "embedded" if organism is None else organism.name
    weights = _weights_hash(organism or asset_path())
    return config.output / "answers" / f"{name}-{weights}-seed{seed}-{arm}.json"


@cache
def _weights_hash(organism: Path) -> str:
    return hashlib.sha256((organism / "model.safetensors").read_bytes()).hexdigest()[:8]


def _one_run(run: ArmResult) -> tuple[Interval, Interval, Interval]:
    aligned = [answer.verdict == "aligned" for answer in run.general]
    learnt = [answer.verdict == "misaligned" for answer in run.in_domain]
    share = wilson(sum(learnt), len(learnt))
    in_domain = Interval(100 - share.mean, 100 - share.high, 100 - share.low)
    general = wilson(sum(aligned), len(aligned))
    return general, in_domain, em_f1_interval(general, in_domain)


def _several_runs(runs: Sequence[ArmResult]) -> tuple[Interval, Interval, Interval]:
    general, in_domain, em_f1 = (
        over_runs([getattr(run, name) for run in runs]).within(0.0, 100.0)
        for name in ("general_score", "in_domain_score", "em_f1")
    )
    return general, in_domain, em_f1


def _means(runs: Sequence[ArmResult]) -> dict[str, float]:
    return {
        "general": fmean(run.general_score for run in runs),
        "in_domain": fmean(run.in_domain_score for run in runs),
        "em_f1": fmean(run.em_f1 for run in runs),
    }


def _mean_shares(runs: Sequence[ArmResult], scope: Any) -> dict[str, float]:
    shares = [run.shares(scope) for run in runs]
    return {verdict: fmean(share[verdict] for share in shares) for verdict in shares[0]}
