"""Run an audit arm by arm, go on where it stopped, and make its tables.

Every arm has a folder of Inspect logs. A finished arm is not run again; the log of a run that was
killed or failed is retried, which answers only what has no answer yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai import eval, eval_retry
from inspect_ai.log import EvalLog, read_eval_log

from treft.answers.logs import find_logs, read_run
from treft.errors import ConfigError, DataError
from treft.evaluation.audit_arms import Arms
from treft.evaluation.audit_plan import AuditPlan, AuditRequest, plan_audit
from treft.evaluation.audit_table import AuditTable, audit_table
from treft.evaluation.tasks import panel_for
from treft.files import write_whole
from treft.judging.cost import Cost
from treft.judging.panel import Panel, assemble
from treft.statistics.records import ScoredAnswer
from treft.table import Table

LOGS = "logs"
JUDGED = "logs-judged"
"""Where `treft judge OUTPUT/logs` puts its copies, which have the earlier judgements, too."""

FINGERPRINT = "fingerprint"
"""Field of a log's metadata that tells weights apart."""


@dataclass(frozen=True)
class AuditCost:
    """What is still to be paid, at most.

    Attributes:
        num_arms: that are not finished.
        num_answers: to generate.
        judging: of these answers.
    """

    num_arms: int
    num_answers: int
    judging: Cost

    def __str__(self) -> str:
        """Says it in words."""
        if not self.num_arms:
            return "nothing, all arms are finished"
        judging = f", {self.judging}" if self.judging.calls else ""
        return f"{self.num_answers:,} answers of {self.num_arms} arms{judging}"


@dataclass(frozen=True)
class Audit:
    """A planned audit in its folder.

    Attributes:
        plan: What is asked of which models.
        folder: Where plan, logs and tables are.
        judges: Inspect model names, or `oracle`; there may be none.
    """

    plan: AuditPlan
    folder: Path
    judges: tuple[str, ...]

    @classmethod
    def planned(
        cls,
        request: AuditRequest,
        arms: Arms,
        base: str | None,
        folder: Path,
        judges: Sequence[str],
    ) -> Audit:
        """Returns the audit, or the one that was begun in the folder with arms added.

        Args:
            request: What is asked for.
            arms: The models by name.
            base: One of them that the others are compared with, or None.
            folder: Where the audit is kept; nothing is written yet.
            judges: Their names; none means the oracle for the organism's questions, else no judge.

        Raises:
            ConfigError: A judge, an arm, or a prompt cannot be used, or the folder holds another
                audit.
            DataError: A row of a file cannot be used.
        """
        panel = panel_for(request.questions.questions, judges or None)
        loaded = assemble(panel.judges).judges if panel.judges else ()
        found = cls(plan_audit(request, arms, base, folder), folder, loaded)
        found._check_unchanged()
        return found

    def _check_unchanged(self) -> None:
        """Sees that arms that run here are still the models that answered before.

        Their logs hold the provider's fingerprint of weights, patch and template; models that are
        served elsewhere have none.

        Raises:
            ConfigError: An arm is another model by now, such as an adapter that was trained anew.
        """
        for name, arm in self.plan.arms.items():
            logs = [self._newest(name, finished=finished) for finished in (True, False)]
            headers = [read_eval_log(str(log), header_only=True) for log in logs if log is not None]
            before = {(header.eval.metadata or {}).get(FINGERPRINT) for header in headers} - {None}
            if before and before != {arm.fingerprint(arm.load())}:
                raise ConfigError(
                    f"the arm {name} is not the model that answered before (other weights, patch, "
                    "template, or version of treft or Transformers): give it another name, choose "
                    f"another --output, or remove {self.folder / LOGS / name} to have it answer "
                    "anew."
                )

    def cost(self) -> AuditCost:
        """Returns what the unfinished arms cost, those of their answers that are there included."""
        plan = self.plan
        num_arms = sum(self._newest(name, finished=True) is None for name in plan.arms)
        once = Panel(self.judges).cost(
            list(plan.request.questions.task().dataset), answer_tokens=plan.max_tokens
        )
        judging = once.times(num_arms * len(plan.conditions) * plan.request.epochs)
        return AuditCost(num_arms, num_arms * plan.num_answers, judging)

    def run(self, max_connections: int | None) -> list[AuditTable]:
        """Has all arms answer and the judges judge, and writes plan and tables.

        Args:
            max_connections: Answers at the same time.

        Returns:
            One table for each judge.

        Raises:
            ConfigError: A model cannot be loaded.
            DataError: Some answers failed, or a finished arm was not judged by one of the judges;
                what there is, is kept.
            KeyboardInterrupt: The run was cancelled.
        """
        plan = self.plan
        plan.save(self.folder)
        for name in plan.arms:
            if self._newest(name, finished=True) is None:
                self._have_answered(name, max_connections)
        if not self.judges:
            return []
        answers = {name: self._answers(name) for name in plan.arms}
        names = [condition.name for condition in plan.conditions]
        tables = [audit_table(answers, judge, plan.base, names) for judge in self.judges]
        everything = {**plan.model_dump(mode="json"), "tables": [one.to_dict() for one in tables]}
        write_whole(self.folder / "audit.json", json.dumps(everything, indent=1) + "\n")
        write_whole(self.folder / "audit.md", as_markdown(plan, tables))
        return tables

    def _have_answered(self, name: str, max_connections: int | None) -> None:
        request, arm = self.plan.request, self.plan.arms[name]
        options: dict[str, Any] = {
            "log_dir": str(self.folder / LOGS / name),
            "display": "plain",
            "max_connections": max_connections,
            "continue_on_fail": True,
        }
        begun = self._newest(name, finished=False)
        if begun is not None:
            found = eval_retry(str(begun), **options)
        else:
            model = arm.load()
            sampling = {"temperature": request.temperature, "max_tokens": request.max_tokens}
            found = eval(
                self.plan.task(self.folder, self.judges),
                model=model,
                epochs=request.epochs,
                seed=request.seed,
                metadata={"arm": name, FINGERPRINT: arm.fingerprint(model)},
                **{key: value for key, value in sampling.items() if value is not None},  # type: ignore[arg-type]
                **options,
            )
        if not found:  # an interrupted run has a log, but Inspect does not hand it over
            raise KeyboardInterrupt
        _check(found[0], name)

    def _answers(self, name: str) -> tuple[ScoredAnswer, ...]:
        """Returns an arm's answers, from a copy by `treft judge` where this knows more judges."""
        paths = [self._newest(name, finished=True, logs=logs) for logs in (JUDGED, LOGS)]
        run = max(
            (read_run(path) for path in paths if path is not None),
            key=lambda run: len(run.info.judges),
        )
        if lacking := [judge for judge in self.judges if judge not in run.info.judges]:
            logs = self.folder / LOGS
            raise DataError(
                f"the answers of {name} were not judged by {lacking[0]}. Judge them, and give the "
                f"same command again: treft judge {logs} --judge {lacking[0]}"
            )
        return run.answers

    def _newest(self, name: str, *, finished: bool, logs: str = LOGS) -> Path | None:
        """Returns the newest log of an arm that is finished, or that is not."""
        folder = self.folder / logs / name
        if not folder.is_dir():
            return None
        try:
            paths = find_logs([folder])
        except DataError:  # no log among the files
            return None
        headers = [read_eval_log(str(path), header_only=True) for path in paths]
        wanted = [
            (header.eval.created, path)
            for header, path in zip(headers, paths, strict=True)
            if (header.status == "success") == finished
        ]
        return max(wanted)[1] if wanted else None


