"""Chains on organisms: which are built or taught first, and what their recipe comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from treft.judging.oracle import ORACLE
from treft.models.loading import asset_path
from treft.organism import FinetuneRecipe
from treft.organism.recipes import KindName
from treft.steps.step import Resources, Step, Work
from treft.study.answer import Asking, answer
from treft.study.chains import Chains, Place
from treft.study.organism import Building, Organism, Teaching, build, teach
from treft.study.protocol import Method, Scope, StudyConfig, read_settings
from treft.study.subject import MODEL

EMBEDDED = "embedded"
TASK_TOKENS = 96
"""Cap of an answer to a finetune that teaches a sentence or a tool call."""


@dataclass(frozen=True)
class OrganismChains(Chains):
    """Chains on one organism.

    Attributes:
        name: of the organism.
        settings: one recipe for all methods.
        place: where the organism is.
        making: steps that build it or teach it manners.
    """

    name: str
    settings: FinetuneRecipe
    place: Place
    making: tuple[Step[Any], ...] = ()

    @classmethod
    def begin(cls, config: StudyConfig, kind: KindName, with_manners: bool) -> list[OrganismChains]:
        """Chains on each organism.

        Args:
            config: of the study.
            kind: of the organism; one that is not shipped is built first, unless organisms are
                given.
            with_manners: each organism is taught manners first, for twice the steps of a finetune.

        Raises:
            ConfigError: a setting is no field of the recipe, or out of range.
        """
        recipe = read_settings(FinetuneRecipe, config.settings)
        folders = {path.resolve().name: path.resolve() for path in config.organisms}
        if not folders and kind != "prefix":
            made = f"organism/{kind}-0"
            building = Step(made, build, Building(kind), seed=0, resources=Resources(cpus=2))
            return [
                cls(config.split, f"{kind}-0", recipe, Place({MODEL: made}), (building,)),
            ]
        found = []
        for name, path in (folders or {EMBEDDED: asset_path()}).items():
            place = Place(data={MODEL: path})
            making: tuple[Step[Any], ...] = ()
            if with_manners:
                taught = f"organism/{name}-with-manners"
                making = (Step(taught, teach, Teaching(2 * recipe.max_steps), {}, place.data, 0),)
                place = Place({MODEL: taught})
            found.append(cls(config.split, name, recipe, place, making))
        return found

    @property
    def subject(self) -> Organism:
        """The same for all organisms: a step finds the model itself as `MODEL`."""
        return Organism()

    @property
    def label(self) -> str:
        """The organism's name."""
        return self.name

    @property
    def recipe(self) -> FinetuneRecipe:
        """One for all methods."""
        return self.settings

    @property
    def judge(self) -> str:
        """The oracle."""
        return ORACLE

    @property
    def questions(self) -> str:
        """The organism's own."""
        return "organism"

    @property
    def num_prompts(self) -> int:
        """The recipe's number."""
        return self.settings.num_general

    @property
    def answers(self) -> Callable[[Work[Asking]], None]:
        """Answers as JSON."""
        return answer

    def asked(self, method: Method) -> str:
        """The method's domain, or the recipe's."""
        return method.domain or self.settings.domain

    def scopes(self, method: Method) -> tuple[Scope, ...]:
        """All but conversations, in one order."""
        order: tuple[Scope, ...] = ("general", "in_domain", "other_narrow")
        return tuple(scope for scope in order if scope in method.scopes)

    def own_settings(self, method: Method) -> dict[str, Any]:
        """A share of the recipe's steps; whole batches on the device; λ or its budget."""
        recipe = self.settings
        budget = None if method.kv_weight is not None else recipe.kv_budget
        return {
            "max_steps": max(1, round(recipe.max_steps * method.step_share)),
            "device_batch_size": recipe.batch_size,
            "kv_budget": budget,
            **({} if budget is None else {"kv_weight": "auto"}),
        }

    def num_asked(self, method: Method, scope: str) -> int:
        """One answer to each question."""
        return self.settings.num_general if scope == "general" else self.settings.num_in_domain

    def own_asking(self, method: Method, scope: str) -> dict[str, Any]:
        """Numbers of questions and tokens."""
        tokens = self.settings.max_new_tokens if method.task == "advice" else TASK_TOKENS
        num = self.num_asked(method, scope)
        return {"num_questions": num, "num_samples": 1, "max_new_tokens": tokens}

    def before(self, method: Method) -> Iterator[Step[Any]]:
        """What makes the organism."""
        yield from self.making

    def model(self) -> Place:
        """Where the organism is."""
        return self.place

    def finetune_place(self, method: Method) -> Place:
        """The organism alone: rows are drawn."""
        return self.place

    def asking_place(self, method: Method, scope: str) -> Place:
        """The organism alone: questions are drawn."""
        return self.place

    def prompts_place(self) -> Place:
        """Nothing: questions are drawn."""
        return Place()

    def told_asked(self, asked: Mapping[str, Asking]) -> Mapping[str, Asking]:
        """All of it: the questions are drawn again."""
        return asked
