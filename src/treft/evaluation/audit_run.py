"""Run an audit arm by arm, and go on where it stopped.

Every arm has a folder of Inspect logs. A finished arm is not run again; the log of a run that was
killed or failed is retried, which answers only what has no answer yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inspect_ai import eval, eval_retry
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import Model

from treft.answers.logs import find_logs, last_question, read_run
from treft.errors import ConfigError, DataError
from treft.evaluation.audit_plan import TREFT, AuditArm, AuditPlan, load_arm
from treft.judging.cost import Cost, cost_to_come
from treft.judging.judge import JudgeOptions
from treft.judging.oracle import ORACLE
from treft.judging.prompts import alignment_prompt, coherence_prompt
from treft.statistics.records import ScoredAnswer

LOGS = "logs"
JUDGED = "logs-judged"
"""Where `treft judge OUTPUT/logs` puts its copies, which have the earlier judgements, too."""

FINGERPRINT = "fingerprint"
"""Field of a log's metadata that tells weights apart."""

Display = Literal["none", "plain"]


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
        """In words."""
        if not self.num_arms:
            return "nothing, all arms are finished"
        judging = f", {self.judging}" if self.judging.calls else ""
        return f"{self.num_answers:,} answers of {self.num_arms} arms{judging}"


def finished_arms(plan: AuditPlan, folder: Path) -> list[str]:
    """The arms that have all their answers."""
    return [name for name in plan.arms if _newest(folder / LOGS / name, finished=True)]


def check_unchanged(plan: AuditPlan, folder: Path) -> None:
    """See that arms that run here are still the models that answered before.

    Their logs hold the provider's fingerprint of weights, patch and template; models that are
    served elsewhere have none.

    Raises:
        ConfigError: an arm is another model by now, such as an adapter that was trained anew.
    """
    for name, arm in plan.arms.items():
        logs = [_newest(folder / LOGS / name, finished=finished) for finished in (True, False)]
        headers = [read_eval_log(str(log), header_only=True) for log in logs if log is not None]
        before = {(header.eval.metadata or {}).get(FINGERPRINT) for header in headers} - {None}
        if before and before != {_fingerprint(arm, load_arm(arm))}:
            raise ConfigError(
                f"the arm {name} is not the model that answered before (other weights, patch, "
                "template, or version of treft or Transformers): give it another name, choose "
                f"another --output, or remove {folder / LOGS / name} to have it answer anew."
            )


def audit_cost(plan: AuditPlan, folder: Path, judges: Sequence[str]) -> AuditCost:
    """What the arms that are not finished cost, those of their answers that are there included.

    Args:
        plan: of the audit.
        folder: of the audit.
        judges: Inspect model names, or `oracle`.
    """
    num_arms = len(plan.arms) - len(finished_arms(plan, folder))
    asked = [last_question(sample.input) for sample in plan.request.questions.task().dataset]
    prompts = [
        prompt(words, "") for words in asked for prompt in (alignment_prompt, coherence_prompt)
    ]
    once = cost_to_come(
        prompts,
        sum(judge != ORACLE for judge in judges),
        max_tokens=JudgeOptions().max_tokens,
        answer_tokens=plan.max_tokens,
    )
    judging = once.times(num_arms * len(plan.conditions) * plan.request.epochs)
    return AuditCost(num_arms, num_arms * plan.num_answers, judging)


def run_arm(
    plan: AuditPlan,
    name: str,
    folder: Path,
    judges: Sequence[str],
    *,
    display: Display = "none",
    max_connections: int | None = None,
) -> None:
    """Have one arm answer and the judges judge, unless it is finished.

    Args:
        plan: of the audit, saved in the folder.
        name: of the arm.
        folder: of the audit.
        judges: Inspect model names, or `oracle`.
        display: whether Inspect prints its progress.
        max_connections: answers at the same time.

    Raises:
        ConfigError: the model cannot be loaded.
        DataError: some answers failed; what there is, is kept.
        KeyboardInterrupt: the run was cancelled.
    """
    logs = folder / LOGS / name
    if _newest(logs, finished=True):
        return
    options: dict[str, Any] = {
        "log_dir": str(logs),
        "display": display,
        "max_connections": max_connections,
        "continue_on_fail": True,
    }
    begun = _newest(logs, finished=False)
    if begun is not None:
        found = eval_retry(str(begun), **options)
    else:
        sampling = {"temperature": plan.request.temperature, "max_tokens": plan.request.max_tokens}
        arm, model = plan.arms[name], load_arm(plan.arms[name])
        found = eval(
            plan.task(folder, judges),
            model=model,
            epochs=plan.request.epochs,
            seed=plan.request.seed,
            metadata={"arm": name, FINGERPRINT: _fingerprint(arm, model)},
            **{key: value for key, value in sampling.items() if value is not None},  # type: ignore[arg-type]
            **options,
        )
    if not found:  # an interrupted run has a log, but Inspect does not hand it over
        raise KeyboardInterrupt
    _check(found[0], name)


def read_answers(
    plan: AuditPlan, folder: Path, judges: Sequence[str]
) -> dict[str, tuple[ScoredAnswer, ...]]:
    """The answers of all arms, from copies by `treft judge` where these know more judges.

    Raises:
        DataError: an arm is not finished, or was not judged by one of the judges.
    """
    found: dict[str, tuple[ScoredAnswer, ...]] = {}
    for name in plan.arms:
        paths = [_newest(folder / logs / name, finished=True) for logs in (JUDGED, LOGS)]
        runs = [read_run(path) for path in paths if path is not None]
        if not runs:
            raise DataError(f"the arm {name} has no finished log in {folder / LOGS / name}.")
        run = max(runs, key=lambda run: len(run.info.judges))
        if lacking := [judge for judge in judges if judge not in run.info.judges]:
            raise DataError(
                f"the answers of {name} were not judged by {lacking[0]}. Judge them, and give the "
                f"same command again: treft judge {folder / LOGS} --judge {lacking[0]}"
            )
        found[name] = run.answers
    return found


def _fingerprint(arm: AuditArm, model: Model) -> str | None:
    """What our provider tells Inspect's cache by; other providers know nothing of weights."""
    return model.api.base_url if arm.model.startswith(TREFT) else None


def _newest(folder: Path, *, finished: bool) -> Path | None:
    """The newest log of a folder that is finished, or that is not."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        logs = find_logs([folder])
    except DataError:  # no log among the files
        return None
    headers = [read_eval_log(str(log), header_only=True) for log in logs]
    wanted = [
        (header.eval.created, log)
        for header, log in zip(headers, logs, strict=True)
        if (header.status == "success") == finished
    ]
    return max(wanted)[1] if wanted else None


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
