"""Regions beyond templates: tokenizers, boundaries, padding, errors, hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from chat_templates import TEMPLATES, train_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, PythonBackend

from treft.chat.regions import REGION_CODES, ChatRegions, find_regions, template_hash
from treft.chat.rendering import FIRST_MARK
from treft.errors import TemplateError

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = TEMPLATES["qwen2_5"]
    return tokenizer


def character_tokenizer(*merged: str) -> PreTrainedTokenizerFast:
    """One token per character, except the given words, which are one token each."""
    letters = {chr(code): place for place, code in enumerate([10, *range(32, 127)])}
    vocab = {**letters, **{word: len(letters) + place for place, word in enumerate(merged)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    pieces = "|".join([*map(_escaped, merged), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class Slow(PythonBackend):
    """A tokenizer in Python, without offsets."""

    vocab_size = 0

    def get_vocab(self) -> dict[str, int]:
        return {}


def _escaped(text: str) -> str:
    return "".join(rf"\x{{{ord(letter):x}}}" for letter in text)


def codes_by_character(found: ChatRegions) -> str:
    """Codes written under the text, for tokenizers with one token per character."""
    return "".join(map(str, found.codes))


def test_regions_of_a_template_without_special_tokens() -> None:
    found = find_regions(character_tokenizer(), CHAT, chat_template=PLAIN)
    assert found.text == "user: Why?\nassistant: So.\n"
    #                             user: Why?\nassistant:_So.\n
    assert codes_by_character(found) == "1" * 6 + "2" * 4 + "3" * 11 + "4" * 5
    assert found.turns == (0,) * len(found.text)


@pytest.mark.parametrize(
    ("merged", "codes"),
    [
        ((": W",), "1" * 4 + "2" * 4 + "3" * 11 + "4" * 5),
        (("?\na",), "1" * 6 + "2" * 4 + "3" * 9 + "4" * 5),
        ((": S",), "1" * 6 + "2" * 4 + "3" * 10 + "4" * 4),
    ],
)
def test_a_straddling_token_goes_to_the_words(merged: tuple[str], codes: str) -> None:
    found = find_regions(character_tokenizer(*merged), CHAT, chat_template=PLAIN)
    assert codes_by_character(found) == codes


def test_turns_count_user_words(tokenizer) -> None:
    found = find_regions(tokenizer, CHAT * 3)
    for turn in range(3):
        for region in ("query", "postfix", "response"):
            assert found.positions(region, turn)
    assert found.positions("prefix") == found.positions("prefix", 0)
    parts = [found.positions("query", turn) for turn in range(3)]
    assert [place for part in parts for place in part] == found.positions("query")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_positions(tokenizer, side: str) -> None:
    tokenizer.padding_side = side
    chats = [CHAT, [{"role": "user", "content": "How come, then?"}, CHAT[1]]]
    found = [find_regions(tokenizer, each) for each in chats]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_dict=True)
    for regions, ids, mask in zip(found, batch["input_ids"], batch["attention_mask"], strict=True):
        shift = mask.index(1)
        for region in REGION_CODES:
            positions = regions.positions(region)
            shifted = [ids[place + shift] for place in positions]
            assert shifted == [regions.input_ids[place] for place in positions]


def test_bos_is_not_doubled() -> None:
    tokenizer = train_tokenizer()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    assert tokenizer("x")["input_ids"][0] == bos
    for name in ("llama3", "qwen3"):
        found = find_regions(tokenizer, CHAT, chat_template=TEMPLATES[name])
        assert found.input_ids.count(bos) == (name == "llama3")


def test_byte_tokens_of_one_character_share_its_region(tokenizer) -> None:
    words = "🦔"
    found = find_regions(tokenizer, [{"role": "user", "content": words}, CHAT[1]])
    ids = [found.input_ids[place] for place in found.positions("query")]
    assert tokenizer.decode(ids) == words


def test_template_hash_is_of_the_template_in_force(tokenizer) -> None:
    expected = hashlib.sha256(TEMPLATES["qwen2_5"].encode()).hexdigest()
    assert template_hash(tokenizer) == template_hash(TEMPLATES["qwen2_5"]) == expected
    assert template_hash(TEMPLATES["qwen3"]) != expected
    with pytest.raises(TemplateError, match="no chat template"):
        template_hash(train_tokenizer())


def test_a_named_template_is_chosen() -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = {"default": PLAIN, "tool_use": TEMPLATES["qwen3"]}
    assert find_regions(tokenizer, CHAT).text.startswith("user: ")
    assert find_regions(tokenizer, CHAT, tools=[{"name": "f"}]).text.startswith("<|im_start|>")


def test_a_template_that_changes_the_words_is_refused(tokenizer) -> None:
    with pytest.raises(TemplateError):
        find_regions(tokenizer, [{"role": "user", "content": "<a>bc"}, CHAT[1]],
                     chat_template=PLAIN.replace("m.content", "m.content[:2]"))  # fmt: skip
    twice = PLAIN.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}")
    with pytest.raises(TemplateError, match="more than once"):
        find_regions(tokenizer, CHAT, chat_template=twice)


def test_missing_template_slow_tokenizer_and_missing_user(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        find_regions(train_tokenizer(), CHAT)
    with pytest.raises(TemplateError, match="slow tokenizer"):
        find_regions(Slow(), CHAT, chat_template=PLAIN)
    with pytest.raises(TemplateError, match="no user message"):
        find_regions(tokenizer, [CHAT[1]])
    with pytest.raises(TemplateError, match="U\\+F0000"):
        find_regions(tokenizer, [{"role": "user", "content": chr(FIRST_MARK)}, CHAT[1]])
    with pytest.raises(TemplateError, match="System role not supported"):
        find_regions(
            tokenizer,
            [{"role": "system", "content": "x"}, *CHAT],
            chat_template=TEMPLATES["gemma"],
        )


def test_words_that_are_not_written_are_refused(tokenizer) -> None:
    with pytest.raises(TemplateError, match="list of parts"):
        find_regions(tokenizer, CHAT, chat_template=TEMPLATES["idefics3"])


@pytest.mark.parametrize(
    ("region", "template"),
    [
        ("prefix", "{% for m in messages %}{{ m.content }}|{% endfor %}"),
        ("postfix", "|{% for m in messages %}{{ m.content }}{% endfor %}"),
        ("response", "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"),
        ("query", PLAIN),
    ],
)
def test_a_region_that_is_lacking_is_named(region, template: str) -> None:
    messages = {"response": CHAT[:1], "query": [{"role": "user", "content": ""}, CHAT[1]]}
    found = find_regions(character_tokenizer(), messages.get(region, CHAT), chat_template=template)
    with pytest.raises(TemplateError, match=f"no {region} tokens"):
        found.require(region)
    for other in REGION_CODES:
        if other != region and not (region == "response" and other == "postfix"):
            assert found.require(other) == found.positions(other)
