"""TRL's chat templates and a small byte-level tokenizer that knows their special tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.jinja"))}

WANT_PARTS = {"idefics3", "llava_next", "smolvlm"}
"""Templates that read content as a list of parts only."""
NO_SYSTEM = {"gemma"}
"""Templates that refuse a system message."""

SPECIAL = re.compile(
    r"<\|[\w|/-]+\|?>|<｜[^｜]+｜>|<(?:start|end)_of_\w+>|</?(?:s|think|tool_call)>|<\w+\|>"
)


def family(name: str) -> str:
    """The template's name without the mark of the training twin."""
    return name.removesuffix("_training")


def in_form(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the form of content that the template reads."""
    if family(name) not in WANT_PARTS:
        return messages
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the templates themselves, so that merges cross words and line ends."""
    specials = sorted({token for text in TEMPLATES.values() for token in SPECIAL.findall(text)})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [TEMPLATES[name] for name in ("qwen3", "llama3_1", "gemma3", "phi3", "cohere2")]
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=len(specials) + 256 + 500,
            special_tokens=[*specials, "<|begin_of_text|>", "<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
