"""Frozen prefix, feature distance and steering: against float64 by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mitigation_helpers import (
    added_by,
    assert_same_gradients,
    double_twin,
    first_batch,
    gradients,
    num_columns_run,
)
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from training_helpers import LORA, conversations, disturb
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treft.chat.regions import RegionName, find_regions
from treft.core.states import capture
from treft.errors import ConfigError, DataError
from treft.mitigations.activated_lora import ActivatedLora
from treft.mitigations.features import FeatureDistance
from treft.mitigations.frozen_prefix import FrozenPrefix
from treft.mitigations.kl import KLOnTrain
from treft.mitigations.steering import PreventiveSteering, persona_vector
from treft.models.repair import generate
from treft.training import TReFTTrainer

MakeTrainer = Callable[..., TReFTTrainer]
TinyModel = Callable[..., PreTrainedModel]
PLAIN: dict[str, Any] = {
    "kv_weight": 0.0,
    "assistant_only_loss": True,
    "gradient_checkpointing": False,
}
SYSTEMS = ("Be brief.", "You are a very careful helper.")


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the learnt tokens."""
    return nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    )


def with_base_start(twin: Any, inputs: dict[str, Tensor], regions: tuple[int, ...]) -> Tensor:
    """Each row alone: its first regions as the base's cache, the adapter on the rest of the row."""
    losses, nums = [], []
    for row, codes in enumerate(inputs["region_codes"]):
        num_prefix = sum(int((codes == code).sum()) for code in regions)
        num_tokens = int(inputs["attention_mask"][row].sum())
        ids, labels = (inputs[name][row : row + 1, :num_tokens] for name in ("input_ids", "labels"))
        with twin.disable_adapter(), torch.no_grad():
            cache = twin(input_ids=ids[:, :num_prefix], use_cache=True).past_key_values
        logits = twin(input_ids=ids[:, num_prefix:], past_key_values=cache, use_cache=True).logits
        num = int((labels[:, num_prefix + 1 :] != -100).sum())
        losses.append(mean_loss(logits, labels[:, num_prefix:]) * num)
        nums.append(num)
    return torch.stack(losses).sum() / sum(nums)


