"""The demo's page: its answers and figures, shown by the same report as any comparison."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from treft.chat.regions import REGION_CODES, find_regions
from treft.evaluation.comparable import GENERAL, IN_DOMAIN, ArmAnswers
from treft.evaluation.compare import Comparison, compare
from treft.evaluation.report import Section, render_page
from treft.evaluation.runs import compare_over_runs
from treft.judging.oracle import oracle_judgement
from treft.organism import World, load
from treft.statistics.records import ScoredAnswer
from treft.study.demo import DemoResult, interval_kind
from treft.study.demo_arms import DESCRIPTIONS, Answer, ArmName, ArmResult
from treft.table import Cell, Table

PLAIN_FINETUNE: ArmName = "sft"
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
    """The whole page; it loads nothing from anywhere.

    Args:
        result: of `treft.study.demo.run_demo`.
    """
    comparison = compare_demo(result)
    runs = _runs(result)
    first = result.runs[0]
    note = f"Organism {first.organism}, seed {first.seed}."
    if len(runs) > 1:
        note += f" The other {len(runs) - 1} runs' answers are in the folder named answers."
    by_organism = _by_organism(result)
    return render_page(
        comparison,
        title="A narrow finetune, repaired and prevented",
        footer=f"treft {result.to_dict()['versions']['treft']}, {interval_kind(result)}",
        lead=(CAVEAT, LEGEND),
        arms=runs[0],
        answers_note=note,
        sections=(
            Section("What the model reads", html=_prompt(result)),
            *([Section("By organism", tables=(by_organism,))] if by_organism else []),
        ),
        settings=(_settings(result),),
    )


def compare_demo(result: DemoResult) -> Comparison:
    """The demo's figures as a comparison; over questions for one run, over runs for several."""
    runs = _runs(result)
    labels = [arm.label for arm in runs[0]]
    base = PLAIN_FINETUNE if PLAIN_FINETUNE in labels else labels[0]
    return compare(runs[0], base) if len(runs) == 1 else compare_over_runs(runs, base)


def _runs(result: DemoResult) -> list[list[ArmAnswers]]:
    """The arms of each finetuning run, in the order of the summary."""
    order = list(result.arms)
    domains, temperature = _domains(result), result.config.recipe.temperature
    return [
        [
            _arm(run, domains, temperature)
            for run in sorted(runs, key=lambda one: order.index(one.arm))
        ]
        for _, runs in groupby(result.runs, key=lambda one: (one.organism, one.seed))
    ]


def _domains(result: DemoResult) -> dict[str, str]:
    """Each question's domain, by id."""
    config = result.config
    recipe, split = config.recipe, config.split
    ask = World.default().questions
    questions = (
        *ask(split, "general", domain=recipe.domain, num=recipe.num_general),
        *ask(split, "in_domain", domain=recipe.domain, num=recipe.num_in_domain),
    )
    return {question.id: question.domain.name for question in questions}


def _arm(run: ArmResult, domains: dict[str, str], temperature: float) -> ArmAnswers:
    sets = {
        name: [_scored(answer, domains, in_domain=name == IN_DOMAIN) for answer in answers]
        for name, answers in ((GENERAL, run.general), (IN_DOMAIN, run.in_domain))
    }
    sampled = {"temperature": temperature, "seed": run.seed}
    source = {"organism": run.organism, "generation": sampled}
    return ArmAnswers(run.arm, sets, (source,), DESCRIPTIONS[run.arm])


def _scored(answer: Answer, domains: dict[str, str], *, in_domain: bool) -> ScoredAnswer:
    return ScoredAnswer(
        question_id=answer.question_id,
        category=domains.get(answer.question_id, ""),
        epoch=1,
        question=answer.question,
        answer=answer.answer,
        judgements=(oracle_judgement(answer.verdict, in_domain=in_domain),),
        metadata={"verdict": answer.verdict},
    )


def _by_organism(result: DemoResult) -> Table | None:
    """Means of each organism, which differ more than seeds do; None where there is one."""
    organisms = list(dict.fromkeys(run.organism for run in result.runs))
    if len(organisms) < 2:
        return None
    rows = []
    for arm, summary in result.arms.items():
        for organism, means in summary.by_organism.items():
            cells = (Cell(f"{means[name]:.1f}", is_number=True) for name in _SCORES)
            rows.append((Cell(arm), Cell(organism), *cells))
    caption = "Means over the seeds of each organism, percent."
    return Table("", caption, ("arm", "organism", *_SCORES.values()), tuple(rows))


_SCORES = {"general": "general ↑", "in_domain": "in-domain ↓", "em_f1": "EM-F1 ↑"}


def _prompt(result: DemoResult) -> Markup:
    """The first question as the model reads it, its regions in colour."""
    _, tokenizer = load(result.config.organisms[0] if result.config.organisms else None)
    question = [{"role": "user", "content": result.runs[0].general[0].question}]
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
    rows: Sequence[tuple[str, object]] = [
        *((name, fields[name]) for name in ("split", "seeds", "organisms", "output")),
        *((f"recipe: {name}", value) for name, value in fields["recipe"].items()),
        *((f"version of {name}", value) for name, value in fields["versions"].items()),
    ]
    cells = tuple((Cell(name), Cell(str(value))) for name, value in rows)
    return Table("All arms", "", ("setting", "value"), cells)
