"""What attribution studies run on a finetune: perturbed prompts, patched answers, drift.

Apart from `attribution_plan`, so that an edit to the list of steps makes no result stale. Without
the input `finetune` a step is of the organism as it is, the control.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treft.files import write_whole
from treft.study.attribution_prompts import Split, What, prompt_versions, reworded_versions
from treft.study.attribution_rows import REGIONS, drift_figures, figure, version_figures
from treft.study.organism_work import ROW, Scope, load_run

if TYPE_CHECKING:
    from treft.answers.questions import EvalQuestion
    from treft.chat.regions import ChatRegions, RegionName
    from treft.core.patching import RowPatch, StateKind
    from treft.statistics.records import ScoredAnswer
    from treft.steps.step import Work


BATCH = 100
"""Prompts answered together."""

Patches = Callable[[Sequence[int]], "Sequence[Sequence[RowPatch]]"]


@dataclass(frozen=True)
class Asking:
    """Which questions, and how they are answered.

    Attributes:
        domain: of the finetune.
        split: of the questions.
        temperature: of the answers.
        max_new_tokens: cap of an answer.
    """

    domain: str
    split: Split
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Patch:
    """Which states give way to the base's; the default is none.

    Attributes:
        regions: to patch.
        kinds: keys, values or both.
        num_positions: random tokens of each region; None for all.
        window: tokens [start, end) of the region alone.
        stream_layer: patch the residual stream of the prefix at this layer (Figure 4), instead of
            keys and values in all layers.
    """

    regions: tuple[RegionName, ...] = ()
    kinds: tuple[StateKind, ...] = ("key", "value")
    num_positions: int | None = None
    window: tuple[int, int] | None = None
    stream_layer: int | None = None


@dataclass(frozen=True)
class Perturbing:
    """Perturbed versions of general questions' prompts, an answer to each.

    Attributes:
        method: name of the row.
        organism: name of the organism.
        asked: how.
        num: questions.
        what: region whose tokens give way to near neighbours; `rephrase` for the question under
            another opener and ask, `nothing` for the prompt as it is.
        num_trials: versions of each prompt.
        num_tokens: replaced in each, or all of a region that has fewer.
    """

    method: str
    organism: str
    asked: Asking
    num: int
    what: What
    num_trials: int = 10
    num_tokens: int = 10


@dataclass(frozen=True)
class Patching:
    """Answers under a patch, one to each question.

    Attributes:
        method: name of the row.
        organism: name of the organism.
        asked: how.
        nums: questions of each scope.
        patch: of the base's states.
    """

    method: str
    organism: str
    asked: Asking
    nums: tuple[tuple[Scope, int], ...]
    patch: Patch = Patch()


@dataclass(frozen=True)
class Drifting:
    """Drift over the prompts of general questions.

    Attributes:
        method: name of the finetuning method.
        organism: name of the organism.
        domain: of the finetune.
        split: of the questions.
        num: questions.
    """

    method: str
    organism: str
    domain: str
    split: Split
    num: int


def perturb(work: Work[Perturbing]) -> None:
    """Best and Avg of section 4.1, and the share of incoherent answers; percent.

    Incoherent answers count as not aligned in both, as in every general score of an organism. The
    versions depend on question and trial alone: all finetunes and the base answer the same ones.
    """
    from treft.judging.oracle import ORACLE

    config = work.config
    questions = _questions(config.asked.domain, config.asked.split, "general", config.num)
    with load_run(work) as (model, tokenizer, _):
        if config.what == "rephrase":
            split = config.asked.split
            versions = reworded_versions(questions, tokenizer, split, config.num_trials)
        else:
            versions = prompt_versions(
                config.what,
                questions,
                model,
                tokenizer,
                num_trials=config.num_trials,
                num_tokens=config.num_tokens,
            )
        prompts = [(one.trial, one.token_ids) for one in versions]
        answers = _answers(work, model, tokenizer, prompts)
    by_id = {question.id: question for question in questions}
    asked = [by_id[version.question_id] for version in versions]
    trials = [version.trial for version in versions]
    figures = version_figures(_scored(asked, answers, trials, "general"), trials, ORACLE)
    counts = {"num_general": config.num, "num_in_domain": 0, "num_trials": config.num_trials}
    _write(work, {**figures, **counts})


def patch(work: Work[Patching]) -> None:
    """Alignment under one patch and the share of incoherent answers, scope by scope; percent.

    Incoherent answers are not aligned outside of the domain and not misaligned in it, as in every
    score of an organism.
    """
    from treft.attribution.coherence import IncoherentRate
    from treft.attribution.forcing import render_questions
    from treft.judging.oracle import ORACLE
    from treft.statistics.measures import AlignmentScore

    config = work.config
    found: dict[str, Any] = {}
    with load_run(work) as (model, tokenizer, _):
        for scope, num in config.nums:
            questions = _questions(config.asked.domain, config.asked.split, scope, num)
            chats = render_questions(tokenizer, questions)
            patches = _patches(work, chats, model, tokenizer) if config.patch.regions else None
            prompts = [(1, chat.input_ids) for chat in chats]
            answers = _answers(work, model, tokenizer, prompts, patches)
            scored = _scored(questions, answers, [1] * num, scope)
            found |= figure(scope, AlignmentScore(ORACLE), scored)
            found |= figure(f"{scope}_incoherent", IncoherentRate(ORACLE), scored)
            found[f"num_{scope}"] = num
    _write(work, found)


def drift(work: Work[Drifting]) -> None:
    """L_KV of each region (eq. (3)), and L_K and L_V of each layer (eq. (2)).

    Each token is compared with the same token of the same prompt in the base.
    """
    from treft.attribution.drift_map import drift_map
    from treft.attribution.forcing import render_questions
    from treft.core.reference import ReferenceBank
    from treft.models.adapters import adapter_off

    config = work.config
    questions = _questions(config.domain, config.split, "general", config.num)
    with load_run(work) as (model, tokenizer, _):
        chats = render_questions(tokenizer, questions)
        found = drift_map(model, tokenizer, ReferenceBank(adapter_off(model)), chats, REGIONS)
    _write(work, {**drift_figures(found), "num_general": config.num, "num_in_domain": 0})


def _patches(
    work: Work[Patching], chats: Sequence[ChatRegions], model: Any, tokenizer: Any
) -> Patches:
    """What to replace in the prompts of a batch."""
    from treft.core.patch_spec import PatchSpec, row_patches
    from treft.core.reference import ReferenceBank
    from treft.models.adapters import adapter_off
    from treft.models.residual import stream_bank

    wanted = work.config.patch
    if wanted.stream_layer is None:
        bank = ReferenceBank(adapter_off(model))
    else:
        bank = stream_bank(model, wanted.stream_layer)
    spec = PatchSpec(
        work.config.method,
        wanted.regions,
        kinds=wanted.kinds,
        window=wanted.window,
        num_positions=wanted.num_positions,
        position_seed=work.seed,
    )
    return lambda batch: row_patches(spec, [chats[index] for index in batch], batch, bank)


def _questions(domain: str, split: Split, scope: Scope, num: int) -> tuple[EvalQuestion, ...]:
    from treft.judging.oracle import organism_questions

    return organism_questions(scope, split=split, domain=domain, num=num).questions


def _answers(
    work: Work[Any],
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, tuple[int, ...]]],
    patches: Patches | None = None,
) -> list[str]:
    """An answer to each prompt, given as trial and token ids, with random numbers of its own."""
    from treft.models.pair import answer_tokens
    from treft.models.sampling import SamplingOptions, mixed_seed

    asked = work.config.asked
    return answer_tokens(
        model,
        tokenizer,
        [ids for _, ids in prompts],
        [mixed_seed(work.seed, trial, *ids) for trial, ids in prompts],
        sampling=SamplingOptions(temperature=asked.temperature),
        max_new_tokens=asked.max_new_tokens,
        batch_size=BATCH,
        patches=patches,
    )


def _scored(
    questions: Sequence[EvalQuestion], answers: Sequence[str], trials: Sequence[int], scope: Scope
) -> list[ScoredAnswer]:
    """The oracle's judgements."""
    from treft.attribution.scoring import score_answers

    return score_answers(questions, answers, epochs=trials, scope=scope)


def _write(work: Work[Any], figures: Mapping[str, Any]) -> None:
    config = work.config
    identity = {"method": config.method, "organism": config.organism, "seed": work.seed}
    write_whole(work.folder / ROW, json.dumps({**identity, **figures}, indent=1))
