"""`treft attribute signals`: drift, size and margins of a finetune; no sampling, no judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from treft.attribution.forcing import render_questions
from treft.attribution.margins import AnswerPair, answer_pairs
from treft.attribution.patches import region_specs
from treft.attribution.signals import Signals, measure_signals, read_pairs
from treft.attribution.weights import KEY_VALUE_PROJECTIONS
from treft.cli.options import attribution
from treft.cli.options.groups import split_names
from treft.cli.output import emit, progress_bars, stdout_aside
from treft.cli.pairs import how, load_pair, read_questions, tokenizer_of
from treft.files import write_whole
from treft.table import Cell, Table


def signals(options: attribution.Signals) -> None:
    """Measure, and show it."""
    models, drawn, loading = options.models, options.answering, options.loading
    regions = cast(Any, split_names((options.regions,)))  # checked by the specs
    specs = region_specs(regions)
    questions = options.questions
    asked = read_questions(questions, questions.scope, questions.num)
    pairs = None if drawn.answers is None else read_pairs(drawn.answers, asked)
    rendering, template = how(options.rendering, drawn), options.rendering.template_text()
    with stdout_aside():
        tokenizer = tokenizer_of(models, loading, template)
        render_questions(tokenizer, asked, **rendering.of_chats, regions=regions)
        pair = load_pair(models, loading, template)
    with progress_bars() as progress:
        if pairs is None:
            pairs = answer_pairs(
                pair,
                tokenizer,
                asked,
                rendering,
                temperature=drawn.temperature,
                on_batch=lambda done: progress("answering", done, 2 * len(asked)),
            )
        num = sum(not each.is_alike for each in pairs)
        found = measure_signals(
            pair,
            tokenizer,
            pairs,
            specs,
            rendering,
            on_batch=lambda done: progress("margins", done, num),
        )
    result = {"command": "attribute signals", **asdict(models), **found.to_dict()}
    if options.output is not None:
        _write(options.output, result, pairs, found)
    if options.json:
        emit(result, as_json=True)
    else:
        _show(found)


def _write(path: Path, result: dict[str, Any], pairs: Sequence[AnswerPair], found: Signals) -> None:
    """The result, and every prompt's answers, margins and drift by token."""
    drift = found.drift
    prompts = [
        {
            "id": pair.question.id,
            "base_answer": pair.base_answer,
            "finetuned_answer": pair.finetuned_answer,
            "alike": pair.is_alike,
            "base": found.margins.base[row],
            "finetuned": found.margins.finetuned[row],
            "patched": {name: values[row] for name, values in found.margins.patched.items()},
            "tokens": drift.labels[row],
            "drift": (drift.key[row] + drift.value[row]).mean(axis=0).tolist(),
        }
        for row, pair in enumerate(pairs)
    ]
    text = json.dumps({**result, "prompts": prompts}, ensure_ascii=False, indent=1)
    write_whole(path, text + "\n")


def _show(found: Signals) -> None:
    console = Console()
    _drift_table(found).show(console)
    if found.drift.is_zero:
        console.print("no key or value differs from the base's: no patch of them can do anything.")
    _margin_table(found).show(console)


def _drift_table(found: Signals) -> Table:
    layers, scale = found.drift.layers, found.scales.scale
    rows = []
    for region in found.drift.regions:
        key, value = (part.mean(axis=0) for part in found.drift.region(region))
        total = float((key + value).mean())
        ratio = found.normalised(total)
        cells = (f"{k:.2g} / {v:.2g}" for k, v in zip(key, value, strict=True))
        rows.append((region, *cells, f"{total:.3g}", "" if ratio is None else f"{ratio:.3g}"))
    norms = (f"{found.scales.norm(layer, KEY_VALUE_PROJECTIONS):.3g}" for layer in layers)
    rows.append(("‖ΔW‖ of K, V", *norms, "", ""))
    return Table.of(
        ("region", *(f"layer {layer}" for layer in layers), "L_KV", "L_KV / scale²"),
        ([Cell(text, is_number=bool(at)) for at, text in enumerate(row)] for row in rows),
        title="drift of keys / values",
        caption="drift of eq. (2), K / V: mean over tokens and prompts; L_KV of eq. (3); "
        + ("no single adapter scale" if scale is None else f"adapter scale {scale:g}")
        + f"; ‖ΔW‖ of all weights {found.scales.norm():.3g}",
    )


def _margin_table(found: Signals) -> Table:
    margins = found.margins
    loss = margins.loss().interval
    lost = f"loss {loss.mean:.3f} [{loss.low:.3f}, {loss.high:.3f}]"
    rows = [("base", margins.base, ""), ("finetuned", margins.finetuned, lost)]
    for spec in found.specs:
        share = margins.share(spec.name)
        text = "no loss to regain"
        if share is not None:
            mean, low, high = (round(100 * end) for end in share)
            text = f"{mean} [{low}, {high}]"
        rows.append((f"patched: {spec.name}", margins.patched[spec.name], text))
    return Table.of(
        ("model", "margin", "share of the loss regained, %"),
        ((name, Cell(f"{of.mean():.3f}", is_number=True), text) for name, of, text in rows),
        title="margin: whose answer is preferred, nats a token",
        caption=f"{len(margins.questions)} prompts; base and finetuned model answer "
        f"{margins.num_alike} of them alike, which carry no signal and count as 0; 95 % intervals "
        "by bootstrap over them",
    )
