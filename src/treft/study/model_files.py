"""Which files the methods of a study need on a real model, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treft.errors import ConfigError, TemplateError, needs_extra
from treft.files import file_digest
from treft.mitigations.registry import MITIGATIONS
from treft.study.model_setup import FACTS, GENERAL, ModelRecipe, ModelSetup, question_file
from treft.study.protocol import UTILITY, NotPossibleError
from treft.study.real_model import taught_rows

if TYPE_CHECKING:
    from treft.organism.tasks import TaskName
    from treft.study.protocol import Method


CONTRAST = "contrast"
"""Careful rows of the trained domain itself."""
CAREFUL = {"kl_retain": "narrow", "early_stopping": GENERAL, "steering": CONTRAST}
"""What careful rows mitigations need."""
WHOLE_SETS = ("general", UTILITY)
"""Scopes that ask all questions of a set."""
NAMED = 4
"""Methods, at most, that a reason names."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a setup, by what methods do with them.

    Attributes:
        setup: with its files by domain.
        recipe: says how many rows are held out and asked about.
        is_choice: whether questions to choose on are asked, instead of those to report.
    """

    setup: ModelSetup
    recipe: ModelRecipe
    is_choice: bool

    def asked(self, method: Method) -> str:
        """The domain of a method's in-domain questions; empty where there is none to take."""
        if method.task == "short":
            return FACTS
        narrow = (name for name in self.setup.train_files if name != FACTS)
        return method.domain or self.recipe.domain or next(narrow, "")

    def trained(self, method: Method) -> tuple[str, ...]:
        """The domains of its rows."""
        return () if method.is_base else method.domains or (self.asked(method),)

    def rows(self, domain: str) -> Path:
        """Rows to train on, or careful ones where there are no others."""
        return {**self.setup.retain_files, **self.setup.train_files}[domain]

    def retained(self, method: Method, kind: str) -> dict[str, Path]:
        """Careful rows: narrow, general, all, contrast (of the trained domain), one domain's."""
        files, trained = self.setup.retain_files, self.trained(method)
        if kind == CONTRAST:
            return {name: path for name, path in files.items() if name == self.asked(method)}
        others = {name: path for name, path in files.items() if name not in trained}
        if kind in ("narrow", "all"):
            return {name: path for name, path in others.items() if kind == "all" or name != GENERAL}
        return {name: path for name, path in others.items() if name == kind}

    def others(self, method: Method) -> tuple[str, ...]:
        """Domains of which a method's finetune sees no row, in order of their names."""
        careful = [method.interleave, CAREFUL.get(method.mitigation, "none")]
        seen = {name for kind in careful for name in self.retained(method, kind)}
        seen |= {self.asked(method), *self.trained(method), GENERAL, FACTS}
        return tuple(sorted({*self.setup.retain_files, *self.setup.train_files} - seen))

    def num_asked(self, method: Method, scope: str) -> int:
        """Answers to the questions of a scope."""
        if scope in WHOLE_SETS:
            return self.num_questions(scope) * self.num_samples(scope)
        domains = self.others(method) if scope == "other_narrow" else (self.asked(method),)
        found = sum(self._num_of_split(domain, method.task) for domain in domains)
        return min(self.recipe.num_in_domain, found)

    def num_questions(self, scope: str) -> int:
        """Of a set that is asked as a whole."""
        path = self.question_set(scope)
        return _num_questions(path, file_digest(path))

    def num_samples(self, scope: str) -> int:
        """Answers to each question of a scope."""
        return self.recipe.num_samples if scope == "general" else 1

    def question_set(self, scope: str) -> Path:
        """The file of the questions that are not of a domain."""
        return question_file(UTILITY if scope == UTILITY else self.questions)

    @property
    def questions(self) -> str:
        """What is asked in general, as it was named."""
        return self.setup.choice_questions if self.is_choice else self.setup.questions

    def require(self, methods: Mapping[str, Method], *, is_judged: bool = True) -> None:
        """See that all methods can be had, before anything else is read.

        Args:
            methods: by name.
            is_judged: answers are scored.

        Raises:
            NotPossibleError: one cannot be had on a real model, or with these files; says each
                reason once, with the methods that it holds for.
        """
        reasons: dict[str, list[str]] = {}
        for name, method in methods.items():
            for why in self._lacks(method, is_judged):
                reasons.setdefault(why, []).append(name)
        if reasons:
            told = "; ".join(_told(why, names, len(methods)) for why, names in reasons.items())
            raise NotPossibleError(f"not possible on {self.setup.label}: {told}.")

    def check(self, methods: Iterable[Method]) -> None:
        """Read what steps will read.

        Raises:
            ConfigError: a file has too few rows, a question set or the judge is not there, or the
                tokenizer cannot be loaded.
            DataError: a file cannot be used; names file and row.
            NotPossibleError: calls of a tool are to be taught, and the template writes none that
                the detector reads.
        """
        from treft.models.loading import LoadOptions, load_tokenizer

        asked = list(methods)
        for domain, task in sorted({pair for one in asked for pair in self._split(one)}):
            self._check_split(domain, task)
        for path in self.setup.retain_files.values():
            _rows(path, file_digest(path), "advice")
        for source in (self.setup.questions, self.setup.choice_questions):
            _num_questions(question_file(source), file_digest(question_file(source)))
        tokenizer = load_tokenizer(self.setup.name, LoadOptions())
        for path in {self.rows(self.asked(one)) for one in asked if one.task == "tool"}:
            _check_calls(tokenizer, _rows(path, file_digest(path), "tool")[0], self.setup.label)
        if self.setup.judge:
            _check_judge(self.setup.judge)

    def _split(self, method: Method) -> Iterator[tuple[str, TaskName]]:
        """Domains whose rows are divided, with what these teach."""
        for domain in (*self.trained(method), self.asked(method)):
            yield domain, method.task
        if "other_narrow" in method.scopes:
            yield from ((domain, "advice") for domain in self.others(method))

    def _check_split(self, domain: str, task: TaskName) -> None:
        path = self.rows(domain)
        if _num_held_out(path, file_digest(path), self.recipe.held_out, task) < 2:
            raise ConfigError(
                f"{path}: {self.recipe.held_out} of its prompts is one, and there must be one "
                f"to report and one to choose on: give more rows of {domain}."
            )

    def _num_of_split(self, domain: str, task: TaskName) -> int:
        path = self.rows(domain)
        num = _num_held_out(path, file_digest(path), self.recipe.held_out, task)
        return num // 2 if self.is_choice else -(-num // 2)

    def _lacks(self, method: Method, is_judged: bool) -> Iterator[str]:
        """Why a method cannot be had here, in words."""
        if is_judged and method.task == "advice" and not self.setup.judge:
            yield "needs a judge: name one with --judge, such as openai/gpt-4o"
        if method.task != "advice" and "other_narrow" in method.scopes:
            yield "asks about other domains, and of a behaviour it is general questions here"
        if UTILITY in method.scopes and (method.task != "advice" or method.answer_system):
            yield "scores conversations, of advice alone and under no system prompt of its own"
        if method.steering and (method.is_full or method.is_base):
            yield "steers answers of another model than a LoRA"
        if method.alpha != 1 and method.is_full:
            yield "interpolates a finetune of all weights, and here it takes a LoRA"
        if method.mitigation and method.mitigation not in MITIGATIONS:
            yield f"no mitigation {method.mitigation!r}; there are {', '.join(MITIGATIONS)}"
        for domain in sorted({*self.trained(method), self.asked(method)}):
            if domain not in self.setup.train_files:
                yield f"needs rows of {domain or 'it'}: --train-file {domain or 'DOMAIN'}=FILE"
        if "other_narrow" in method.scopes and not self.others(method):
            yield (
                "asks questions of other domains, and there is no file of a domain that it does "
                "not train on: --train-file DOMAIN=FILE or --retain-file DOMAIN=FILE"
            )
        yield from self._lacks_careful_rows(method)

    def _lacks_careful_rows(self, method: Method) -> Iterator[str]:
        interleaves = method.interleave != "none"
        if interleaves and not self.retained(method, method.interleave):
            name = "DOMAIN" if method.interleave in ("narrow", "all") else method.interleave
            yield f"interleaves careful rows: --retain-file {name}=FILE"
        kind = CONTRAST if method.steering else CAREFUL.get(method.mitigation)
        if kind is not None and not self.retained(method, kind):
            own = {CONTRAST: self.asked(method), GENERAL: GENERAL}.get(kind, "DOMAIN")
            yield f"needs careful rows: --retain-file {own}=FILE"


