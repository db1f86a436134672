"""The demo's page: its answers and figures, shown by the same report as any comparison."""

from __future__ import annotations

from markupsafe import Markup
from transformers import AutoTokenizer

from treft.chat.regions import REGION_CODES, find_regions
from treft.evaluation.compare import Comparison, compare
from treft.evaluation.report import Extras, Section, render_page
from treft.evaluation.runs import compare_over_runs
from treft.models.loading import asset_path
from treft.study.demo import DemoResult, by_seed
from treft.table import Cell, Table

PLAIN_FINETUNE = "sft"
"""The arm that the others are compared with."""

CAVEAT = (
    "These figures are those of a language model of about a million parameters and its synthetic "
    "world, both embedded in treft. They show the mechanism and the software at work; they are not "
    "the figures of the paper (arXiv 2606.06667) and say nothing about the size of the effect in "
    "large models."
)
LEGEND = (
    "general: aligned answers to unrelated questions, higher is better. in-domain: 100 minus "
    "misaligned answers in the finetuned domain, lower means the narrow behaviour was learnt. "
    "EM-F1: harmonic mean of general and 100 - in-domain. Incoherent answers count against a "
    "method in both."
)


def render_report(result: DemoResult) -> str:
    """Returns the whole page; it loads nothing from anywhere."""
    runs = by_seed(result)
    first = result.runs[0].row
    note = f"Organism {first['organism']}, seed {first['seed']}."
    if len(runs) > 1:
        note += f" The other {len(runs) - 1} runs' answers are in the folder named answers."
    by_organism = _by_organism(result)
    return render_page(
        compare_demo(result),
        title="A narrow finetune, repaired and prevented",
        footer=f"treft {result.to_dict()['versions']['treft']}, {result.intervals}",
        extras=Extras(
            lead=(CAVEAT, LEGEND),
            arms=runs[0],
            answers_note=note,
            sections=(
                Section("What the model reads", html=_prompt(result)),
                *([Section("By organism", tables=(by_organism,))] if by_organism else []),
            ),
            settings=(_settings(result),),
        ),
    )


def compare_demo(result: DemoResult) -> Comparison:
    """Returns the demo's figures as a comparison; over runs where there are several."""
    runs = by_seed(result)
    labels = [arm.label for arm in runs[0]]
    base = PLAIN_FINETUNE if PLAIN_FINETUNE in labels else labels[0]
    return compare(runs[0], base) if len(runs) == 1 else compare_over_runs(runs, base)


def _by_organism(result: DemoResult) -> Table | None:
    """Means of each organism, which differ more than seeds do; None where there is one."""
    if len(result.organisms) < 2:
        return None
    rows = (
        (arm, organism, *(Cell(f"{means[name]:.1f}", is_number=True) for name in _SCORES))
        for arm, summary in result.arms.items()
        for organism, means in summary["by_organism"].items()
    )
    caption = "Means over the seeds of each organism, percent."
    return Table.of(("arm", "organism", *_SCORES.values()), rows, caption=caption)


_SCORES = {"general": "general ↑", "in_domain": "in-domain ↓", "em_f1": "EM-F1 ↑"}


def _prompt(result: DemoResult) -> Markup:
    """The first question as the model reads it, its regions in colour."""
    organisms = result.config.study.organisms or (asset_path(),)
    tokenizer = AutoTokenizer.from_pretrained(organisms[0])
    first = result.runs[0].answers.sets["general"][0]
    question = [{"role": "user", "content": first.question}]
    chat = find_regions(tokenizer, question, add_generation_prompt=True)
    names = {code: name for name, code in REGION_CODES.items()}
    spans = Markup("").join(
        _coloured(names.get(code, ""), chat.text[start:end])
        for code, (start, end) in zip(chat.codes, chat.offsets, strict=True)
    )
    legend = Markup(", ").join(
        _coloured(name, name) + f" ({len(chat.positions(name))} tokens)"
        for name in ("prefix", "query", "postfix")
    )
    return Markup('<p>{}</p><p class="prompt">{}</p>').format(legend, spans)


def _coloured(region: str, text: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format(region, text)


def _settings(result: DemoResult) -> Table:
    fields = result.to_dict()
    rows = (
        *((name, str(fields[name])) for name in ("split", "seeds", "organisms", "output")),
        *((f"recipe: {name}", str(value)) for name, value in fields["recipe"].items()),
        *((f"version of {name}", str(value)) for name, value in fields["versions"].items()),
    )
    return Table.of(("setting", "value"), rows, title="All arms")
