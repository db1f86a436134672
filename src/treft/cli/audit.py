"""`treft audit`: the same questions under many prompts, to see where a model still misbehaves."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treft.cli.options import ANSWERS, MAX_CALLS, MODELS, DryRun, Json, Judges, MaxCalls, Yes
from treft.cli.output import confirm_calls, emit, quiet_libraries, stdout_aside
from treft.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from treft.evaluation.audit_plan import AuditPlan
    from treft.evaluation.audit_run import AuditCost
    from treft.evaluation.audit_table import AuditTable
    from treft.evaluation.conditions import Condition


PROMPTS = "Questions and conditions"


def audit(
    model: Annotated[
        list[str],
        typer.Option(
            help="Inspect model name, or ARM=NAME to call the arm so; repeatable.",
            rich_help_panel=MODELS,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for logs, table and plan.")],
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            "-M",
            help="NAME=VALUE for the provider of all models, ARM.NAME=VALUE for one; repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Arm to compare with; default: `base`, or the first adapter's own base.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Whose template renders the prompts of models that are served elsewhere.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    questions: Annotated[
        str,
        typer.Option(help="As for treft/em_general, or organism.", rich_help_panel=PROMPTS),
    ] = "em_general",
    num: Annotated[
        int | None,
        typer.Option(help="Of the organism's questions.", min=1, rich_help_panel=PROMPTS),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of the organism's questions: test or validation.", rich_help_panel=PROMPTS
        ),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Conditions: default, organism, or a JSONL file.", rich_help_panel=PROMPTS
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Condition to take; repeatable.", rich_help_panel=PROMPTS),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Condition to leave out; repeatable.", rich_help_panel=PROMPTS),
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option(
            help="Training rows, for the prompts that resemble them.", rich_help_panel=PROMPTS
        ),
    ] = None,
    about: Annotated[
        str | None,
        typer.Option(
            help='What the rows are about, after "an assistant for".', rich_help_panel=PROMPTS
        ),
    ] = None,
    judge: Judges = None,
    epochs: Annotated[
        int,
        typer.Option(help="Answers to each question.", min=1, rich_help_panel=ANSWERS),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the answers.", rich_help_panel=ANSWERS)] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(help="Default: the task's.", min=0, rich_help_panel=ANSWERS),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Of an answer; default: the task's.", min=1, rich_help_panel=ANSWERS),
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option(help="Answers at the same time.", min=1, rich_help_panel=ANSWERS)
    ] = None,
    max_calls: MaxCalls = MAX_CALLS,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Ask the same questions under other system prompts, none, and prompts like the training rows.

    The table shows each arm beside the base under every condition. A run that was killed goes on
    where it stopped when the same command is given again; arms may be added.
    """
    quiet_libraries()
    with needs_extra("eval", "audits need"):
        import inspect_ai  # noqa: F401
    from treft.cli.arms import parse_arms, with_base
    from treft.evaluation.audit import conditions_for
    from treft.evaluation.audit_plan import plan_audit
    from treft.evaluation.audit_run import audit_cost, check_unchanged

    arms, base = with_base(parse_arms(model, model_arg or []), base)
    chosen = _chosen(conditions or conditions_for(questions), only or [], skip or [])
    request = _request(
        questions={
            "questions": questions,
            "num": num,
            "split": split,
        },
        conditions=[condition.model_dump(mode="json") for condition in chosen],
        train_file=train_file,
        about=about,
        tokenizer=tokenizer,
        epochs=epochs,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
    )
    judges = _judges(judge or [], questions)
    with stdout_aside():
        plan = plan_audit(request, chosen, arms, base, output)
        check_unchanged(plan, output)
    cost = audit_cost(plan, output, judges)
    _say(plan, cost)
    if dry_run:
        emit(_as_json(plan, cost, []), as_json=True) if json else _show_prompts(plan)
        return
    num_calls = cost.num_answers + cost.judging.calls
    confirm_calls(num_calls, "answers and judge calls", max_calls, yes=yes)
    tables = _run(plan, output, judges, max_connections)
    if json:
        emit(_as_json(plan, cost, tables), as_json=True)
    elif tables:
        _show(plan, tables)
        typer.echo(f"{output / 'audit.md'}, {output / 'audit.json'}")


def _chosen(source: str, only: Sequence[str], skip: Sequence[str]) -> list[Condition]:
    """Conditions that were not left out; the default always is one of them."""
    from treft.evaluation.condition_files import load_conditions
    from treft.evaluation.conditions import DEFAULT

    found = {condition.name: condition for condition in load_conditions(source)}
    for name in (*only, *skip):
        if name not in found:
            raise ConfigError(f"no condition is called {name}; there are {', '.join(found)}.")
    if DEFAULT in skip:
        raise ConfigError(f"the others are compared with the condition {DEFAULT}: keep it.")
    kept = {DEFAULT, *only} if only else set(found)
    return [found[name] for name in found if name in kept - set(skip)]


def _request(**fields: Any) -> Any:
    from pydantic import ValidationError

    from treft.evaluation.audit_plan import AuditRequest

    try:
        return AuditRequest.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{place}: {problem['msg'].lower()}.") from None


def _judges(names: Sequence[str], questions: str) -> tuple[str, ...]:
    """Judges that can be loaded; for the organism's questions the oracle if none is named."""
    from treft.judging.oracle import ORACLE, ORGANISM
    from treft.judging.panel import assemble

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
    from treft.evaluation.audit_run import read_answers, run_arm
    from treft.evaluation.audit_table import audit_table
    from treft.evaluation.audit_text import to_markdown
    from treft.files import write_whole

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
    write_whole(output / "audit.json", json_format.dumps(everything, indent=1) + "\n")
    write_whole(output / "audit.md", to_markdown(plan, tables))
    return tables


def _as_json(plan: AuditPlan, cost: AuditCost, tables: Sequence[AuditTable]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "command": "audit",
        "plan": plan.model_dump(mode="json"),
        "cost": asdict(cost),
        "tables": [table.to_dict() for table in tables],
    }


def _show_prompts(plan: AuditPlan) -> None:
    for condition in plan.conditions:
        typer.echo(f"{condition.name}: {condition.how}")
        typer.echo(f"  {plan.rendered.get(condition.name, condition.messages)!r}")


def _show(plan: AuditPlan, tables: Sequence[AuditTable]) -> None:
    from rich.console import Console
    from rich.table import Table

    from treft.evaluation.audit_text import cell_lines, findings, headings, legend

    console = Console()
    num = plan.num_questions * plan.request.epochs
    for table in tables:
        shown = Table(title=f"{num} answers in each cell", show_lines=True)
        shown.add_column("condition")
        for heading in headings(table):
            shown.add_column(heading)
        for name in table.conditions:
            cells = ("\n".join(cell_lines(table.cells[name, arm])) for arm in table.arms)
            shown.add_row(name, *cells)
        console.print(shown)
        for words in (*findings(table), legend(table), *table.cautions):
            console.print(words, markup=False)
