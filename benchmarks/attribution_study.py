"""Attribution over several finetunes: means and 95 % t intervals over finetunes, as Markdown.

    python benchmarks/attribution_study.py --diagnoses diag --patches patch --perturbations perturb

Each folder holds one folder a finetune, which `treft diagnose`, `treft attribute patch` and
`treft attribute perturb` wrote. docs/diagnosis.md has what came out for the organism.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from treft.statistics.intervals import over_runs


def read(folder: Path | None, name: str) -> dict[str, Any]:
    """The JSON of each finetune, by the name of its folder."""
    if folder is None:
        return {}
    paths = sorted(folder.glob(f"*/{name}"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def diagnoses(found: Mapping[str, Any]) -> Iterator[str]:
    """Verdicts one by one, and shares over finetunes."""
    yield "| finetune | verdict | carrier | loss | shares, % | next |"
    yield "|---|---|---|---|---|---|"
    for name, one in found.items():
        seen = one["diagnosis"]
        shares = ", ".join(f"{k} {100 * v['mean']:.0f}" for k, v in seen["shares"].items())
        weight = one["recommendation"]["kv_weight"]
        regions = "+".join(one["recommendation"]["regions"])
        yield (
            f"| {name} | {seen['verdict']} | {seen['carrier']} | {seen['loss']['mean']:.2f} "
            f"| {shares} | {regions} λ {weight} |"
        )
    yield ""
    columns: dict[str, list[float]] = {}
    for one in found.values():
        every = {**one["diagnosis"]["shares"], **one["controls"], **one["parts"]}
        every |= {f"single layer {layer} of the carrier": v for layer, v in one["layers"].items()}
        every |= {f"residual stream at layer {layer}": v for layer, v in one["curve"].items()}
        for name, share in every.items():
            columns.setdefault(name, []).append(100 * share["mean"])
    yield from table("patch", "share of the margin's loss regained, %", columns)


def patches(found: Mapping[str, Any]) -> Iterator[str]:
    """Alignment and shares of sampled answers, over finetunes."""
    alignment: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for one in found.values():
        for row in one["tables"][0]["rows"]:
            alignment.setdefault(row["name"], []).append(row["alignment"]["value"])
            if row["share"] is not None:
                shares.setdefault(row["name"], []).append(100 * row["share"]["mean"])
    yield from table("patch", "alignment", alignment)
    yield ""
    yield from table("patch", "share regained, %", shares)


def perturbations(found: Mapping[str, Any]) -> Iterator[str]:
    """Best and Avg of finetuned model and base, over finetunes."""
    columns: dict[str, list[float]] = {}
    for one in found.values():
        for row in one["tables"][0]["rows"]:
            for arm, figures in row["arms"].items():
                for name in ("best", "avg", "incoherent"):
                    if figures[name] is not None:
                        key = f"{row['cell']}, {arm}, {name}"
                        columns.setdefault(key, []).append(figures[name]["value"])
    yield from table("perturbed", "percent", columns)


def table(first: str, second: str, columns: Mapping[str, list[float]]) -> Iterator[str]:
    """A row each, with the number of finetunes behind it."""
    yield f"| {first} | {second} | finetunes |"
    yield "|---|---|---|"
    for name, values in columns.items():
        mean, low, high = over_runs(values) if len(values) > 1 else (values[0],) * 3
        yield f"| {name} | {mean:.1f} [{low:.1f}, {high:.1f}] | {len(values)} |"


def main() -> None:
    """Print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("diagnoses", "patches", "perturbations"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    for lines in (
        diagnoses(read(args.diagnoses, "diagnosis.json")),
        patches(read(args.patches, "patch.json")),
        perturbations(read(args.perturbations, "perturb.json")),
    ):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
