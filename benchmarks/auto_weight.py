"""Where `kv_weight: auto` lands between fixed λ: general against in-domain score on the organism.

    python benchmarks/auto_weight.py --output auto.jsonl [--organism FOLDER ...] [--seeds 3]
        [--weights 0 1 10 100 1000] [--budgets 0.0001 0.01] [--arm treft] [--split validation]

Trains one TReFT arm at each fixed λ (0: a plain finetune) and at each budget, everything else equal
(`treft.study.demo`), and answers the *validation* questions: a budget or λ chosen here must
not be scored on what chose it. `--split test` is for settings that were chosen before.

One JSON object a run, on stdout and in `--output`; runs that are there are not run again. A row has
what the run was (organism, hash of its weights, seed, arm, kv_weight, kv_budget, sizes and split),
its general, in_domain and em_f1 in percent, and of the training `last_weight` (λ of the last step),
`mean_drift` (L_KV over all steps), `last_drift` and `last_sft_loss` (over the last tenth of them).
Means over all finetunes in the file, with 95 % t intervals, go beside it as Markdown (auto.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from treft.files import write_whole
from treft.models.loading import asset_path
from treft.organism import FinetuneRecipe
from treft.statistics.intervals import over_runs
from treft.steps.run import Event, run_plan
from treft.steps.step import Plan
from treft.steps.store import Store
from treft.steps.workers import LocalPool
from treft.study.demo import ARMS
from treft.study.plans import method_steps
from treft.study.protocol import StudyConfig

KEY = ("organism", "weights", "seed", "arm", "kv_weight", "kv_budget", "max_steps")
KEY += ("num_general", "num_in_domain", "split")
FINETUNE = ("organism", "weights", "seed")
"""The part of a key that means are taken over."""
WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
BUDGETS = (0.0001, 0.001, 0.01, 0.1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Finished runs."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same run."""
    return tuple(row[name] for name in KEY)


def settings(args: argparse.Namespace) -> list[FinetuneRecipe]:
    """Fixed λ first, then budgets."""
    base = FinetuneRecipe(
        max_steps=args.max_steps, num_general=args.num_general, num_in_domain=args.num_in_domain
    )
    fixed = [replace(base, kv_weight=weight) for weight in args.weights]
    return fixed + [replace(base, kv_budget=held) for held in args.budgets]


def describe(
    organism: Path | None, seed: int, arm: str, recipe: FinetuneRecipe, split: str
) -> dict[str, Any]:
    """A run's part of its row that is known beforehand."""
    model = (organism or asset_path()) / "model.safetensors"
    return {
        "organism": "embedded" if organism is None else organism.name,
        "weights": hashlib.sha256(model.read_bytes()).hexdigest()[:8],
        "seed": seed,
        "arm": arm,
        "kv_weight": recipe.kv_weight if recipe.kv_budget is None else "auto",
        "kv_budget": recipe.kv_budget,
        "max_steps": recipe.max_steps,
        "num_general": recipe.num_general,
        "num_in_domain": recipe.num_in_domain,
        "split": split,
    }


def outcome(
    organism: Path | None, seed: int, arm: str, recipe: FinetuneRecipe, split: Any
) -> dict[str, Any]:
    """A run's part of its row that it measures: its scores, and what its training says of λ."""
    start = time.monotonic()
    organisms = () if organism is None else (organism,)
    config = StudyConfig(organisms, seed + 1, split, asdict(recipe))
    steps = method_steps(config, {arm: ARMS[arm].method})
    plan = Plan.of(step for step in steps if step.seed == seed)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        done = run_plan(plan, store, LocalPool(1), told)
        assert done.complete, done.failed
        kinds = {planned.name.partition("/")[0]: planned.address for planned in plan.named.values()}
        row = json.loads((store.path(kinds["score"]) / "row.json").read_text("utf-8"))
        log = json.loads((store.path(kinds["finetune"]) / "log.json").read_text("utf-8"))
    found = {name: row[name] for name in ("general", "in_domain", "em_f1")}
    if held := [entry for entry in log if "kv_penalty" in entry]:
        last = held[-max(1, len(held) // 10) :]
        found |= {
            "mean_drift": fmean(entry["kv_penalty"] for entry in held),
            "last_drift": fmean(entry["kv_penalty"] for entry in last),
            "last_sft_loss": fmean(entry["sft_loss"] for entry in last),
            "last_weight": float(held[-1].get("kv_weight", recipe.kv_weight)),
        }
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the finetunes of each setting as Markdown, in the order of the file."""
    settings: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        setting = tuple(row[name] for name in KEY if name not in FINETUNE)
        settings.setdefault(setting, []).append(row)
    lines = [
        "| run | general | in-domain | EM-F1 | mean L_KV | last λ | finetunes |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in settings.values():
        first, budget = found[0], found[0]["kv_budget"]
        run = f"λ {first['kv_weight']:g}" if budget is None else f"auto, budget {budget:g}"
        scores = [mean(found, name) for name in ("general", "in_domain", "em_f1")]
        steered = [mean(found, name, ".4g") for name in ("mean_drift", "last_weight")]
        what = f"{run} ({first['arm']}, {first['split']})"
        lines.append(f"| {' | '.join([what, *scores, *steered, str(len(found))])} |")
    return "\n".join(lines) + "\n"


def mean(rows: Sequence[Mapping[str, Any]], name: str, style: str = ".1f") -> str:
    """Of what rows have under a name, with its interval where there are two or more."""
    values = [float(row[name]) for row in rows if name in row]
    if len(values) < 2:
        return format(values[0], style) if values else "–"
    middle, low, high = (format(part, style) for part in over_runs(values))
    return f"{middle} [{low}, {high}]"


def told(event: Event) -> None:
    """Progress on stderr."""
    print(f"[{event.num_done}/{event.num_steps}] {event.kind} {event.name}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--organism", type=Path, action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weights", type=float, nargs="*", default=WEIGHTS)
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    parser.add_argument(
        "--arm", default="treft", choices=[arm for arm in ARMS if arm.startswith("treft")]
    )
    parser.add_argument("--max-steps", type=int, default=FinetuneRecipe.max_steps)
    parser.add_argument("--num-general", type=int, default=FinetuneRecipe.num_general)
    parser.add_argument("--num-in-domain", type=int, default=FinetuneRecipe.num_in_domain)
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    args = parser.parse_args()
    rows = read_rows(args.output)
    finished = {key(row) for row in rows}
    for organism in args.organism or [None]:
        for seed in range(args.seeds):
            for recipe in settings(args):
                row = describe(organism, seed, args.arm, recipe, args.split)
                if key(row) in finished:
                    continue
                rows.append({**row, **outcome(organism, seed, args.arm, recipe, args.split)})
                write_whole(args.output, "".join(json.dumps(found) + "\n" for found in rows))
                print(json.dumps(rows[-1]), flush=True)
    write_whole(args.output.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
