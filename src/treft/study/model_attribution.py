"""What attribution studies run on a real model's finetune: drift, and answers to perturbed prompts.

Without the input `finetune` a step is of the model as it is, the control. Nothing of the machinery
of studies is imported here, so that a change there makes no result stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treft.errors import DataError
from treft.files import write_whole
from treft.study.attribution_prompts import PromptVersion, What, prompt_versions
from treft.study.attribution_rows import REGIONS, drift_figures, version_figures
from treft.study.model_scores import CALLS_PER_ANSWER, ROW, Paid, Scored, unscored
from treft.study.model_training import ADAPTER, MODEL, model_name

if TYPE_CHECKING:
    from treft.answers.questions import EvalQuestion
    from treft.steps.step import Work


PROMPTS, ANSWERS = "prompts.jsonl", "answers.jsonl"
BATCH = 32
"""Prompts answered together."""


@dataclass(frozen=True)
class Drifting:
    """Drift over the prompts of general questions.

    Attributes:
        method: name of the finetuning method.
        label: the model's name in tables.
        model: hub id; empty where the model is data.
        dtype: of the weights.
        enable_thinking: template variable; None leaves it unset.
    """

    method: str
    label: str
    model: str
    dtype: str
    enable_thinking: bool | None = None


@dataclass(frozen=True)
class Versions(Paid):
    """Perturbed versions of general questions' prompts.

    Attributes:
        model: hub id; empty where the model is data.
        what: is perturbed; `rephrase` has the rephraser say the question in other words.
        num_questions: the first of them.
        num_trials: versions of each prompt.
        num_tokens: replaced in each, or all of a region that has fewer.
        max_new_tokens: for which a prompt must leave room.
        dtype: of the weights.
        enable_thinking: template variable; None leaves it unset.
        rephraser: Inspect model name; empty but for `rephrase`.
    """

    model: str
    what: What
    num_questions: int
    num_trials: int
    num_tokens: int
    max_new_tokens: int
    dtype: str
    enable_thinking: bool | None = None
    rephraser: str = ""

    @property
    def num_calls(self) -> int:
        """Of the rephraser, when none fails."""
        return self.num_questions * self.num_trials if self.rephraser else 0


@dataclass(frozen=True)
class AnsweringVersions:
    """An answer to each version.

    Attributes:
        model: hub id; empty where the model is data.
        temperature: of sampling.
        max_new_tokens: of an answer.
        dtype: of the weights.
    """

    model: str
    temperature: float
    max_new_tokens: int
    dtype: str


@dataclass(frozen=True)
class JudgingVersions(Scored):
    """Answers to versions of prompts, judged.

    Attributes:
        num_questions: whose prompts they are.
        num_trials: versions of each.
    """

    num_questions: int
    num_trials: int

    @property
    def num_calls(self) -> int:
        """Of the judge, at most, when none fails."""
        return CALLS_PER_ANSWER * self.num_answers


def drift(work: Work[Drifting]) -> None:
    """L_KV of each region (eq. (3)), and L_K and L_V of each layer (eq. (2)).

    Each token is compared with the same token of the same prompt in the unfinetuned model.
    """
    from treft.attribution.drift_map import drift_map
    from treft.attribution.forcing import render_questions
    from treft.core.recording import other_model
    from treft.core.reference import ReferenceBank
    from treft.models.adapters import adapter_off

    config = work.config
    model, base, tokenizer = _load(work)
    questions = _questions(work, None)
    chats = render_questions(tokenizer, questions, template_kwargs=_template(config))
    bank = ReferenceBank(adapter_off(model) if base is None else other_model(base))
    found = drift_map(model, tokenizer, bank, chats, REGIONS)
    identity = {"method": config.method, "organism": config.label, "seed": work.seed}
    counts = {"num_general": len(questions), "num_in_domain": 0}
    _write(work, {**identity, **drift_figures(found), **counts})


def make_versions(work: Work[Versions]) -> None:
    """Write versions of prompts, as token ids; they depend on question and trial alone.

    Raises:
        DataError: one leaves no room for an answer in the model's context.
        TemplateError: the template lacks the region.
    """
    config = work.config
    model, _, tokenizer = _load(work)
    questions = _questions(work, config.num_questions)
    if config.what == "rephrase":
        versions = _rephrased(questions, tokenizer, config)
    else:
        versions = prompt_versions(
            config.what,
            questions,
            model,
            tokenizer,
            num_trials=config.num_trials,
            num_tokens=config.num_tokens,
            template_kwargs=_template(config),
        )
    room: int | None = getattr(
        model.config.get_text_config(decoder=True), "max_position_embeddings", None
    )
    longest = max(versions, key=lambda version: len(version.token_ids))
    if room is not None and len(longest.token_ids) + config.max_new_tokens > room:
        raise DataError(
            f"the prompt of question {longest.question_id!r} has {len(longest.token_ids)} tokens "
            f"and its answer may have {config.max_new_tokens}, but the model's context takes "
            f"{room}: drop the question, or set max_new_tokens."
        )
    lines = [json.dumps(version._asdict()) for version in versions]
    write_whole(work.folder / PROMPTS, "".join(f"{line}\n" for line in lines))


def answer_versions(work: Work[AnsweringVersions]) -> None:
    """Answer each version; all models draw with the same random numbers."""
    from treft.core.recording import eval_mode
    from treft.models.pair import answer_tokens
    from treft.models.sampling import SamplingOptions, mixed_seed

    versions = _versions(work)
    model, _, tokenizer = _load(work)
    with eval_mode(model):
        answers = answer_tokens(
            model,
            tokenizer,
            [version.token_ids for version in versions],
            [mixed_seed(work.seed, version.trial, *version.token_ids) for version in versions],
            sampling=SamplingOptions(temperature=work.config.temperature),
            max_new_tokens=work.config.max_new_tokens,
            batch_size=BATCH,
        )
    lines = [json.dumps({"answer": answer}, ensure_ascii=False) for answer in answers]
    write_whole(work.folder / ANSWERS, "".join(f"{line}\n" for line in lines))


def judge_versions(work: Work[JudgingVersions]) -> None:
    """Best and Avg of section 4.1, and the share of incoherent answers; percent.

    Incoherent answers count with the alignment that the judge gave them.

    Raises:
        DataError: the judge gave no score at all.
    """
    from treft.attribution.scoring import score_answers
    from treft.data.messages import read_rows

    config = work.config
    versions = _versions(work)
    answers = [row["answer"] for row, _ in read_rows(work.inputs["answers"] / ANSWERS)]
    by_id = {question.id: question for question in _questions(work, config.num_questions)}
    trials = [version.trial for version in versions]
    scored = score_answers(
        [by_id[version.question_id] for version in versions],
        answers,
        epochs=trials,
        scope="general",
        judges=[config.judge],
    )
    [judge] = {judgement.judge for answer in scored for judgement in answer.judgements}
    try:
        figures = version_figures(scored, trials, judge)
    except DataError as error:
        raise unscored(scored, judge, "general", error) from error
    missing = sum(one.alignment is None for answer in scored for one in answer.judgements)
    identity = {
        "method": config.method,
        "organism": config.model,
        "seed": work.seed,
        "judge": config.judge,
        "questions": config.questions,
    }
    counts = {
        "num_general": config.num_questions,
        "num_in_domain": 0,
        "num_trials": config.num_trials,
        "missing": missing,
    }
    _write(work, {**identity, **figures, **counts})


def _write(work: Work[Any], row: Mapping[str, Any]) -> None:
    write_whole(work.folder / ROW, json.dumps(row, indent=1))


def _load(work: Work[Any]) -> tuple[Any, Any, Any]:
    """The model, what it was finetuned from if that is another, and the tokenizer."""
    from treft.models.loading import LoadOptions, load_model

    options = LoadOptions(dtype=work.config.dtype)
    name, tuned = model_name(work), work.inputs.get("finetune")
    if tuned is None or (tuned / ADAPTER).is_dir():
        adapter = None if tuned is None else str(tuned / ADAPTER)
        model, tokenizer = load_model(name, adapter, options)
        return model, None, tokenizer
    base, _ = load_model(name, None, options)
    model, tokenizer = load_model(str(tuned / MODEL), None, options)
    return model, base, tokenizer


def _template(config: Drifting | Versions) -> Mapping[str, Any]:
    thinking = config.enable_thinking
    return {} if thinking is None else {"enable_thinking": thinking}


def _questions(work: Work[Any], num: int | None) -> tuple[EvalQuestion, ...]:
    from treft.answers.questions import load_questions

    return tuple(load_questions(work.data["questions"]).questions)[:num]


def _versions(work: Work[Any]) -> list[PromptVersion]:
    from treft.data.messages import read_rows

    rows = read_rows(work.inputs["prompts"] / PROMPTS)
    return [
        PromptVersion(row["question_id"], row["trial"], tuple(row["token_ids"])) for row, _ in rows
    ]


def _rephrased(
    questions: Sequence[EvalQuestion], tokenizer: Any, config: Versions
) -> list[PromptVersion]:
    """Prompts whose last user message another model put into other words."""
    from treft.attribution.forcing import render_questions
    from treft.attribution.rephrase import rephrase

    words = rephrase(questions, config.rephraser, config.num_trials).words
    by_id = {question.id: question for question in questions}
    asked = []
    for (id, _), said in words.items():
        *before, last = by_id[id].messages
        asked.append(replace(by_id[id], messages=(*before, {**last, "content": said})))
    chats = render_questions(tokenizer, asked, template_kwargs=_template(config))
    return [
        PromptVersion(id, trial, chat.input_ids)
        for (id, trial), chat in zip(words, chats, strict=True)
    ]
