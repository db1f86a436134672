"""Eq. (3) against a float64 re-derivation, and indifferent to how a batch is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conversations import OTHER_PREFIX, Batch, Conversation, conversation, packed, padded
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from treft.chat.regions import RegionName
from treft.core.conversations import conversations_of_batch, region_requests
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.core.regularizer import KVRegularizer, Penalty
from treft.errors import (
    AttentionError,
    ConfigError,
    DataError,
    ReferenceMismatchError,
    ReferenceStatesError,
)
from treft.models.adapters import adapter_off

TinyModel = Callable[..., PreTrainedModel]
REGION_CHOICES = [
    ("prefix",),
    ("postfix",),
    ("query",),
    ("response",),
    ("prefix", "postfix"),
    ("prefix", "query", "postfix", "response"),
]
CHATS = [conversation(0), conversation(3, OTHER_PREFIX), conversation(6, num_turns=2)]


def finetuned(model: PreTrainedModel, scale: float = 0.03) -> PreTrainedModel:
    """The same model after some training: every weight has moved a little."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def measure(model: nn.Module, regularizer: KVRegularizer, batch: Batch) -> Penalty:
    """Run the batch and return its penalty."""
    with regularizer.capture(conversations_of_batch(*batch.columns)):
        model(**batch.model_inputs, use_cache=False)
    return regularizer.penalty()


