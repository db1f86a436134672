"""What a diagnosis measures, step by step; every step is kept in the output folder.

Shapes: P prompts, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.evidence import band_specs, common_regions, joint_specs, layer_specs
from treft.attribution.forcing import (
    ForcedAnswer,
    Rendering,
    answer_ids,
    end_of_turn,
    mean_log_probs,
    render_questions,
)
from treft.attribution.margins import AnswerPair, Margins, answer_pairs, margins
from treft.attribution.perturb import Vocabulary
from treft.attribution.sweep import (
    equal_span_specs,
    kind_specs,
    layer_name,
    region_specs,
    window_specs,
)
from treft.chat.regions import ChatRegions, RegionName
from treft.core.patch_spec import PatchSpec, random_tokens_source
from treft.core.reference import ReferenceBank
from treft.data.messages import Conversation
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel
from treft.models.residual import ResidualReference, decoder_layers, stream_bank
from treft.progress import Progress, untold
from treft.steps.store import Steps

MOST_LAYERS = 12
"""Single layers that are patched; evenly spread where the model has more."""

MAX_ROWS = 64
"""Training rows whose loss is taken."""


@dataclass(frozen=True)
class Meter:
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
    steps: Steps
    scope: str = "general"
    progress: Progress = untold

    @cached_property
    def chats(self) -> list[ChatRegions]:
        """The prompts as the model reads them."""
        return render_questions(self.tokenizer, self.questions, **self.rendering.of_chats)

    @cached_property
    def regions(self) -> tuple[RegionName, ...]:
        """Regions that all of them have."""
        return common_regions(self.chats)

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

        kept = self.steps.run(f"{self.scope}-answers", compute)
        return [
            AnswerPair(question, **fields)
            for question, fields in zip(self.questions, kept, strict=True)
        ]

    @property
    def main_specs(self) -> list[PatchSpec]:
        """Whole regions alone and together, keys and values apart, equally many tokens."""
        return [
            *region_specs(self.regions),
            *joint_specs(self.regions),
            *kind_specs(self.regions),
            *self.equal_specs,
        ]

    @property
    def equal_specs(self) -> list[PatchSpec]:
        """The query beside each other region, token for token."""
        return equal_span_specs(self.chats, self.regions, self.rendering.seed)

    @property
    def random_specs(self) -> list[PatchSpec]:
        """Whole regions, for states of random tokens."""
        return [PatchSpec(f"{region} of random tokens", (region,)) for region in self.regions]

    def window_specs(self, width: int | None) -> list[PatchSpec]:
        """Neighbouring tokens of prefix and postfix; a sixth of a region each without a width."""
        specs = []
        for region in self.regions:
            if region == "query":
                continue  # queries differ in length and in what their tokens are
            num = min(len(chat.positions(region, 0)) for chat in self.chats)
            wide = min(width or -(-num // 6), num)
            specs += window_specs(region, num, wide, 1 if width else None)
        return specs

    def num_specs(self, width: int | None) -> int:
        """Patches that all methods together try."""
        num = self.num_layers
        others = [*layer_specs("query", num, MOST_LAYERS), *band_specs("query", num)]
        curve = min(num, MOST_LAYERS)
        main = len(self.main_specs) + len(self.random_specs) + len(self.window_specs(width))
        return main + len(others) + curve

    def main(self) -> Margins:
        """`main_specs` and `random_specs`."""
        found = self._margins("regions", self.main_specs, self.base_bank)
        return _merged(found, self._margins("random", self.random_specs, self.random_bank))

    def whole_regions(self) -> Margins:
        """Whole regions, alone and together."""
        specs = [*region_specs(self.regions), *joint_specs(self.regions)]
        return self._margins("regions", specs, self.base_bank)

    def layers(self, region: RegionName) -> tuple[Margins, list[PatchSpec], list[PatchSpec]]:
        """One region in single layers and in bands; and the specs of both."""
        single = layer_specs(region, self.num_layers, MOST_LAYERS)
        bands = band_specs(region, self.num_layers)
        found = self._margins(f"layers-{region}", [*single, *bands], self.base_bank)
        return found, single, bands

    def windows(self, width: int | None) -> Margins:
        """`window_specs`."""
        return self._margins("windows", self.window_specs(width), self.base_bank)

    def curve(self) -> Margins | None:
        """The prefix's residual stream, layer by layer; None without a prefix."""
        if "prefix" not in self.regions:
            return None
        num = self.num_layers
        every = np.unique(np.linspace(0, num - 1, min(num, MOST_LAYERS)).round().astype(int))
        model = self.pair.finetuned

        def patched() -> list[RepairedModel]:
            streams = ResidualReference(model, self.pair.base)
            return [
                RepairedModel(
                    model,
                    self.tokenizer,
                    stream_bank(model, layer, streams),
                    PatchSpec(layer_name(layer), ("prefix",)),
                )
                for layer in every.tolist()
            ]

        return self._kept("curve", "layer curve", patched)

    def loss_gain(self, rows: Sequence[Conversation]) -> float:
        """By how much the finetune lowered the loss of training rows, nats a token.

        The loss is that of the last response, the mean over the first rows, of those that
        fit into the context.
        """
        label = "loss on training rows"
        chosen = [row for row in rows if row.messages[-1]["role"] == "assistant"][:MAX_ROWS]

        def compute() -> dict[str, float]:
            room = self.pair.num_positions
            rows = (self._forced(index, row) for index, row in enumerate(chosen))
            forced = [row for row in rows if room is None or len(row) <= room]
            losses = {}
            for arm in ("base", "finetuned"):
                with self.pair.use(arm) as model:  # type: ignore[arg-type]
                    found: list[float] = []
                    for start in range(0, len(forced), self.rendering.batch_size):
                        batch = forced[start : start + self.rendering.batch_size]
                        found += mean_log_probs(model, self.tokenizer, batch, (), label)
                        self.progress(label, len(found), len(forced))
                losses[arm] = -float(np.mean(found))
            return losses

        losses = self.steps.run("training-loss", compute)
        return float(losses["base"] - losses["finetuned"])

    def _forced(self, index: int, row: Conversation) -> ForcedAnswer:
        question = EvalQuestion(f"row {index + 1}", "", tuple(row.messages[:-1]))
        chat = render_questions(self.tokenizer, [question], **self.rendering.of_chats)[0]
        text = str(row.messages[-1]["content"]) + end_of_turn(
            self.tokenizer, self.rendering.template_kwargs
        )
        return ForcedAnswer(question.id, chat, answer_ids(self.tokenizer, chat, text))

    def _margins(self, name: str, specs: Sequence[PatchSpec], bank: ReferenceBank) -> Margins:
        def patched() -> list[RepairedModel]:
            model = self.pair.finetuned
            return [RepairedModel(model, self.tokenizer, bank, spec) for spec in specs]

        return self._kept(name, f"margins of {self.scope} prompts: {name}", patched)

    def _kept(
        self, name: str, label: str, patched: Callable[[], Sequence[RepairedModel]]
    ) -> Margins:
        """Margins under patches, which are made only where the step is not kept yet."""
        num = len(self.questions)

        def compute() -> dict[str, Any]:
            found = margins(
                self.pair,
                self.tokenizer,
                self.pairs,
                patched(),
                self.rendering,
                on_batch=lambda done: self.progress(label, done, num),
            )
            self.progress(label, num, num)
            return _to_json(found)

        return _from_json(self.steps.run(f"{self.scope}-{name}", compute))

    @cached_property
    def base_bank(self) -> ReferenceBank:
        """The unfinetuned model's states."""
        return ReferenceBank(self.pair.source)

    @cached_property
    def random_bank(self) -> ReferenceBank:
        """The unfinetuned model's states at random tokens."""
        words = Vocabulary.of(self.tokenizer, len(self.pair.embedding)).ordinary
        return ReferenceBank(random_tokens_source(self.pair.source, words, self.rendering.seed))


def _merged(first: Margins, second: Margins) -> Margins:
    """The patches of both."""
    return Margins(
        first.questions,
        first.alike,
        first.base,
        first.finetuned,
        {**first.patched, **second.patched},
    )


def _to_json(found: Margins) -> dict[str, Any]:
    return {
        "questions": list(found.questions),
        "alike": list(found.alike),
        "base": found.base.tolist(),
        "finetuned": found.finetuned.tolist(),
        "patched": {name: values.tolist() for name, values in found.patched.items()},
    }


def _from_json(kept: Mapping[str, Any]) -> Margins:
    return Margins(
        tuple(kept["questions"]),
        tuple(kept["alike"]),
        np.array(kept["base"]),
        np.array(kept["finetuned"]),
        {name: np.array(values) for name, values in kept["patched"].items()},
    )
