"""What cheap attribution signals are worth: their rank correlation with sampled scores.

    python benchmarks/signal_correlation.py ADAPTER ADAPTER ... --output FOLDER [--model MODEL]

Each ADAPTER is a folder that `treft sft --use_peft` wrote (README: any seeds, domains, datasets),
put on MODEL, or on the base that it names: organisms of several kinds go into one table, which then
has the patches that all of them allow. For every finetune and patch (regions whole; keys or values
only; half of the layers):

- cheap, on 40 validation questions: share of the margin's loss that the patch regains
  (`treft.attribution.margins`); drift of eq. (3) at what the patch replaces, raw and over the
  adapter's scale squared;
- sampled, on 200 other questions (test): share of the aligned answers' loss that comes back, one
  answer each at temperature 0.7, by the organism's oracle.

No question is in both sets. A finetune is finished once its file is in the output folder, and the
same command goes on from there. A finetune that loses fewer than `--least-loss` percentage points
has nothing to regain: it is named and left out. The table has Spearman's ρ with 95 % intervals
by bootstrap over finetunes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rank_correlation import LEAST_FINETUNES, rank_correlation

from treft.attribution.forcing import render_questions
from treft.attribution.margins import answer_pairs
from treft.attribution.options import Rendering
from treft.attribution.patches import kind_specs, layer_band_specs, region_specs
from treft.attribution.signals import Signals, measure_signals
from treft.chat.regions import ChatRegions
from treft.core.patch_spec import PATCHABLE, PatchSpec
from treft.core.reference import ReferenceBank
from treft.files import write_whole
from treft.judging.oracle import oracle_score, organism_question, organism_questions
from treft.models.generation import Asked, answer
from treft.models.loading import LoadOptions, load_model
from treft.models.pair import ModelPair
from treft.models.repair import UNPATCHED, RepairedModel
from treft.models.residual import decoder_layers
from treft.models.sampling import SamplingOptions

SIGNALS = {
    "margin": "share of the margin's loss regained",
    "drift": "drift, raw",
    "drift_over_scale_squared": "drift / scale²",
}
MAX_NEW_TOKENS = 28
"""Whole answers of the organism take fewer."""


@dataclass(frozen=True)
class Finetune:
    """What was found of one.

    Attributes:
        name: of its folder.
        base: aligned answers of the base, percent.
        finetuned: of the finetuned model, percent.
        sampled: of the finetuned model under each patch, percent.
        signals: by name, then by patch; None where there is no one adapter scale.
    """

    name: str
    base: float
    finetuned: float
    sampled: Mapping[str, float]
    signals: Mapping[str, Mapping[str, float | None]]

    @property
    def loss(self) -> float:
        """Percentage points that the finetune loses."""
        return self.base - self.finetuned


def specs_of(chats: Sequence[ChatRegions], num_layers: int) -> list[PatchSpec]:
    """Regions that all prompts have, whole; then parts of them."""
    regions = [name for name in PATCHABLE if all(chat.positions(name) for chat in chats)]
    half = -(-num_layers // 2)
    bands = layer_band_specs(num_layers, regions, half)
    return [*region_specs(regions), *kind_specs(regions), *bands]


def measure(adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one finetune."""
    start = time.process_time()
    names = (str(adapter), None) if args.model is None else (args.model, str(adapter))
    model, tokenizer = load_model(*names, LoadOptions(device=args.device))
    models = ModelPair(model)
    questions = organism_questions("general", split="validation", num=args.num_cheap).questions
    how = Rendering(max_new_tokens=MAX_NEW_TOKENS, batch_size=args.batch_size)
    pairs = answer_pairs(models, tokenizer, questions, how)
    chats = render_questions(tokenizer, questions)
    specs = specs_of(chats, len(decoder_layers(model)))
    found = measure_signals(models, tokenizer, pairs, specs, how)
    cheap = time.process_time() - start
    sampled = sample(models, tokenizer, specs, args)
    return {
        "settings": settings(adapter, args),
        "num_alike": found.margins.num_alike,
        "cpu_seconds": {"cheap": cheap, "sampled": time.process_time() - start - cheap},
        "scale": found.scales.scale,
        "weight_norm": found.scales.norm(),
        "base": sampled.pop("base"),
        "finetuned": sampled.pop("finetuned"),
        "sampled": sampled,
        "signals": {name: signal(found, specs, name) for name in SIGNALS},
    }


def signal(found: Signals, specs: Sequence[PatchSpec], name: str) -> dict[str, float | None]:
    """One signal by patch."""
    values: dict[str, float | None] = {}
    for spec in specs:
        drift = found.drift_of(spec)
        if name == "margin":
            gained, lost = found.margins.regained(spec.name)
            values[spec.name] = float(gained.mean() / lost.mean())
        else:
            values[spec.name] = drift if name == "drift" else found.normalised(drift)
    return values


