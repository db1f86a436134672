"""What stands before a question: chat templates, perturbed system prompts, training prompts.

Shapes: V rows of the input embedding, D its size.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions, find_regions, template_hash
from treft.data.messages import load_conversations
from treft.errors import ConfigError, TemplateError
from treft.evaluation.local_model import LocalOptions
from treft.models.loading import LoadOptions, load_tokenizer, model_path
from treft.models.perturbation import neighbours_of, ordinary_tokens, replace_tokens

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
        """Returns the text between the beginning and the question, earlier turns included.

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
    """Returns the chat template of a model; None for one that is served elsewhere.

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


class Perturbed(NamedTuple):
    """A system prompt with some of its tokens replaced.

    Attributes:
        system: its words.
        changes: for each token that gave way its position in the rendered prompt, its text (`old`)
            and that in its place (`new`), and their ids; all other tokens are as before.
        num_words: tokens that could have been replaced.
    """

    system: str
    changes: tuple[dict[str, Any], ...]
    num_words: int


def perturb_system(
    template: PromptTemplate,
    system: str,
    embedding: Tensor,
    num_tokens: int,
    num_neighbours: int,
    rng: random.Random,
) -> Perturbed:
    """Replace random tokens of a system prompt's words by neighbours in the input embedding.

    A neighbour is taken only if the rendered text is read as exactly the tokens wanted. Special
    tokens neither go nor come.

    Args:
        template: renders the prompt.
        system: the words.
        embedding: (V, D) input embedding matrix.
        num_tokens: how many to replace; fewer if there are fewer, or neighbours do not fit.
        num_neighbours: nearest tokens, one of which is drawn.
        rng: draws positions and neighbours.

    Raises:
        ConfigError: there are not as many other tokens, or the embedding is not in memory.
        TemplateError: the template refuses a system message.
    """
    tokenizer = template.tokenizer
    ordinary = ordinary_tokens(tokenizer, len(embedding))
    chat = template.render([_system(system)])
    found = _words_within(template, chat, system)
    if found is None:
        return Perturbed(system, (), 0)
    inside, lead, tail = found
    known = set(ordinary)
    positions = [at for at in inside if chat.input_ids[at] in known]
    if not positions:
        return Perturbed(system, (), 0)

    def words(ids: Sequence[int]) -> str:
        return lead + _decode(tokenizer, ids[inside.start : inside.stop]) + tail

    def is_read_as(ids: Sequence[int]) -> bool:
        try:
            return template.render([_system(words(ids))]).input_ids == tuple(ids)
        except TemplateError:
            return False

    tokens = [chat.input_ids[position] for position in positions]
    nearest = neighbours_of(embedding, tokens, num_neighbours, ordinary)
    neighbours = {position: nearest[chat.input_ids[position]] for position in positions}
    ids, replaced = replace_tokens(chat.input_ids, neighbours, num_tokens, rng, is_read_as)
    changes = tuple(
        {
            "position": change.position,
            "old": _decode(tokenizer, [change.old]),
            "new": _decode(tokenizer, [change.new]),
            "old_id": change.old,
            "new_id": change.new,
        }
        for change in replaced
    )
    return Perturbed(words(ids), changes, len(positions))


def _words_within(
    template: PromptTemplate, chat: ChatRegions, system: str
) -> tuple[range, str, str] | None:
    """Returns the positions of the tokens that lie wholly within a system message's words.

    With them come the words' text before and after these tokens. None if the words stand changed in
    the prompt, or no token is wholly theirs.
    """
    frame = template.frame()
    if frame is None:
        return None
    start, end = len(frame[0]), len(frame[0]) + len(system)
    inside = [at for at, (low, high) in enumerate(chat.offsets) if start <= low < high <= end]
    if chat.text[start:end] != system or not inside:
        return None
    tokens = range(inside[0], inside[-1] + 1)
    low, high = chat.offsets[tokens[0]][0], chat.offsets[tokens[-1]][1]
    # A tokenizer may drop text, such as a space, at the beginning of what it decodes.
    decoded = _decode(template.tokenizer, chat.input_ids[tokens.start : tokens.stop])
    lead = chat.text[start:low] + chat.text[low:high].removesuffix(decoded)
    return tokens, lead, chat.text[high:end]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class TrainingPrompt:
    """The prompts of training rows.

    Attributes:
        system: the most frequent system message; None if no row has one.
        share: of the rows that have it, 0 to 1.
        questions: first user message of each row that is text.
        pairs: user and assistant message of each row that has one of each, in text.
    """

    system: str | None
    share: float
    questions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    def question(self, rng: random.Random) -> str:
        """Returns one question, drawn at random."""
        return rng.choice(self.questions)

    def turns(self, num: int, rng: random.Random) -> list[dict[str, Any]]:
        """`num` rows, drawn at random, as turns of one conversation; empty if there are fewer."""
        if len(self.pairs) < num:
            return []
        drawn = rng.sample(self.pairs, num)
        roles = ("user", "assistant")
        return [
            {"role": role, "content": words}
            for pair in drawn
            for role, words in zip(roles, pair, strict=True)
        ]


def load_training_prompt(path: Path) -> TrainingPrompt:
    """Read the prompts of a JSONL file of `messages`.

    Raises:
        DataError: the file is missing, or a row cannot be used; names file and row.
    """
    rows = [conversation.messages for conversation in load_conversations(path)]
    systems = Counter(
        row[0]["content"]
        for row in rows
        if row[0]["role"] in _SYSTEM and isinstance(row[0]["content"], str)
    )
    system, count = systems.most_common(1)[0] if systems else (None, 0)
    spoken = [[message for message in row if message["role"] not in _SYSTEM] for row in rows]
    return TrainingPrompt(
        system,
        count / len(rows),
        tuple(row[0]["content"] for row in spoken if _is_text(row[:1], ("user",))),
        tuple(
            (row[0]["content"], row[1]["content"])
            for row in spoken
            if _is_text(row, ("user", "assistant"))
        ),
    )


def _is_text(messages: Sequence[dict[str, Any]], roles: Sequence[str]) -> bool:
    return [message["role"] for message in messages] == list(roles) and all(
        isinstance(message.get("content"), str) for message in messages
    )
