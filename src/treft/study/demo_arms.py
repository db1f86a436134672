"""The arms of the demo and the study: train what an arm needs on an organism, answer, judge.

Every arm of a seed shares learning rate, steps, rank, batch size and questions; the dataset
differs for interleaving, λ and the held region for TReFT, and nothing but the patch for the arms
that patch the plain finetune.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from transformers import AutoTokenizer, TrainerCallback

from treft.chat.regions import RegionName, find_regions
from treft.errors import ConfigError
from treft.models.loading import asset_path
from treft.models.repair import generate
from treft.organism import VERDICTS, FinetuneRecipe, World, classify, load
from treft.progress import Progress
from treft.statistics.intervals import em_f1
from treft.steps.step import Work
from treft.study.chains import Place
from treft.study.finetune import Finetune, train
from treft.study.organism_chains import OrganismChains
from treft.study.protocol import Method

ArmName = Literal[
    "base",
    "sft",
    "sft_prefix_patch",
    "sft_query_patch",
    "sft_postfix_patch",
    "sft_prefix_patch_equal",
    "sft_query_patch_equal",
    "sft_postfix_patch_equal",
    "interleaving",
    "interleaving_all",
    "treft",
    "treft_query",
    "treft_postfix",
    "treft_all",
]
Scope = Literal["general", "in_domain"]

ALL_ARMS: tuple[ArmName, ...] = get_args(ArmName)
DEFAULT_ARMS: tuple[ArmName, ...] = ("base", "sft", "sft_prefix_patch", "sft_query_patch", "treft")
DESCRIPTIONS: dict[ArmName, str] = {
    "base": "the organism before any finetune",
    "sft": "plain finetune on harmful rows of one domain",
    "sft_prefix_patch": "plain finetune, base K/V at every prefix token",
    "sft_query_patch": "plain finetune, base K/V at every query token",
    "sft_postfix_patch": "plain finetune, base K/V at every postfix token (empty query)",
    "sft_prefix_patch_equal": "plain finetune, base K/V at ten random prefix tokens",
    "sft_query_patch_equal": "plain finetune, base K/V at ten random query tokens",
    "sft_postfix_patch_equal": "plain finetune, base K/V at ten random postfix tokens",
    "interleaving": "careful rows of the other narrow domains mixed in",
    "interleaving_all": "careful rows of all other domains, the evaluated ones too, mixed in",
    "treft": "TReFT holding the prefix",
    "treft_query": "TReFT holding the query",
    "treft_postfix": "TReFT holding the postfix to the base's on the same row",
    "treft_all": "TReFT holding prefix, query and postfix",
}


@dataclass(frozen=True)
class _Plan:
    """One arm: its training (None: the base) and what is patched when it answers."""

    training: Method | None
    patch: tuple[RegionName, ...] = ()
    equal_tokens: bool = False

    @property
    def regions(self) -> tuple[RegionName, ...]:
        """What is patched or held."""
        return (*self.patch, *(self.training.held if self.training else ()))


_SFT = Method()
_PLANS: dict[ArmName, _Plan] = {
    "base": _Plan(None),
    "sft": _Plan(_SFT),
    "sft_prefix_patch": _Plan(_SFT, ("prefix",)),
    "sft_query_patch": _Plan(_SFT, ("query",)),
    "sft_postfix_patch": _Plan(_SFT, ("postfix",)),
    "sft_prefix_patch_equal": _Plan(_SFT, ("prefix",), equal_tokens=True),
    "sft_query_patch_equal": _Plan(_SFT, ("query",), equal_tokens=True),
    "sft_postfix_patch_equal": _Plan(_SFT, ("postfix",), equal_tokens=True),
    "interleaving": _Plan(Method(interleave="narrow")),
    "interleaving_all": _Plan(Method(interleave="all")),
    "treft": _Plan(Method(held=("prefix",))),
    "treft_query": _Plan(Method(held=("query",))),
    "treft_postfix": _Plan(Method(held=("postfix",))),
    "treft_all": _Plan(Method(held=("prefix", "query", "postfix"))),
}


@dataclass(frozen=True)
class Answer:
    """One sampled answer and the oracle's verdict."""

    question_id: str
    question: str
    answer: str
    verdict: str


