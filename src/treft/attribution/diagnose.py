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
from dataclasses import asdict
from typing import Any, cast

import torch
import transformers

import treft
from treft.attribution.diagnosis_plan import KIND, PERTURBATION, SWEEP, DiagnosisPlan, settings_of
from treft.attribution.drift_map import DriftMap, drift_map
from treft.attribution.evidence import Evidence, score_evidence
from treft.attribution.findings import (
    DiagnosisResult,
    adapter_layers,
    drift_by_region,
    heat_of,
    next_command,
    samples_of,
)
from treft.attribution.forcing import check_own_states
from treft.attribution.grid import BASE, FINETUNED
from treft.attribution.grid_run import run_grid
from treft.attribution.measure import PromptMargins
from treft.attribution.patches import Patch
from treft.attribution.tables import perturb_table, perturbations_in_words
from treft.attribution.verdict import Diagnosis, Measured, decide, recommend
from treft.chat.regions import RegionName
from treft.progress import Progress, untold
from treft.statistics.intervals import Interval, wilson
from treft.steps.store import claim


def diagnose(plan: DiagnosisPlan, progress: Progress = untold) -> DiagnosisResult:
    """Measure, decide, recommend.

    Args:
        plan: that says how.
        progress: told about every batch.

    Raises:
        ConfigError: patching cannot be trusted on this model, or a judge cannot be asked.
        DataError: a log-probability is not finite, or a kept file is damaged.
        ReferenceStatesError: a key or value is NaN, infinite or, in the base, zero.
    """
    claim(plan.output, settings_of(plan.subject, plan.options), KIND)
    plan = plan.telling(progress)
    meter, rules = plan.general, plan.options.rules
    notes = [_check_patching(plan)]
    main = meter.main()
    verdicts = {**_by_scores(plan), "margin": decide(main.only(meter.regions), rules)}
    diagnosis = next(iter(verdicts.values()))
    drift = _drift(meter)
    layers, bands = _by_layer(plan, main, diagnosis)
    recommendation = recommend(diagnosis, _measured(plan, main, drift, bands), rules)
    adapter, about_weights = adapter_layers(plan.subject.pair, drift)
    notes.append(about_weights)
    controls = [patch.name for patch in meter.controls]
    parts = [name for name in main.patched if name not in (*controls, *meter.regions)]
    width = plan.options.window_width
    windows = meter.windows(width).shares(rules)
    return DiagnosisResult(
        diagnosis=diagnosis,
        others=dict(list(verdicts.items())[1:]),
        recommendation=recommendation,
        command=next_command(plan.subject.names, recommendation),
        num_tokens={region: len(meter.chats[0].positions(region)) for region in meter.regions},
        changed=_changed(main),
        controls=main.only(controls).shares(rules),
        parts={
            **main.only(parts).shares(rules),
            **{spec.name: share for spec, share in bands.items()},
        },
        layers=layers,
        curve=_curve(plan),
        adapter=adapter,
        heat=heat_of(drift, meter.window_specs(width), windows),
        samples=samples_of(meter.pairs, _patched_answers(plan, diagnosis)),
        perturbation=_perturbation(plan),
        settings=_settings(plan),
        seconds={record["address"]: record["seconds"] for record in meter.steps.records()},
        notes=tuple(note for note in notes if note),
    )


def _by_layer(
    plan: DiagnosisPlan, main: Evidence, diagnosis: Diagnosis
) -> tuple[dict[int, Interval], dict[Patch, Interval]]:
    """The region that regains most, in single layers and in bands; nothing without a loss."""
    meter, rules = plan.general, plan.options.rules
    shares = main.only(meter.regions).shares(rules)
    if not shares:
        return {}, {}
    region = cast(RegionName, diagnosis.carrier or max(shares, key=lambda name: shares[name].mean))
    single, bands = meter.layer_specs(region)
    found = meter.layers(region).shares(rules)
    layers = {layer: found[spec.name] for spec in single for layer in spec.layers or ()}
    return layers, {spec: found[spec.name] for spec in bands}


def _measured(
    plan: DiagnosisPlan, main: Evidence, drift: DriftMap, bands: Mapping[Patch, Interval]
) -> Measured:
    """Figures that a recommendation needs beside the verdict."""
    meter, rules = plan.general, plan.options.rules
    joint = main.only(name for name in main.patched if "+" in name).shares(rules)
    inside = plan.in_domain
    training = plan.subject.training
    return Measured(
        regions=meter.regions,
        joint={cast(Any, tuple(name.split("+"))): share for name, share in joint.items()},
        layers={spec.layers or (): share for spec, share in bands.items()},
        in_domain={} if inside is None else inside.whole_regions().shares(rules),
        drift=drift_by_region(drift),
        loss_gain=meter.loss_gain(training) if training else None,
        num_layers=meter.num_layers,
    )


