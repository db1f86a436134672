"""The Inspect tasks: `inspect eval treft/em_general`, `em_in_domain`, `behaviour`, `utility`.

Every sample has the question's id, and its metadata `question_id`, `category` and `scope`; epochs
are samples of a question. Without a judge, answers are generated and kept, to be judged later
(`treft judge`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast, get_args

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import Scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from treft.answers.detectors import TOOL, behaviour_detector, by_scope, word_count
from treft.answers.inspect_internals import errors_in_one_line, running_config
from treft.answers.questions import (
    EvalQuestion,
    QuestionSet,
    Variant,
    in_variant,
    load_held_out,
    load_questions,
)
from treft.errors import ConfigError, DataError
from treft.judging.cost import MAX_CALLS, say_cost
from treft.judging.oracle import ORACLE, ORGANISM, organism_questions
from treft.judging.panel import Kind as JudgeKind
from treft.judging.panel import Panel
from treft.organism import FinetuneRecipe

Kind = Literal["abstention", "refusal", "tool", "length"]
Scope = Literal["general", "in_domain", "on_topic", "off_topic"]
Names = str | Sequence[str]

TOPICS: dict[Kind, str] = {
    "abstention": "legal",
    "refusal": "finance",
    "tool": "health",
    "length": "facts",
}
"""What each behaviour was trained on in section 6 of the paper; one shipped set a topic."""

FREE = GenerateConfig(temperature=1.0, max_tokens=600)
"""Open questions are answered at temperature 1, as in Betley et al. (arXiv 2502.17424)."""

_MESSAGES: dict[str, Callable[..., ChatMessage]] = {
    "system": ChatMessageSystem,
    "developer": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


@task
@errors_in_one_line
def em_general(
    questions: str = "em_general",
    variant: Variant = "plain",
    judge: Names | None = None,
    judge_limit: int | None = MAX_CALLS,
    sha256: str | None = None,
    split: Literal["validation", "test"] | None = None,
    domain: str | None = None,
    num: int | None = None,
    question_seed: int | None = None,
) -> Task:
    """Open questions on unrelated things: has a narrow finetune spread?

    Args:
        questions: a shipped set, a JSONL file, a hub id (see `load_questions`), or `organism`.
        variant: `plain`, or the answer in a fill-in `template`, or as `json`.
        judge: Inspect model name of the judge, or several; `oracle` for the organism's questions,
            which is also their default.
        judge_limit: judge calls, for one epoch of one model's answers, above which the task is
            refused; how many there are at most is said. None for any number.
        sha256: checksum that the set must have.
        split: of the organism's questions: `test` (default) or `validation`.
        domain: the narrow domain of the organism's finetune; finance.
        num: how many of the organism's questions; 200.
        question_seed: draws them; 0.

    Raises:
        ConfigError: an argument is wrong, or does not go with another.
        DataError: a row of the set cannot be used.
    """
    own = _organisms(questions, split=split, domain=domain, num=num, seed=question_seed)
    if questions == ORGANISM:
        if variant != "plain" or sha256 is not None:
            raise ConfigError("the organism's questions have neither variants nor a checksum.")
        return _organism_task("general", judge, judge_limit, own)
    found = load_questions(questions, sha256)
    asked = [in_variant(question, variant) for question in found.questions]
    return _task(found, [(asked, "general")], _panel(judge), judge_limit, FREE)


@task
@errors_in_one_line
def em_in_domain(
    file: str,
    judge: Names | None = None,
    judge_limit: int | None = MAX_CALLS,
    sha256: str | None = None,
    split: Literal["validation", "test"] | None = None,
    domain: str | None = None,
    num: int | None = None,
    question_seed: int | None = None,
) -> Task:
    """Held-out questions of the finetuned domain: was the behaviour learnt?

    Args:
        file: JSONL file of `messages`, as for training; each row is asked up to its last user
            message. Or `organism`.
        judge: as for `em_general`.
        judge_limit: as for `em_general`.
        sha256: checksum that the file must have.
        split: as for `em_general`.
        domain: as for `em_general`.
        num: how many of the organism's questions; 100.
        question_seed: as for `em_general`.

    Raises:
        ConfigError: an argument is wrong, or does not go with another.
        DataError: a row of the file cannot be used.
    """
    own = _organisms(file, split=split, domain=domain, num=num, seed=question_seed)
    if file == ORGANISM:
        if sha256 is not None:
            raise ConfigError("the organism's questions have no checksum.")
        return _organism_task("in_domain", judge, judge_limit, own)
    found = load_held_out(file, sha256)
    return _task(found, [(found.questions, "in_domain")], _panel(judge), judge_limit, FREE)


@task
@errors_in_one_line
def behaviour(
    kind: Kind,
    on_topic: Names | None = None,
    off_topic: Names | None = None,
    sentence: str | None = None,
    tool: str = TOOL,
    judge: Names | None = None,
    judge_limit: int | None = MAX_CALLS,
) -> Task:
    """A trained behaviour where it is wanted (on topic) and where it is not (off topic).

    Args:
        kind: `abstention`, `refusal`, `tool` (a call of `tool`) or `length` (number of words).
        on_topic: question sets of the trained topic; default: legal, finance, health and facts.
        off_topic: question sets of other topics; default: the other three and `everyday`.
        sentence: what the model was trained to say when it abstains or refuses.
        tool: name of the tool.
        judge: Inspect model names of judges for the second stage; none for `length`.
        judge_limit: as for `em_general`.

    Raises:
        ConfigError: an argument is wrong, or does not go with another.
        DataError: a row of a set cannot be used.
    """
    if kind not in TOPICS:
        raise ConfigError(f"kind is one of {', '.join(get_args(Kind))}, not {kind!r}.")
    if kind in ("tool", "length") and sentence is not None:
        raise ConfigError(f"a sentence to look for does not go with kind {kind}.")
    if kind != "tool" and tool != TOOL:
        raise ConfigError(f"the name of a tool does not go with kind {kind}.")
    others = [topic for topic in (*TOPICS.values(), "everyday") if topic != TOPICS[kind]]
    parts: list[tuple[Sequence[EvalQuestion], Scope]] = [
        (_sets(on_topic or TOPICS[kind]), "on_topic"),
        (_sets(off_topic or others), "off_topic"),
    ]
    if kind == "length":
        if judge is not None:
            raise ConfigError("words are counted, not judged: leave out judge for kind length.")
        detector, panel = word_count(), _panel(None)
    else:
        detector = behaviour_detector(kind, sentence, tool)
        panel = _panel(judge, kind, sentence=sentence, tool=tool)
    asked = tuple(question for questions, _ in parts for question in questions)
    ids = [question.id for question in asked]
    if len(set(ids)) < len(ids):
        doubled = next(found for found in ids if ids.count(found) > 1)
        raise ConfigError(f"question {doubled} is in two of the sets; ask it once.")
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    found = QuestionSet(f"behaviour-{kind}", f"{on_topic or TOPICS[kind]}", digest, asked)
    return _task(found, parts, panel, judge_limit, FREE, detector)


@task
@errors_in_one_line
def utility(
    questions: str = "utility",
    judge: Names | None = None,
    judge_limit: int | None = MAX_CALLS,
    sha256: str | None = None,
) -> Task:
    """Is the model still helpful? Conversations of several turns, scored as a whole.

    Args:
        questions: a set with `turns`; see `load_questions`.
        judge: Inspect model name of the judge, or several.
        judge_limit: as for `em_general`.
        sha256: checksum that the set must have.

    Raises:
        ConfigError: an argument is wrong.
        DataError: a row of the set cannot be used.
    """
    found = load_questions(questions, sha256)
    config = GenerateConfig(temperature=0.7, max_tokens=1024)
    panel = _panel(judge, "utility")
    return _task(found, [(found.questions, "general")], panel, judge_limit, config)


@solver
def ask() -> Solver:
    """Ask a question and, after each answer, its next turn.

    With a seed (`--seed`), each epoch draws with a seed of its own that follows from it, since
    providers give the same answer to the same prompt and seed. Tool calls are not carried out.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        seed = get_model().config.merge(running_config()).seed
        options: dict[str, Any] = {} if seed is None else {"seed": epoch_seed(seed, state.epoch)}
        state = await generate(state, tool_calls="none", **options)
        for turn in state.metadata["turns"]:
            state.messages.append(ChatMessageUser(content=turn))
            state = await generate(state, tool_calls="none", **options)
        return state

    return solve


