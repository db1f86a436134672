"""Steps of attribution studies on a real model, on the finetunes that other studies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from treft.errors import ConfigError, TemplateError
from treft.steps.step import Step
from treft.study.attribution_prompts import What
from treft.study.method import Method
from treft.study.model_attribution import (
    AnsweringVersions,
    Drifting,
    JudgingVersions,
    Versions,
    answer_versions,
    drift,
    judge_versions,
    make_versions,
)
from treft.study.model_plan import LOCAL_JUDGES, ModelChains
from treft.study.model_setup import ModelRecipe, ModelSetup
from treft.study.protocol import NotPossibleError, StudyConfig, read_settings

NUM_TRIALS, NUM_TOKENS = 10, 10
"""Of section 4.1."""


def model_drift_steps(
    config: StudyConfig, setup: ModelSetup, methods: Mapping[str, Method]
) -> list[Step[Any]]:
    """Drift of the finetunes of all methods, over all general questions; no judge is needed.

    Raises:
        ConfigError, NotPossibleError, DataError: as `ModelChains.begin`.
    """
    chains, methods = ModelChains.begin(config, setup, methods, is_judged=False)
    steps: dict[str, Step[Any]] = {}
    for seed in range(config.num_seeds):
        tuned: dict[tuple[Any, ...], str] = {}
        for name, method in methods.items():
            trained, own = chains.finetuning(name, method, seed, tuned)
            recipe = chains.recipe
            moved = Drifting(name, setup.label, chains.model, recipe.dtype, recipe.enable_thinking)
            own.append(
                Step(
                    f"drift/{setup.label}/seed-{seed}/{name}",
                    drift,
                    moved,
                    {"finetune": trained},
                    _data(chains),
                    seed,
                    chains.resources(loads_model=True),
                )
            )
            steps.update((step.name, step) for step in own)
    return list(steps.values())


def model_perturb_steps(
    config: StudyConfig,
    setup: ModelSetup,
    rows: Mapping[str, What],
    most: int,
    base: str,
) -> list[Step[Any]]:
    """Each row on the plain finetunes, and as `base_ROW` on the model without one.

    `rephrase` is said by the judge.

    Args:
        config: of the study.
        setup: the model.
        rows: what is perturbed, by row.
        most: questions at most.
        base: how rows of the model without a finetune begin.

    Raises:
        ConfigError, NotPossibleError, DataError: as `ModelChains.begin`; also for a single
            question.
    """
    chains, methods = ModelChains.begin(config, setup, {"sft": Method()})
    num = min(most, chains.files.num_questions("general"))
    if num < 2:
        raise ConfigError(f"{chains.files.questions}: ask at least two questions here.")
    steps: list[Step[Any]] = []
    models = [_Answerer(base, f"{base}_", 0, {})]
    for seed in range(config.num_seeds):
        trained, own = chains.finetuning("sft", methods["sft"], seed, {})
        steps += own
        models.append(_Answerer(f"seed-{seed}/sft", "", seed, {"finetune": trained}))
    for row, what in rows.items():
        steps.append(_versions(chains, row, what, num))
        for one in models:
            steps += _answered(chains, one, row, num)
    return list({step.name: step for step in steps}.values())


def num_prefix_tokens(config: StudyConfig, setup: ModelSetup) -> int:
    """Tokens of the prefix that questions without a system message have.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        NotPossibleError: its template writes no prefix.
    """
    from treft.chat.regions import find_regions
    from treft.models.loading import LoadOptions, load_tokenizer

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


def model_curve_layers(config: StudyConfig, setup: ModelSetup) -> list[int]:
    """The layers of Figure 4: as many as the recipe says, from the first to the last.

    Raises:
        ConfigError: the model's config cannot be loaded, or a setting is out of range.
    """
    from transformers import AutoConfig

    from treft.models.loading import model_path

    wanted = read_settings(ModelRecipe, config.settings).num_curve_layers
    try:
        found = AutoConfig.from_pretrained(model_path(setup.name))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config of {setup.name} cannot be loaded: {error}") from error
    last = int(found.get_text_config(decoder=True).num_hidden_layers) - 1
    if last < wanted:
        return list(range(last + 1))
    return [index * last // (wanted - 1) for index in range(wanted)]


def _data(chains: ModelChains) -> dict[str, Any]:
    return {**chains.folder, "questions": chains.files.question_set("general")}


def _versions(chains: ModelChains, row: str, what: What, num: int) -> Step[Any]:
    recipe, setup = chains.recipe, chains.setup
    config = Versions(
        chains.model,
        what,
        num,
        NUM_TRIALS,
        NUM_TOKENS,
        recipe.max_new_tokens,
        recipe.dtype,
        recipe.enable_thinking,
        setup.judge if what == "rephrase" else "",
    )
    resources = chains.resources(loads_model=True)
    return Step(_prompts(chains, row), make_versions, config, {}, _data(chains), 0, resources)


class _Answerer(NamedTuple):
    """The model, or a finetune of it.

    Attributes:
        label: in names of steps.
        before: the name of a row, its name as a method.
        seed: of the finetune, and of the answers.
        inputs: with the finetune, if it is one.
    """

    label: str
    before: str
    seed: int
    inputs: Mapping[str, str]


def _answered(chains: ModelChains, one: _Answerer, row: str, num: int) -> list[Step[Any]]:
    """Its answers to the versions of one row, and what the judge says of them."""
    recipe, setup = chains.recipe, chains.setup
    name = f"{setup.label}/{one.label}/{row}"
    prompts = {"prompts": _prompts(chains, row)}
    answering = AnsweringVersions(
        chains.model, recipe.temperature, recipe.max_new_tokens, recipe.dtype
    )
    judging = JudgingVersions(
        f"{one.before}{row}",
        setup.label,
        setup.judge,
        chains.files.questions,
        num * NUM_TRIALS,
        num,
        NUM_TRIALS,
    )
    return [
        Step(
            f"answer/{name}",
            answer_versions,
            answering,
            {**prompts, **one.inputs},
            chains.folder,
            one.seed,
            chains.resources(loads_model=True),
        ),
        Step(
            f"score/{name}",
            judge_versions,
            judging,
            {**prompts, "answers": f"answer/{name}"},
            {"questions": chains.files.question_set("general")},
            one.seed,
            chains.resources(loads_model=setup.judge.startswith(LOCAL_JUDGES)),
        ),
    ]


def _prompts(chains: ModelChains, row: str) -> str:
    return f"prompts/{chains.setup.label}/{row}"