def _check_patching(plan: DiagnosisPlan) -> str:
    """The control that must change nothing: the finetuned model's own states."""
    meter, size = plan.general, plan.options.request.rendering.batch_size

    def compute() -> dict[str, Any]:
        with plan.subject.pair.use("finetuned") as model:
            found = check_own_states(
                model, plan.subject.tokenizer, meter.chats, meter.regions, size
            )
        return {"words": str(found), "is_exact": found.is_exact}

    kept = plan.general.steps.keep("own-states", compute)
    return "" if kept["is_exact"] else str(kept["words"])


def _by_scores(plan: DiagnosisPlan) -> dict[str, Diagnosis]:
    """Verdicts from sampled answers, one of each judge; none in a quick diagnosis."""
    grid = plan.sampled.get(SWEEP)
    if grid is None:
        return {}
    scored = run_grid(grid, plan.output / SWEEP, progress=plan.general.progress).scored
    regions, rules = plan.general.regions, plan.options.rules
    base, tuned = scored["base"][BASE], scored["finetuned"]
    patched = {str(region): tuned[region] for region in regions}
    return {
        judge: decide(score_evidence(judge, base, tuned[FINETUNED], patched), rules)
        for judge in grid.panel.judges
    }


def _perturbation(plan: DiagnosisPlan) -> tuple[tuple[str, ...], ...]:
    """Returns the first judge's table, its headings first; none in a quick diagnosis."""
    grid = plan.sampled.get(PERTURBATION)
    if grid is None:
        return ()
    assert grid.perturb is not None
    folder = plan.output / PERTURBATION
    scored = run_grid(grid, folder, progress=plan.general.progress).scored
    shown = perturbations_in_words(perturb_table(scored, grid.panel.judges[0], grid.perturb))
    return (shown.headings, *(tuple(cell.text for cell in row) for row in shown.rows))


def _drift(meter: PromptMargins) -> DriftMap:
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
    shares = found.shares(plan.options.rules)
    layers = (int(name.rpartition(" ")[2]) for name in found.patched)
    return dict(zip(layers, shares.values(), strict=False)) if shares else {}


def _patched_answers(plan: DiagnosisPlan, diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Greedy answers with the carrier patched; with the prefix where there is no single one."""
    if diagnosis.verdict in ("narrow", "not_enough_evidence"):
        return {}
    regions = diagnosis.tied or (diagnosis.carrier or plan.general.regions[0],)
    name, rendering = f"{' + '.join(regions)} patched", plan.options.request.rendering
    num = len(plan.subject.general)

    def compute() -> list[str]:
        repaired = plan.general.states.repaired(Patch(name, cast(Any, regions)))
        return repaired.generate(
            [question.messages for question in plan.subject.general],
            template_kwargs=dict(rendering.template_kwargs),
            include_think_block=rendering.include_think_block,
            batch_size=rendering.batch_size,
            on_batch=lambda done: plan.general.progress(f"answering, {name}", done, num),
            do_sample=False,
            max_new_tokens=rendering.max_new_tokens,
        )

    return {name: plan.general.steps.keep("patched-answers", compute)}


def _changed(found: Evidence) -> Interval:
    """Share of prompts that are answered differently."""
    num = len(found.alike)
    return Interval(*(part / 100 for part in wilson(num - found.num_alike, num)))


def _settings(plan: DiagnosisPlan) -> dict[str, Any]:
    options, request = plan.options, plan.options.request
    drawn = (
        f"{request.num_samples} samples, {options.num_trials} trials, temperature "
        f"{request.temperature:g}"
    )
    return {
        **plan.subject.names,
        "budget": options.budget,
        "general prompts": len(plan.subject.general),
        "in-domain prompts": len(plan.subject.in_domain),
        "training rows": len(plan.subject.training),
        "judges": list(plan.sampled[SWEEP].panel.judges) if plan.sampled else [],
        "sampling": drawn if plan.sampled else "greedy",
        **{f"rule: {name}": value for name, value in asdict(options.rules).items()},
        **{f"rendering: {name}": value for name, value in asdict(request.rendering).items()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{plan.subject.pair.finetuned.device}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "treft": treft.__version__,
    }
