"""`treft audit`: the same questions under many prompts, to see where a model still misbehaves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from treft.cli.options.judging import Audit as Options
from treft.cli.output import emit, stdout_aside
from treft.evaluation.audit import conditions_for, load_conditions
from treft.evaluation.audit_arms import parse_arms, with_base
from treft.evaluation.audit_plan import AuditRequest, Questions
from treft.evaluation.audit_run import Audit, AuditCost
from treft.evaluation.audit_table import AuditTable


def audit(options: Options) -> None:
    """Plans, says what it costs, asks, and shows the tables."""
    models, prompts, answers = options.models, options.prompts, options.answers
    source = prompts.conditions or conditions_for(prompts.questions)
    arms, base = with_base(parse_arms(models.model, models.model_arg), models.base)
    request = AuditRequest(
        questions=Questions(questions=prompts.questions, num=prompts.num, split=prompts.split),
        conditions=load_conditions(source, prompts.only, prompts.skip),
        train_file=prompts.train_file,
        about=prompts.about,
        tokenizer=models.tokenizer,
        epochs=answers.epochs,
        seed=answers.seed,
        temperature=answers.temperature,
        max_tokens=answers.max_tokens,
    )
    with stdout_aside():
        found = Audit.planned(request, arms, base, options.output, answers.judge)
    cost = found.cost()
    _say(found, cost)
    tables: list[AuditTable] = []
    if not options.dry_run:
        options.limit.confirm(cost.num_answers + cost.judging.calls, "answers and judge calls")
        with stdout_aside():
            tables = found.run(answers.max_connections)
    if options.json:
        result = {
            "command": "audit",
            "plan": found.plan.model_dump(mode="json"),
            "cost": asdict(cost),
            "tables": [table.to_dict() for table in tables],
        }
        emit(result, as_json=True)
    elif options.dry_run:
        for condition in found.plan.conditions:
            print(f"{condition.name}: {condition.how}")
            print(f"  {found.plan.rendered.get(condition.name, condition.messages)!r}")
    else:
        _show(found, tables)


def _say(audit: Audit, cost: AuditCost) -> None:
    plan = audit.plan
    lines = [
        f"arms: {len(plan.arms)}, conditions: {len(plan.conditions)}, questions: "
        f"{plan.num_questions}, answers to each: {plan.request.epochs}; to be done at most: {cost}",
        *(f"left out: {name}: {reason}" for name, reason in plan.left_out.items()),
    ]
    if plan.base is None:
        lines.append("no arm is the base: nothing will be flagged (--base ARM)")
    print("\n".join(lines), file=sys.stderr)


def _show(audit: Audit, tables: Sequence[AuditTable]) -> None:
    folder, plan = audit.folder, audit.plan
    for table in tables:
        table.shown(plan.num_questions * plan.request.epochs).show(Console())
    if tables:
        print(f"{folder / 'audit.md'}, {folder / 'audit.json'}")
    else:
        print(
            f"the answers are in {folder / 'logs'}; to judge them: treft judge {folder / 'logs'} "
            "--judge NAME, then this command again with --judge NAME",
            file=sys.stderr,
        )
