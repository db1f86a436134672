"""The story in one command: a narrow finetune goes broadly wrong, is repaired, and is prevented.

The demo is a study without a claim: its arms are methods, its steps are those of every study, kept
in the output folder, so an interrupted run goes on where it stopped. More organisms, more seeds and
all arms give the table of docs/organism.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, get_args

from transformers import AutoTokenizer

from treft.chat.regions import RegionName, find_regions
from treft.errors import ConfigError
from treft.evaluation.comparable import GENERAL, IN_DOMAIN, ArmAnswers
from treft.files import write_whole
from treft.models.loading import asset_path
from treft.organism import VERDICTS, FinetuneRecipe
from treft.progress import Progress
from treft.steps.run import Event, Workers, run_plan
from treft.steps.step import Plan, Work
from treft.steps.store import Store, claim, library_versions
from treft.steps.workers import LocalPool
from treft.study.answer import ROW
from treft.study.figures import MEASURES, score_rows
from treft.study.plans import method_steps
from treft.study.protocol import Method, Row, StudyConfig, read_settings

SCOPES = (GENERAL, IN_DOMAIN)


class Arm(NamedTuple):
    """A method with what it is, in words."""

    method: Method
    text: str


EQUAL_TOKENS = FinetuneRecipe.equal_tokens
"""Positions that are patched in arms that compare regions token for token."""
ARMS: dict[str, Arm] = {
    "base": Arm(Method(is_base=True), "the organism before any finetune"),
    "sft": Arm(Method(), "plain finetune on harmful rows of one domain"),
    "sft_prefix_patch": Arm(
        Method(patch=("prefix",)), "plain finetune, base K/V at every prefix token"
    ),
    "sft_query_patch": Arm(
        Method(patch=("query",)), "plain finetune, base K/V at every query token"
    ),
    "sft_postfix_patch": Arm(
        Method(patch=("postfix",)), "plain finetune, base K/V at every postfix token (empty query)"
    ),
    "sft_prefix_patch_equal": Arm(
        Method(patch=("prefix",), num_positions=EQUAL_TOKENS),
        "plain finetune, base K/V at ten random prefix tokens",
    ),
    "sft_query_patch_equal": Arm(
        Method(patch=("query",), num_positions=EQUAL_TOKENS),
        "plain finetune, base K/V at ten random query tokens",
    ),
    "sft_postfix_patch_equal": Arm(
        Method(patch=("postfix",), num_positions=EQUAL_TOKENS),
        "plain finetune, base K/V at ten random postfix tokens",
    ),
    "interleaving": Arm(
        Method(interleave="narrow"), "careful rows of the other narrow domains mixed in"
    ),
    "interleaving_all": Arm(
        Method(interleave="all"),
        "careful rows of all other domains, the evaluated ones too, mixed in",
    ),
    "treft": Arm(Method(held=("prefix",)), "TReFT holding the prefix"),
    "treft_query": Arm(Method(held=("query",)), "TReFT holding the query"),
    "treft_postfix": Arm(
        Method(held=("postfix",)), "TReFT holding the postfix to the base's on the same row"
    ),
    "treft_all": Arm(
        Method(held=("prefix", "query", "postfix")), "TReFT holding prefix, query and postfix"
    ),
}
DEFAULT_ARMS = ("base", "sft", "sft_prefix_patch", "sft_query_patch", "treft")


@dataclass(frozen=True)
class DemoConfig:
    """What to run.

    Attributes:
        output: Folder of results; made if missing, continued if it was made with equal settings.
        arms: Names of `ARMS`; told in its order.
        study: Organisms, seeds, split, and settings of the recipe.

    Raises:
        ConfigError: There is no such arm.
    """

    output: Path
    arms: tuple[str, ...] = DEFAULT_ARMS
    study: StudyConfig = field(default_factory=lambda: StudyConfig(num_seeds=1))

    def __post_init__(self) -> None:
        """Validate before any work starts."""
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise ConfigError(f"unknown arms {unknown}; choose from {', '.join(ARMS)}")

    @property
    def methods(self) -> dict[str, Method]:
        """The methods of the arms, by name."""
        return {name: arm.method for name, arm in ARMS.items() if name in self.arms}

    @property
    def recipe(self) -> FinetuneRecipe:
        """One finetuning setting for all arms."""
        return read_settings(FinetuneRecipe, self.study.settings)


@dataclass(frozen=True)
class DemoRun:
    """One arm of one finetuning seed on one organism.

    Attributes:
        row: Who it is and its figures, as its scoring step wrote them.
        answers: Its answers with the oracle's verdicts.
    """

    row: Row
    answers: ArmAnswers

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Percent of answers by verdict, in each scope."""
        found: dict[str, dict[str, float]] = {}
        for scope, answers in self.answers.sets.items():
            counts = Counter(answer.metadata["verdict"] for answer in answers)
            found[scope] = {name: 100 * counts[name] / len(answers) for name in VERDICTS}
        return found

    def to_json(self) -> str:
        """Returns one JSON object with every answer."""
        sets = {
            scope: [
                {"question": one.question, "answer": one.answer, "verdict": one.metadata["verdict"]}
                for one in answers
            ]
            for scope, answers in self.answers.sets.items()
        }
        return json.dumps({**self.row, "answers": sets}, indent=1)


