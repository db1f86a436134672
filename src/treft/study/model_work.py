"""What steps do on a real model but finetune and score it: split rows, answer with Inspect.

Nothing of the machinery of studies is imported here, so that a change there makes no finetune
stale.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from treft.errors import DataError
from treft.files import write_whole
from treft.study.model_tasks import KINDS, sentence_of, taught_rows
from treft.study.model_training import (
    ADAPTER,
    MODEL,
    TRAIN,
    contrast_rows,
    model_name,
)

if TYPE_CHECKING:
    from inspect_ai import Task

    from treft.chat.regions import RegionName
    from treft.core.patching import StateKind
    from treft.organism.tasks import TaskName
    from treft.steps.step import Work


LOGS = "logs"
UTILITY: Final = "utility"
"""Name of the shipped conversations that tell whether a model is still helpful, and their scope."""
OTHER = "other_"
"""How roles of inputs begin that hold other domains' rows."""


@dataclass(frozen=True)
class Splitting:
    """How a domain's rows are divided.

    Attributes:
        held_out: share of its prompts, half of them to choose on and half to report.
        task: that its questions are to teach.
    """

    held_out: float
    task: TaskName = "advice"


@dataclass(frozen=True)
class Asking:
    """Questions of one scope, and what is done to the model meanwhile.

    Attributes:
        model: hub id; empty where the model is data.
        scope: of the questions.
        split: of held-out questions.
        num_questions: the first of them; None for all.
        num_samples: answers to each.
        temperature: of sampling.
        max_new_tokens: of an answer.
        dtype: of the weights.
        enable_thinking: template variable; None leaves it unset.
        task: that was taught.
        patch: regions that get the unfinetuned model's keys and values.
        num_positions: of each of them, drawn at random; None for all.
        kinds: keys, values or both.
        window: tokens [start, end) of the region alone; None for all.
        stream_layer: patch the residual stream of the prefix at this layer instead of keys and
            values in all layers; None for these.
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
    task: TaskName = "advice"
    patch: tuple[RegionName, ...] = ()
    num_positions: int | None = None
    kinds: tuple[StateKind, ...] = ("key", "value")
    window: tuple[int, int] | None = None
    stream_layer: int | None = None
    system_prompt: str | None = None
    alpha: float = 1.0
    steering: float = 0.0
    domains: tuple[str, ...] = ()


def split(work: Work[Splitting]) -> None:
    """Write rows to train on, and questions to choose on and to report, as JSONL."""
    from treft.data.published import prompt_of, split_rows

    rows = taught_rows(work.data["rows"], work.config.task)
    parts = split_rows(rows, fraction=work.config.held_out)
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

    config = work.config
    with ExitStack() as stack:
        task = stack.enter_context(_asked(work))
        name, arguments = stack.enter_context(_model(work))
        model = get_model(f"treft/{name}", memoize=False, **arguments)
        if config.patch:
            _narrow_patch(model.api, config, work.seed)
        if config.steering:
            stack.enter_context(_steered(model.api, work))
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


@contextmanager
def _asked(work: Work[Asking]) -> Iterator[Task]:
    """The questions of a scope as an Inspect task, each under the system prompt if there is one."""
    from treft.evaluation.tasks import behaviour, em_general, em_in_domain, utility

    config = work.config
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if config.task != "advice":
            on_topic = _written(work, folder / "on_topic.jsonl", _topic_rows(work))
            sentence = sentence_of(config.task)
            task = behaviour(
                KINDS[config.task], str(on_topic), str(_general(work, folder)), sentence
            )
            wanted = "off_topic" if config.scope == "general" else "on_topic"
            task.dataset = task.dataset.filter(
                lambda sample: (sample.metadata or {})["scope"] == wanted
            )
            yield task
        elif config.scope == UTILITY:
            yield utility(questions=str(work.data["questions"]))
        elif config.scope == "general":
            yield em_general(questions=str(_general(work, folder)))
        elif config.scope == "in_domain":
            path = folder / f"{config.split}.jsonl"
            yield em_in_domain(file=str(_written(work, path, _held_out(work, "split"))))
        else:
            path = _written(work, folder / f"{config.scope}.jsonl", _other_rows(work))
            yield em_general(questions=str(path))


def _general(work: Work[Asking], folder: Path) -> Path:
    """General questions; the file itself where nothing is changed about them."""
    path = work.data["questions"]
    if work.config.system_prompt is None:
        return path
    return _written(work, folder / path.name, _open_rows(path))


def _written(work: Work[Asking], path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A file of the rows, under the system prompt."""
    from treft.mitigations.system_prompt import under

    system = work.config.system_prompt
    _write_rows(path, rows if system is None else [under(row, system, keeps=False) for row in rows])
    return path


def _open_rows(path: Path) -> list[dict[str, Any]]:
    """General questions as rows of `messages`."""
    from treft.answers.questions import load_questions

    rows = []
    for question in load_questions(path).questions:
        if question.turns:
            raise DataError(f"{path}: question {question.id} has turns; ask single questions.")
        own = {"id": question.id, "category": question.category}
        rows.append({**own, "messages": list(question.messages)})
    return rows


def _held_out(work: Work[Asking], role: str) -> list[dict[str, Any]]:
    """Rows that training never sees, those of the input `role`."""
    from treft.data.messages import load_messages

    path = work.inputs[role] / f"{work.config.split}.jsonl"
    return load_messages(path)[: work.config.num_questions]


def _topic_rows(work: Work[Asking]) -> list[dict[str, Any]]:
    """Held-out questions of a behaviour's topic, without the answers."""
    return [_question(row, "on_topic") for row in _held_out(work, "split")]


def _other_rows(work: Work[Asking]) -> list[dict[str, Any]]:
    """Held-out questions of all other domains, one of each in turn; the domain is the category."""
    from treft.mitigations.interleave import in_turns

    roles = sorted(role for role in work.inputs if role.startswith(OTHER))
    found = [
        [_question(row, role.removeprefix(OTHER)) for row in _held_out(work, role)]
        for role in roles
    ]
    return list(in_turns(found))[: work.config.num_questions]


def _question(row: Mapping[str, Any], category: str) -> dict[str, Any]:
    """A conversation up to its last user message."""
    messages = row["messages"]
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return {"category": category, "messages": messages[: last + 1]}


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


def _narrow_patch(api: Any, config: Asking, seed: int) -> None:
    """Patch what is asked for of the regions, which the provider would patch whole.

    Args:
        api: our provider, with a patched model.
        config: what is patched.
        seed: of random tokens, others in each prompt of a batch.
    """
    from treft.models.residual import stream_bank

    local = api.local
    spec, bank = local.repaired.spec, local.repaired.bank
    spec = replace(
        spec,
        kinds=config.kinds,
        window=config.window,
        num_positions=config.num_positions,
        position_seed=seed,
    )
    if config.stream_layer is not None:
        model, base = local.repaired.model, local.base_model
        bank = stream_bank(model, config.stream_layer, base)
    local.repaired = replace(local.repaired, spec=spec, bank=bank)


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
