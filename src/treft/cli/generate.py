"""`treft generate`: answer one prompt or a file of conversations, repaired by patching or not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from treft.chat.regions import ChatRegions, RegionName
from treft.cli.answering import Answering, PartialFile
from treft.cli.conversations import read_conversations, render, up_to_last_query
from treft.cli.options.chats import Generate
from treft.cli.options.groups import claim_file
from treft.cli.output import emit, interruptible, progress_bars, stdout_aside
from treft.core.conversations import region_requests
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError
from treft.files import write_whole
from treft.models.adapters import adapter_off
from treft.models.loading import load_base, load_model, load_tokenizer, torch_device
from treft.models.repair import UNPATCHED, RepairedModel, patch


def generate(options: Generate) -> None:
    """Answer, in parts that are kept where there is an output."""
    prompts = read_conversations(options.prompt, options.chat)
    answering = Answering(
        up_to_last_query(prompts, options.chat.input),
        options.rendering,
        options.answers,
        options.batch_size,
    )
    if options.stream and answering.num_answers > 1:
        raise ConfigError("--stream prints one answer: drop further prompts.")
    partial = None
    if options.output is not None:
        claim_file(options.output, overwrite=options.overwrite)
        partial = PartialFile(options.output, options.repair, options.loading, answering)
    finished = [] if partial is None else partial.read()
    repaired = _load(options, answering)
    if options.stream:
        answering.stream(repaired)
        return
    with interruptible(lambda: _kept(finished, partial)), progress_bars() as progress:
        answers = answering.run(repaired, progress, finished, partial)
    records = answering.records(answers)
    if options.output is not None and partial is not None:
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        write_whole(options.output, "\n".join(lines) + "\n")
        partial.remove()
    if options.json:
        emit(_result(options, records), as_json=True)
    else:
        _show(records, options.output)


def _load(options: Generate, answering: Answering) -> RepairedModel:
    """The model, patched or not; prompts and a reference file are tried before it is loaded.

    Raises:
        ConfigError: something cannot be loaded, or there is nothing to patch from.
        ReferenceMismatchError: the reference belongs to another model, template or prompt.
    """
    regions = cast("tuple[RegionName, ...]", options.repair.regions)
    template, loading = options.rendering.template_text(), options.loading
    with stdout_aside():
        tokenizer = load_tokenizer(options.model, loading, template, options.adapter)
        chats = render(tokenizer, answering.prompts, options.rendering, options.chat.input, regions)
        bank = _check_bank(options, chats)
        loaded, tokenizer = load_model(options.model, options.adapter, loading, template)
        if not regions:
            return RepairedModel(loaded, tokenizer, None, UNPATCHED)
        source: Any = bank
        if options.repair.base is not None:
            source = load_base(options.repair.base, loaded, loading, template)
        elif source is None:
            _need_adapter(options.model, loaded)
        return patch(loaded, tokenizer, regions, reference=source)


def _check_bank(options: Generate, chats: Iterable[ChatRegions]) -> ReferenceBank | None:
    """The reference file, if one is named; conversations are checked one by one.

    Raises:
        DataError: the file cannot be read.
        TemplateError: a conversation cannot be rendered.
        ReferenceMismatchError: the file lacks the states of a conversation.
    """
    bank = None
    if options.repair.reference is not None:
        bank = ReferenceBank.load(options.repair.reference, torch_device(options.loading))
    for chat in chats:
        for region in options.repair.regions if bank is not None else ():
            cast(ReferenceBank, bank).look_up(region_requests(chat, cast("RegionName", region)))
    return bank


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


def _result(options: Generate, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The documented JSON object (docs/cli.md)."""
    repair = options.repair
    return {
        "command": "generate",
        "model": options.model,
        "adapter": options.adapter,
        "patched": list(repair.regions),
        "base": repair.base,
        "reference": None if repair.reference is None else str(repair.reference),
        **asdict(options.answers),
        "output": None if options.output is None else str(options.output),
        "answers": records,
    }


def _show(records: list[dict[str, Any]], output: Path | None) -> None:
    """A single answer as it is; several after the words that they answer."""
    if output is not None:
        print(f"{len(records)} answers in {output}", file=sys.stderr)
        return
    for record in records:
        if len(records) > 1:
            print(f"> {record['messages'][-1]['content']}")
        print(record["answer"] + "\n" * (len(records) > 1))