@dataclass(frozen=True)
class DemoResult:
    """All runs, in the order of organisms, seeds and arms."""

    config: DemoConfig
    runs: tuple[DemoRun, ...]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """By arm its figures with 95 % intervals, its shares and means; the JSON of each arm."""
        found: dict[str, dict[str, Any]] = {}
        for row in score_rows([run.row for run in self.runs], {}, MEASURES):
            interval = {"mean": row["value"], "low": row["low"], "high": row["high"]}
            found.setdefault(row["method"], {})[row["measure"]] = interval
        for name, arm in found.items():
            own = [run for run in self.runs if run.row["method"] == name]
            arm["shares"] = {
                scope: {v: fmean(run.shares[scope][v] for run in own) for v in VERDICTS}
                for scope in SCOPES
            }
            arm["by_organism"] = {
                organism: {
                    measure: fmean(r.row[measure] for r in own if r.row["organism"] == organism)
                    for measure in MEASURES
                }
                for organism in self.organisms
            }
            arm["num_runs"] = len(own)
        return found

    @property
    def organisms(self) -> list[str]:
        """Names of the organisms."""
        return list(dict.fromkeys(run.row["organism"] for run in self.runs))

    @property
    def intervals(self) -> str:
        """How the 95 % intervals were made, in words."""
        num_runs = max(arm["num_runs"] for arm in self.arms.values())
        if num_runs == 1:
            return "one run: Wilson over its questions; EM-F1 from the intervals of both scores"
        return f"t interval over {num_runs} runs"

    def to_dict(self) -> dict[str, Any]:
        """Returns the documented JSON object of `treft demo --json` (docs/cli.md)."""
        recipe = self.config.recipe
        return {
            "seeds": list(range(self.config.study.num_seeds)),
            "organisms": self.organisms,
            "split": self.config.study.split,
            "arms": self.arms,
            "num_general": recipe.num_general,
            "num_in_domain": recipe.num_in_domain,
            "intervals": self.intervals,
            "recipe": asdict(recipe),
            "versions": library_versions(),
            "output": str(self.config.output),
        }


def run_demo(config: DemoConfig, progress: Progress, workers: Workers | None = None) -> DemoResult:
    """Run what is missing of the demo and summarise all of it.

    Args:
        config: What to run.
        progress: Is told about steps.
        workers: Where they run; by default a process a core.

    Raises:
        ConfigError: The output folder was made with other settings, or is not a demo's, or an
            organism's template lacks a region that an arm patches or holds.
        RuntimeError: A step failed; its traceback is the text.
    """
    for organism in config.study.organisms or (asset_path(),):
        check_regions(organism, config.methods)
    plan = Plan.of(method_steps(config.study, config.methods))
    settings = {"split": config.study.split, "recipe": asdict(config.recipe)}
    store = claim(config.output, settings, "demo")

    def tell(event: Event) -> None:
        progress("finetuning and answering, step by step", event.num_done, event.num_steps)

    outcome = run_plan(plan, store, workers or LocalPool(os.cpu_count() or 1), tell)
    for name, error in outcome.failed.items():
        raise RuntimeError(f"step {name} failed:\n{error}")
    runs = _runs(plan, store, config)
    for run in runs:
        name = "{organism}-seed{seed}-{method}.json".format_map(run.row)
        write_whole(config.output / "answers" / name, run.to_json())
    result = DemoResult(config, runs)
    write_whole(config.output / "result.json", json.dumps(result.to_dict(), indent=1))
    return result


def _runs(plan: Plan, store: Store, config: DemoConfig) -> tuple[DemoRun, ...]:
    """Reads what the scoring steps wrote, and the answers that they judged."""
    found = []
    for step in plan.results.values():
        inputs = {role: store.path(need.address) for role, need in step.needs.items()}
        work = Work(step.config, Path(), inputs, step.seed or 0)
        row = json.loads((store.path(step.address) / ROW).read_text("utf-8"))
        sets = {scope: work.config.subject.judged(work, scope)[0] for scope in SCOPES}
        sampled = {"temperature": config.recipe.temperature, "seed": work.seed}
        source = {"organism": row["organism"], "generation": sampled}
        name = row["method"]
        found.append(DemoRun(row, ArmAnswers(name, sets, (source,), ARMS[name].text)))
    arms = list(ARMS)
    organisms = list(dict.fromkeys(run.row["organism"] for run in found))

    def place(run: DemoRun) -> tuple[int, int, int]:
        row = run.row
        return organisms.index(row["organism"]), row["seed"], arms.index(row["method"])

    return tuple(sorted(found, key=place))


def check_regions(organism: Path, methods: Mapping[str, Method]) -> None:
    """Refuse arms that patch or hold what the organism's template does not write.

    Raises:
        ConfigError: Names the regions, the arms that cannot run and those that can.
    """
    tokenizer = AutoTokenizer.from_pretrained(organism)
    chat = find_regions(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
    absent = {region for region in get_args(RegionName) if not chat.positions(region)}
    lacks = {name: absent & {*one.patch, *one.held} for name, one in methods.items()}
    if any(lacks.values()):
        able = [n for n, arm in ARMS.items() if not absent & {*arm.method.patch, *arm.method.held}]
        raise ConfigError(
            f"the chat template of {_told(organism)} writes no "
            f"{', '.join(sorted(set().union(*lacks.values())))} for "
            f"{', '.join(name for name, found in lacks.items() if found)}; "
            f"choose from {','.join(able)}"
        )


def _told(organism: Path) -> str:
    return "the embedded organism" if organism == asset_path() else str(organism)


def by_seed(result: DemoResult) -> list[list[ArmAnswers]]:
    """Returns the arms of each finetuning run, in the order of the arms."""
    groups: dict[tuple[str, int], list[ArmAnswers]] = {}
    for run in result.runs:
        groups.setdefault((run.row["organism"], run.row["seed"]), []).append(run.answers)
    return list(groups.values())