def sample(
    models: ModelPair, tokenizer: Any, specs: Sequence[PatchSpec], args: argparse.Namespace
) -> dict[str, float]:
    """Percent of aligned answers of the base, the finetuned model, and under each patch."""
    questions = organism_questions("general", split="test", num=args.num_sampled).questions
    chats = render_questions(tokenizer, questions)
    bank = ReferenceBank(models.source)
    asked = [Asked(chat.input_ids, args.seed + row) for row, chat in enumerate(chats)]
    sampling = SamplingOptions(
        temperature=0.7, max_new_tokens=MAX_NEW_TOKENS, batch_size=args.batch_size
    )

    def score(arm: Any, spec: PatchSpec | None) -> float:
        with models.use(arm) as model:
            repaired = RepairedModel(model, tokenizer, bank, spec or UNPATCHED)
            patches = repaired.patches(chats)
            answers = answer(model, tokenizer, asked, sampling, patches)
        scores = [
            oracle_score(organism_question(question.id, question.metadata), "general", found.text)
            for question, found in zip(questions, answers, strict=True)
        ]
        return float(np.mean([found.as_dict()["alignment"] for found in scores]))

    unpatched = {arm: score(arm, None) for arm in ("base", "finetuned")}
    return {**unpatched, **{spec.name: score("finetuned", spec) for spec in specs}}


def settings(adapter: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for a file to be kept."""
    weights = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    names = ("model", "num_cheap", "num_sampled", "seed")
    return {"weights": weights, **{name: getattr(args, name) for name in names}}


def finished(adapter: Path, args: argparse.Namespace) -> Finetune:
    """From its file, or measured and written there."""
    path = args.output / f"{adapter.name}.json"
    if not path.is_file():
        write_whole(path, json.dumps(measure(adapter, args), indent=1) + "\n")
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["settings"] != settings(adapter, args):
        raise SystemExit(f"{path} was made with other settings: remove it, or change --output.")
    fields = {name: kept[name] for name in ("base", "finetuned", "sampled", "signals")}
    return Finetune(adapter.name, **fields)


def show_finetunes(finetunes: Sequence[Finetune]) -> None:
    """Regions of each, the signal before the sampled score."""
    regions = common(finetunes, whole=True)
    print(
        "\n| finetune | base | finetuned |",
        *(f" {region}: margin → sampled |" for region in regions),
    )
    print("|---|---|---|" + "---|" * len(regions))
    for each in finetunes:
        cells = (
            f" {100 * (each.signals['margin'][name] or 0):.0f} % → {share(each, name):.0f} % |"
            for name in regions
        )
        print(f"| {each.name} | {each.base:.1f} | {each.finetuned:.1f} |", *cells)


def common(finetunes: Sequence[Finetune], whole: bool = False) -> list[str]:
    """Patches that all finetunes allow; of whole regions only, if so wanted."""
    return [
        name
        for name in finetunes[0].sampled
        if all(name in each.sampled for each in finetunes) and (name in PATCHABLE or not whole)
    ]


def share(finetune: Finetune, patch: str) -> float:
    """Percent of the sampled loss that a patch regains."""
    return 100 * (finetune.sampled[patch] - finetune.finetuned) / finetune.loss


def show_correlations(finetunes: Sequence[Finetune]) -> None:
    """One row a signal and set of patches."""
    regions, every = common(finetunes, whole=True), common(finetunes)
    print("\n| signal | patches | ρ, all pairs | ρ within a finetune, mean | best patch named |")
    print("|---|---|---|---|---|")
    for name, words in SIGNALS.items():
        for kind, patches in ((f"{len(regions)} regions", regions), (f"all {len(every)}", every)):
            values = [[each.signals[name][patch] for patch in patches] for each in finetunes]
            if any(value is None for row in values for value in row):
                print(f"| {words} | {kind} | no single scale | | |")
                continue
            scores = [[share(each, patch) for patch in patches] for each in finetunes]
            found = rank_correlation(np.array(values, dtype=float), np.array(scores))
            cells = (
                f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"
                for one in (found.pooled, found.within)
            )
            best = f"{found.num_best_alike}/{found.num_finetunes}"
            print(f"| {words} | {kind} |", " | ".join(cells), f"| {best} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="default: the base that an adapter names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-cheap", type=int, default=40)
    parser.add_argument("--num-sampled", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--least-loss", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = [adapter.resolve().name for adapter in args.adapters]
    if repeated := {name for name in names if names.count(name) > 1}:
        parser.error(f"two folders are called {sorted(repeated)[0]}: their results would collide.")
    if absent := [path for path in args.adapters if not (path / "adapter_config.json").is_file()]:
        parser.error(f"{absent[0]} holds no adapter (adapter_config.json).")
    args.adapters = [adapter.resolve() for adapter in args.adapters]
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    finetunes = []
    for number, adapter in enumerate(args.adapters, start=1):
        finetunes.append(finished(adapter, args))
        print(f"{number}/{len(args.adapters)} {adapter.name}", flush=True)
    print(
        f"\n{date.today()}, {platform.machine()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {len(finetunes)} finetunes; cheap signals on "
        f"{args.num_cheap} validation questions, sampled scores on {args.num_sampled} test "
        f"questions, one answer each, seed {args.seed}"
    )
    spread = [each for each in finetunes if each.loss >= args.least_loss]
    for each in finetunes:
        if each not in spread:
            print(f"left out: {each.name} loses {each.loss:.1f} points")
    if not spread:
        raise SystemExit("no finetune spreads, so there is nothing to correlate.")
    show_finetunes(spread)
    if len(spread) < LEAST_FINETUNES:
        raise SystemExit(f"{len(spread)} finetunes are too few to correlate anything.")
    show_correlations(spread)


if __name__ == "__main__":
    main()