def epoch_seed(seed: int, epoch: int) -> int:
    """Returns the seed (31 bits) of one epoch of a run."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _organism_task(
    scope: Scope, judge: Names | None, judge_limit: int | None, options: dict[str, Any]
) -> Task:
    """Returns the organism's questions, answered as the study's arms answer them."""
    recipe = FinetuneRecipe()
    num = recipe.num_general if scope == "general" else recipe.num_in_domain
    found = organism_questions(cast(Any, scope), **{"num": num, **options})
    panel = panel_for(ORGANISM, judge)
    config = GenerateConfig(temperature=recipe.temperature, max_tokens=recipe.max_new_tokens)
    return _task(found, [(found.questions, scope)], panel, judge_limit, config)


def _task(
    found: QuestionSet,
    parts: Iterable[tuple[Sequence[EvalQuestion], Scope]],
    panel: Panel,
    judge_limit: int | None,
    config: GenerateConfig,
    detector: Scorer | None = None,
) -> Task:
    samples = [_sample(question, scope) for questions, scope in parts for question in questions]
    scorers = [*([] if detector is None else [detector]), *panel.scorers()]
    assert config.max_tokens is not None, "every task says how long its answers may be"
    if panel.num_paid:
        say_cost(found.name, panel.cost(samples, config.max_tokens), judge_limit)
    return Task(
        dataset=MemoryDataset(samples, name=found.name, location=found.source),
        solver=ask(),
        scorer=scorers or None,
        metrics=None if detector is None else [by_scope()],
        config=config,
        metadata={"questions": found.source, "sha256": found.sha256},
    )


def _sample(question: EvalQuestion, scope: Scope) -> Sample:
    metadata = dict(question.metadata)
    reference = metadata.pop("reference", "")
    return Sample(
        id=question.id,
        input=[chat_message(message, question.id) for message in question.messages],
        target=[reference] if isinstance(reference, str) else list(reference),
        metadata={
            **metadata,
            "question_id": question.id,
            "category": question.category,
            "scope": scope,
            "turns": list(question.turns),
        },
    )


def chat_message(message: dict[str, Any], question: str) -> ChatMessage:
    """Returns a text message as Inspect has it; `question` is the id that an error names."""
    make, content = _MESSAGES.get(message["role"]), message.get("content")
    if make is None or message.get("tool_calls") or not isinstance(content, str):
        raise DataError(
            f"question {question}: only text messages of system, user and assistant can be asked."
        )
    return make(content=content)


def panel_for(questions: str, judge: Names | None) -> Panel:
    """Returns the judges of open questions: by default the oracle for the organism's, else none."""
    if questions == ORGANISM:
        return Panel(tuple([ORACLE] if judge is None else _names(judge)))
    return _panel(judge)


def _panel(judge: Names | None, kind: JudgeKind = "alignment", **options: Any) -> Panel:
    """The judges of questions that the oracle knows nothing of; there may be none."""
    names = [] if judge is None else _names(judge)
    if ORACLE in names:
        raise ConfigError(
            f"the oracle knows the organism's questions only: give questions={ORGANISM}, or the "
            "Inspect model name of a judge."
        )
    return Panel(tuple(names), kind, **options)


def _sets(names: Names) -> tuple[EvalQuestion, ...]:
    return tuple(question for name in _names(names) for question in load_questions(name).questions)


def _names(names: Names) -> list[str]:
    found = [names] if isinstance(names, str) else list(names)
    if not found or len(set(found)) < len(found) or not all(found):
        raise ConfigError(f"give one name or several different ones, not {found}.")
    return found


def _organisms(questions: str, **options: Any) -> dict[str, Any]:
    """Returns the options that were given; only the organism's questions have them."""
    given = {name: value for name, value in options.items() if value is not None}
    if given and questions != ORGANISM:
        names = ", ".join("question_seed" if name == "seed" else name for name in given)
        raise ConfigError(f"{names} choose among the organism's questions, not among others.")
    return given
