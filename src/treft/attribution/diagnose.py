"""The diagnosis: does a finetune spread, what carries it, and what to do about it.

`quick` looks at margins alone (`margins.py`): one greedy answer a prompt and model, no sampling and
no judge. `full` also samples answers under each patch and has them judged, and perturbs each
region; its verdict is that of the scores. Steps are kept in the output folder, so that a diagnosis
that was killed goes on where it stopped.

    plan = DiagnosisPlan.of(Subject(ModelPair(model), tokenizer, questions), Path("out"))
    result = diagnose(plan)
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import transformers

import treft
from treft.attribution.diagnosis_plan import PERTURBATION, SWEEP, DiagnosisPlan
from treft.attribution.drift_map import DriftMap, drift_map
from treft.attribution.evidence import margin_evidence, margin_shares, score_evidence
from treft.attribution.findings import (
    adapter_layers,
    drift_by_region,
    heat_of,
    next_command,
    samples_of,
)
from treft.attribution.forcing import check_own_states
from treft.attribution.grid_run import run_grid
from treft.attribution.margins import Margins
from treft.attribution.measure import Meter
from treft.attribution.patches import Patch
from treft.attribution.recommend import Measured, recommend
from treft.attribution.result import DiagnosisResult
from treft.attribution.table_words import perturbations_in_words
from treft.attribution.tables import perturb_table
from treft.attribution.verdict import Diagnosis, decide
from treft.chat.regions import RegionName
from treft.core.patch_spec import PatchSpec
from treft.statistics.intervals import Interval, wilson


def diagnose(plan: DiagnosisPlan) -> DiagnosisResult:
    """Measure, decide, recommend.

    Args:
        plan: that says how.

    Raises:
        ConfigError: patching cannot be trusted on this model, or a judge cannot be asked.
        DataError: a log-probability is not finite, or a kept file is damaged.
        ReferenceStatesError: a key or value is NaN, infinite or, in the base, zero.
    """
    meter, rules = plan.general, plan.options.rules
    notes = [_check_patching(plan)]
    main = meter.main()
    verdicts = {**_by_scores(plan), "margin": decide(margin_evidence(main, meter.regions), rules)}
    diagnosis = next(iter(verdicts.values()))
    drift = _drift(meter)
    focus = _focus(plan, main, diagnosis)
    measured = _measured(plan, main, drift, focus)
    recommendation = recommend(diagnosis, measured, rules)
    layers, about_weights = adapter_layers(plan.subject.pair, drift)
    notes.append(about_weights)
    controls = [patch.spec.name for patch in meter.controls]
    parts = [name for name in main.patched if name not in (*controls, *meter.regions)]
    width = plan.options.window_width
    windows = margin_shares(meter.windows(width), _names(meter.window_specs(width)), rules)
    return DiagnosisResult(
        diagnosis=diagnosis,
        others=dict(list(verdicts.items())[1:]),
        recommendation=recommendation,
        command=next_command(plan.subject.names, recommendation),
        num_tokens={region: len(meter.chats[0].positions(region)) for region in meter.regions},
        changed=_changed(main),
        controls=margin_shares(main, controls, rules),
        parts={**margin_shares(main, parts, rules), **focus.bands},
        layers=focus.layers,
        curve=_curve(plan),
        adapter=layers,
        heat=heat_of(drift, meter.window_specs(width), windows),
        samples=samples_of(meter.pairs, _patched_answers(plan, diagnosis)),
        perturbation=_perturbation(plan),
        settings=_settings(plan),
        seconds=plan.steps.seconds,
        notes=tuple(note for note in notes if note),
    )


@dataclass(frozen=True)
class _Focus:
    """The region that regains most, layer by layer.

    Attributes:
        layers: share that a patch of single layers regains.
        bands: share of bands of layers, by name.
        by_layers: the same by the layers themselves.
    """

    layers: Mapping[int, Interval]
    bands: Mapping[str, Interval]
    by_layers: Mapping[tuple[int, ...], Interval]


def _focus(plan: DiagnosisPlan, main: Margins, diagnosis: Diagnosis) -> _Focus:
    """Nothing where there is no loss to regain."""
    shares = margin_shares(main, list(plan.general.regions), plan.options.rules)
    if not shares:
        return _Focus({}, {}, {})
    best = diagnosis.carrier or max(shares, key=lambda name: shares[name].mean)
    region = cast(RegionName, best)
    found = plan.general.layers(region)
    single, bands = plan.general.layer_specs(region)
    intervals = margin_shares(found, _names([*single, *bands]), plan.options.rules)
    return _Focus(
        {cast(tuple[int, ...], spec.layers)[0]: intervals[spec.name] for spec in single},
        {spec.name: intervals[spec.name] for spec in bands},
        {cast(tuple[int, ...], spec.layers): intervals[spec.name] for spec in bands},
    )


def _measured(plan: DiagnosisPlan, main: Margins, drift: DriftMap, focus: _Focus) -> Measured:
    """Figures that a recommendation needs beside the verdict."""
    meter, rules = plan.general, plan.options.rules
    joint = margin_shares(main, [name for name in main.patched if "+" in name], rules)
    in_domain: Mapping[str, Interval] = {}
    if plan.in_domain is not None:
        found = plan.in_domain.whole_regions()
        in_domain = margin_shares(found, list(found.patched), rules)
    training = plan.subject.training
    return Measured(
        regions=meter.regions,
        joint={cast(Any, tuple(name.split("+"))): share for name, share in joint.items()},
        layers=focus.by_layers,
        in_domain=in_domain,
        drift=drift_by_region(drift),
        loss_gain=meter.loss_gain(training) if training else None,
        num_layers=meter.num_layers,
    )


def _check_patching(plan: DiagnosisPlan) -> str:
    """The control that must change nothing: the finetuned model's own states."""
    meter, size = plan.general, plan.options.rendering.batch_size

    def compute() -> dict[str, Any]:
        with plan.subject.pair.use("finetuned") as model:
            found = check_own_states(
                model, plan.subject.tokenizer, meter.chats, meter.regions, size
            )
        return {"words": str(found), "is_exact": found.is_exact}

    kept = plan.steps.run("own-states", compute)
    return "" if kept["is_exact"] else str(kept["words"])