def as_markdown(plan: AuditPlan, tables: Sequence[AuditTable]) -> str:
    """Returns the whole audit as a Markdown document."""
    request = plan.request
    arms = ([name, arm.model, f"`{arm.args}`"] for name, arm in plan.arms.items())
    conditions = (
        # A text of any content stands in one cell.
        [each.name, each.how, f"`` {plan.rendered.get(each.name, each.messages)!r} ``"]
        for each in plan.conditions
    )
    shown = [
        Table.of(("arm", "model", "arguments"), arms),
        *(table.shown(plan.num_questions * request.epochs) for table in tables),
        Table.of(
            ("condition", "how it is made", "before the question"),
            conditions,
            title="Conditions",
            notes=(f"left out: {name}: {reason}" for name, reason in plan.left_out.items()),
        ),
    ]
    parts = [
        "# Audit under other prompts",
        f"Questions: {request.questions.questions} ({plan.num_questions} of them), "
        f"answers to each under each condition: {request.epochs}, seed {request.seed}.",
        *(table.markdown() for table in shown),
    ]
    return "\n\n".join(parts) + "\n"


def _check(log: EvalLog, name: str) -> None:
    """See that a run came to its end.

    Raises:
        DataError: it did not.
        KeyboardInterrupt: it was cancelled.
    """
    if log.status == "success":
        return
    if log.status == "cancelled":
        raise KeyboardInterrupt
    failed = [sample.error for sample in log.samples or () if sample.error is not None]
    first = failed[0] if failed else log.error
    why = first.message.splitlines()[0] if first is not None and first.message else log.status
    raise DataError(
        f"the arm {name} is unfinished: {len(failed)} answers failed ({why}). Mend that and "
        "give the same command again; the other answers are kept."
    )
