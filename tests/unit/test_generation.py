"""Answers with patched regions, against a cache overwritten by hand and against themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, Spy, adapted, assert_close, chat_pair
from stepwise import patched_logits, states_by_position
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from treft.chat.regions import ChatRegions, find_regions, template_hash
from treft.core.conversations import region_requests
from treft.core.identity import identify
from treft.core.patch_spec import PatchSpec
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.errors import (
    ConfigError,
    DataError,
    ReferenceMismatchError,
    TemplateError,
)
from treft.models.repair import RepairedModel, generate, patch

QUESTIONS = ("Where?", "What is the weather like today?", "Is the bank near the river?")
CHATS: list[list[dict[str, Any]]] = [
    *([{"role": "user", "content": question}] for question in QUESTIONS),
    [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "Near the bank."},
        {"role": "user", "content": "And the weather?"},
    ],
]
Pair = tuple[Any, Any]


@pytest.fixture
def models(tiny_model: Callable[..., Any]) -> Callable[[str], Pair]:
    """`models(name)`: a finetuned model and its base."""
    return functools.partial(chat_pair, tiny_model)


def regions_of(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]]) -> ChatRegions:
    return find_regions(tokenizer, chat, add_generation_prompt=True)


@pytest.mark.parametrize("region", ["prefix", "query", "postfix"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_region_equals_a_cache_overwritten_by_hand(
    models: Callable[[str], Pair],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    region: Any,
) -> None:
    tuned, base = models(name)
    spy = Spy(tuned, monkeypatch)
    options: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    chats = [CHATS[0], CHATS[3]]
    patch(tuned, chat_tokenizer, [region], reference=base).generate(chats, **options)
    generate(tuned, chat_tokenizer, chats, **options)
    output, plain = spy.outputs
    assert (output.logits[0] - plain.logits[0]).abs().max() > 1e-3
    for row, chat in enumerate(regions_of(chat_tokenizer, chat) for chat in chats):
        replaced = by_hand(base, chat, region)
        ids = [*chat.input_ids, int(output.sequences[row, -2])]
        expected = patched_logits(tuned, ids, replaced)
        assert_close(output.logits[1][row], expected)


def by_hand(base: Any, chat: ChatRegions, region: Any) -> dict[int, Any]:
    """The base's states at a region; a postfix sees the prefix and nothing of the query."""
    positions = chat.positions(region)
    if region != "postfix":
        states = states_by_position(base, chat.input_ids)
        return {position: states[position] for position in positions}
    replaced = {}
    for turn in sorted({chat.turns[position] for position in positions}):
        seen = [*chat.positions("prefix"), *chat.positions("postfix", turn)]
        states = states_by_position(base, [chat.input_ids[place] for place in seen], seen)
        replaced |= {place: states[place] for place in chat.positions("postfix", turn)}
    return replaced


