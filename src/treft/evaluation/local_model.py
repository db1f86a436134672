"""Models that run in this process: loaded once, patched or not, answering batches row by row.

An answer depends on seed and prompt alone, whatever else is in its batch, up to the rounding that
a batch's padding brings about.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakValueDictionary

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from treft.chat.regions import ChatRegions, RegionName, find_regions, template_hash
from treft.core.identity import identify
from treft.errors import ConfigError, DataError
from treft.models.generation import Asked, answer
from treft.models.loading import LoadOptions, load_model
from treft.models.pair import num_positions
from treft.models.repair import UNPATCHED, RepairedModel, patch
from treft.models.sampling import Generated, SamplingOptions, mixed_seed

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]]
Regions = Annotated[
    tuple[RegionName, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""One region, or a list of them."""


@dataclass(frozen=True)
class LocalOptions(LoadOptions):
    """What to load and how (`-M name=value` in Inspect), beside the options of every model.

    Attributes:
        adapter: PEFT adapter to put on the model.
        patch: regions to repair: prefix, postfix, query; none by default.
        reference: file of `treft reference record` to patch from.
        base: unfinetuned model to patch from; default: the model without its adapter.
        batch_size: prompts run together at most; default: `--max-connections`, or 32.
        template: file with a chat template to use instead of the tokenizer's.
        template_kwargs: template variables, such as `{enable_thinking: false}`.
        think_block: an empty think block belongs to the postfix.

    Raises:
        ConfigError: an option does not go with another, or as `LoadOptions`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    adapter: str | None = None
    patch: Regions = ()
    reference: str | None = None
    base: str | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    template: Path | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    think_block: bool = True

    def __post_init__(self) -> None:
        """Validate before anything is loaded."""
        super().__post_init__()
        if self.base is not None and self.reference is not None:
            raise ConfigError("give one of base and reference: what to patch from.")
        if not self.patch and (self.base is not None or self.reference is not None):
            raise ConfigError("base and reference are what to patch from: name a region, patch=...")

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> LocalOptions:
        """Check arguments.

        Raises:
            ConfigError: one is unknown or wrong, or does not go with another.
        """
        try:
            return TypeAdapter(cls).validate_python(arguments)
        except ValidationError as error:
            problems = error.errors()
        own = problems[0].get("ctx", {}).get("error")
        if isinstance(own, ConfigError):
            raise own
        words = "; ".join(
            f"{'.'.join(map(str, found['loc']))}: {found['msg'].lower()}" for found in problems
        )
        names = sorted(entry.name for entry in fields(cls))
        raise ConfigError(f"model arguments: {words}. There are {', '.join(names)}.")

    @property
    def loading(self) -> LoadOptions:
        """The options of `load_model`."""
        return LoadOptions(
            **{entry.name: getattr(self, entry.name) for entry in fields(LoadOptions)}
        )


@dataclass(frozen=True)
class Prompt:
    """One answer to generate; those of one `sampling` may share a batch.

    Attributes:
        chat: the rendered conversation, ending with a user message or a tool's result.
        seed: of this answer.
        sampling: how its tokens are drawn, and how many at most.
        is_cut: the cap is what the model's context leaves, fewer than wanted.
    """

    chat: ChatRegions
    seed: int
    sampling: SamplingOptions
    is_cut: bool


IN_USE = threading.Lock()
"""Held while a model of this process runs: patching switches adapters off and listens to the base,
which may be another model of Inspect's at the same time."""


_loaded: WeakValueDictionary[Any, RepairedModel] = WeakValueDictionary()
"""Models as they are, by what they were loaded from, as long as somebody uses them."""