def _by_scores(plan: DiagnosisPlan) -> dict[str, Diagnosis]:
    """Verdicts from sampled answers, one of each judge; none in a quick diagnosis."""
    if plan.sampled is None:
        return {}
    grid, regions = plan.sampled.sweep, plan.general.regions
    found = run_grid(grid, plan.steps.folder / SWEEP, progress=plan.general.progress)
    cells = {name: answers for arm in found.scored.values() for name, answers in arm.items()}
    return {
        judge: decide(score_evidence(cells, judge, regions), plan.options.rules)
        for judge in grid.judges
    }


def _perturbation(plan: DiagnosisPlan) -> tuple[tuple[str, ...], ...]:
    """The first judge's table, its headings first; none in a quick diagnosis."""
    if plan.sampled is None:
        return ()
    grid = plan.sampled.perturbation
    found = run_grid(grid, plan.steps.folder / PERTURBATION, progress=plan.general.progress)
    assert grid.perturb is not None
    shown = perturbations_in_words(perturb_table(found.scored, grid.judges[0], grid.perturb))
    return (shown.headings, *(tuple(cell.text for cell in row) for row in shown.rows))


def _drift(meter: Meter) -> DriftMap:
    pair = meter.pair
    with pair.use("finetuned") as model:
        return drift_map(
            model,
            meter.tokenizer,
            meter.states.base,
            meter.chats,
            meter.regions,
            batch_size=meter.rendering.batch_size,
        )


def _curve(plan: DiagnosisPlan) -> dict[int, Interval]:
    """Activation patching of the prefix, layer by layer (Figure 4)."""
    found = plan.general.curve()
    if found is None:
        return {}
    shares = margin_shares(found, list(found.patched), plan.options.rules)
    layers = (int(name.rpartition(" ")[2]) for name in found.patched)
    return dict(zip(layers, shares.values(), strict=False)) if shares else {}


def _patched_answers(plan: DiagnosisPlan, diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Greedy answers with the carrier patched; with the prefix where there is no single one."""
    if diagnosis.verdict in ("narrow", "not_enough_evidence"):
        return {}
    regions = diagnosis.tied or (diagnosis.carrier or plan.general.regions[0],)
    name, rendering = f"{' + '.join(regions)} patched", plan.options.rendering
    num = len(plan.subject.general)

    def compute() -> list[str]:
        spec = PatchSpec(name, cast(Any, regions))
        repaired = plan.general.states.repaired(Patch(spec))
        return repaired.generate(
            [question.messages for question in plan.subject.general],
            template_kwargs=dict(rendering.template_kwargs),
            include_think_block=rendering.include_think_block,
            batch_size=rendering.batch_size,
            on_batch=lambda done: plan.general.progress(f"answering, {name}", done, num),
            do_sample=False,
            max_new_tokens=rendering.max_new_tokens,
        )

    return {name: plan.steps.run("patched-answers", compute)}


def _changed(found: Margins) -> Interval:
    """Share of prompts that are answered differently."""
    num = len(found.alike)
    return Interval(*(part / 100 for part in wilson(num - found.num_alike, num)))


def _names(specs: list[PatchSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _settings(plan: DiagnosisPlan) -> dict[str, Any]:
    options = plan.options
    return {
        **plan.subject.names,
        "budget": options.budget,
        "general prompts": len(plan.subject.general),
        "in-domain prompts": len(plan.subject.in_domain),
        "training rows": len(plan.subject.training),
        "judges": list(plan.sampled.sweep.judges) if plan.sampled else [],
        "sampling": f"{options.num_samples} samples, {options.num_trials} trials, temperature "
        f"{options.temperature:g}"
        if plan.sampled
        else "greedy",
        **{f"rule: {name}": value for name, value in asdict(options.rules).items()},
        **{f"rendering: {name}": value for name, value in asdict(options.rendering).items()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{plan.subject.pair.finetuned.device}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "treft": treft.__version__,
    }
