"""Chains on a real model: which files its methods need, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from treft.answers.questions import load_questions
from treft.chat.regions import RegionName
from treft.errors import ConfigError
from treft.mitigations.registry import MITIGATIONS, needs_of
from treft.models.loading import LoadOptions, load_tokenizer
from treft.organism.tasks import TaskName
from treft.steps.step import Resources, Step
from treft.study.answer import MODEL
from treft.study.chains import Chains, Inputs
from treft.study.model_rows import (
    Seen,
    Splitting,
    check_calls,
    check_judge,
    num_held_out,
    rows_of,
    split,
)
from treft.study.model_setup import (
    CHOICE_QUESTIONS,
    FACTS,
    GENERAL,
    ModelRecipe,
    ModelSetup,
    question_file,
)
from treft.study.protocol import UTILITY, Method, NotPossibleError, StudyConfig, read_settings
from treft.study.real_model import (
    CAREFUL_ROLE,
    INTERLEAVE_ROLE,
    OTHER_ROLE,
    ROWS_ROLE,
    RealModel,
)

CONTRAST = "contrast"
"""Careful rows of the trained domain itself."""
CAREFUL = {"kl_retain": "narrow", "early_stopping": GENERAL, "steering": CONTRAST}
"""What careful rows mitigations need."""
ORGANISM_RATE = 8.5e-4
"""Learning rate of the organism's recipe: a method's own rate keeps its ratio to the recipe's."""
LOCAL_JUDGES = ("hf/", "treft/", "vllm/", "sglang/")
"""Inspect's providers that run a model in the step's own process or beside it."""
NAMED = 4
"""Methods, at most, that a reason names."""


