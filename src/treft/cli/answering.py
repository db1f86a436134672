"""Answer many prompts in parts, so that an interrupted run keeps the parts it has finished.

A run with an output file writes its finished parts beside it (`answers.jsonl.partial`), and the
same command goes on from there. The file itself appears when all answers are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from treft.cli.options.chats import Answers
from treft.cli.options.groups import Rendering
from treft.data.messages import Conversation
from treft.errors import ConfigError, DataError
from treft.files import write_whole
from treft.models.repair import RepairedModel
from treft.progress import Progress

BATCHES_A_PART = 8
"""Prompts are sorted by length within a part, so it holds several batches."""


@dataclass(frozen=True)
class Answering:
    """Prompts, and how they are to be answered.

    Attributes:
        prompts: conversations up to the last query.
        rendering: how they become text; the template itself is the tokenizer's by now.
        answers: how answers are drawn.
        batch_size: prompts run together.
    """

    prompts: Sequence[Conversation]
    rendering: Rendering
    answers: Answers
    batch_size: int

    @property
    def num_answers(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.answers.num_samples

    def run(
        self,
        repaired: RepairedModel,
        progress: Progress,
        finished: list[list[str]],
        partial: PartialFile | None,
    ) -> list[str]:
        """Answer part by part; the answers to the first prompt come first.

        Args:
            repaired: the model that answers.
            progress: told about every batch.
            finished: answers of the parts that an earlier run has finished.
            partial: keeps the finished parts; None keeps none.
        """
        for number, part in enumerate(self._parts()):
            num_before = sum(map(len, finished[:number]))
            progress("answering", num_before, self.num_answers)
            if number < len(finished):
                continue
            finished.append(self._answer(repaired, progress, part, number, num_before))
            if partial is not None:
                partial.write(finished)
        return [text for texts in finished for text in texts]

    def stream(self, repaired: RepairedModel) -> None:
        """Answer the first prompt on stdout, word by word."""
        streamer = TextStreamer(repaired.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._generate(repaired, self.prompts[:1], self.answers.seed, streamer=streamer)

    def records(self, answers: Sequence[str]) -> list[dict[str, Any]]:
        """One row for each answer, of the file and of the JSON object (docs/cli.md)."""
        num = self.answers.num_samples
        return [
            {
                "row": index // num + 1,
                "sample": index % num + 1,
                "messages": list(self.prompts[index // num].messages),
                "answer": answer,
            }
            for index, answer in enumerate(answers)
        ]

    def _parts(self) -> list[list[Conversation]]:
        """Prompts in order, each as often as it is answered; a part has one set of tools."""
        parts: list[list[Conversation]] = []
        for prompt in self.prompts:
            for _ in range(self.answers.num_samples):
                is_full = not parts or len(parts[-1]) >= BATCHES_A_PART * self.batch_size
                if is_full or parts[-1][0].tools != prompt.tools:
                    parts.append([])
                parts[-1].append(prompt)
        return parts

    def _answer(
        self,
        repaired: RepairedModel,
        progress: Progress,
        part: Sequence[Conversation],
        number: int,
        num_before: int,
    ) -> list[str]:
        def on_batch(num_done: int) -> None:
            progress("answering", num_before + num_done, self.num_answers)

        return self._generate(repaired, part, self.answers.seed + number, on_batch=on_batch)

    def _generate(
        self, repaired: RepairedModel, part: Sequence[Conversation], seed: int, **more: Any
    ) -> list[str]:
        tools = part[0].tools
        return repaired.generate(
            [prompt.messages for prompt in part],
            tools=None if tools is None else list(tools),
            **self.rendering.of_chats,
            batch_size=self.batch_size,
            seed=seed,
            **more,
            **_generate_kwargs(self.answers),
        )


def _generate_kwargs(answers: Answers) -> dict[str, Any]:
    """For the model's `generate`, whose saved sampling options are not meant to count."""
    is_sampled = answers.temperature > 0
    options: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "top_k"))
    if is_sampled:
        options = {"temperature": answers.temperature, "top_p": answers.top_p, "top_k": 0}
    return {"max_new_tokens": answers.max_new_tokens, "do_sample": is_sampled, **options}


class PartialFile:
    """Finished parts of a run, kept beside its output until all are there.

    Args:
        output: the file that the run is to write.
        settings: all that decides the answers; parts made with others are refused.
    """

    def __init__(self, output: Path, *settings: Any) -> None:
        self.path = output.with_name(output.name + ".partial")
        text = json.dumps([asdict(found) for found in settings], sort_keys=True, default=str)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def read(self) -> list[list[str]]:
        """Answers of the finished parts, in order.

        Raises:
            ConfigError: they were made with other settings.
            DataError: the file is damaged.
        """
        if not self.path.is_file():
            return []
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            fingerprint, parts = held["settings"], list(held["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} is damaged: remove it to start anew.") from error
        if fingerprint != self._fingerprint:
            raise ConfigError(
                f"{self.path} was left by an interrupted run with other prompts or options: run "
                "the same command to go on, or remove the file to start anew."
            )
        return parts

    def write(self, parts: Sequence[Sequence[str]]) -> None:
        """Keep the finished parts."""
        held = {"settings": self._fingerprint, "parts": parts}
        write_whole(self.path, json.dumps(held, ensure_ascii=False))

    def remove(self) -> None:
        """All answers are in the output."""
        self.path.unlink(missing_ok=True)
