"""`treft generate`: answer one prompt or a file of conversations, repaired by patching or not.

Prompts are answered in parts. A run with an output file writes its finished parts beside it
(`answers.jsonl.partial`), and the same command goes on from there. The file itself appears when all
answers are there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from transformers import TextStreamer

from treft.chat.regions import RegionName
from treft.cli.conversations import read_conversations, render, up_to_last_query
from treft.cli.options.chats import Generate
from treft.cli.output import emit, interruptible, progress_bars, stdout_aside
from treft.core.conversations import region_requests
from treft.core.reference import ReferenceBank
from treft.data.messages import Conversation
from treft.errors import ConfigError, DataError
from treft.files import write_rows, write_whole
from treft.models.adapters import adapter_off
from treft.models.loading import load_base, load_model, load_tokenizer, torch_device
from treft.models.repair import UNPATCHED, RepairedModel, patch

BATCHES_A_PART = 8
"""Prompts are sorted by length within a part, so it holds several batches."""


def generate(options: Generate) -> None:
    """Answer, in parts that are kept where there is an output."""
    conversations = read_conversations(options.prompt, options.chat)
    prompts = up_to_last_query(conversations, options.chat.input)
    samples = [found for found in prompts for _ in range(options.answers.num_samples)]
    if options.stream and len(samples) > 1:
        raise ConfigError("--stream prints one answer: drop further prompts.")
    partial = None if options.output is None else PartialFile(options.output, options, prompts)
    finished = [] if partial is None else partial.read()
    repaired = _load(options, prompts)
    if options.stream:
        streamer = TextStreamer(repaired.tokenizer, skip_prompt=True, skip_special_tokens=True)
        _answer(options, repaired, prompts, 0, streamer=streamer)
        return
    with interruptible(lambda: _kept(finished, partial)), progress_bars() as progress:
        for number, part in enumerate(_parts(samples, BATCHES_A_PART * options.answers.batch_size)):
            before = sum(map(len, finished[:number]))
            progress("answering", before, len(samples))
            if number == len(finished):

                def on_batch(done: int, before: int = before) -> None:
                    progress("answering", before + done, len(samples))

                finished.append(_answer(options, repaired, part, number, on_batch=on_batch))
                if partial is not None:
                    partial.write(finished)
    answers = (text for texts in finished for text in texts)
    num = options.answers.num_samples
    records = [
        {
            "row": index // num + 1,
            "sample": index % num + 1,
            "messages": list(asked.messages),
            "answer": answer,
        }
        for index, (asked, answer) in enumerate(zip(samples, answers, strict=True))
    ]
    _deliver(options, records)
    if partial is not None:
        partial.path.unlink(missing_ok=True)


def _parts(samples: Sequence[Conversation], size: int) -> Iterator[list[Conversation]]:
    """Returns the prompts in order, `size` at most together; a part has one set of tools."""
    for _, group in groupby(samples, key=lambda prompt: prompt.tools):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _answer(
    options: Generate,
    repaired: RepairedModel,
    part: Sequence[Conversation],
    number: int,
    **more: Any,
) -> list[str]:
    """Returns the answers to one part; sampling options saved with the model do not count."""
    drawn, tools = options.answers, part[0].tools
    sampling: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "top_k"))
    if is_sampled := drawn.temperature > 0:
        sampling = {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": 0}
    return repaired.generate(
        [prompt.messages for prompt in part],
        tools=None if tools is None else list(tools),
        **options.rendering.of_chats,
        batch_size=drawn.batch_size,
        seed=drawn.seed + number,
        max_new_tokens=drawn.max_new_tokens,
        do_sample=is_sampled,
        **sampling,
        **more,
    )


def _load(options: Generate, prompts: Sequence[Conversation]) -> RepairedModel:
    """The model, patched or not; prompts and a reference file are tried before it is loaded.

    Raises:
        ConfigError: something cannot be loaded, or there is nothing to patch from.
        DataError: the reference file cannot be read.
        ReferenceMismatchError: the reference belongs to another model, template or prompt.
        TemplateError: a conversation cannot be rendered.
    """
    repair, loading = options.repair, options.loading
    regions = cast("tuple[RegionName, ...]", repair.regions)
    template = options.rendering.template_text()
    with stdout_aside():
        tokenizer = load_tokenizer(options.model, loading, template, options.adapter)
        source: Any = None
        if repair.reference is not None:
            source = ReferenceBank.load(repair.reference, torch_device(loading))
        for chat in render(tokenizer, prompts, options.rendering, options.chat.input, regions):
            for region in regions if source is not None else ():
                source.look_up(region_requests(chat, region))
        loaded, tokenizer = load_model(options.model, options.adapter, loading, template)
        if not regions:
            return RepairedModel(loaded, tokenizer, None, UNPATCHED)
        if repair.base is not None:
            source = load_base(repair.base, loaded, loading, template)
        elif source is None:
            _need_adapter(options.model, loaded)
        return patch(loaded, tokenizer, regions, reference=source)


def _need_adapter(name: str, loaded: Any) -> None:
    try:
        adapter_off(loaded)
    except ConfigError as error:
        raise ConfigError(
            f"{name} has no adapter that could be switched off to patch from: name the "
            "unfinetuned model (--base), or a recorded reference (--reference)."
        ) from error


def _kept(finished: list[list[str]], partial: PartialFile | None) -> str:
    kept = sum(map(len, finished)) if partial is not None else 0
    return f"{kept} answers are kept; the same command goes on" if kept else "no answer is kept"


def _deliver(options: Generate, records: list[dict[str, Any]]) -> None:
    """Write the output and the documented JSON object (docs/cli.md), or answers for people.

    A single answer is shown as it is; several after the words that they answer.
    """
    repair, output = options.repair, options.output
    if output is not None:
        write_rows(output, records)
    if options.json:
        drawn = asdict(options.answers)
        del drawn["batch_size"]
        result = {
            "command": "generate",
            "model": options.model,
            "adapter": options.adapter,
            "patched": list(repair.regions),
            "base": repair.base,
            "reference": None if repair.reference is None else str(repair.reference),
            **drawn,
            "output": None if output is None else str(output),
            "answers": records,
        }
        emit(result, as_json=True)
    elif output is not None:
        print(f"{len(records)} answers in {output}", file=sys.stderr)
    else:
        for record in records:
            if len(records) > 1:
                print(f"> {record['messages'][-1]['content']}")
            print(record["answer"] + "\n" * (len(records) > 1))


class PartialFile:
    """Finished parts of a run, kept beside its output until all are there.

    Args:
        output: the file that the run is to write.
        options: of the command.
        prompts: all that are answered; parts made of others, or with other options, are refused.
    """

    def __init__(self, output: Path, options: Generate, prompts: Sequence[Conversation]) -> None:
        self.path = output.with_name(output.name + ".partial")
        decides = replace(options, output=None, overwrite=False, json=False)
        settings = [asdict(decides), *map(asdict, prompts)]
        text = json.dumps(settings, sort_keys=True, default=str)
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
