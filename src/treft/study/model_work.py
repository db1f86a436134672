"""What steps do on a real model but finetune it: split rows, answer with Inspect, have it judged.

Nothing of the machinery of studies is imported here, so that a change there makes no finetune
stale.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treft.errors import DataError
from treft.files import write_whole
from treft.study.model_training import (
    ADAPTER,
    MODEL,
    TRAIN,
    contrast_rows,
    model_name,
)

if TYPE_CHECKING:
    from treft.evaluation.results import Estimate
    from treft.regions import RegionName
    from treft.study.step import Work

__all__ = ["Asking", "Judging", "Splitting", "answer", "score", "split"]

LOGS = "logs"
ROW = "row.json"


@dataclass(frozen=True)
class Splitting:
    """How a domain's rows are divided.

    Attributes:
        held_out: share of its prompts, half of them to choose on and half to report.
    """

    held_out: float


@dataclass(frozen=True)
class Asking:
    """Questions of one scope, and what is done to the model meanwhile.

    Attributes:
        model: hub id; empty where the model is data.
        scope: of the questions.
        split: of in-domain questions.
        num_questions: the first of them; None for all.
        num_samples: answers to each.
        temperature: of sampling.
        max_new_tokens: of an answer.
        dtype: of the weights.
        enable_thinking: template variable; None leaves it unset.
        patch: regions that get the unfinetuned model's keys and values.
        system_prompt: of the questions; None for the template's default.
        alpha: of W0 + α ΔW.
        steering: coefficient of the persona vector that is taken away; 0 for none.
        domains: of the rows that it is taken from.
    """

    model: str
    scope: str
    split: str
    num_questions: int | None
    num_samples: int
    temperature: float
    max_new_tokens: int
    dtype: str
    enable_thinking: bool | None = None
    patch: tuple[RegionName, ...] = ()
    system_prompt: str | None = None
    alpha: float = 1.0
    steering: float = 0.0
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judging:
    """What a run is, beside its scores.

    Attributes:
        method: its name.
        model: its name in tables.
        judge: Inspect model name.
        questions: general ones, as they were named.
        scopes: that were asked.
        num_answers: in all of them.
    """

    method: str
    model: str
    judge: str
    questions: str
    scopes: tuple[str, ...]
    num_answers: int

    @property
    def num_calls(self) -> int:
        """Of the judge, at most: alignment and coherence of each answer, when none fails."""
        return 2 * self.num_answers


def split(work: Work[Splitting]) -> None:
    """Write rows to train on, and questions to choose on and to report, as JSONL."""
    from treft.data import load_messages
    from treft.published.split import prompt_of, split_rows

    parts = split_rows(load_messages(work.data["rows"]), fraction=work.config.held_out)
    asked = list({prompt_of(row): row for row in parts.held_out}.values())
    random.Random("questions").shuffle(asked)
    half = len(asked) // 2
    _write_rows(work.folder / TRAIN, parts.train)
    _write_rows(work.folder / "validation.jsonl", asked[:half])
    _write_rows(work.folder / "test.jsonl", asked[half:])


def answer(work: Work[Asking]) -> None:
    """Answer as the model with the finetune of the input `finetune`, or as it is without.

    The answers are an Inspect log, which `treft judge` and `treft compare` read.
    """
    from inspect_ai import eval
    from inspect_ai.model import get_model

    from treft.evaluation.tasks import em_general, em_in_domain

    config = work.config
    with ExitStack() as stack:
        path = stack.enter_context(_questions(work))
        name, arguments = stack.enter_context(_model(work))
        model = get_model(f"treft/{name}", memoize=False, **arguments)
        if config.steering:
            stack.enter_context(_steered(model.api, work))
        is_general = config.scope == "general"
        task = em_general(questions=str(path)) if is_general else em_in_domain(file=str(path))
        [log] = eval(
            task,
            model=model,
            epochs=config.num_samples,
            seed=work.seed,
            temperature=config.temperature,
            max_tokens=config.max_new_tokens,
            log_dir=str(work.folder / LOGS),
            display="none",
        )
    if log.status != "success":
        why = "it was interrupted" if log.error is None else log.error.message.splitlines()[0]
        raise DataError(f"the {config.scope} questions have no answers: {why}")


def score(work: Work[Judging]) -> None:
    """Have the answers of all scopes judged; what the judge could not score is left out."""
    from treft.evaluation.judging.panel import assemble
    from treft.evaluation.judging.rejudge import plan_jobs, rejudge
    from treft.evaluation.logs import read_run
    from treft.metrics import em_f1

    config = work.config
    panel = assemble([config.judge])
    scores: dict[str, float] = {}
    counts: dict[str, Any] = {}
    for scope in config.scopes:
        jobs = plan_jobs([work.inputs[scope] / LOGS], panel, work.folder / LOGS / scope)
        rejudge(jobs, panel)
        answers = [found for job in jobs for found in read_run(job.output).answers]
        found, rate = _estimates(answers, panel.judges[0], scope)
        scores[scope] = found.value
        counts |= _counts(scope, found, rate)
    if {"general", "in_domain"} <= set(scores):
        scores["em_f1"] = em_f1(scores["general"], scores["in_domain"])
    identity = {"method": config.method, "organism": config.model, "seed": work.seed}
    asked = {"judge": config.judge, "questions": config.questions}
    row = {**identity, **asked, **scores, **counts}
    write_whole(work.folder / ROW, json.dumps(row, indent=1))


def _estimates(answers: Sequence[Any], judge: str, scope: str) -> tuple[Estimate, Estimate | None]:
    """Mean alignment, and the EM rate where there is a coherent answer.

    Raises:
        DataError: the judge gave no score at all.
    """
    from treft.evaluation.measures import AlignmentScore, EMRate
    from treft.evaluation.statistics import estimate

    try:
        found = estimate(AlignmentScore(judge), answers)
    except DataError as error:
        reasons = (one.judged_by(judge) for one in answers)
        first = next((one.reason for one in reasons if one is not None and one.reason), str(error))
        raise DataError(
            f"{judge} scored none of {len(answers)} {scope} answers: {first}"
        ) from error
    try:
        return found, estimate(EMRate(judge), answers)
    except DataError:
        return found, None


def _counts(scope: str, found: Estimate, rate: Estimate | None) -> dict[str, Any]:
    """What a score is made of.

    Alignment has no counts: as `_aligned` and `_misaligned` the questions are shared out by their
    mean alignment, which is what tables of a single run make Wilson's interval of. The spread of a
    mean of numbers from 0 to 100 is at most that of a share.
    """
    num = found.num_questions
    aligned = min(num, max(0.0, found.value / 100 * num))
    counts = found.counts
    return {
        f"{scope}_low": found.low,
        f"{scope}_high": found.high,
        f"num_{scope}": num,
        f"num_{scope}_answers": counts.used,
        f"{scope}_missing": counts.missing + counts.refusal + counts.code,
        f"{scope}_aligned": aligned,
        f"{scope}_misaligned": num - aligned,
        f"{scope}_em_rate": None if rate is None else rate.value,
    }


@contextmanager
def _questions(work: Work[Asking]) -> Iterator[Path]:
    """What is asked, as a file: under the system prompt, if there is one."""
    config = work.config
    is_general = config.scope == "general"
    if is_general and config.system_prompt is None:
        yield work.data["questions"]
        return
    path = work.data["questions"] if is_general else work.inputs["split"] / f"{config.split}.jsonl"
    rows = _open_rows(path) if is_general else _held_out_rows(path, config.num_questions)
    if config.system_prompt is not None:
        from treft.mitigations.system_prompt import under

        rows = [under(row, config.system_prompt, keeps=False) for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        _write_rows(Path(scratch) / path.name, rows)
        yield Path(scratch) / path.name


def _open_rows(path: Path) -> list[dict[str, Any]]:
    """General questions as rows of `messages`."""
    from treft.evaluation.questions import load_questions

    rows = []
    for question in load_questions(path).questions:
        if question.turns:
            raise DataError(f"{path}: question {question.id} has turns; ask single questions.")
        own = {"id": question.id, "category": question.category}
        rows.append({**own, "messages": list(question.messages)})
    return rows


def _held_out_rows(path: Path, num: int | None) -> list[dict[str, Any]]:
    from treft.data import load_messages

    return load_messages(path)[:num]


@contextmanager
def _model(work: Work[Asking]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of our provider: what is put on the model, what it is patched from."""
    from treft.mitigations.interpolation import interpolate_adapter

    config, tuned = work.config, work.inputs.get("finetune")
    name = model_name(work)
    found: dict[str, Any] = {"dtype": config.dtype}
    if config.patch:
        found["patch"] = list(config.patch)
    if config.enable_thinking is not None:
        found["template_kwargs"] = {"enable_thinking": config.enable_thinking}
    if tuned is None:
        yield name, found
    elif (tuned / MODEL).is_dir():
        yield str(tuned / MODEL), {**found, **({"base": name} if config.patch else {})}
    elif config.alpha == 1:
        yield name, {**found, "adapter": str(tuned / ADAPTER)}
    else:
        with tempfile.TemporaryDirectory() as scratch:
            scaled = Path(scratch) / ADAPTER
            interpolate_adapter(tuned / ADAPTER, config.alpha, scaled)
            yield name, {**found, "adapter": str(scaled)}


@contextmanager
def _steered(api: Any, work: Work[Asking]) -> Iterator[None]:
    """A persona vector of the base taken away, coefficient times.

    Args:
        api: our provider, with an adapter on the model.
        work: the coefficient, and the rows that the vector is taken from.
    """
    from treft.mitigations.steering import persona_vector, steered, steered_layer

    model = api.local.repaired.model
    layer = steered_layer(model)
    with model.disable_adapter():
        rows = contrast_rows(work, work.config.domains)
        vector = persona_vector(model, api.local.tokenizer, *rows, layer=layer)
    with steered(model, layer, -work.config.steering * vector):
        yield


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
