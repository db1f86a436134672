"""Margins against plain forwards of single rows, and on finetunes whose carrier is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from finetuned import ARCHITECTURES, add_noise, chat_pair
from peft import LoraConfig, get_peft_model
from stepwise import states_by_position
from transformers import DynamicCache, PreTrainedTokenizerBase

from treft.answers.questions import EvalQuestion
from treft.attribution.evidence import Evidence
from treft.attribution.margins import AnswerPair, answer_pairs, margins
from treft.attribution.options import Rendering
from treft.chat.regions import ChatRegions, find_regions
from treft.core.patch_spec import PatchSpec
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.errors import ConfigError, DataError, TemplateError
from treft.models.pair import ModelPair
from treft.models.repair import RepairedModel

WORDS = ("Where is the bank?", "What is the weather like today? Is it fine?", "River.")
ANSWERS = (
    ("The bank is near.", "No."),
    ("The weather is fine.", "The bank is near the river, like the weather."),
    ("", "A river"),
)
SPECS = (
    PatchSpec("prefix", ("prefix",)),
    PatchSpec("query", ("query",)),
    PatchSpec("postfix", ("postfix",)),
    PatchSpec("some", ("prefix", "query"), kinds=("value",), layers=(1,)),
)


def asked(*words: str) -> list[EvalQuestion]:
    return [
        EvalQuestion(f"q{number}", "test", ({"role": "user", "content": text},))
        for number, text in enumerate(words)
    ]


def made_pairs() -> list[AnswerPair]:
    return [
        AnswerPair(question, *answers)
        for question, answers in zip(asked(*WORDS), ANSWERS, strict=True)
    ]


def under(
    tuned: Any,
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    specs: Sequence[PatchSpec],
    bank: ReferenceBank | None = None,
    *,
    pairs: Sequence[AnswerPair] | None = None,
    batch_size: int = 16,
) -> Evidence:
    """Margins under patches, from the base's own states unless a bank is given."""
    models = ModelPair(tuned, base)
    bank = ReferenceBank(models.source) if bank is None else bank
    patched = [RepairedModel(tuned, tokenizer, bank, spec) for spec in specs]
    found = made_pairs() if pairs is None else pairs
    return margins(models, tokenizer, found, patched, Rendering(batch_size=batch_size))


def rendered(tokenizer: PreTrainedTokenizerBase, words: str) -> ChatRegions:
    messages = [{"role": "user", "content": words}]
    return find_regions(tokenizer, messages, add_generation_prompt=True)