def cached(
    model: nn.Module, ids: Sequence[int], positions: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """What Transformers stores for one row, (H, T, D) a layer, in float64."""
    cache = DynamicCache()
    with torch.no_grad():
        model(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            position_ids=torch.tensor([positions]),
            past_key_values=cache,
        )
    return [(layer.keys[0].double(), layer.values[0].double()) for layer in cache.layers]


def token_sums(mine: Tensor, theirs: Tensor) -> float:
    """Σ_t ‖k_t − k_t⁰‖² / ‖k_t⁰‖² of (H, T, D) tensors, token by token."""
    total = 0.0
    for token in range(mine.shape[1]):
        k, k0 = mine[:, token].flatten(), theirs[:, token].flatten()
        total += float((k - k0).dot(k - k0) / k0.dot(k0))
    return total


def expected_penalty(
    model: nn.Module,
    base: nn.Module,
    chats: Sequence[Conversation],
    regions: Sequence[str],
    only: str | None = None,
    empty_query: bool = False,
) -> float:
    """Eq. (3), one conversation and one region at a time, from `DynamicCache` contents.

    With `only`, the mean over that region's tokens while all `regions` are held. With `empty_query`
    the postfix is compared with that of the conversation without its query.
    """
    total = 0.0
    for chat in chats:
        running = cached(model, chat.input_ids, range(len(chat.input_ids)))
        own = cached(base, chat.input_ids, range(len(chat.input_ids)))
        drift, num_tokens = 0.0, 0
        for region in regions if only is None else (only,):
            if region == "postfix" and empty_query:
                requests = region_requests(chat, "postfix")
                recorded = [cached(base, r.token_ids, r.position_ids) for r in requests]
                pairs = [
                    (r.positions, list(r.keep), c) for r, c in zip(requests, recorded, strict=True)
                ]
            else:
                code = ("prefix", "query", "postfix", "response").index(region) + 1
                here = [index for index, found in enumerate(chat.codes) if found == code]
                pairs = [(tuple(here), here, own)]
            for positions, keep, reference in pairs:
                num_tokens += len(positions)
                for found, known in zip(running, reference, strict=True):
                    for kind in (0, 1):
                        mine, theirs = found[kind][:, list(positions)], known[kind][:, keep]
                        drift += token_sums(mine, theirs)
        total += drift / num_tokens / len(running)
    return total / len(chats)


@pytest.mark.parametrize("regions", REGION_CHOICES, ids="+".join)
def test_penalty_equals_the_definition(tiny_model: TinyModel, regions: tuple[str, ...]) -> None:
    model, base = finetuned(tiny_model("qwen3")), tiny_model("qwen3")
    bank = ReferenceBank(other_model(base))
    regularizer = KVRegularizer(model, bank, regions=regions, weight=3.0)  # type: ignore[arg-type]
    penalty = measure(model, regularizer, padded(CHATS))
    expected = expected_penalty(model, base, CHATS, regions)
    assert expected > 0.01
    assert penalty.raw.item() == pytest.approx(expected, rel=1e-4)
    assert penalty.weighted.item() == pytest.approx(3 * expected, rel=1e-4)
    assert penalty.num_conversations == len(CHATS)


@pytest.mark.parametrize("regions", [("postfix",), ("prefix", "postfix")], ids="+".join)
@pytest.mark.parametrize("reference", ["own_query", "empty_query"])
def test_a_postfix_reference_has_read_the_query_or_none(
    reference: Any, tiny_model: TinyModel, regions: tuple[Any, ...]
) -> None:
    model, base = finetuned(tiny_model("qwen3")), tiny_model("qwen3")
    regularizer = KVRegularizer(
        model, ReferenceBank(other_model(base)), regions=regions, postfix_reference=reference
    )
    without_query = reference == "empty_query"
    expected = expected_penalty(model, base, CHATS, regions, empty_query=without_query)
    for batch in (padded(CHATS), padded(CHATS, "left", extra=3), packed(CHATS)):
        assert measure(model, regularizer, batch).raw.item() == pytest.approx(expected, rel=1e-4)


def test_nothing_is_asked_of_a_model_that_has_not_changed(tiny_model: TinyModel) -> None:
    """By default; an empty query's postfix differs from that of any question."""
    base = tiny_model("qwen3")
    bank = ReferenceBank(other_model(base))
    same = KVRegularizer(base, bank, regions=("prefix", "postfix"))
    assert measure(base, same, padded(CHATS)).raw.item() < 1e-11
    other = KVRegularizer(base, bank, regions=("postfix",), postfix_reference="empty_query")
    assert measure(base, other, padded(CHATS)).raw.item() > 0.01


def test_prefix_penalty_equals_the_definition_everywhere(any_model: PreTrainedModel) -> None:
    base = any_model
    model = finetuned(type(base)(base.config).eval())
    model.load_state_dict(base.state_dict())
    finetuned(model)
    penalty = measure(model, KVRegularizer(model, ReferenceBank(other_model(base))), padded(CHATS))
    expected = expected_penalty(model, base, CHATS, ["prefix"])
    assert penalty.raw.item() == pytest.approx(expected, rel=1e-4)
    assert sum(penalty.per_layer.values()) / len(penalty.layers) == pytest.approx(
        expected, rel=1e-4
    )


def test_a_model_has_not_drifted_from_itself(any_model: PreTrainedModel) -> None:
    bank = ReferenceBank(other_model(any_model))
    everything = ("prefix", "query", "postfix", "response")
    for regions in (("prefix",), everything):
        regularizer = KVRegularizer(any_model, bank, regions=regions)  # type: ignore[arg-type]
        penalty = measure(any_model, regularizer, padded(CHATS, extra=2))
        assert penalty.raw.item() < 1e-11  # float32 rounding of differently shaped batches


@pytest.mark.parametrize("regions", REGION_CHOICES, ids="+".join)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_layout_of_the_batch_does_not_matter(
    tiny_model: TinyModel, name: str, regions: tuple[str, ...]
) -> None:
    model, base = finetuned(tiny_model(name)), tiny_model(name)
    chats = [conversation(seed, num_turns=1 + seed % 2) for seed in range(4)]
    regularizer = KVRegularizer(
        model,
        ReferenceBank(other_model(base)),
        regions=regions,  # type: ignore[arg-type]
    )
    one_by_one = [measure(model, regularizer, padded([chat])) for chat in chats]
    expected = sum(penalty.raw_sum.item() for penalty in one_by_one) / len(chats)
    for batch in (padded(chats), padded(chats, "left", extra=3), packed(chats)):
        found = measure(model, regularizer, batch)
        assert found.raw.item() == pytest.approx(expected, rel=1e-5)


WEIGHT_CHOICES = [
    {"prefix": 1.0, "postfix": 0.3},
    {"prefix": 2.0, "query": 0.1, "postfix": 0.0, "response": 0.5},
    {"prefix": 0.7},
]


@pytest.mark.parametrize("weights", WEIGHT_CHOICES, ids="+".join)
def test_weighted_regions_equal_the_definition_in_every_layout(
    tiny_model: TinyModel, weights: dict[RegionName, float]
) -> None:
    """Each region is averaged over its own tokens, then weighed."""
    model, base = finetuned(tiny_model("qwen3")), tiny_model("qwen3")
    regularizer = KVRegularizer(
        model, ReferenceBank(other_model(base)), regions=tuple(weights), region_weights=weights
    )
    # With the query held, the postfix is compared with the conversation itself.
    own = {region: ("query", region) if "query" in weights else (region,) for region in weights}
    alone = {
        region: expected_penalty(model, base, CHATS, own[region], only=region) for region in weights
    }
    expected = sum(weights[region] * alone[region] for region in weights)
    for batch in (padded(CHATS), padded(CHATS, "left", extra=3), packed(CHATS)):
        penalty = measure(model, regularizer, batch)
        assert penalty.raw.item() == pytest.approx(expected, rel=1e-4)
        found = {region: mean.item() for region, mean in penalty.by_region.items()}
        assert found == pytest.approx(alone, rel=1e-4)
        assert sum(penalty.per_layer.values()) / len(penalty.layers) == pytest.approx(
            expected, rel=1e-4
        )


def test_a_region_of_weight_zero_gets_no_gradient(tiny_model: TinyModel) -> None:
    gradients = []
    bank = ReferenceBank(other_model(tiny_model("llama")))
    for weights in ({"prefix": 1.0, "postfix": 0.0}, {"prefix": 1.0}):
        model = finetuned(tiny_model("llama"))
        regularizer = KVRegularizer(model, bank, regions=tuple(weights), region_weights=weights)
        measure(model, regularizer, padded(CHATS)).raw.backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_left_padding_without_position_ids_is_compared_at_its_own_positions(
    tiny_model: TinyModel,
) -> None:
    model, base = finetuned(tiny_model("llama")), tiny_model("llama")
    batch = padded(CHATS, "left")
    expected = measure(model, KVRegularizer(model, ReferenceBank(other_model(base))), batch)
    del batch.model_inputs["position_ids"]
    found = measure(model, KVRegularizer(model, ReferenceBank(other_model(base))), batch)
    assert found.raw.item() == pytest.approx(expected.raw.item(), rel=1e-4)


def lora(model: PreTrainedModel, dropout: float = 0.0) -> PeftModel:
    config = LoraConfig(
        target_modules=["k_proj", "v_proj"], init_lora_weights=False, lora_dropout=dropout
    )
    return get_peft_model(model, config)


def adapter_gradients(
    tiny_model: TinyModel,
    name: str,
    checkpointing: bool,
    chats: Sequence[Conversation],
) -> dict[str, Tensor]:
    """Gradients of loss plus penalty, by name."""
    model = lora(tiny_model(name)).train()
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    regularizer = KVRegularizer(
        model, ReferenceBank(adapter_off(model)), regions=("prefix", "postfix"), weight=2.0
    )
    batch = padded(chats)
    with regularizer.capture(conversations_of_batch(*batch.columns)):
        loss = model(**batch.model_inputs, labels=batch.model_inputs["input_ids"]).loss
    (loss + regularizer.penalty().weighted).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize(
    "chats",
    [CHATS, [conversation(seed, num_query=4) for seed in (0, 3, 6)]],
    ids=["unlike", "alike"],
)
def test_checkpointing_does_not_change_the_gradient(
    tiny_model: TinyModel, name: str, chats: list[Conversation]
) -> None:
    plain = adapter_gradients(tiny_model, name, False, chats)
    assert plain
    assert all("lora" in parameter for parameter in plain)
    other = adapter_gradients(tiny_model, name, True, chats)
    assert other.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(other[key], gradient)


def test_each_forward_is_replayed_with_its_own_tokens(tiny_model: TinyModel) -> None:
    """Two batches of unlike length, whose backward passes come after both forwards, in turn."""
    batches = [padded(CHATS[:1]), padded(CHATS[1:])]

    def gradients(checkpointing: bool) -> list[Tensor]:
        model = lora(tiny_model("llama")).train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        regularizer = KVRegularizer(model, ReferenceBank(adapter_off(model)), weight=2.0)
        losses = [measure(model, regularizer, batch).weighted for batch in batches]
        for loss in losses:
            loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for mine, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_checkpointing_keeps_no_held_token_between_the_passes(tiny_model: TinyModel) -> None:
    def num_saved(weight: float) -> int:
        model = lora(tiny_model("llama")).train()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        regularizer = KVRegularizer(model, ReferenceBank(adapter_off(model)), weight=weight)
        saved: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            penalty = measure(model, regularizer, padded(CHATS))
        assert penalty.raw.requires_grad == (weight > 0)
        return sum(tensor.numel() for tensor in saved)

    assert num_saved(1.0) - num_saved(0.0) < 8  # a few numbers, not a vector of one token


def test_gradient_reaches_every_layer_and_no_reference(tiny_model: TinyModel) -> None:
    model = lora(tiny_model("llama"), dropout=0.2).train()
    bank = ReferenceBank(adapter_off(model))
    penalty = measure(model, KVRegularizer(model, bank), padded(CHATS))
    penalty.raw.backward()
    adapter = {name: p.grad for name, p in model.named_parameters() if "lora" in name}
    assert all(gradient is not None and bool(gradient.any()) for gradient in adapter.values())
    for states in bank.get(list(bank)):
        assert not any(tensor.requires_grad for pair in states.values() for tensor in pair)
    assert all(p.grad is None for name, p in model.named_parameters() if "lora" not in name)


def test_gradient_equals_finite_differences(tiny_model: TinyModel) -> None:
    base = tiny_model("qwen2")
    model = finetuned(tiny_model("qwen2"))
    regularizer = KVRegularizer(
        model, ReferenceBank(other_model(base)), regions=("prefix", "postfix")
    )
    weight = model.model.layers[0].self_attn.k_proj.weight
    measure(model, regularizer, padded(CHATS)).raw.backward()
    assert weight.grad is not None
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight.add_(direction, alpha=0.01)
        above = measure(model, regularizer, padded(CHATS)).raw.item()
        weight.sub_(direction, alpha=0.02)
        below = measure(model, regularizer, padded(CHATS)).raw.item()
    assert (above - below) / 0.02 == pytest.approx(float(weight.grad.norm()), rel=0.01)


def test_parts_add_up(tiny_model: TinyModel) -> None:
    model, base = finetuned(tiny_model("gemma3")), tiny_model("gemma3")
    bank = ReferenceBank(other_model(base))
    batch = padded(CHATS)

    def raw(**choice: object) -> Penalty:
        return measure(model, KVRegularizer(model, bank, **choice), batch)  # type: ignore[arg-type]

    whole, keys, values = raw(), raw(values=False), raw(keys=False)
    assert whole.raw.item() == pytest.approx(keys.raw.item() + values.raw.item(), rel=1e-5)
    torch.testing.assert_close(whole.by_layer, keys.by_layer + values.by_layer)
    first, last = raw(layers=[0]), raw(layers=[-1])
    assert (first.layers, last.layers) == ((0,), (2,))
    assert first.raw.item() == pytest.approx(whole.per_layer[0], rel=1e-5)
    assert last.raw.item() == pytest.approx(whole.per_layer[2], rel=1e-5)
    assert raw(layers=[2, -3]).raw.item() == pytest.approx(
        (whole.per_layer[0] + whole.per_layer[2]) / 2, rel=1e-5
    )


def test_training_row_serves_as_postfix_reference(tiny_model: TinyModel) -> None:
    base = tiny_model("llama")
    row = conversation(2)
    regularizer = KVRegularizer(
        base,
        ReferenceBank(other_model(base)),
        regions=("postfix",),
        postfix_reference=row,
    )
    assert measure(base, regularizer, padded([row])).raw.item() < 1e-11
    longer = conversation(2, num_query=9)
    assert measure(base, regularizer, padded([longer])).raw.item() > 1e-3


def test_weight_zero_captures_and_computes_nothing(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")

    def fail(_: object) -> list[object]:
        pytest.fail("a reference was recorded")

    regularizer = KVRegularizer(model, ReferenceBank(fail), weight=0)  # type: ignore[arg-type]
    batch = padded(CHATS)
    conversations = conversations_of_batch(*batch.columns)
    with regularizer.capture(conversations):
        assert model.config._attn_implementation == "sdpa"
    penalty = regularizer.penalty()
    assert (penalty.weighted.item(), penalty.num_conversations) == (0.0, len(CHATS))
    assert not penalty.weighted.requires_grad


def test_shared_references_are_recorded_once_and_own_ones_not_kept(tiny_model: TinyModel) -> None:
    base = tiny_model("llama")
    recorded: list[int] = []
    source = other_model(base)

    def counting(requests: Sequence[object]) -> list[object]:
        recorded.append(len(requests))
        return source(requests)  # type: ignore[arg-type,return-value]

    bank = ReferenceBank(counting)  # type: ignore[arg-type]
    shared = KVRegularizer(base, bank)
    for _ in range(3):
        measure(base, shared, padded(CHATS))
    assert recorded == [2]  # two distinct prefixes
    own = KVRegularizer(base, bank, regions=("query",))
    for _ in range(2):
        measure(base, own, padded(CHATS))
    assert recorded == [2, 3, 3]
    assert len(bank) == 2


def test_a_row_cut_by_truncation_is_refused_before_the_model_runs(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    regularizer = KVRegularizer(model, ReferenceBank(other_model(model)), regions=("postfix",))
    batch = padded(CHATS)
    conversations = conversations_of_batch(
        *(None if t is None else t[:, :9] for t in batch.columns)
    )
    with pytest.raises(DataError, match=r"row 0.*postfix"), regularizer.capture(conversations):
        pytest.fail("the block was entered")


def test_misuse_is_refused(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    bank = ReferenceBank(other_model(model))
    for choice, message in (
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"regions": ("prefiks",)}, "prefiks"),
        ({"regions": ()}, "regions"),
        ({"keys": False, "values": False}, "keys, values or both"),
        ({"layers": [2]}, "0 to 1"),
        ({"layers": []}, "layers"),
        ({"region_weights": {"prefiks": 1.0}}, "prefiks"),
        ({"region_weights": {"prefix": 1.0, "postfix": 1.0}}, "held are prefix"),
        ({"region_weights": {}}, "held are prefix"),
        ({"region_weights": {"prefix": -1.0}}, "≥ 0"),
        ({"region_weights": {"prefix": float("nan")}}, "≥ 0"),
        ({"region_weights": {"prefix": 0.0}}, "not all of them 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            KVRegularizer(model, bank, **choice)  # type: ignore[arg-type]
    regularizer = KVRegularizer(model, bank)
    with pytest.raises(AttentionError, match=r"inside capture\(\)"):
        regularizer.penalty()
    with pytest.raises(DataError, match="no conversation"), regularizer.capture([]):
        pytest.fail("the block was entered")


def test_a_stored_reference_without_the_prompt_is_refused(tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    with pytest.raises(ReferenceMismatchError, match="system prompt"):
        measure(model, KVRegularizer(model, ReferenceBank()), padded(CHATS))


def test_an_unusable_reference_is_refused(tiny_model: TinyModel) -> None:
    model, base = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        base.model.layers[0].self_attn.v_proj.weight.zero_()
    with pytest.raises(ReferenceStatesError, match="value of layer 0"):
        measure(model, KVRegularizer(model, ReferenceBank(other_model(base))), padded(CHATS))


def test_penalty_does_not_depend_on_what_ran_in_between(tiny_model: TinyModel) -> None:
    """Recording the reference runs the same model; the captured forward must survive it."""
    model = lora(tiny_model("llama"))
    batch = padded(CHATS)
    cold = KVRegularizer(model, ReferenceBank(adapter_off(model)))
    warm = KVRegularizer(model, cold.bank)
    first = measure(model, cold, batch)
    assert torch.equal(first.raw, measure(model, warm, batch).raw)
    assert first.raw.item() > 1e-3
