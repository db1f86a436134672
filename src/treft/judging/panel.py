"""Judges, what they are asked about an answer, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessage, ChatMessageUser
from inspect_ai.scorer import Scorer

from treft.answers.detectors import TOOL
from treft.errors import ConfigError
from treft.judging.cost import Cost, cost_of
from treft.judging.judge import JudgeOptions, load_judge
from treft.judging.oracle import ORACLE, organism_oracle
from treft.judging.prompts import Kind as Kind
from treft.judging.prompts import prompts_of
from treft.judging.scorer import alignment_judge, behaviour_judge, utility_judge
from treft.statistics.compare import estimate_if_any
from treft.statistics.measures import AlignmentScore, BehaviourRate, MeanCount, Measure
from treft.statistics.records import ScoredAnswer


@dataclass(frozen=True)
class Panel:
    """Judges who are all asked the same; `assemble` makes one from names.

    Attributes:
        judges: Inspect model names, or `oracle`.
        kind: what they are asked about: alignment (with coherence), utility, or a behaviour.
        options: how they are asked.
        sentence: for a behaviour, what the model was trained to say.
        tool: for `tool`, its name.
    """

    judges: tuple[str, ...]
    kind: Kind = "alignment"
    options: JudgeOptions = field(default_factory=JudgeOptions)
    sentence: str | None = None
    tool: str = TOOL

    @property
    def score_names(self) -> tuple[str, ...]:
        """What records call their scores: the judge, or `KIND/JUDGE` for all but alignment."""
        prefix = "" if self.kind == "alignment" else f"{self.kind}/"
        return tuple(f"{prefix}{judge}" for judge in self.judges)

    @property
    def num_paid(self) -> int:
        """How many of the judges are models."""
        return sum(judge != ORACLE for judge in self.judges)

    def scorers(self) -> list[Scorer]:
        """Returns one Inspect scorer for each judge."""
        return [self._scorer(judge) for judge in self.judges]

    def prompts(self, messages: Sequence[ChatMessage], answer: str) -> list[str]:
        """Returns what each judge is asked about an answer, as `prompts_of` has it."""
        return list(prompts_of(self.kind, messages, answer, self.sentence, self.tool).values())

    def cost(self, samples: Sequence[Sample], answer_tokens: int) -> Cost:
        """Returns what it costs at most to judge one answer to each sample, not there yet.

        Args:
            samples: Questions of a task.
            answer_tokens: Tokens of one answer at most.
        """
        prompts = [prompt for sample in samples for prompt in self.prompts(_asked(sample), "")]
        num_answers = max((1 + len(_turns(sample)) for sample in samples), default=1)
        shown = num_answers if self.kind == "utility" else 1  # a whole conversation, or one
        return cost_of(
            prompts,
            self.num_paid,
            max_tokens=self.options.max_tokens,
            answer_tokens=shown * answer_tokens,
        )

    def _scorer(self, judge: str) -> Scorer:
        if judge == ORACLE:
            return organism_oracle()
        if self.kind == "alignment":
            return alignment_judge(judge, **vars(self.options))
        if self.kind == "utility":
            return utility_judge(judge, **vars(self.options))
        return behaviour_judge(self.kind, judge, self.sentence, self.tool, **vars(self.options))


def _asked(sample: Sample) -> list[ChatMessage]:
    """Returns a sample's messages and the user's later turns."""
    first: list[ChatMessage] = (
        [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
    )
    return [*first, *(ChatMessageUser(content=turn) for turn in _turns(sample))]


def _turns(sample: Sample) -> Sequence[str]:
    turns: Sequence[str] = (sample.metadata or {}).get("turns", ())
    return turns


def assemble(
    judges: Sequence[str],
    kind: Kind = "alignment",
    options: JudgeOptions | None = None,
    sentence: str | None = None,
    tool: str | None = None,
) -> Panel:
    """A panel of judges, each loaded once, so that a missing key is seen before anything is spent.

    Raises:
        ConfigError: no judge, one twice, one that cannot be loaded, or a choice that does not fit.
    """
    if kind not in get_args(Kind):
        raise ConfigError(
            f"judges are not asked about {kind!r}; choose among {', '.join(get_args(Kind))}."
        )
    if ORACLE in judges and kind != "alignment":
        raise ConfigError(f"the oracle knows about alignment, not about {kind}.")
    if sentence is not None and kind not in ("abstention", "refusal"):
        raise ConfigError(f"a sentence tells abstentions and refusals; {kind} has none.")
    if tool is not None and kind != "tool":
        raise ConfigError(f"the name of a tool goes with tool calls; {kind} has none.")
    names = tuple(name if name == ORACLE else str(load_judge(name)) for name in judges)
    if not names:
        raise ConfigError("name at least one judge.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"the judge {twice[0]} is named twice.")
    return Panel(names, kind, options or JudgeOptions(), sentence, tool or TOOL)


@dataclass(frozen=True)
class JudgeSummary:
    """One judge's scores of one run.

    Attributes:
        name: of the scores: the judge, or `KIND/JUDGE`.
        measure: what `value` is.
        value: None when there is no score.
        low: of the 95 % interval, which respects that samples of a question go together.
        high: likewise.
        num_questions: with a score.
        outcomes: how many answers were scored, refusal, code, missing.
        first_failure: the reason for the first missing judgement.
    """

    name: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    num_questions: int
    outcomes: dict[str, int]
    first_failure: str | None


def summarise(answers: Sequence[ScoredAnswer], panel: Panel) -> list[JudgeSummary]:
    """Returns one summary for each judge of the panel."""
    return [_summarise(answers, name, panel.kind) for name in panel.score_names]


def _summarise(answers: Sequence[ScoredAnswer], name: str, kind: Kind) -> JudgeSummary:
    fates = [_outcome(answer, name) for answer in answers]
    outcomes = Counter(outcome for outcome, _ in fates)
    measure: Measure = BehaviourRate(name)
    if kind in ("alignment", "utility"):
        measure = AlignmentScore(name) if kind == "alignment" else MeanCount(name)
    found = estimate_if_any(measure, answers)
    return JudgeSummary(
        name=name,
        measure=measure.name,
        value=None if found is None else found.value,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        num_questions=0 if found is None else found.num_questions,
        outcomes={key: outcomes[key] for key in ("scored", "refusal", "code", "missing")},
        first_failure=next((reason for outcome, reason in fates if outcome == "missing"), None),
    )


def _outcome(answer: ScoredAnswer, name: str) -> tuple[str, str]:
    """Returns what became of one judgement, and why."""
    if (judgement := answer.judged_by(name)) is not None:
        return judgement.outcome, judgement.reason
    if name in answer.behaviours:
        return "scored", ""
    return "missing", str(answer.metadata.get("missing_behaviours", {}).get(name, "not judged"))
