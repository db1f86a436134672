"""Chains on a real model: split its rows, finetune, answer with Inspect, judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig

from treft.chat.regions import RegionName, find_regions
from treft.errors import ConfigError, TemplateError
from treft.models.loading import LoadOptions, load_tokenizer, model_path
from treft.steps.step import Resources, Step, Work
from treft.study.answer import Asking, answer_logged
from treft.study.chains import Chains, Place
from treft.study.model_files import CAREFUL, CONTRAST, WHOLE_SETS, ModelFiles
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.protocol import Method, NotPossibleError, StudyConfig, read_settings
from treft.study.real_model import (
    CAREFUL_ROLE,
    INTERLEAVE_ROLE,
    OTHER_ROLE,
    ROWS_ROLE,
    RealModel,
    Splitting,
    split,
)
from treft.study.scores import Scored
from treft.study.subject import MODEL

if TYPE_CHECKING:
    from treft.organism.tasks import TaskName


ORGANISM_RATE = 8.5e-4
"""Learning rate of the organism's recipe: a method's own rate keeps its ratio to the recipe's."""
LOCAL_JUDGES = ("hf/", "treft/", "vllm/", "sglang/")
"""Inspect's providers that run a model in the step's own process or beside it."""


@dataclass(frozen=True)
class ModelChains(Chains):
    """Chains on one real model.

    Attributes:
        files: of the model.
    """

    files: ModelFiles

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
            config: of the study.
            setup: the model.
            methods: by name.
            is_judged: answers are scored; without, no judge is needed.

        Raises:
            ConfigError: a setting is no field of `ModelRecipe` or out of range, organisms are given
                as well, or the model or the judge cannot be loaded.
            NotPossibleError: a method cannot be had on a real model or with these files.
            DataError: a file cannot be used; names file and row.
        """
        if config.organisms:
            raise ConfigError("give a --model or an --organism, not both.")
        recipe = read_settings(ModelRecipe, config.settings)
        methods = {name: _on_carrier(method, recipe.carrier) for name, method in methods.items()}
        given = {name: n for name, n in setup.strengths.items() if name in methods}
        changed = {name: _with_strength(name, methods[name], n) for name, n in given.items()}
        methods = {**methods, **changed}
        files = ModelFiles(setup, recipe, is_choice=config.split == "validation")
        files.require(methods, is_judged=is_judged)
        files.check(methods.values())
        return cls(config.split, files), methods

    @property
    def subject(self) -> RealModel:
        """The model; a folder is data of each step."""
        setup = self.files.setup
        return RealModel(setup.name if setup.folder is None else "", self.recipe.dtype)

    @property
    def label(self) -> str:
        """The model's name."""
        return self.files.setup.label

    @property
    def recipe(self) -> ModelRecipe:
        """One for all."""
        return self.files.recipe

    @property
    def judge(self) -> str:
        """The judge that was named, if one was."""
        return self.files.setup.judge

    @property
    def questions(self) -> str:
        """The set or file that is asked in general."""
        return self.files.questions

    @property
    def num_prompts(self) -> int:
        """All of the set's."""
        return self.files.num_questions("general")

    @property
    def enable_thinking(self) -> bool | None:
        """The recipe's."""
        return self.recipe.enable_thinking

    @property
    def answers(self) -> Callable[[Work[Asking]], None]:
        """Answers as an Inspect log."""
        return answer_logged

    def asked(self, method: Method) -> str:
        """See `ModelFiles.asked`."""
        return self.files.asked(method)

    def own_settings(self, method: Method) -> dict[str, Any]:
        """A learning rate in its ratio to the recipe's; a budget where λ is steered."""
        weight = self.recipe.kv_weight if method.kv_weight is None else method.kv_weight
        found: dict[str, Any] = {"kv_budget": self.recipe.kv_budget if weight == "auto" else None}
        if method.learning_rate is not None:
            rate = self.recipe.learning_rate * method.learning_rate / ORGANISM_RATE
            found["learning_rate"] = float(f"{rate:.3g}")
        return found

    def num_asked(self, method: Method, scope: str) -> int:
        """See `ModelFiles.num_asked`."""
        return self.files.num_asked(method, scope)

    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Whole sets, or so many held-out questions, each answered so often."""
        recipe = self.recipe
        return {
            "num_questions": None if scope in WHOLE_SETS else recipe.num_in_domain,
            "num_samples": self.files.num_samples(scope),
            "max_new_tokens": recipe.max_new_tokens,
        }

    def before(self, method: Method) -> Iterator[Step[Any]]:
        """Splits of the domains that are trained on and asked about."""
        for domain in dict.fromkeys([*self.trained(method), self.asked(method)]):
            yield self._splitting(domain, method.task)

    def model(self) -> Place:
        """The model's folder; nothing for a hub id."""
        folder = self.files.setup.folder
        return Place(data={} if folder is None else {MODEL: folder})

    def finetune_place(self, method: Method) -> Place:
        """The model, split rows, and careful rows where the method wants some."""
        data = dict(self.model().data)
        if method.mitigation in CAREFUL:
            data |= self._careful(method, CAREFUL[method.mitigation])
        if method.interleave != "none":
            for name, path in self.files.retained(method, method.interleave).items():
                data[f"{INTERLEAVE_ROLE}{name}"] = path.resolve()
        return Place(self._rows(method), data)

    def asking_place(self, method: Method, scope: str) -> Place:
        """The model, questions, and rows that a persona vector is taken from."""
        data = dict(self.model().data)
        inputs: dict[str, str] = {}
        before: list[Step[Any]] = []
        if method.steering:
            data |= self._careful(method, CONTRAST)
            inputs |= self._rows(method)
        if scope == "other_narrow":
            for domain in self.files.others(method):
                before.append(self._splitting(domain, "advice"))
                inputs[f"{OTHER_ROLE}{domain}"] = before[-1].name
        if scope in WHOLE_SETS or method.task != "advice":
            data["questions"] = self.files.question_set(scope)
        if scope == "in_domain" or method.task != "advice":
            inputs["split"] = _split_name(self.asked(method), method.task)
        return Place(inputs, data, tuple(before))

    def prompts_place(self) -> Place:
        """The set of general questions."""
        return Place(data={"questions": self.files.question_set("general")})

    def scoring_inputs(self, method: Method) -> Mapping[str, str]:
        """Rows trained on, whose responses say what is short."""
        if method.task == "advice":
            return {}
        return {"split": _split_name(self.asked(method), method.task)}

    def resources(self, *, loads_model: bool) -> Resources:
        """A GPU for a step that loads a model, if there is one."""
        return Resources(gpus=int(loads_model and _has_gpu()))

    def judge_resources(self) -> Resources:
        """A GPU where the judge is a model that runs here."""
        return self.resources(loads_model=self.judge.startswith(LOCAL_JUDGES))

    def _splitting(self, domain: str, task: TaskName) -> Step[Any]:
        data = {"rows": self.files.rows(domain).resolve()}
        config = Splitting(self.recipe.held_out, task)
        return Step(_split_name(domain, task), split, config, data=data)

    def _rows(self, method: Method) -> dict[str, str]:
        """Steps that divided the rows trained on, by role."""
        return {
            f"{ROWS_ROLE}{domain}": _split_name(domain, method.task)
            for domain in self.trained(method)
        }

    def _careful(self, method: Method, kind: str) -> dict[str, Path]:
        retained = self.files.retained(method, kind)
        return {f"{CAREFUL_ROLE}{name}": path.resolve() for name, path in retained.items()}