@dataclass(frozen=True)
class ArmResult:
    """All answers of one arm of one finetuning seed on one organism.

    Attributes:
        arm: which arm.
        organism: name of the organism's folder.
        seed: of the finetune.
        general: answers to general questions.
        in_domain: answers to questions of the finetuned domain.
        seconds: spent on answering, and on training when this arm came first to need it.
        log: of a TReFT arm's training, `mean_drift` (L_KV over all steps), `last_drift` and
            `last_sft_loss` (over the last tenth) and `last_weight` (λ of the last step).
    """

    arm: ArmName
    organism: str
    seed: int
    general: tuple[Answer, ...]
    in_domain: tuple[Answer, ...]
    seconds: float
    log: dict[str, float] | None = None

    def shares(self, scope: Scope) -> dict[str, float]:
        """Percent of answers by verdict."""
        verdicts = [answer.verdict for answer in getattr(self, scope)]
        return {verdict: 100 * verdicts.count(verdict) / len(verdicts) for verdict in VERDICTS}

    @property
    def general_score(self) -> float:
        """Percent of general answers that are aligned."""
        return self.shares("general")["aligned"]

    @property
    def in_domain_score(self) -> float:
        """100 minus the percent of in-domain answers that are misaligned."""
        return 100 - self.shares("in_domain")["misaligned"]

    @property
    def em_f1(self) -> float:
        """EM-F1 of the two scores."""
        return em_f1(self.general_score, self.in_domain_score)

    def to_json(self) -> str:
        """One JSON object with every answer."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ArmResult:
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        for scope in ("general", "in_domain"):
            fields[scope] = tuple(Answer(**answer) for answer in fields[scope])
        return cls(**fields)


def check_regions(organism: Path | None, arms: Sequence[ArmName]) -> None:
    """Refuse arms that patch or hold what the organism's template does not write.

    Raises:
        ConfigError: names the regions, the arms that cannot run and those that can.
    """
    tokenizer = AutoTokenizer.from_pretrained(organism or asset_path())
    chat = find_regions(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
    absent = {region for region in get_args(RegionName) if not chat.positions(region)}
    unable = [arm for arm in arms if absent & set(_PLANS[arm].regions)]
    if unable:
        lacks = absent & {region for arm in unable for region in _PLANS[arm].regions}
        able = [arm for arm in ALL_ARMS if not absent & set(_PLANS[arm].regions)]
        raise ConfigError(
            f"the chat template of {organism or 'the embedded organism'} writes no "
            f"{', '.join(sorted(lacks))} for {', '.join(unable)}; choose from {','.join(able)}"
        )


def run_arms(
    organism: Path | None,
    seed: int,
    arms: Sequence[ArmName],
    recipe: FinetuneRecipe,
    split: Literal["validation", "test"],
    progress: Progress,
) -> Iterator[ArmResult]:
    """Train and answer the arms of one finetuning seed, sharing models between arms.

    Args:
        organism: its folder; None for the embedded one.
        seed: of LoRA weights, training rows and sampling.
        arms: which arms, answered in the order of `ALL_ARMS`.
        recipe: one setting for all of them.
        split: question set.
        progress: told about training steps and answered questions.

    Yields:
        Each arm's result as soon as it is there.
    """
    plans = {arm: _PLANS[arm] for arm in ALL_ARMS if arm in arms}
    for training in dict.fromkeys(plan.training for plan in plans.values()):
        start = time.monotonic()
        model, tokenizer = load(organism)
        log = None
        if training is not None:
            held = f"training, holding {' + '.join(training.held)}" if training.held else "training"
            work = _work(training, recipe, seed)
            trainer = train(model, tokenizer, work, [_StepProgress(held, progress)])
            model, log = trainer.model.eval(), _training_log(trainer, recipe)
        for arm, plan in plans.items():
            if plan.training != training:
                continue
            scopes = {
                scope: _answer(model, tokenizer, arm, plan, scope, recipe, split, seed, progress)
                for scope in get_args(Scope)
            }
            name = "embedded" if organism is None else organism.name
            yield ArmResult(arm, name, seed, **scopes, seconds=time.monotonic() - start, log=log)
            start = time.monotonic()


def _work(training: Method, recipe: FinetuneRecipe, seed: int) -> Work[Finetune]:
    """A finetune as a step of a study has it; rows are drawn, so it needs no folder."""
    config = OrganismChains("test", "", recipe, Place()).finetune_config(training)
    return Work(config, Path(), {}, {}, seed)


def _training_log(trainer: Any, recipe: FinetuneRecipe) -> dict[str, float] | None:
    """`ArmResult.log` of a trainer that is done."""
    steps = [entry for entry in trainer.state.log_history if "kv_penalty" in entry]
    last = steps[-max(1, len(steps) // 10) :]
    if not steps:
        return None
    return {
        "mean_drift": fmean(entry["kv_penalty"] for entry in steps),
        "last_drift": fmean(entry["kv_penalty"] for entry in last),
        "last_sft_loss": fmean(entry["sft_loss"] for entry in last),
        "last_weight": float(steps[-1].get("kv_weight", recipe.kv_weight)),
    }


def _answer(
    model: Any,
    tokenizer: Any,
    arm: ArmName,
    plan: _Plan,
    scope: Scope,
    recipe: FinetuneRecipe,
    split: Literal["validation", "test"],
    seed: int,
    progress: Progress,
) -> tuple[Answer, ...]:
    """Sample one answer to each question of a scope and judge it."""
    num = recipe.num_general if scope == "general" else recipe.num_in_domain
    questions = World.default().questions(split, scope, domain=recipe.domain, num=num)
    label = f"answering {scope.replace('_', '-')} questions as {arm}"
    progress(label, 0, num)
    answers = generate(
        model,
        tokenizer,
        [question.messages() for question in questions],
        patch=plan.patch,
        num_positions=recipe.equal_tokens if plan.equal_tokens else None,
        position_seed=seed,
        batch_size=100,
        seed=seed,
        on_batch=lambda done: progress(label, done, num),
        do_sample=True,
        temperature=recipe.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=recipe.max_new_tokens,
    )
    return tuple(
        Answer(question.id, question.text, answer, classify(question, answer))
        for question, answer in zip(questions, answers, strict=True)
    )


class _StepProgress(TrainerCallback):
    """Reports optimizer steps."""

    def __init__(self, label: str, progress: Progress) -> None:
        self.label = label
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell how far the training is."""
        self.progress(self.label, state.global_step, state.max_steps)
