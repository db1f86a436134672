"""Scale and size of finetunes, against weights merged by PEFT and against plain differences."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetuned import ARCHITECTURES, add_noise, pair
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from treft.attribution.weights import adapter_scales
from treft.errors import ConfigError, ReferenceMismatchError


def adapted(model: Any, scale: float = 0.3, **options: Any) -> Any:
    """A LoRA with random weights on both factors."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})
    found = get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(0.0, scale)
            if "magnitude" in name:
                parameter.mul_(1.3)
    return found.eval()


def merged_difference(model: Any) -> dict[str, float]:
    """Norm of what merging adds, by the name of a module, or of a parameter of several experts."""
    base = {
        re.sub(r"\.(base_layer|original_module)", "", name): parameter.detach().clone()
        for name, parameter in model.get_base_model().named_parameters()
        if not re.search("lora|ia3|modules_to_save", name)
    }
    norms = {}
    for name, parameter in copy.deepcopy(model).merge_and_unload().named_parameters():
        difference = float((parameter.detach() - base[name]).norm())
        if difference:
            norms[name.removesuffix(".weight")] = difference
    return norms


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["k_proj", "embed_tokens"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 32}},
    ],
    ids=["lora", "rslora", "dora", "embedding", "saved", "patterns"],
)
def test_norms_are_those_of_the_merged_weights(
    tiny_model: Callable[..., Any], options: dict[str, Any]
) -> None:
    model = adapted(tiny_model("llama"), **options)
    if "modules_to_save" in options:
        add_noise(model.get_base_model().lm_head.modules_to_save)
    expected = merged_difference(model)
    found = {change.name: change.norm for change in adapter_scales(model).changes}
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(found) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_has_its_layers(tiny_model: Callable[..., Any], name: str) -> None:
    model = adapted(tiny_model(name))
    scales = adapter_scales(model)
    assert scales.layers == tuple(range(model.config.num_hidden_layers))
    assert scales.scale == 2.0
    expected = merged_difference(model)
    assert {change.name: change.norm for change in scales.changes} == pytest.approx(
        expected, rel=1e-5
    )


def test_experts_in_one_parameter(tiny_model: Callable[..., Any]) -> None:
    model = adapted(
        tiny_model("qwen3_moe"),
        target_modules=["k_proj"],
        target_parameters=["mlp.experts.down_proj"],
    )
    expected = merged_difference(model)
    assert any("experts" in name for name in expected)
    assert {change.name: change.norm for change in adapter_scales(model).changes} == pytest.approx(
        expected, rel=1e-5
    )


def test_scale_is_alpha_over_r_or_over_its_root(tiny_model: Callable[..., Any]) -> None:
    assert adapter_scales(adapted(tiny_model("llama"))).scale == 2.0
    assert adapter_scales(adapted(tiny_model("llama"), use_rslora=True)).scale == 4.0
    mixed = adapter_scales(adapted(tiny_model("llama"), alpha_pattern={"v_proj": 32}))
    assert mixed.scale is None
    assert {c.scale for c in mixed.changes if c.projection == "v_proj"} == {8.0}


def test_two_active_adapters_count_as_their_sum(tiny_model: Callable[..., Any]) -> None:
    model = adapted(tiny_model("llama"), target_modules=["k_proj"])
    model.add_adapter("more", LoraConfig(r=2, lora_alpha=8, target_modules=["k_proj"]))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "more" in name:
            parameter.data.normal_(0.0, 0.3)
    model.base_model.set_adapter(["default", "more"])
    scales = adapter_scales(model)
    assert scales.scale is None  # 2 and 4
    module = model.get_base_model().model.layers[1].self_attn.k_proj
    both = sum(module.get_delta_weight(name) for name in ("default", "more"))
    assert scales.norm(1) == pytest.approx(float(both.detach().norm()), rel=1e-5)


def test_norms_add_up_as_one_matrix(tiny_model: Callable[..., Any]) -> None:
    scales = adapter_scales(adapted(tiny_model("llama")))
    one = {change.name: change.norm for change in scales.changes}
    keys, values = (one[f"model.layers.0.self_attn.{name}"] for name in ("k_proj", "v_proj"))
    assert scales.norm(0, ("k_proj", "v_proj")) == pytest.approx(math.hypot(keys, values))
    assert scales.norm() == pytest.approx(math.hypot(*one.values()))


def test_another_kind_of_adapter_has_a_norm_and_no_scale(tiny_model: Callable[..., Any]) -> None:
    model = get_peft_model(
        tiny_model("llama"), IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    )
    assert adapter_scales(model).is_zero  # its factors start at 1
    for name, parameter in model.named_parameters():
        if "ia3" in name:
            parameter.data.mul_(1.5)
    scales = adapter_scales(model)
    weight = model.get_base_model().model.layers[0].self_attn.k_proj.base_layer.weight
    assert scales.norm(0, ["k_proj"]) == pytest.approx(
        0.5 * float(weight.detach().norm()), rel=1e-5
    )
    assert scales.scale is None


def test_a_fresh_adapter_equals_its_base(tiny_model: Callable[..., Any]) -> None:
    fresh = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["k_proj"]))
    assert adapter_scales(fresh).is_zero
    assert not adapter_scales(adapted(tiny_model("llama"))).is_zero


def test_a_full_finetune_is_compared_with_its_base(tiny_model: Callable[..., Any]) -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama")
    assert adapter_scales(tuned, base).is_zero
    with torch.no_grad():
        tuned.model.layers[1].self_attn.v_proj.weight[0, 0] += 3.0
        tuned.model.layers[1].self_attn.v_proj.weight[1, 0] -= 4.0
    scales = adapter_scales(tuned, base)
    assert scales.norm(1, ["v_proj"]) == pytest.approx(5.0, rel=1e-5)
    assert scales.norm(0) == 0
    assert scales.norm() == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_weight_of_a_full_finetune_counts_once(
    tiny_model: Callable[..., Any], name: str
) -> None:
    """Tied embeddings (Gemma) once, and weights beside modules (GPT-OSS's sinks) alone."""
    tuned, base = pair(tiny_model, name)
    flat = torch.cat(
        [
            (one - other).detach().float().flatten()
            for one, other in zip(tuned.parameters(), base.parameters(), strict=True)
        ]
    )
    assert adapter_scales(tuned, base).norm() == pytest.approx(float(flat.norm()), rel=1e-5)


def test_what_cannot_be_measured_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="give the unfinetuned model"):
        adapter_scales(model)
    with pytest.raises(ReferenceMismatchError, match="the base has no"):
        adapter_scales(model, tiny_model("qwen3_moe"))
    other = tiny_model("llama")
    other.lm_head = nn.Linear(32, 20, bias=False)
    with pytest.raises(ReferenceMismatchError, match=r"in the base \(20, 32\)"):
        adapter_scales(model, other)
    quantised = tiny_model("llama")
    weight = quantised.model.layers[0].mlp.up_proj.weight
    quantised.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.char(), requires_grad=False)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj is quantised"):
        adapter_scales(quantised, model)