class Overwritten(DynamicCache):
    """One row whose first write is overwritten by hand: position -> (keys, values) by layer."""

    def __init__(self, config: Any, states: dict[int, Any], spec: PatchSpec) -> None:
        super().__init__(config=config)
        self.states, self.spec = states, spec

    def update(self, keys: Any, values: Any, layer: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = keys.clone(), values.clone()
        for position, pair in self.states.items():
            if self.spec.layers is None or layer in self.spec.layers:
                for kind, held, new in zip(("key", "value"), (keys, values), pair, strict=True):
                    if kind in self.spec.kinds:
                        held[0, :, position] = new[layer]
        return super().update(keys, values, layer, *args, **kwargs)


def base_states(base: Any, chat: ChatRegions, spec: PatchSpec) -> dict[int, Any]:
    """What is put in the place of each patched token."""
    found: dict[int, Any] = {}
    for region in spec.regions:
        positions = chat.positions(region)
        seen = list(range(positions[-1] + 1))
        if region == "postfix":  # an empty query
            seen = [*chat.positions("prefix"), *positions]
        states = states_by_position(base, [chat.input_ids[place] for place in seen], seen)
        found |= {place: states[place] for place in positions}
    return found


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, chat: ChatRegions, answer: str, cache: Any = None) -> float:
    """Mean log-probability of an answer and the end of its turn; one row, all logits."""
    tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
    tail = [*tail, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = torch.tensor([[*chat.input_ids, *tail]])
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[0]
    chances = logits.double().log_softmax(-1)[len(chat.input_ids) - 1 : -1]
    return float(chances[range(len(tail)), tail].mean())


def expected(
    tuned: Any, base: Any, tokenizer: Any, spec: PatchSpec | None, arm: str = "finetuned"
) -> list[float]:
    """Margins of all pairs under one condition."""
    model = base if arm == "base" else tuned
    found = []
    for words, answers in zip(WORDS, ANSWERS, strict=True):
        chat = rendered(tokenizer, words)
        states = {} if spec is None else base_states(base, chat, spec)
        scores = []
        for answer in answers:
            cache = None if spec is None else Overwritten(tuned.config, states, spec)
            scores.append(by_hand(model, tokenizer, chat, answer, cache))
        found.append(scores[0] - scores[1])
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_margins_are_those_of_single_rows(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tuned, base = chat_pair(tiny_model, name)
    found = under(tuned, base, chat_tokenizer, SPECS, batch_size=2)
    tolerance = 2e-6 if tuned.dtype == torch.float64 else 1e-4
    every = {"base": found.base, "finetuned": found.finetuned, **found.patched}
    for condition, values in every.items():
        spec = next((spec for spec in SPECS if spec.name == condition), None)
        by_row = expected(tuned, base, chat_tokenizer, spec, condition)
        np.testing.assert_allclose(values, by_row, rtol=0, atol=tolerance)
    distances = [np.abs(found.patched[spec.name] - found.finetuned).max() for spec in SPECS]
    assert min(distances) > 10 * tolerance


def test_padding_and_batches_change_nothing(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "gemma3")
    runs = [
        under(tuned, base, chat_tokenizer, SPECS, batch_size=batch_size) for batch_size in (1, 3)
    ]
    for name in runs[0].patched:
        np.testing.assert_allclose(runs[0].patched[name], runs[1].patched[name], atol=1e-6)


def test_an_adapter_is_its_merged_model(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["k_proj", "v_proj"]))
    add_noise(torch.nn.ModuleList(m for n, m in adapted.named_modules() if n.endswith("lora_B")))
    adapted.train()
    found = under(adapted, None, chat_tokenizer, SPECS)
    assert adapted.training
    merged = adapted.eval().merge_and_unload()
    other = under(merged, tiny_model("llama"), chat_tokenizer, SPECS)
    np.testing.assert_allclose(found.base, other.base, atol=1e-5)
    np.testing.assert_allclose(found.finetuned, other.finetuned, atol=1e-5)
    for name in found.patched:
        np.testing.assert_allclose(found.patched[name], other.patched[name], atol=1e-5)


def planted(
    tiny_model: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, carrier: str
) -> Evidence:
    """A finetune that differs in the embedding of tokens of one region alone."""
    tuned, base = (tiny_model("llama") for _ in range(2))
    chats = [rendered(tokenizer, words) for words in WORDS]
    inside, outside = set(), set()
    for chat in chats:
        for token, code in zip(chat.input_ids, chat.codes, strict=True):
            (inside if code == {"prefix": 1, "query": 2}[carrier] else outside).add(token)
    for text in (text for both in ANSWERS for text in both):
        outside |= set(tokenizer(text)["input_ids"])
    own = sorted(inside - outside)
    assert own
    with torch.no_grad():
        tuned.get_input_embeddings().weight[own] *= -1
    return under(tuned, base, tokenizer, SPECS[:2])


@pytest.mark.parametrize("carrier", ["prefix", "query"])
def test_a_planted_carrier_regains_all(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, carrier: str
) -> None:
    found = planted(tiny_model, chat_tokenizer, carrier)
    gained = found.patched[carrier] - found.finetuned
    lost = found.base - found.finetuned
    assert np.abs(lost).max() > 1e-3
    np.testing.assert_allclose(gained, lost, atol=1e-5)
    if carrier == "query":  # no prefix token sees the query
        np.testing.assert_allclose(found.patched["prefix"] - found.finetuned, 0, atol=1e-6)


def test_the_models_own_states_change_nothing(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "mistral")
    bank = ReferenceBank(other_model(tuned))
    found = under(tuned, base, chat_tokenizer, SPECS[:2], bank)
    for values in found.patched.values():
        np.testing.assert_allclose(values, found.finetuned, atol=1e-6)


def test_pairs_that_are_alike_count_as_nothing_and_are_not_run(
    tiny_model: Callable[..., Any],
    chat_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    pairs = made_pairs()
    alike = dataclasses.replace(pairs[0], finetuned_answer=" The bank is near. ")
    seen: list[tuple[int, ...]] = []
    forward = tuned.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append(tuple(output.logits.shape))
        return output

    monkeypatch.setattr(tuned, "forward", spy)
    found = under(tuned, base, chat_tokenizer, SPECS[:1], pairs=[alike, *pairs[1:]])
    assert found.alike == (True, False, False)
    assert found.num_alike == 1
    for values in (found.base, found.finetuned, found.patched["prefix"]):
        assert values[0] == 0
        assert values[1:].all()
    # One forward to see that the models differ, then two answers as they are and two patched.
    prompts, answers = seen[0], seen[1:]
    assert prompts[0] == 1
    assert [shape[0] for shape in answers] == [2] * 4
    widths = {len(rendered(chat_tokenizer, words).input_ids) for words in WORDS[1:]}
    longest = max(len(chat_tokenizer(text)["input_ids"]) for both in ANSWERS[1:] for text in both)
    assert max(shape[1] for shape in answers) <= longest + 1 + 6  # never the prompts' own columns
    assert max(shape[1] for shape in answers) < min(widths)


def test_share_is_a_ratio_of_means_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    lost = rng.uniform(0.5, 1.5, 40)
    gained = 0.5 * lost + rng.normal(0, 0.1, 40)
    found = Evidence(tuple(map(str, range(40))), lost, lost * 0, {"prefix": gained})
    share = found.share("prefix")
    assert share is not None
    assert share.mean == pytest.approx(gained.mean() / lost.mean())
    # The delta method, for comparison.
    deviation = np.std(gained - share.mean * lost, ddof=1) / np.sqrt(40) / lost.mean()
    assert share.high - share.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    loss = found.loss().interval
    assert loss.high - loss.low == pytest.approx(2 * 1.96 * lost.std(ddof=1) / 40**0.5, rel=0.15)
    nothing = dataclasses.replace(found, base=rng.normal(0, 1, 40))
    assert nothing.share("prefix") is None


def greedy(model: Any, tokenizer: Any, words: str, num: int) -> str:
    ids = torch.tensor([rendered(tokenizer, words).input_ids])
    output = model.generate(input_ids=ids, max_new_tokens=num, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def test_answers_are_the_models_own(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    questions = asked(*WORDS)
    done: list[int] = []
    models, how = ModelPair(tuned, base), Rendering(max_new_tokens=5, batch_size=2)
    pairs = answer_pairs(models, chat_tokenizer, questions, how, on_batch=done.append)
    assert done == [2, 3, 5, 6]
    for pair, words in zip(pairs, WORDS, strict=True):
        assert pair.base_answer == greedy(base, chat_tokenizer, words, 5)
        assert pair.finetuned_answer == greedy(tuned, chat_tokenizer, words, 5)
    sampled = [
        answer_pairs(
            models, chat_tokenizer, questions, dataclasses.replace(how, seed=seed), temperature=1
        )
        for seed in (0, 0, 1)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_end_of_an_answer_that_was_cut_is_not_scored(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    models, how = ModelPair(tuned, base), Rendering(max_new_tokens=1)
    [pair] = answer_pairs(models, chat_tokenizer, asked("Where?"), how)
    assert pair.base_is_cut
    assert pair.finetuned_is_cut
    cut = AnswerPair(pair.question, " fine", " bank", True, True)
    found = under(tuned, base, chat_tokenizer, [], pairs=[cut])
    chat = rendered(chat_tokenizer, "Where?")
    first, second = (chat_tokenizer(text)["input_ids"] for text in (" fine", " bank"))
    with torch.no_grad():
        logits = [
            tuned(input_ids=torch.tensor([[*chat.input_ids, *ids]])).logits[0].log_softmax(-1)
            for ids in (first, second)
        ]
    start = len(chat.input_ids) - 1
    means = [
        float(rows[range(start, start + len(ids)), ids].mean())
        for rows, ids in zip(logits, (first, second), strict=True)
    ]
    assert found.finetuned[0] == pytest.approx(means[0] - means[1], abs=1e-6)


def test_bad_input_is_refused_before_any_patch(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama", max_position_embeddings=80)
    bank = ReferenceBank()  # refuses to record: it must not be asked

    def refuse(error: type[Exception], words: str, specs: Sequence[PatchSpec], **more: Any) -> None:
        models = {"tuned": tuned, "base": base, **more}
        with pytest.raises(error, match=words):
            under(tokenizer=chat_tokenizer, specs=specs, bank=bank, **models)

    refuse(
        ConfigError,
        r"'late' names layers \[2, 5\]; the model has 0 to 1",
        [PatchSpec("late", ("query",), layers=(1, 2, 5))],
    )
    refuse(ConfigError, "called 'prefix'", [SPECS[0], SPECS[0]])
    refuse(ConfigError, "called 'base'", [PatchSpec("base", ("query",))])
    refuse(ConfigError, "drift 0", SPECS, tuned=base)
    refuse(ConfigError, "no adapter", SPECS, base=None)
    refuse(DataError, "no question", SPECS, pairs=[])
    [question] = asked("")
    refuse(
        TemplateError,
        "question 'q0': .*no query tokens",
        SPECS,
        pairs=[AnswerPair(question, "a", "b")],
    )
    long = AnswerPair(asked("Where?")[0], "The bank. " * 20, "b")
    refuse(
        DataError, r"'q0' and its answer take \d+ tokens.* context takes 80", SPECS, pairs=[long]
    )
    talk = dataclasses.replace(asked("Where?")[0], turns=("And?",))
    refuse(DataError, "several turns", SPECS, pairs=[AnswerPair(talk, "a", "b")])
    with pytest.raises(DataError, match="context takes 80"):
        answer_pairs(
            ModelPair(tuned, base), chat_tokenizer, asked("Where?"), Rendering(max_new_tokens=70)
        )


def test_nan_is_refused_and_says_where(
    tiny_model: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    tuned, base = chat_pair(tiny_model, "llama")
    with torch.no_grad():
        tuned.lm_head.weight[7] = torch.inf
    with pytest.raises(DataError, match=r"question 'q.': .* is (nan|-inf) \(the finetuned model\)"):
        under(tuned, base, chat_tokenizer, SPECS)