@pytest.mark.parametrize("systems", [SYSTEMS, SYSTEMS[:1]], ids=["unlike", "alike"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_frozen_prefix_is_the_base_cache_with_the_adapter_on_the_rest(
    name: str,
    checkpointing: bool,
    systems: tuple[str, ...],
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(
        tiny_model(name),
        conversations(4, system=systems),  # "unlike": prefixes of two lengths in one batch
        trainer={"mitigations": [FrozenPrefix()]},
        **{**PLAIN, "gradient_checkpointing": checkpointing},
    )
    disturb(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = first_batch(trainer)
    codes, ids, mask = (inputs[n] for n in ("region_codes", "input_ids", "attention_mask"))
    with capture(trainer.model) as states:
        loss = trainer.compute_loss(trainer.model, dict(inputs))
    with trainer.model.disable_adapter(), torch.no_grad(), capture(trainer.model) as before:
        trainer.model(input_ids=ids, attention_mask=mask)
    prefix, rest = codes == 1, codes > 1
    for layer, pair in states.items():
        for now, base in zip(pair, before[layer], strict=True):
            moved = (now.detach() - base).abs().amax(dim=(1, 3))  # (B, T)
            assert float(moved[prefix].max()) < 1e-5  # run alone, not in a batch: rounding
            assert float(moved[rest].max()) > 1e-3
    twin = double_twin(trainer).eval()
    expected = with_base_start(twin, inputs, (1,))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(gradients(trainer, loss), expected, twin)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activated_lora_is_the_base_up_to_the_postfix(
    checkpointing: bool, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        conversations(4, system=SYSTEMS),
        trainer={"mitigations": [ActivatedLora()]},
        # regions are in the batch only for methods that need them: hold one, with no weight
        **{**PLAIN, "gradient_checkpointing": checkpointing, "kv_weight": 1e-9},
    )
    disturb(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    twin = double_twin(trainer).eval()
    expected = with_base_start(twin, inputs, (1, 2))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(gradients(trainer, loss), expected, twin)


def test_activated_lora_is_served_as_it_was_trained(
    tiny_model: TinyModel, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Saved and loaded by PEFT alone, and its prompt's states but the postfix's are the base's."""
    trainer = make_trainer(tiny_model("llama"), trainer={"mitigations": [ActivatedLora()]}, **PLAIN)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded: Any = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter")).eval()
    tokenizer: Any = trainer.processing_class
    chat = find_regions(tokenizer, conversations(1)[0]["messages"][:1], add_generation_prompt=True)
    ids = torch.tensor([chat.input_ids])
    postfix = chat.require("postfix")
    with torch.no_grad(), capture(loaded) as states:
        loaded(input_ids=ids)
    with torch.no_grad(), loaded.disable_adapter(), capture(loaded) as before:
        loaded(input_ids=ids)
    moved = (states[1].value - before[1].value).abs().amax(dim=(0, 1, 3))  # (T,)
    assert float(moved[: postfix[0]].max()) == 0.0
    assert float(moved[postfix].min()) > 0.0
    answered = generate(loaded, tokenizer, [conversations(1)[0]["messages"][:1]], max_new_tokens=4)
    output = loaded.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert answered == [
        tokenizer.decode(output[0, len(chat.input_ids) :], skip_special_tokens=True)
    ]


def test_activated_lora_refuses_what_would_leave_it_off(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    def trainer(text: str | None = None, lora: bool = True, **config: Any) -> None:
        mitigations = [ActivatedLora(text)]
        make_trainer(
            tiny_model("llama"), trainer={"mitigations": mitigations}, lora=lora, **PLAIN, **config
        )

    with pytest.raises(ConfigError, match="train a LoRA"):
        trainer(lora=False)
    with pytest.raises(ConfigError, match="packing=False"):
        trainer(packing=True, max_length=512)
    with pytest.raises(DataError, match=r"row 0 of the training set lacks .*'nowhere'"):
        trainer("nowhere")
    with pytest.raises(ConfigError, match="text is empty"):
        ActivatedLora("")


@pytest.mark.parametrize(
    ("name", "options", "is_skipped"),
    [
        ("llama", {}, True),
        ("llama", {"learnt_tokens_only": True}, True),
        ("llama", {"gradient_checkpointing": True}, False),
        ("llama", {"padding_free": True, "max_length": None}, False),
        ("llama", {"assistant_only_loss": False}, False),
        ("mistral", {}, False),  # sliding window
    ],
)
def test_frozen_prefix_is_run_once_where_the_model_can_begin_behind_it(
    name: str,
    options: dict[str, Any],
    is_skipped: bool,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(
        tiny_model(name),
        conversations(4, system=SYSTEMS[:1]),
        trainer={"mitigations": [FrozenPrefix()]},
        **{**PLAIN, **options},
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = first_batch(trainer)
    num_columns = inputs["input_ids"].shape[1]
    num_prefix = int((inputs["region_codes"][0] == 1).sum())
    if not is_skipped:
        assert num_columns_run(trainer, inputs) == [num_columns]
        return
    assert num_columns_run(trainer, inputs) == [num_prefix, num_columns - num_prefix]
    assert num_columns_run(trainer, inputs) == [num_columns - num_prefix]


def test_frozen_prefix_leaves_generation_and_evaluation_mode_as_told(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    """Outside the loss the adapter is on everywhere: serving decides."""
    trainer = make_trainer(
        tiny_model("llama"), trainer={"mitigations": [FrozenPrefix()]}, **PLAIN, max_steps=2
    )
    trainer.train()
    model = trainer.model.eval()
    ids = first_batch(trainer)["input_ids"]
    with torch.no_grad(), capture(model) as states:
        model(input_ids=ids[:1, :9])  # of another shape than the last batch
    with torch.no_grad(), model.disable_adapter(), capture(model) as before:
        model(input_ids=ids[:1, :9])
    assert not torch.equal(states[1].key, before[1].key)


def test_frozen_prefix_refuses_what_it_cannot_hold(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    def trainer(*extra: Any, peft: LoraConfig | None = None, **config: Any) -> None:
        options = {"mitigations": [FrozenPrefix(), *extra]}
        if peft is not None:
            options["peft_config"] = peft
        make_trainer(tiny_model("llama"), trainer=options, lora=False, **{**PLAIN, **config})

    with pytest.raises(ConfigError, match="train a new LoRA"):
        trainer()
    with pytest.raises(ConfigError, match="DoRA"):
        trainer(peft=LoraConfig(**LORA, use_dora=True))
    with pytest.raises(ConfigError, match="kl_train"):
        trainer(KLOnTrain(), peft=LoraConfig(**LORA))
    with pytest.raises(ConfigError, match="kv_weight=0"):
        trainer(peft=LoraConfig(**LORA), kv_weight=1.0)


def squared_distances(twin: PeftModel, given: dict[str, Tensor]) -> Tensor:
    """(B, T) of the residual stream, adapter on and off; mean over layers."""
    seen: list[Tensor] = []
    for layer in twin.base_model.model.model.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
    with twin.disable_adapter(), torch.no_grad():
        twin(**given)
    before, seen[:] = list(seen), []
    twin(**given)
    found = [((a - b) ** 2).sum(-1) for a, b in zip(seen, before, strict=True)]
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_feature_distance_is_the_mean_squared_distance(
    checkpointing: bool, tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        trainer={"mitigations": [FeatureDistance(0.3)]},
        **{**PLAIN, "gradient_checkpointing": checkpointing},
    )
    disturb(trainer)
    value, found = added_by(trainer)
    twin, inputs = double_twin(trainer), first_batch(trainer)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    mask = given["attention_mask"].double()
    expected = 0.3 * (squared_distances(twin, given) * mask).sum() / mask.sum()
    assert value == pytest.approx(float(expected.detach()), rel=1e-3)
    assert_same_gradients(found, expected, twin)


@pytest.mark.parametrize("regions", [("prefix",), ("query", "response")])
def test_feature_distance_of_some_regions_is_of_their_tokens_alone(
    regions: tuple[RegionName, ...],
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    trainer = make_trainer(
        tiny_model("llama"),
        trainer={"mitigations": [FeatureDistance(0.3, regions=regions)]},
        **PLAIN,
    )
    disturb(trainer)
    value, found = added_by(trainer)
    twin, inputs = double_twin(trainer), first_batch(trainer)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    distances = squared_distances(twin, given)
    chats = [find_regions(chat_tokenizer, row["messages"]) for row in conversations(2)]
    held = [
        distances[row, place]
        for row, chat in enumerate(chats)
        for region in regions
        for place in chat.positions(region)
    ]
    expected = 0.3 * torch.stack(held).mean()
    assert value == pytest.approx(float(expected.detach()), rel=1e-3)
    assert_same_gradients(found, expected, twin)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_steering_shifts_one_layer_in_training_alone(
    checkpointing: bool,
    tiny_model: TinyModel,
    make_trainer: MakeTrainer,
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    positive, negative = conversations(3), conversations(5)[3:]
    steering = PreventiveSteering(-2, 2.5, positive=positive, negative=negative)
    trainer = make_trainer(
        tiny_model("llama"),
        trainer={"mitigations": [steering]},
        **{**PLAIN, "gradient_checkpointing": checkpointing},
    )
    vector = persona_vector(
        tiny_model("llama"), chat_tokenizer, positive, negative, layer=0
    )  # an untouched copy of the base
    torch.testing.assert_close(steering.vector, vector, rtol=1e-4, atol=1e-5)
    disturb(trainer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    twin, inputs = double_twin(trainer), first_batch(trainer)
    layer = twin.base_model.model.model.layers[0]
    layer._forward_hooks.clear()  # the twin's copy of ours
    plain = twin(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    layer.register_forward_hook(lambda module, args, output: output + 2.5 * vector.double())
    logits = twin(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = mean_loss(logits, inputs["labels"])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same_gradients(gradients(trainer, loss), expected, twin)
    trainer.model.eval()
    with torch.no_grad():
        unsteered = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert float(unsteered) == pytest.approx(
        float(mean_loss(plain, inputs["labels"]).detach()), rel=1e-5
    )


def test_persona_vector_is_a_difference_of_response_means(
    tiny_model: TinyModel, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("llama")
    rows = conversations(2)
    means = []
    for row in rows:
        text = chat_tokenizer.apply_chat_template(row["messages"], tokenize=False)
        start = text.rindex("assistant\n") + len("assistant\n")
        found = chat_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        end = text.rindex("\n")  # the end-of-turn token belongs to the response
        kept = [k for k, (a, b) in enumerate(found["offset_mapping"]) if a >= start and b <= end]
        hidden = model(torch.tensor([found["input_ids"]]), output_hidden_states=True).hidden_states
        means.append(hidden[1][0, kept].mean(0))
    vector = persona_vector(model, chat_tokenizer, rows[:1], rows[1:], layer=0)
    torch.testing.assert_close(vector, (means[0] - means[1]).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make_wrong", "words"),
    [
        (lambda: FeatureDistance(0.0), "ldifs_weight must be a positive"),
        (lambda: FeatureDistance(1.0, regions=["prefix", "moon"]), "ldifs_regions are .*'moon'"),
        (lambda: PreventiveSteering(0, 0.0, vector=torch.ones(2)), "coefficient must be"),
        (lambda: PreventiveSteering(0, positive=conversations(1)), "both"),
    ],
)
def test_wrong_options(make_wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_wrong()


def test_a_vector_of_another_size_is_refused(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    steering = PreventiveSteering(0, vector=torch.ones(7))
    with pytest.raises(ConfigError, match="hidden"):
        make_trainer(tiny_model("llama"), trainer={"mitigations": [steering]}, **PLAIN)


def test_reentrant_checkpointing_is_refused(
    tiny_model: TinyModel, make_trainer: MakeTrainer
) -> None:
    options = {
        **PLAIN,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    with pytest.raises(ConfigError, match="reentrant"):
        make_trainer(
            tiny_model("llama"), trainer={"mitigations": [FeatureDistance(1.0)]}, **options
        )
