"""Replace tokens of a system prompt (section 4.1 of the paper), as text that any model can be sent.

Shapes: V rows of the input embedding, D its size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treft.chat.regions import ChatRegions
from treft.errors import TemplateError
from treft.evaluation.prefixes import PromptTemplate
from treft.models.perturbation import nearest_tokens, replace_tokens


class Change(NamedTuple):
    """One token that gave way to another.

    Attributes:
        position: of the token in the rendered prompt.
        old: its text.
        new: the text in its place.
        old_id: its id.
        new_id: the id in its place.
    """

    position: int
    old: str
    new: str
    old_id: int
    new_id: int


class Perturbed(NamedTuple):
    """A system prompt with some of its tokens replaced.

    Attributes:
        system: its words.
        changes: in the order of positions; all other tokens of the rendered prompt are as before.
        num_words: tokens that could have been replaced.
    """

    system: str
    changes: tuple[Change, ...]
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
        TemplateError: the template refuses a system message.
    """
    tokenizer = template.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    chat = template.render([_message(system)])
    words = _Words.of(template, chat, system)
    positions = [] if words is None else words.positions(special)
    if words is None or not positions:
        return Perturbed(system, (), 0)
    rows_without_token = range(len(tokenizer), len(embedding))
    nearest = nearest_tokens(
        embedding,
        [chat.input_ids[position] for position in positions],
        num_neighbours,
        excluded=special.union(rows_without_token),
    )

    def is_read_as(ids: Sequence[int]) -> bool:
        try:
            return template.render([_message(words.text(ids))]).input_ids == tuple(ids)
        except TemplateError:
            return False

    neighbours = dict(zip(positions, nearest.tolist(), strict=True))
    ids, replaced = replace_tokens(chat.input_ids, neighbours, num_tokens, rng, is_read_as)
    changes = tuple(
        Change(
            change.position,
            _decode(tokenizer, [change.old]),
            _decode(tokenizer, [change.new]),
            change.old,
            change.new,
        )
        for change in replaced
    )
    return Perturbed(words.text(ids), changes, len(positions))


@dataclass(frozen=True)
class _Words:
    """The tokens that lie wholly within a system message's words.

    Attributes:
        tokenizer: decodes them.
        chat: the rendered prompt.
        first: position of the first of them.
        stop: position after the last of them.
        lead: the words' text before them, and what a tokenizer drops when it decodes them.
        tail: the words' text after them.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: ChatRegions
    first: int
    stop: int
    lead: str
    tail: str

    @classmethod
    def of(cls, template: PromptTemplate, chat: ChatRegions, system: str) -> _Words | None:
        """None where the words stand changed in the prompt, or no token is wholly theirs."""
        frame = template.frame()
        start = 0 if frame is None else len(frame[0])
        end = start + len(system)
        inside = [
            position
            for position, (low, high) in enumerate(chat.offsets)
            if start <= low < high <= end
        ]
        if frame is None or chat.text[start:end] != system or not inside:
            return None
        first, stop = inside[0], inside[-1] + 1
        low, high = chat.offsets[first][0], chat.offsets[stop - 1][1]
        decoded = _decode(template.tokenizer, chat.input_ids[first:stop])
        lead = chat.text[start:low] + chat.text[low:high].removesuffix(decoded)
        return cls(template.tokenizer, chat, first, stop, lead, chat.text[high:end])

    def positions(self, special: set[int]) -> list[int]:
        """Their positions, special tokens left out."""
        every = range(self.first, self.stop)
        return [position for position in every if self.chat.input_ids[position] not in special]

    def text(self, ids: Sequence[int]) -> str:
        """The system message's words in a prompt with other tokens."""
        return self.lead + _decode(self.tokenizer, ids[self.first : self.stop]) + self.tail


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _message(words: str) -> dict[str, str]:
    return {"role": "system", "content": words}