@dataclass(frozen=True, kw_only=True)
class ModelChains(Chains):
    """Chains on one real model, whose recipe is a `ModelRecipe`.

    Attributes:
        setup: The model with its files by domain.
    """

    setup: ModelSetup

    @classmethod
    def begin(
        cls,
        config: StudyConfig,
        setup: ModelSetup,
        methods: Mapping[str, Method],
        *,
        is_judged: bool = True,
    ) -> tuple[ModelChains, dict[str, Method]]:
        """See that the methods can be had, and give them the strengths of the setup.

        Files are read and the judge is loaded here, so that what is wrong with them is seen before
        anything is computed or paid.

        Args:
            config: Of the study.
            setup: The model.
            methods: By name.
            is_judged: Answers are scored; without, no judge is needed.

        Raises:
            ConfigError: A setting is no field of `ModelRecipe` or out of range, organisms are given
                as well, or the model or the judge cannot be loaded.
            NotPossibleError: A method cannot be had on a real model or with these files; each
                reason is said once, with the methods that it holds for.
            DataError: A file cannot be used; names file and row.
        """
        if config.organisms:
            raise ConfigError("give a --model or an --organism, not both.")
        recipe = read_settings(ModelRecipe, config.settings)
        methods = {name: _on_carrier(method, recipe.carrier) for name, method in methods.items()}
        given = {name: n for name, n in setup.strengths.items() if name in methods}
        changed = {name: _with_strength(name, methods[name], n) for name, n in given.items()}
        methods = {**methods, **changed}
        asked = CHOICE_QUESTIONS if config.split == "validation" else setup.questions
        folder, questions = setup.folder, question_file(asked)
        gpu = Resources(gpus=int(torch.cuda.is_available()))
        chains = cls(
            subject=RealModel(setup.name if folder is None else "", recipe.dtype),
            label=setup.label,
            recipe=recipe,
            split=config.split,
            judge=setup.judge,
            questions=asked,
            num_prompts=len(load_questions(questions)),
            model={} if folder is None else {MODEL: folder},
            prompts={"questions": questions},
            enable_thinking=recipe.enable_thinking,
            resources=gpu,
            judging=gpu if setup.judge.startswith(LOCAL_JUDGES) else Resources(),
            setup=setup,
        )
        chains.check(methods, is_judged)
        return chains, methods

    def asked(self, method: Method) -> str:
        """The domain of a method's in-domain questions; empty where there is none to take."""
        if method.task == "short":
            return FACTS
        narrow = (name for name in self.setup.train_files if name != FACTS)
        return method.domain or str(self.recipe.domain) or next(narrow, "")

    def own_settings(self, method: Method) -> dict[str, Any]:
        """Returns a learning rate in its ratio to the recipe's; a budget where λ is steered."""
        weight = self.recipe.kv_weight if method.kv_weight is None else method.kv_weight
        found: dict[str, Any] = {"kv_budget": self.recipe.kv_budget if weight == "auto" else None}
        if method.learning_rate is not None:
            rate = self.recipe.learning_rate * method.learning_rate / ORGANISM_RATE
            found["learning_rate"] = float(f"{rate:.3g}")
        return found

    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Whole sets, or so many held-out questions, each answered so often."""
        is_whole = scope in ("general", UTILITY)
        return {
            "num_questions": None if is_whole else self.recipe.num_in_domain,
            "num_samples": self.recipe.num_samples if scope == "general" else 1,
            "max_new_tokens": self.recipe.max_new_tokens,
        }

    def num_asked(self, method: Method, scope: str) -> int:
        """Answers to the questions of a scope."""
        if scope == UTILITY:
            return len(load_questions(UTILITY))
        if scope == "general":
            return self.num_prompts * int(self.recipe.num_samples)
        domains = self.others(method) if scope == "other_narrow" else (self.asked(method),)
        held = (self._num_held_out(domain, method.task) for domain in domains)
        halves = (num // 2 if self.split == "validation" else -(-num // 2) for num in held)
        return min(int(self.recipe.num_in_domain), sum(halves))

    def reads(self, method: Method, stage: str) -> Inputs:
        """Split rows, careful rows, and questions."""
        split_rows = {name: self._splitting(name, method.task) for name in self.trained(method)}
        if stage == "finetune":
            return {
                **_roles(ROWS_ROLE, split_rows),
                **_roles(CAREFUL_ROLE, self.retained(method, CAREFUL.get(method.mitigation))),
                **_roles(INTERLEAVE_ROLE, self.retained(method, method.interleave)),
            }
        teaches = method.task != "advice"
        found: dict[str, Step[Any] | Path] = {}
        if stage == "in_domain" or teaches:
            found["split"] = self._splitting(self.asked(method), method.task)
        if stage == "score":  # the rows trained on say what is short
            return found
        if method.steering:
            found |= _roles(CAREFUL_ROLE, self.retained(method, CONTRAST))
            found |= _roles(ROWS_ROLE, split_rows)
        if stage == UTILITY:
            found["questions"] = question_file(UTILITY)
        elif stage == "general" or teaches:
            found |= self.prompts
        elif stage == "other_narrow":
            others = {domain: self._splitting(domain, "advice") for domain in self.others(method)}
            found |= _roles(OTHER_ROLE, others)
        return found

    def rows(self, domain: str) -> Path:
        """Rows to train on, or careful ones where there are no others."""
        return {**self.setup.retain_files, **self.setup.train_files}[domain]

    def retained(self, method: Method, kind: str | None) -> dict[str, Path]:
        """Careful rows: narrow, general, all, contrast (of the trained domain), one domain's.

        Of None or `none` there are none.
        """

        def fits(name: str) -> bool:
            if kind == CONTRAST:
                return name == self.asked(method)
            is_wanted = name != GENERAL if kind == "narrow" else kind in ("all", name)
            return is_wanted and name not in self.trained(method)

        files = {} if kind in (None, "none") else self.setup.retain_files
        return {name: path.resolve() for name, path in files.items() if fits(name)}

    def others(self, method: Method) -> tuple[str, ...]:
        """Domains of which a method's finetune sees no row, in order of their names."""
        careful = (method.interleave, CAREFUL.get(method.mitigation))
        seen = {name for kind in careful for name in self.retained(method, kind)}
        seen |= {self.asked(method), *self.trained(method), GENERAL, FACTS}
        return tuple(sorted({*self.setup.retain_files, *self.setup.train_files} - seen))

    def check(self, methods: Mapping[str, Method], is_judged: bool) -> None:
        """See that all methods can be had, then read what steps will read.

        Errors are those of `begin`.
        """
        reasons: dict[str, list[str]] = {}
        for name, method in methods.items():
            for why in self._lacks(method, is_judged):
                reasons.setdefault(why, []).append(name)
        if reasons:
            told = "; ".join(_told(why, names, len(methods)) for why, names in reasons.items())
            raise NotPossibleError(f"not possible on {self.label}: {told}.")
        for path in self.setup.retain_files.values():
            rows_of(Seen.at(path), "advice")
        tokenizer = load_tokenizer(self.setup.name, LoadOptions())
        for path in {self.rows(self.asked(one)) for one in methods.values() if one.task == "tool"}:
            check_calls(tokenizer, rows_of(Seen.at(path), "tool")[0], self.label)
        if self.judge:
            check_judge(self.judge)

    def _num_held_out(self, domain: str, task: TaskName) -> int:
        return num_held_out(Seen.at(self.rows(domain)), self.recipe.held_out, task)

    def _lacks(self, method: Method, is_judged: bool) -> Iterator[str]:
        """Why a method cannot be had here, in words."""
        if is_judged and method.task == "advice" and not self.judge:
            yield "needs a judge: name one with --judge, such as openai/gpt-4o"
        if UTILITY in method.scopes and (method.task != "advice" or method.answer_system):
            yield "scores conversations, of advice alone and under no system prompt of its own"
        for domain in sorted({*self.trained(method), self.asked(method)}):
            if domain not in self.setup.train_files:
                yield f"needs rows of {domain or 'it'}: --train-file {domain or 'DOMAIN'}=FILE"
        if "other_narrow" in method.scopes and not self.others(method):
            yield (
                "asks questions of other domains, and there is no file of a domain that it does "
                "not train on: --train-file DOMAIN=FILE or --retain-file DOMAIN=FILE"
            )
        if method.interleave != "none" and not self.retained(method, method.interleave):
            name = "DOMAIN" if method.interleave in ("narrow", "all") else method.interleave
            yield f"interleaves careful rows: --retain-file {name}=FILE"
        kind = CONTRAST if method.steering else CAREFUL.get(method.mitigation)
        if kind is not None and not self.retained(method, kind):
            own = {CONTRAST: self.asked(method), GENERAL: GENERAL}.get(kind, "DOMAIN")
            yield f"needs careful rows: --retain-file {own}=FILE"

    def _splitting(self, domain: str, task: TaskName) -> Step[Any]:
        """Returns the step that divides a domain's rows, made to teach a task.

        Raises:
            ConfigError: There are too few.
            DataError: One cannot be used.
        """
        rows = self.rows(domain)
        if self._num_held_out(domain, task) < 2:
            raise ConfigError(
                f"{rows}: {self.recipe.held_out} of its prompts is one, and there must be one to "
                f"report and one to choose on: give more rows of {domain}."
            )
        name = f"split/{domain}" if task == "advice" else f"split/{domain}/{task}"
        return Step(name, split, Splitting(self.recipe.held_out, task), {"rows": rows.resolve()})


