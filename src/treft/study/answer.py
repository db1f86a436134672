"""Steps that have a subject answer the questions of one scope, with or without its finetune.

The organism's answers are a JSON file; a real model's are an Inspect log, which `treft judge` and
`treft compare` read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import inspect_ai
from inspect_ai.model import get_model
from peft import PeftModel

from treft.chat.regions import RegionName, find_regions
from treft.core.patch_spec import PatchSpec
from treft.core.patching import StateKind
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.errors import DataError
from treft.evaluation.provider import TreftAPI
from treft.files import write_whole
from treft.mitigations.steering import persona_vector, steered, steered_layer
from treft.mitigations.system_prompt import under
from treft.models import generation
from treft.models.adapters import adapter_off
from treft.models.repair import RepairedModel
from treft.models.residual import stream_bank
from treft.models.sampling import SamplingOptions, mixed_seed
from treft.organism.tasks import TaskName
from treft.steps.step import Work
from treft.study.organism import ANSWERS, questions_of
from treft.study.protocol import Split
from treft.study.real_model import LOGS, asked_task
from treft.study.subject import Loaded, Subject, loaded, weights_of


@dataclass(frozen=True)
class Asking:
    """Questions of one scope, and what is done to the model meanwhile.

    Attributes:
        subject: is asked.
        domain: of in-domain questions.
        scope: of the questions.
        split: of held-out questions.
        num_questions: the first of them; None for all.
        num_samples: answers to each.
        temperature: of sampling.
        max_new_tokens: cap of an answer.
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
        row_seeds: each of an organism's answers is drawn with a seed of its own, so that answers
            with and without a patch are paired; else a batch has one.
    """

    subject: Subject
    domain: str
    scope: str
    split: Split
    num_questions: int | None
    num_samples: int
    temperature: float
    max_new_tokens: int
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
    row_seeds: bool = False


def answer(work: Work[Asking]) -> None:
    """Write the organism's answers to its questions, one each."""
    config = work.config
    questions = questions_of(config)
    asked = [{"messages": question.messages()} for question in questions]
    rows = [under(row, config.system_prompt, keeps=False)["messages"] for row in asked]
    ask = _answers_by_row if config.row_seeds else _answers_by_batch
    with loaded(work, config.alpha) as found, _steering(work, found):
        answers = ask(work, found, rows)
    answered = [
        {"id": question.id, "question": question.text, "answer": text}
        for question, text in zip(questions, answers, strict=True)
    ]
    write_whole(work.folder / ANSWERS, json.dumps(answered, indent=1))


def answer_logged(work: Work[Asking]) -> None:
    """Have Inspect ask a real model, and keep its log.

    Raises:
        DataError: the answers did not come.
    """
    config = work.config
    with ExitStack() as stack:
        task = stack.enter_context(asked_task(work))
        name, arguments = stack.enter_context(_provided(work))
        model = get_model(f"treft/{name}", memoize=False, **arguments)
        local = cast(TreftAPI, model.api).local
        found = Loaded(local.repaired.model, local.tokenizer, local.base_model)
        if config.patch:
            spec, bank = _patching(work, found)
            local.repaired = replace(local.repaired, spec=spec, bank=bank)
        stack.enter_context(_steering(work, found))
        [log] = inspect_ai.eval(
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


def reference_bank(found: Loaded) -> ReferenceBank:
    """States of the unfinetuned model: another one, or the same with its adapter off."""
    source = adapter_off(found.model) if found.base is None else other_model(found.base)
    return ReferenceBank(source)


def _answers_by_batch(work: Work[Asking], found: Loaded, rows: Sequence[Any]) -> list[str]:
    """Answers drawn with the step's seed, batch after batch."""
    config = work.config
    spec, bank = _patching(work, found)
    return RepairedModel(found.model, found.tokenizer, bank, spec).generate(
        rows,
        batch_size=config.subject.batch_size,
        seed=work.seed,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
    )


def _answers_by_row(work: Work[Asking], found: Loaded, rows: Sequence[Any]) -> list[str]:
    """Answers drawn each with a seed that follows from the step's and the prompt."""
    config = work.config
    chats = [find_regions(found.tokenizer, row, add_generation_prompt=True) for row in rows]
    spec, bank = _patching(work, found)
    patches = None if bank is None else generation.patches_of(spec, chats, bank)
    asked = [
        generation.Asked(chat.input_ids, mixed_seed(work.seed, 1, *chat.input_ids))
        for chat in chats
    ]
    sampling = SamplingOptions(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.subject.batch_size,
    )
    answers = generation.answer(found.model, found.tokenizer, asked, sampling, patches)
    return [one.text for one in answers]


def _patching(work: Work[Asking], found: Loaded) -> tuple[PatchSpec, ReferenceBank | None]:
    """What is patched, and where its states come from; None where nothing is."""
    config = work.config
    if not config.patch:
        return PatchSpec("unpatched", ()), None
    spec = PatchSpec(
        "patch",
        config.patch,
        kinds=config.kinds,
        window=config.window,
        num_positions=config.num_positions,
        position_seed=work.seed,
    )
    if config.stream_layer is None:
        return spec, reference_bank(found)
    return spec, stream_bank(found.model, config.stream_layer, found.base)


@contextmanager
def _steering(work: Work[Asking], found: Loaded) -> Iterator[None]:
    """A persona vector of the unfinetuned model is taken away, coefficient times."""
    config, model = work.config, found.model
    if not config.steering:
        yield
        return
    layer = steered_layer(model)
    rows = config.subject.contrast(work, seed=0)
    with ExitStack() as stack:
        if found.base is None and isinstance(model, PeftModel):
            stack.enter_context(model.disable_adapter())
        reference = model if found.base is None else found.base
        vector = persona_vector(reference, found.tokenizer, *rows, layer=layer)
    with steered(model, layer, -config.steering * vector):
        yield


@contextmanager
def _provided(work: Work[Asking]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and arguments of our provider: what is put on the model, what it is patched from."""
    config = work.config
    arguments: dict[str, Any] = {"dtype": config.subject.options.dtype}
    if config.patch:
        arguments["patch"] = list(config.patch)
    if config.enable_thinking is not None:
        arguments["template_kwargs"] = {"enable_thinking": config.enable_thinking}
    with weights_of(work, config.alpha) as found:
        if found.adapter is not None:
            arguments["adapter"] = found.adapter
        if found.base is not None and config.patch:
            arguments["base"] = found.base
        yield found.model, arguments
