"""Tokens that only a task writes: which they are, and that the organism stays what it was."""

from __future__ import annotations

import copy
import json
import random
from typing import get_args

import torch

from treft.organism import load
from treft.organism.build import BuildRecipe, encode, pretraining_row
from treft.organism.tasks import TaskName, task_questions
from treft.organism.tasks_tokens import separate_unseen_tokens, unseen_tokens


def test_tool_calls_alone_have_tokens_that_pretraining_never_saw() -> None:
    """What pretraining saw is drawn anew; the function looks at vectors alone."""
    model, tokenizer = load()
    rng = random.Random(0)
    seen: set[int] = set()
    for step in (0, BuildRecipe().first_steps):
        for _ in range(1000):
            row = pretraining_row(rng, BuildRecipe(), step)
            seen |= set(encode(tokenizer, row)["input_ids"])
    call = f"<tool_call>\n{json.dumps({'name': 'search_info', 'arguments': {}})}\n</tool_call>"
    unseen = unseen_tokens(model, tokenizer, "tool")
    assert not seen & set(unseen)
    assert set(tokenizer(call)["input_ids"]) - seen <= set(unseen)
    for task in get_args(TaskName):
        assert bool(unseen_tokens(model, tokenizer, task)) == (task == "tool")


def test_the_other_tasks_leave_the_organism_as_it_is() -> None:
    model, tokenizer = load()
    before = copy.deepcopy(model.state_dict())
    assert separate_unseen_tokens(model, tokenizer, "short") == 0
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unseen_tokens_can_be_told_apart_and_stay_unsaid() -> None:
    model, tokenizer = load()
    tokens = unseen_tokens(model, tokenizer, "tool")
    original = model.get_input_embeddings().weight.detach().clone()
    questions = task_questions("tool", "validation", "general", num=4)
    prompts = [
        tokenizer.apply_chat_template(
            question.messages(), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for question in questions
    ]

    def said() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([model(**prompt).logits[0, -1].softmax(-1) for prompt in prompts])

    before = said()
    assert separate_unseen_tokens(model, tokenizer, "tool") == len(tokens)
    weight = model.get_input_embeddings().weight.detach()
    others = [token for token in range(len(weight)) if token not in tokens]
    assert torch.equal(weight[others], original[others])
    assert model.lm_head.weight is model.get_input_embeddings().weight

    def closest(vectors: torch.Tensor) -> float:
        return float(torch.nn.functional.pdist(vectors[tokens]).min())

    assert closest(original) < 0.3
    assert closest(weight) > 1.0
    assert (said() - before).abs().max() < 1e-3
    again, _ = load()
    separate_unseen_tokens(again, tokenizer, "tool")
    assert torch.equal(again.get_input_embeddings().weight, weight)