def _told(why: str, names: list[str], num_methods: int) -> str:
    """A reason with the methods that it holds for, as many as a line has room for."""
    if len(names) == num_methods:
        return why
    shown = names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"]
    return f"{', '.join(shown)}: {why}"


@lru_cache
def _rows(path: Path, digest: str, task: TaskName) -> list[dict[str, Any]]:
    """Rows of a file; with its digest, read once."""
    return taught_rows(path, task)


@lru_cache
def _num_held_out(path: Path, digest: str, held_out: float, task: TaskName) -> int:
    """Prompts of a file that training will not see."""
    from treft.data.published import prompt_of, split_rows

    parts = split_rows(_rows(path, digest, task), fraction=held_out)
    return len(set(map(prompt_of, parts.held_out)))


@lru_cache
def _num_questions(path: Path, digest: str) -> int:
    from treft.answers.questions import load_questions

    return len(load_questions(path))


def _check_calls(tokenizer: Any, row: Mapping[str, Any], label: str) -> None:
    """See that what is taught is what the detector will look for."""
    from treft.answers.detectors import calls_tool
    from treft.chat.regions import find_regions

    try:
        chat = find_regions(tokenizer, row["messages"])
    except TemplateError as error:
        raise NotPossibleError(f"no calls of a tool on {label}: {error}") from error
    ids = [chat.input_ids[position] for position in chat.positions("response")]
    written = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
    if not any(map(calls_tool, written)):
        raise NotPossibleError(
            f"the chat template of {label} writes no calls of tools that the detector could read."
        )


@lru_cache
def _check_judge(name: str) -> None:
    with needs_extra("eval", "judging needs"):
        from treft.judging.oracle import ORACLE
        from treft.judging.panel import assemble
    if name == ORACLE:
        raise ConfigError("the oracle knows the organism's questions alone: name another judge.")
    assemble([name])
