"""`treft audit`: the same questions under many prompts, to see where a model still misbehaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from treft.cli.arms import parse_arms, with_base
from treft.cli.options.judging import Audit
from treft.cli.output import emit, stdout_aside
from treft.errors import ConfigError
from treft.evaluation.audit import conditions_for
from treft.evaluation.audit_plan import AuditPlan, AuditRequest, plan_audit
from treft.evaluation.audit_run import (
    AuditCost,
    audit_cost,
    check_unchanged,
    read_answers,
    run_arm,
)
from treft.evaluation.audit_table import AuditTable, audit_table
from treft.evaluation.audit_text import cell_lines, findings, headings, legend, to_markdown
from treft.evaluation.condition_files import load_conditions
from treft.evaluation.conditions import DEFAULT, Condition
from treft.files import write_whole
from treft.judging.oracle import ORACLE, ORGANISM
from treft.judging.panel import assemble
from treft.table import Cell, Table


def audit(options: Audit) -> None:
    """Plan, say what it costs, ask, and show the tables."""
    output, questions = options.output, options.prompts.questions
    models = options.models
    arms, base = with_base(parse_arms(models.model, models.model_arg), models.base)
    chosen = _chosen(
        options.prompts.conditions or conditions_for(questions),
        options.prompts.only,
        options.prompts.skip,
    )
    request = _request(options, chosen)
    judges = _judges(options.answers.judge, questions)
    with stdout_aside():
        plan = plan_audit(request, chosen, arms, base, output)
        check_unchanged(plan, output)
    cost = audit_cost(plan, output, judges)
    _say(plan, cost)
    if options.dry_run:
        if options.json:
            emit(_as_json(plan, cost, []), as_json=True)
        else:
            _show_prompts(plan)
        return
    options.limit.confirm(cost.num_answers + cost.judging.calls, "answers and judge calls")
    tables = _run(plan, output, judges, options.answers.max_connections)
    if options.json:
        emit(_as_json(plan, cost, tables), as_json=True)
    elif tables:
        _show(plan, tables)
        print(f"{output / 'audit.md'}, {output / 'audit.json'}")


def _chosen(source: str, only: Sequence[str], skip: Sequence[str]) -> list[Condition]:
    """Conditions that were not left out; the default always is one of them."""
    found = {condition.name: condition for condition in load_conditions(source)}
    for name in (*only, *skip):
        if name not in found:
            raise ConfigError(f"no condition is called {name}; there are {', '.join(found)}.")
    if DEFAULT in skip:
        raise ConfigError(f"the others are compared with the condition {DEFAULT}: keep it.")
    kept = {DEFAULT, *only} if only else set(found)
    return [found[name] for name in found if name in kept - set(skip)]


def _request(options: Audit, chosen: Sequence[Condition]) -> AuditRequest:
    """What decides the answers.

    Raises:
        ConfigError: a value is out of range.
    """
    prompts, answers = options.prompts, options.answers
    fields = {
        "questions": {
            "questions": prompts.questions,
            "num": prompts.num,
            "split": prompts.split,
        },
        "conditions": [condition.model_dump(mode="json") for condition in chosen],
        "train_file": prompts.train_file,
        "about": prompts.about,
        "tokenizer": options.models.tokenizer,
        "epochs": answers.epochs,
        "seed": answers.seed,
        "temperature": answers.temperature,
        "max_tokens": answers.max_tokens,
    }
    try:
        return AuditRequest.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{place}: {problem['msg'].lower()}.") from None


def _judges(names: Sequence[str], questions: str) -> tuple[str, ...]:
    """Judges that can be loaded; for the organism's questions the oracle if none is named."""
    if not names and questions != ORGANISM:
        return ()
    judges = assemble(names or [ORACLE]).judges
    if ORACLE in judges and questions != ORGANISM:
        raise ConfigError(
            f"the oracle knows the organism's questions only: --questions {ORGANISM}."
        )
    return judges


def _say(plan: AuditPlan, cost: AuditCost) -> None:
    print(
        f"arms: {len(plan.arms)}, conditions: {len(plan.conditions)}, questions: "
        f"{plan.num_questions}, answers to each: {plan.request.epochs}; to be done at most: {cost}",
        file=sys.stderr,
    )
    for name, reason in plan.left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if plan.base is None:
        print("no arm is the base: nothing will be flagged (--base ARM)", file=sys.stderr)


def _run(
    plan: AuditPlan, output: Path, judges: Sequence[str], max_connections: int | None
) -> list[AuditTable]:
    """Have all arms answer, and write the tables; without a judge there is none."""
    plan.save(output)
    with stdout_aside():
        for name in plan.arms:
            run_arm(plan, name, output, judges, display="plain", max_connections=max_connections)
    if not judges:
        print(
            f"the answers are in {output / 'logs'}; to judge them: treft judge {output / 'logs'} "
            "--judge NAME, then this command again with --judge NAME",
            file=sys.stderr,
        )
        return []
    answers = read_answers(plan, output, judges)
    names = [condition.name for condition in plan.conditions]
    tables = [audit_table(answers, found, plan.base, names) for found in judges]
    everything = {**plan.model_dump(mode="json"), "tables": [one.to_dict() for one in tables]}
    write_whole(output / "audit.json", json.dumps(everything, indent=1) + "\n")
    write_whole(output / "audit.md", to_markdown(plan, tables))
    return tables


def _as_json(plan: AuditPlan, cost: AuditCost, tables: Sequence[AuditTable]) -> dict[str, Any]:
    return {
        "command": "audit",
        "plan": plan.model_dump(mode="json"),
        "cost": asdict(cost),
        "tables": [table.to_dict() for table in tables],
    }


def _show_prompts(plan: AuditPlan) -> None:
    for condition in plan.conditions:
        print(f"{condition.name}: {condition.how}")
        print(f"  {plan.rendered.get(condition.name, condition.messages)!r}")


def _show(plan: AuditPlan, tables: Sequence[AuditTable]) -> None:
    console = Console()
    num = plan.num_questions * plan.request.epochs
    for table in tables:
        rows: list[list[Cell | str]] = [
            [name, *(_cell(cell_lines(table.cells[name, arm])) for arm in table.arms)]
            for name in table.conditions
        ]
        Table.of(("condition", *headings(table)), rows, title=f"{num} answers in each cell").show(
            console
        )
        for words in (*findings(table), legend(table), *table.cautions):
            console.print(words, markup=False)


def _cell(lines: list[str]) -> Cell:
    return Cell(lines[0], tuple(lines[1:]))