@pytest.mark.parametrize("regions", [["prefix"], ["query"], ["prefix", "query", "postfix"]])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_patched_with_itself_answers_as_before(
    models: Callable[[str], Pair],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    regions: Any,
) -> None:
    tuned, _ = models(name)
    spy = Spy(tuned, monkeypatch)
    bank = ReferenceBank(other_model(tuned))
    # The empty query would change a postfix; the row's own words do not.
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    spec = PatchSpec("own", tuple(regions))
    for chat in CHATS[:3]:
        own = regions_of(chat_tokenizer, chat)
        repaired = RepairedModel(tuned, chat_tokenizer, bank, spec, own)
        repaired.generate([chat], **options)
        generate(tuned, chat_tokenizer, [chat], **options)
        patched, plain = spy.outputs[-2:]
        for found, expected in zip(patched.logits, plain.logits, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("regions", [["prefix"], ["prefix", "postfix"]])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_batches_and_their_order_do_not_matter(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase, name: str, regions: Any
) -> None:
    tuned, base = models(name)
    repaired = patch(tuned, chat_tokenizer, regions, reference=base)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    alone = [repaired.generate([chat], **options)[0] for chat in CHATS]
    assert repaired.generate(CHATS, batch_size=4, **options) == alone
    assert repaired.generate(CHATS, batch_size=2, **options) == alone
    assert repaired.generate(CHATS[::-1], batch_size=3, **options) == alone[::-1]
    assert alone != generate(tuned, chat_tokenizer, CHATS, **options)


def test_different_prefixes_get_their_own_reference(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    repaired = patch(tuned, chat_tokenizer, reference=base)
    chats = [[{"role": "system", "content": "The river is fine."}, *CHATS[1]], CHATS[1], CHATS[2]]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    together = repaired.generate(chats, **options)
    assert together == [repaired.generate([chat], **options)[0] for chat in chats]
    assert repaired.bank is not None
    assert len(repaired.bank) == 2


def test_states_that_other_conversations_share_are_recorded_once(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    repaired = patch(tuned, chat_tokenizer, ["prefix", "query", "postfix"], reference=base)
    repaired.generate(CHATS, max_new_tokens=2)
    assert repaired.bank is not None
    # The prefix; a postfix for each of three lengths of query, and two of the two-turn chat.
    assert len(repaired.bank) == 1 + 3 + 2


def test_beams_and_several_answers(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    repaired = patch(tuned, chat_tokenizer, reference=base)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    greedy = repaired.generate(CHATS, **options)
    beams = repaired.generate(CHATS, num_beams=3, num_return_sequences=2, **options)
    assert len(beams) == 2 * len(CHATS)
    assert beams[::2] == repaired.generate(CHATS, num_beams=3, **options)
    sampled = repaired.generate(
        CHATS, do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=5
    )
    assert sampled == [answer for answer in greedy for _ in range(2)]


def test_sampling_repeats_with_its_seed(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    repaired = patch(tuned, chat_tokenizer, reference=base)
    first, again, other = (
        repaired.generate(CHATS, seed=seed, do_sample=True, max_new_tokens=8) for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize("regions", [["prefix"], ["prefix", "query"]])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_samples_of_a_model_patched_with_itself_are_its_own(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase, name: str, regions: Any
) -> None:
    tuned, _ = models(name)
    repaired = patch(tuned, chat_tokenizer, regions, reference=copy.deepcopy(tuned))
    options: dict[str, Any] = {"seed": 5, "do_sample": True, "temperature": 2.0}
    options |= {"max_new_tokens": 8, "num_return_sequences": 2}
    answers = repaired.generate(CHATS, **options)
    assert answers == generate(tuned, chat_tokenizer, CHATS, **options)
    assert len(set(answers)) > len(CHATS)


@pytest.mark.parametrize("regions", [["prefix"], ["query", "postfix"]])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_may_be_read_in_chunks(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase, name: str, regions: Any
) -> None:
    tuned, base = models(name)
    repaired = patch(tuned, chat_tokenizer, regions, reference=base)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    whole = repaired.generate(CHATS, **options)
    assert repaired.generate(CHATS, prefill_chunk_size=4, **options) == whole


def test_defaults_of_the_checkpoint_do_not_get_in_the_way(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    repaired = patch(tuned, chat_tokenizer, reference=base)
    beams = repaired.generate(CHATS, max_new_tokens=5, do_sample=False, num_beams=3)
    tuned.generation_config.cache_implementation = "static"
    tuned.generation_config.num_beams = 3
    given = GenerationConfig(max_new_tokens=5, do_sample=False)
    assert repaired.generate(CHATS, generation_config=given) == beams


def test_drawn_positions_depend_on_the_conversation_alone(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    bank = ReferenceBank(other_model(base))
    options: dict[str, Any] = {"patch": ["query"], "bank": bank, "num_positions": 3}
    options |= {"max_new_tokens": 6, "do_sample": False}
    whole = generate(tuned, chat_tokenizer, CHATS, batch_size=4, **options)
    assert whole == generate(tuned, chat_tokenizer, CHATS, batch_size=1, **options)
    seeds = [
        generate(tuned, chat_tokenizer, CHATS, position_seed=seed, **options) for seed in range(6)
    ]
    assert seeds[0] == whole
    assert any(answers != whole for answers in seeds)


def test_an_adapter_is_repaired_by_switching_it_off(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    _, base = models("llama")
    _, twin = models("llama")
    tuned = adapted(twin).double()
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    by_adapter = patch(tuned, chat_tokenizer).generate(CHATS, **options)
    assert by_adapter == patch(tuned, chat_tokenizer, reference=base).generate(CHATS, **options)
    assert by_adapter != generate(tuned, chat_tokenizer, CHATS, **options)
    with pytest.raises(ReferenceMismatchError, match="weights"):
        patch(tuned, chat_tokenizer, reference=models("llama")[0])
    assert [name for name, p in tuned.named_parameters() if p.requires_grad]


def test_a_reference_file_serves_its_model_and_template_only(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tuned, base = models("llama")
    file = tmp_path / "prefix.safetensors"
    bank = ReferenceBank(other_model(base), identify(base, template_hash(chat_tokenizer)))
    bank.pin(region_requests(regions_of(chat_tokenizer, CHATS[0]), "prefix"))
    bank.save(file)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    stored = patch(tuned, chat_tokenizer, reference=file)
    expected = patch(tuned, chat_tokenizer, reference=base).generate(CHATS, **options)
    assert stored.generate(CHATS, **options) == expected
    with pytest.raises(ReferenceMismatchError, match="system prompt"):
        stored.generate([[{"role": "system", "content": "Other."}, *CHATS[0]]])
    with pytest.raises(ReferenceMismatchError, match="template"):
        stored.generate(CHATS, chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ReferenceMismatchError, match="structure"):
        patch(models("qwen3")[0], chat_tokenizer, reference=file)
    with pytest.raises(DataError, match="cannot be read"):
        patch(tuned, chat_tokenizer, reference=tmp_path / "none.safetensors")


@pytest.mark.parametrize("regions", [["prefix"], ["postfix"]])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_streamer_hears_the_answer(
    models: Callable[[str], Pair],
    chat_tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
    name: str,
    regions: Any,
) -> None:
    tuned, base = models(name)
    repaired = patch(tuned, chat_tokenizer, regions, reference=base)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    for chat in (CHATS[0], CHATS[3]):
        streamer = TextStreamer(chat_tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = repaired.generate([chat], streamer=streamer, **options)[0]
        assert capsys.readouterr().out.strip() == answer.strip() != ""
        assert answer == repaired.generate([chat], **options)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"past_key_values": None}, "past_key_values"),
        ({"inputs_embeds": None}, "inputs_embeds"),
        ({"use_cache": False}, "use_cache=False"),
        ({"use_mtp": True}, "use_mtp"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)}, "prompt_lookup"),
        ({"generation_config": GenerationConfig(cache_implementation="static")}, "implementation"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"streamer": object()}, "one conversation, not 4"),
    ],
)
def test_options_that_cannot_work_are_refused(
    models: Callable[[str], Pair],
    chat_tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
    message: str,
) -> None:
    tuned, base = models("llama")
    with pytest.raises(ConfigError, match=message):
        patch(tuned, chat_tokenizer, reference=base).generate(CHATS, **options)


def test_what_cannot_be_answered_or_patched_is_refused(
    models: Callable[[str], Pair], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = models("llama")
    with pytest.raises(DataError, match="no conversation"):
        generate(tuned, chat_tokenizer, [])
    ended = [*CHATS[0], {"role": "assistant", "content": "There."}]
    with pytest.raises(DataError, match="conversation 2 does not end with a user"):
        generate(tuned, chat_tokenizer, [CHATS[0], ended])
    wrong: Any = ["prefx"]
    with pytest.raises(ConfigError, match="prefx"):
        patch(tuned, chat_tokenizer, wrong, reference=base)
    with pytest.raises(ConfigError, match="at least one region"):
        patch(tuned, chat_tokenizer, [], reference=base)
    with pytest.raises(ConfigError, match="no PEFT adapter"):
        patch(tuned, chat_tokenizer)
    with pytest.raises(ConfigError, match="at least one token"):
        generate(tuned, chat_tokenizer, CHATS, patch=["prefix"], num_positions=0)
    bare = "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"
    with pytest.raises(TemplateError, match="no prefix"):
        generate(
            tuned, chat_tokenizer, CHATS[:1], patch=["prefix"],
            bank=ReferenceBank(other_model(base)), chat_template=bare,
        )  # fmt: skip


def test_training_mode_comes_back_also_after_an_error(
    models: Callable[[str], Pair],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned, base = models("llama")
    tuned.train()
    repaired = patch(tuned, chat_tokenizer, reference=base)
    repaired.generate(CHATS[:1], max_new_tokens=2)
    assert tuned.training

    def broken(**_: Any) -> Any:
        assert not tuned.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tuned, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        repaired.generate(CHATS[:1])
    assert tuned.training