def check_strengths(setup: ModelSetup, steps: Iterable[Step[Any]]) -> None:
    """See that each strength is some method's.

    Args:
        setup: with the strengths.
        steps: of all studies that will run.

    Raises:
        ConfigError: one is not.
    """
    configs = [step.config for step in steps]
    known = dict.fromkeys(config.method for config in configs if isinstance(config, Scored))
    if unknown := [name for name in setup.strengths if name not in known]:
        raise ConfigError(
            f"no method {unknown[0]} here for --strength; there are {', '.join(known)}."
        )


def num_prefix_tokens(config: StudyConfig, setup: ModelSetup) -> int:
    """Tokens of the prefix that questions without a system message have.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        NotPossibleError: its template writes no prefix.
    """
    thinking = read_settings(ModelRecipe, config.settings).enable_thinking
    chat = find_regions(
        load_tokenizer(setup.name, LoadOptions()),
        [{"role": "user", "content": "x"}],
        add_generation_prompt=True,
        template_kwargs={} if thinking is None else {"enable_thinking": thinking},
    )
    try:
        return len(chat.require("prefix"))
    except TemplateError as error:
        raise NotPossibleError(f"not possible on {setup.label}: {error}") from error


def curve_layers(config: StudyConfig, setup: ModelSetup) -> list[int]:
    """The layers of Figure 4: as many as the recipe says, from the first to the last.

    Raises:
        ConfigError: the model's config cannot be loaded, or a setting is out of range.
    """
    wanted = read_settings(ModelRecipe, config.settings).num_curve_layers
    try:
        found = AutoConfig.from_pretrained(model_path(setup.name))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config of {setup.name} cannot be loaded: {error}") from error
    last = int(found.get_text_config(decoder=True).num_hidden_layers) - 1
    if last < wanted:
        return list(range(last + 1))
    return [index * last // (wanted - 1) for index in range(wanted)]


def _with_strength(name: str, method: Method, strength: float) -> Method:
    """The method with another value of the one number that it has.

    Raises:
        ConfigError: it has none.
    """
    if method.mitigation in (*CAREFUL, "kl_train", "ldifs", "weight_norm"):
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


@lru_cache(maxsize=1)
def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _split_name(domain: str, task: TaskName) -> str:
    """The step that divides a domain's rows, made to teach a task."""
    return f"split/{domain}" if task == "advice" else f"split/{domain}/{task}"