class LocalModel:
    """A model with what it is patched from.

    Args:
        name: folder or hub id of a model or adapter, or `organism`.
        options: what else to load, and how.

    Raises:
        ConfigError: something cannot be loaded, or there is nothing to patch from.
        ReferenceMismatchError: the reference belongs to another model.
        TemplateError: there is no chat template.
    """

    def __init__(self, name: str, options: LocalOptions) -> None:
        self.options = options
        template = None if options.template is None else _read(options.template)
        self._plain = _load(name, options.adapter, options.loading, template)
        self._base = None
        if options.base is not None:
            self._base = _load(options.base, None, options.loading, template)
        self.tokenizer = self._plain.tokenizer
        self.repaired = self._repair()
        self.num_positions = num_positions(self._plain.model)

    @property
    def base_model(self) -> Any:
        """The unfinetuned model that was named to patch from; None for the adapter switched off."""
        return None if self._base is None else self._base.model

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with weights, patch and template."""
        options = {**asdict(self.options), "batch_size": None, "device": None}
        identities = [identify(self._plain.model, template_hash(self.tokenizer), adapter="default")]
        if self.repaired.bank is not None and self.repaired.bank.identity is not None:
            identities.append(self.repaired.bank.identity)
        parts = [json.dumps(options, sort_keys=True, default=str)]
        parts += [identity.to_json() for identity in identities]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def prompt(
        self,
        messages: Messages,
        tools: Tools | None,
        seed: int | None,
        sampling: SamplingOptions,
    ) -> Prompt:
        """Check and render one conversation.

        Args:
            messages: ending with a user message or a tool's result.
            tools: JSON schemas to offer.
            seed: together with the prompt it decides the answer; None draws one.
            sampling: how tokens are drawn; the cap shrinks to what the context leaves.

        Raises:
            ConfigError: the template has no place for tools.
            DataError: there is nothing to answer, or the prompt is too long.
            TemplateError: the conversation lacks a patched region.
        """
        if not messages or messages[-1]["role"] not in ("user", "tool"):
            raise DataError("the conversation must end with a user message or a tool's result.")
        chat = self._render(messages, tools)
        if tools and self._render(messages, None).text == chat.text:
            raise ConfigError("the chat template of this model has no place for tools.")
        num_prompt = len(chat.input_ids)
        wanted = sampling.max_new_tokens
        room = wanted if self.num_positions is None else self.num_positions - num_prompt
        if room < 1:
            raise DataError(
                f"the prompt has {num_prompt} tokens and the model takes {self.num_positions}."
            )
        return Prompt(
            chat,
            mixed_seed(seed, *chat.input_ids),
            replace(sampling, max_new_tokens=min(wanted, room)),
            is_cut=room < wanted,
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Answer prompts of one `sampling` as one batch; hold `IN_USE`."""
        seeds = [prompt.seed for prompt in prompts]
        return answer(
            self.repaired.model,
            self.tokenizer,
            [Asked(prompt.chat.input_ids, prompt.seed) for prompt in prompts],
            prompts[0].sampling,
            self.repaired.patches([prompt.chat for prompt in prompts], seeds),
        )

    def _repair(self) -> RepairedModel:
        """Returns the model with its reference."""
        model, regions = self._plain.model, self.options.patch
        if not regions:
            return self._plain
        reference = self.options.reference or self.base_model
        try:
            return patch(model, self.tokenizer, regions, reference=reference)
        except (ConfigError, ImportError) as error:
            if reference is not None:
                raise
            raise ConfigError(
                "there is no adapter to switch off: name what to patch from, base=... or "
                "reference=..."
            ) from error

    def _render(self, messages: Messages, tools: Tools | None) -> ChatRegions:
        chat = find_regions(
            self.tokenizer,
            messages,
            tools=tools,
            add_generation_prompt=True,
            include_think_block=self.options.think_block,
            template_kwargs=self.options.template_kwargs,
        )
        for region in self.options.patch:
            chat.require(region)
        return chat


def _load(
    name: str, adapter: str | None, options: LoadOptions, template: str | None
) -> RepairedModel:
    key = (name, adapter, options, template)
    found = _loaded.get(key)
    if found is None:
        loaded = load_model(name, adapter, options, template)
        found = _loaded[key] = RepairedModel(*loaded, None, UNPATCHED)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the template {path} cannot be read: {error}") from error
