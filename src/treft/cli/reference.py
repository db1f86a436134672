"""`treft reference`: record the unfinetuned model's keys and values, and look into such a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerFast as Tokenizer

from treft.chat.regions import RegionName, template_hash
from treft.cli.conversations import read_conversations, render
from treft.cli.options.chats import Inspect, Record
from treft.cli.output import emit, progress_bars, stdout_aside
from treft.core.conversations import region_requests
from treft.core.identity import identify
from treft.core.recording import ReferenceRequest, other_model
from treft.core.reference import ReferenceBank
from treft.models.load_options import LoadOptions
from treft.models.loading import load_model, load_tokenizer

NUM_SHOWN = 8
"""Entries of a file that are shown to people."""
NUM_AT_ONCE = 64
"""Prompts recorded between two steps of the progress bar."""


def record(options: Record) -> None:
    """Record, and say what is in the file."""
    conversations = read_conversations(options.words, options.chat)
    template = options.rendering.template_text()
    with stdout_aside():
        tokenizer = load_tokenizer(options.model, options.loading, template, options.adapter)
        chats = render(
            tokenizer, conversations, options.rendering, options.chat.input, options.regions
        )
        regions = cast("tuple[RegionName, ...]", options.regions)
        found = (region_requests(chat, name) for chat in chats for name in regions)
        requests = list(dict.fromkeys(request for group in found for request in group))
        loaded, _ = load_model(options.model, options.adapter, options.loading, template)
    before = None if options.adapter is None else "default"
    identity = identify(loaded, template_hash(tokenizer), adapter=before)
    bank = ReferenceBank(other_model(loaded), identity)
    with progress_bars() as progress:
        for done in range(0, len(requests), NUM_AT_ONCE):
            progress("recording", done, len(requests))
            bank.pin(requests[done : done + NUM_AT_ONCE])
        progress("recording", len(requests), len(requests))
    bank.save(options.output, overwrite=options.overwrite)
    _report(options.output, bank, tokenizer, options.json)


def inspect(options: Inspect) -> None:
    """Say what is in a file."""
    bank = ReferenceBank.load(options.file)
    tokenizer = None
    if options.tokenizer is not None:
        tokenizer = load_tokenizer(options.tokenizer, LoadOptions())
    _report(options.file, bank, tokenizer, options.json)


def _report(file: Path, bank: ReferenceBank, tokenizer: Tokenizer | None, as_json: bool) -> None:
    """Print the documented JSON object (docs/cli.md), or the same for people."""
    identity = asdict(cast(Any, bank.identity))
    entries = [_entry(bank, request, tokenizer) for request in bank]
    size = file.stat().st_size
    if as_json:
        result = {"file": str(file), "bytes": size, "identity": identity, "entries": entries}
        emit({"command": "reference", **result}, as_json=True)
        return
    emit({"file": file, "bytes": f"{size:,}", **identity, "entries": len(entries)}, as_json=False)
    for entry in entries[:NUM_SHOWN]:
        tokens = entry["token_ids"] if entry["text"] is None else repr(entry["text"])
        print(f"{entry['num_tokens']} tokens from position {entry['first_position']}: {tokens}")
    if len(entries) > NUM_SHOWN:
        print(f"and {len(entries) - NUM_SHOWN} more (--json shows all)")


def _entry(
    bank: ReferenceBank, request: ReferenceRequest, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    states = bank.get([request])[0]
    key = next(iter(states.values())).key
    return {
        "num_tokens": len(request.keep),
        "first_position": request.positions[0],
        "num_layers": len(states),
        "shape": list(key.shape),
        "dtype": str(key.dtype).removeprefix("torch."),
        "token_ids": list(request.kept_ids),
        "text": None if tokenizer is None else tokenizer.decode(list(request.kept_ids)),
    }