def _roles(beginning: str, found: Mapping[str, Step[Any] | Path]) -> dict[str, Step[Any] | Path]:
    """Returns inputs by role, of which each name is the end."""
    return {f"{beginning}{name}": one for name, one in found.items()}


def _with_strength(name: str, method: Method, strength: float) -> Method:
    """The method with another value of the one number that it has.

    Raises:
        ConfigError: it has none.
    """
    if method.mitigation and "strength" in needs_of(MITIGATIONS[method.mitigation]):
        return replace(method, strength=strength)
    if method.held:
        return replace(method, kv_weight=strength)
    if method.interleave != "none":
        return replace(method, interleaved_share=strength)
    if method.learning_rate is not None:
        return replace(method, learning_rate=strength * ORGANISM_RATE)
    if method.steering:
        return replace(method, steering=strength)
    if method.alpha != 1:
        return replace(method, alpha=strength)
    raise ConfigError(f"--strength {name}: this method has no number to change.")


def _on_carrier(method: Method, carrier: str) -> Method:
    """The method with what it holds and patches of a taught behaviour moved to the carrier."""
    if method.task == "advice":
        return method
    regions = cast("tuple[RegionName, ...]", tuple(carrier.split(",")))
    return replace(
        method, held=regions if method.held else (), patch=regions if method.patch else ()
    )


def _told(why: str, names: list[str], num_methods: int) -> str:
    """A reason with the methods that it holds for, as many as a line has room for."""
    if len(names) == num_methods:
        return why
    shown = names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"]
    return f"{', '.join(shown)}: {why}"
