"""What a diagnosis measures, step by step; every step is kept in the output folder.

Shapes: P prompts, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.evidence import Evidence
from treft.attribution.forcing import (
    ForcedAnswer,
    answer_ids,
    end_of_turn,
    mean_log_probs,
    render_questions,
)
from treft.attribution.margins import AnswerPair, answer_pairs, margins
from treft.attribution.options import Rendering
from treft.attribution.patches import (
    BaseStates,
    Patch,
    band_specs,
    curve_specs,
    equal_span_specs,
    joint_specs,
    kind_specs,
    layer_specs,
    random_specs,
    region_specs,
    window_specs,
)
from treft.chat.regions import ChatRegions, RegionName
from treft.core.patch_spec import PATCHABLE
from treft.data.messages import Conversation
from treft.errors import TemplateError
from treft.models.pair import ARMS, ModelPair
from treft.models.residual import decoder_layers
from treft.progress import Progress, untold
from treft.steps.store import Store

MOST_LAYERS = 12
"""Single layers that are patched; evenly spread where the model has more."""

MAX_ROWS = 64
"""Training rows whose loss is taken."""


@dataclass(frozen=True)
class PromptMargins:
    """Measures one set of prompts by margins.

    Attributes:
        pair: the models.
        tokenizer: of the finetuned one.
        questions: the prompts.
        rendering: how they are asked.
        steps: keeps the results.
        scope: `general` or `in_domain`; names the steps.
        progress: told about every batch.
    """

    pair: ModelPair
    tokenizer: PreTrainedTokenizerBase
    questions: tuple[EvalQuestion, ...]
    rendering: Rendering
    steps: Store
    scope: str = "general"
    progress: Progress = untold

    @cached_property
    def chats(self) -> list[ChatRegions]:
        """The prompts as the model reads them."""
        return render_questions(self.tokenizer, self.questions, **self.rendering.of_chats)

    @cached_property
    def regions(self) -> tuple[RegionName, ...]:
        """Regions that all of them have, in their order.

        Raises:
            TemplateError: there is none but the query, so that prompts share no tokens.
        """
        chats = self.chats
        found = tuple(name for name in PATCHABLE if all(chat.positions(name) for chat in chats))
        if not set(found) - {"query"}:
            raise TemplateError(
                "the prompts share no template tokens (no prefix, no postfix): there is nothing "
                "that could carry a behaviour from prompt to prompt. Check the chat template."
            )
        return found

    @cached_property
    def num_layers(self) -> int:
        """Of the model."""
        return len(decoder_layers(self.pair.finetuned))

    @cached_property
    def pairs(self) -> list[AnswerPair]:
        """Greedy answers of both models."""
        label = f"answering {self.scope} prompts"
        num = 2 * len(self.questions)

        def compute() -> list[dict[str, Any]]:
            found = answer_pairs(
                self.pair,
                self.tokenizer,
                self.questions,
                self.rendering,
                on_batch=lambda done: self.progress(label, done, num),
            )
            names = ("base_answer", "finetuned_answer", "base_is_cut", "finetuned_is_cut")
            return [{name: getattr(one, name) for name in names} for one in found]

        kept = self.steps.keep(f"{self.scope}-answers", compute)
        return [
            AnswerPair(question, **fields)
            for question, fields in zip(self.questions, kept, strict=True)
        ]

    @cached_property
    def states(self) -> BaseStates:
        """Whose keys and values patches put in."""
        seed = self.rendering.seed
        return BaseStates(self.pair, self.tokenizer, self.chats, self.regions, seed)

    @property
    def whole(self) -> list[Patch]:
        """Whole regions, alone and together."""
        return region_specs(self.regions) + joint_specs(self.regions)

    @property
    def controls(self) -> list[Patch]:
        """Equally many tokens of the query and of each other region; states of random tokens."""
        equal = equal_span_specs(self.chats, self.regions, self.rendering.seed)
        return equal + random_specs(self.regions)

    def window_specs(self, width: int | None) -> list[Patch]:
        """Returns neighbouring tokens of prefix and postfix.

        Args:
            width: tokens of a window; None for a sixth of a region each.
        """
        specs: list[Patch] = []
        for region in self.regions:
            if region == "query":
                continue  # queries differ in length and in what their tokens are
            num = min(len(chat.positions(region, 0)) for chat in self.chats)
            wide = min(width or -(-num // 6), num)
            specs += window_specs(region, num, wide, 1 if width else None)
        return specs

    def layer_specs(self, region: RegionName) -> tuple[list[Patch], list[Patch]]:
        """Returns a region in single layers, and in bands of layers."""
        num = self.num_layers
        return layer_specs(region, num, MOST_LAYERS), band_specs(region, num)

    def num_patches(self, width: int | None) -> int:
        """Returns how many patches all methods together try."""
        kinds = kind_specs(self.regions)
        layers = [spec for specs in self.layer_specs("query") for spec in specs]
        curve = min(self.num_layers, MOST_LAYERS)
        num_main = len(self.whole) + len(kinds) + len(self.controls)
        return num_main + len(self.window_specs(width)) + len(layers) + curve

    def main(self) -> Evidence:
        """Returns margins of whole regions, alone and together, kinds apart, and the controls."""
        kinds = kind_specs(self.regions)
        return self._margins("regions", [*self.whole, *kinds, *self.controls])

    def whole_regions(self) -> Evidence:
        """Returns margins of whole regions, alone and together."""
        return self._margins("regions", self.whole)

    def layers(self, region: RegionName) -> Evidence:
        """Returns margins of a region in single layers and in bands (`layer_specs`)."""
        single, bands = self.layer_specs(region)
        return self._margins(f"layers-{region}", single + bands)

    def windows(self, width: int | None) -> Evidence:
        """Returns margins of `window_specs`."""
        return self._margins("windows", self.window_specs(width))

    def curve(self) -> Evidence | None:
        """Returns margins of the prefix's residual stream, layer by layer; None without a prefix.

        Figure 4 of the paper. By causality the patched prefix does not depend on the query.
        """
        if "prefix" not in self.regions:
            return None
        return self._margins("curve", curve_specs(self.num_layers, MOST_LAYERS))

    def loss_gain(self, rows: Sequence[Conversation]) -> float:
        """Returns by how much the finetune lowered the loss of training rows, nats a token.

        The loss is that of the last response, the mean over the first rows, of those that
        fit into the context.
        """
        label = "loss on training rows"
        chosen = [row for row in rows if row.messages[-1]["role"] == "assistant"][:MAX_ROWS]

        def compute() -> dict[str, float]:
            room = self.pair.num_positions
            rows = (self._forced(index, row) for index, row in enumerate(chosen))
            forced = [row for row in rows if room is None or len(row) <= room]
            losses: dict[str, float] = {}
            for arm in ARMS:
                with self.pair.use(arm) as model:
                    found: list[float] = []
                    for start in range(0, len(forced), self.rendering.batch_size):
                        batch = forced[start : start + self.rendering.batch_size]
                        found += mean_log_probs(model, self.tokenizer, batch, (), label)
                        self.progress(label, len(found), len(forced))
                losses[arm] = -float(np.mean(found))
            return losses

        losses = self.steps.keep("training-loss", compute)
        return float(losses["base"] - losses["finetuned"])

    def _forced(self, index: int, row: Conversation) -> ForcedAnswer:
        question = EvalQuestion(f"row {index + 1}", "", tuple(row.messages[:-1]))
        chat = render_questions(self.tokenizer, [question], **self.rendering.of_chats)[0]
        text = str(row.messages[-1]["content"]) + end_of_turn(
            self.tokenizer, self.rendering.template_kwargs
        )
        return ForcedAnswer(question.id, chat, answer_ids(self.tokenizer, chat, text))

    def _margins(self, name: str, patches: Sequence[Patch]) -> Evidence:
        label, num = f"margins of {self.scope} prompts: {name}", len(self.questions)

        def compute() -> dict[str, Any]:
            found = margins(
                self.pair,
                self.tokenizer,
                self.pairs,
                [self.states.repaired(patch) for patch in patches],
                self.rendering,
                on_batch=lambda done: self.progress(label, done, num),
            )
            self.progress(label, num, num)
            return {
                "questions": found.questions,
                "alike": found.alike,
                "base": found.base.tolist(),
                "finetuned": found.finetuned.tolist(),
                "patched": {name: values.tolist() for name, values in found.patched.items()},
            }

        kept = self.steps.keep(f"{self.scope}-{name}", compute)
        return Evidence(
            questions=tuple(kept["questions"]),
            base=np.array(kept["base"]),
            finetuned=np.array(kept["finetuned"]),
            patched={name: np.array(values) for name, values in kept["patched"].items()},
            alike=tuple(kept["alike"]),
        )
