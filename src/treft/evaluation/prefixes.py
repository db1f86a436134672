"""What a chat template writes before a question, with or without a system message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, find_regions, template_hash
from treft.errors import ConfigError, TemplateError
from treft.evaluation.local_model import LocalOptions
from treft.models.loading import LoadOptions, load_tokenizer, model_path

Messages = Sequence[Mapping[str, Any]]

QUESTION = "What time is it?"
"""Stands for any question: what comes before it does not depend on its words."""

_PROBE = "zq system zq"
_LOCAL = ("treft", "hf", "vllm")
"""Inspect's providers whose model names are folders or hub ids with a tokenizer."""

LARGEST_LENGTH = 1_000_000
"""Tokenizers that know no limit name a larger one."""


@dataclass(frozen=True, eq=False)
class PromptTemplate:
    """A chat template in force.

    Attributes:
        tokenizer: has the template.
        template_kwargs: its variables.
        think_block: an empty think block belongs to the postfix.
        num_positions: what the model's context takes; None if unknown.
    """

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    think_block: bool = True
    num_positions: int | None = None

    @property
    def identity(self) -> str:
        """Equal for templates that render alike."""
        return f"{template_hash(self.tokenizer)} {sorted(self.template_kwargs.items())}"

    def render(self, messages: Messages, question: str = QUESTION) -> ChatRegions:
        """Messages, the question, and the header of the answer.

        Raises:
            TemplateError: the template refuses them.
        """
        return find_regions(
            self.tokenizer,
            [*messages, {"role": "user", "content": question}],
            add_generation_prompt=True,
            include_think_block=self.think_block,
            template_kwargs=self.template_kwargs,
        )

    def before_question(self, messages: Messages) -> str:
        """The text between the beginning and the question, earlier turns included.

        Raises:
            TemplateError: the template refuses the messages.
        """
        chat = self.render(messages)
        turn = sum(message["role"] == "user" for message in messages)
        first = chat.positions("query", turn)[0]
        return chat.text[: chat.offsets[first][0]]

    def frame(self) -> tuple[str, str] | None:
        """What comes before and after a system message's words; None if they are not written."""
        try:
            around = self.before_question([_system(_PROBE)])
        except TemplateError:
            return None
        before, found, after = around.partition(_PROBE)
        return (before, after) if found else None

    def num_tokens(self, messages: Messages) -> int:
        """Tokens of a prompt that ends with its question.

        Raises:
            TemplateError: the template refuses it.
        """
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                return_dict=False,
                **self.template_kwargs,
            )
        except Exception as error:  # a template may raise anything
            raise TemplateError(
                f"the chat template cannot render a prompt: {error!s:.300}"
            ) from error
        return len(ids)

    @cached_property
    def default_system(self) -> str | None:
        """The words that the template writes for want of a system message; None if it has none.

        A system message with these words renders the same prompt as no system message.
        """
        frame = self.frame()
        if frame is None:
            return None
        own, (before, after) = self.before_question(()), frame
        if not (own.startswith(before) and own.endswith(after) and len(own) > len(before + after)):
            return None
        words = own[len(before) : len(own) - len(after)]
        return words if self.before_question([_system(words)]) == own else None


def template_of(model: str, args: Mapping[str, Any]) -> PromptTemplate | None:
    """The chat template of a model; None for one that is served elsewhere.

    Args:
        model: Inspect model name.
        args: of its provider.

    Raises:
        ConfigError: an argument is wrong, or there is no such model.
        TemplateError: it has no chat template.
    """
    provider, _, name = model.partition("/")
    if provider not in _LOCAL:
        return None
    if provider != "treft":
        return PromptTemplate(load_tokenizer(name, LoadOptions(device="cpu")))
    options = LocalOptions.of(dict(args))
    template = None
    if options.template is not None:
        try:
            template = options.template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the template {options.template} cannot be read: {error}") from error
    tokenizer = load_tokenizer(name, options.loading, template, options.adapter)
    return PromptTemplate(
        tokenizer, options.template_kwargs, options.think_block, _context(name, tokenizer)
    )


def _context(name: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    try:
        config = AutoConfig.from_pretrained(model_path(name))
    except (OSError, ValueError):  # an adapter has no configuration of its own
        length = tokenizer.model_max_length
        return int(length) if length < LARGEST_LENGTH else None
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if found is None else int(found)


def _system(words: str) -> dict[str, str]:
    return {"role": "system", "content": words}
