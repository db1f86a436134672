"""Steps of attribution studies: drift, and answers to perturbed versions of prompts.

Without the input `finetune` a step is of the subject as it is, the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

from treft.answers.questions import EvalQuestion
from treft.attribution.drift_map import DriftMap, drift_map
from treft.attribution.forcing import check_room, render_questions
from treft.attribution.options import Perturbation, PerturbOptions
from treft.attribution.perturb import perturb_tokens
from treft.attribution.scoring import panel_for, score_answers
from treft.chat.regions import RegionName
from treft.data.messages import read_rows
from treft.files import write_rows
from treft.models.pair import num_positions
from treft.statistics.intervals import over_runs
from treft.statistics.measures import AlignmentScore, BestOfTrials, IncoherentRate
from treft.steps.step import Work
from treft.study.answer import ANSWERS, PROMPTS, Loaded, Questions, loaded
from treft.study.scores import Entries, Scored, entries, of_judge, write_row

REGIONS: tuple[RegionName, ...] = ("prefix", "query", "postfix")
COUNT_ALL = -1.0
"""As a threshold of coherence: incoherent answers count with the alignment that they were given."""
What = Literal["nothing", "prefix", "query", "postfix", "rephrase"]
"""Region whose tokens give way to near neighbours; `nothing` is the prompt as it is, and `rephrase`
is the question in other words."""


class PromptVersion(NamedTuple):
    """One version of one question's prompt.

    Attributes:
        question_id: Whose prompt it is.
        trial: Which version, from 1.
        token_ids: (T,) the prompt.
    """

    question_id: str
    trial: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Drifting(Scored, Questions):
    """Drift over the prompts of general questions; nothing is judged."""


@dataclass(frozen=True, kw_only=True)
class Versions(Questions):
    """Perturbed versions of general questions' prompts.

    Attributes:
        what: is perturbed; `rephrase` has the question said in other words.
        num_trials: versions of each prompt.
        num_tokens: replaced in each, or all of a region that has fewer.
        max_new_tokens: for which a prompt must leave room.
        rephraser: Inspect model name; empty where nobody is asked.
    """

    what: What
    num_trials: int
    num_tokens: int
    max_new_tokens: int
    rephraser: str = ""


def drift(work: Work[Drifting]) -> None:
    """L_KV of each region (eq. (3)), and L_K and L_V of each layer (eq. (2)).

    Each token is compared with the same token of the same prompt in the unfinetuned model.
    """
    config = work.config
    questions = config.subject.prompts(work)
    with loaded(work) as one:
        chats = render_questions(one.tokenizer, questions, template_kwargs=config.template_kwargs)
        found = drift_map(one.model, one.tokenizer, one.reference_bank, chats, REGIONS)
    counts = {"num_general": len(questions), "num_in_domain": 0}
    write_row(work, {**_drift_figures(found), **counts})


def make_versions(work: Work[Versions]) -> None:
    """Write versions of prompts, as token ids; they depend on question and trial alone.

    Raises:
        DataError: One leaves no room for an answer in the model's context.
        TemplateError: The template lacks the region.
    """
    config = work.config
    questions = config.subject.prompts(work)
    with loaded(work) as one:
        versions = prompt_versions(work, questions, one)
        lengths = [len(found.token_ids) + config.max_new_tokens for found in versions]
        check_room([found.question_id for found in versions], lengths, num_positions(one.model))
    by_id = {question.id: asdict(question) for question in questions}
    rows = [{**found._asdict(), "question": by_id[found.question_id]} for found in versions]
    write_rows(work.folder / PROMPTS, rows)


def prompt_versions(
    work: Work[Versions], questions: tuple[EvalQuestion, ...], found: Loaded
) -> list[PromptVersion]:
    """Returns versions of all prompts; they depend on question and trial alone.

    Special tokens stay, but where the region has no others. Neighbours are those of the input
    embedding, of which an adapter changes nothing.

    Raises:
        TemplateError: The prompts lack the region.
    """
    config = work.config
    if config.what == "nothing":
        pairs = [*product(questions, range(1, config.num_trials + 1))]
    elif config.what == "rephrase":
        pairs = config.subject.reworded(work, questions)
    else:
        return _perturbed(config, config.what, questions, found)
    asked, kwargs = [question for question, _ in pairs], config.template_kwargs
    return [
        PromptVersion(question.id, trial, chat.input_ids)
        for (question, trial), chat in zip(
            pairs, render_questions(found.tokenizer, asked, template_kwargs=kwargs), strict=True
        )
    ]


def _perturbed(
    config: Versions, region: RegionName, questions: Sequence[EvalQuestion], found: Loaded
) -> list[PromptVersion]:
    tokenizer = found.tokenizer
    rendered = render_questions(tokenizer, questions, template_kwargs=config.template_kwargs)
    chats = {question.id: chat for question, chat in zip(questions, rendered, strict=True)}
    barred = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    own = {rendered[0].input_ids[position] for position in rendered[0].require(region)}
    options = PerturbOptions(
        (Perturbation(region, "nearest"),),
        num_tokens=config.num_tokens,
        num_trials=config.num_trials,
        special_tokens=own <= barred,
    )
    embedding = found.model.get_input_embeddings().weight.detach()
    prompts = perturb_tokens(tokenizer, embedding, chats, options)
    return [PromptVersion(one.question_id, one.trial, one.input_ids) for one in prompts]


def score_versions(work: Work[Scored]) -> None:
    """Best and Avg of section 4.1, and the share of incoherent answers; percent.

    Incoherent answers count with the alignment that the judge gave them, the oracle none.

    Raises:
        DataError: The judge gave no score at all.
    """
    rows = [row for row, _ in read_rows(work.inputs["prompts"] / PROMPTS)]
    trials = [row["trial"] for row in rows]
    questions = [EvalQuestion(**row["question"]) for row in rows]
    texts = [row["answer"] for row, _ in read_rows(work.inputs["answers"] / ANSWERS)]
    panel = panel_for(questions, [work.config.judge])
    answers = score_answers(questions, texts, trials, "general", panel)
    [judge] = panel.judges
    scored = [
        replace(answer, metadata={"trial": trial})
        for answer, trial in zip(answers, trials, strict=True)
    ]
    measures = {
        "best": BestOfTrials(judge, COUNT_ALL),
        "avg": AlignmentScore(judge),
        "incoherent": IncoherentRate(judge),
    }
    figures: Entries = {}
    for name, measure in measures.items():
        figures |= entries(name, of_judge(measure, scored, judge, "general"))
    counts = {
        "num_general": len({row["question_id"] for row in rows}),
        "num_in_domain": 0,
        "num_trials": max(trials),
        "missing": sum(one.alignment is None for each in scored for one in each.judgements),
    }
    write_row(work, {**figures, **counts})


def _drift_figures(found: DriftMap) -> Entries:
    """L_KV of each region (eq. (3)), and L_K and L_V of each layer (`prefix_key_0`, eq. (2)).

    Intervals are over prompts.
    """
    figures: Entries = {}
    for region in REGIONS:
        own = found.region(region)
        figures |= _over_prompts(region, own.by_prompt)
        for column, layer in enumerate(found.layers):
            for kind, values in (("key", own.key), ("value", own.value)):
                figures |= _over_prompts(f"{region}_{kind}_{layer}", values[:, column])
    return figures


def _over_prompts(name: str, values: Any) -> Entries:
    mean, low, high = over_runs(values.tolist())
    return {name: mean, f"{name}_low": max(0.0, low), f"{name}_high": high}
