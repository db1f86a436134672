"""Tokens that a task writes and that pretraining never saw.

All of them lie within a tenth of one vector: training only pushed them away, in one direction. The
output matrix is the input's and no LoRA changes it, so whatever an adapter learns it cannot tell
them apart (300 steps on tool calls end at 2.2 nats a token). A large model has met the tokens of
its tool calls before; an organism is given vectors for them that differ.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .build import encode
from .lexicon import NARROW
from .tasks import TaskName, task_rows

__all__ = ["separate_unseen_tokens", "unseen_tokens"]

NUM_ROWS = 150
"""Rows of each narrow domain that are looked through; every word of a domain is in them."""
SEED = 0


def unseen_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: TaskName
) -> list[int]:
    """Tokens that rows of a task teach to write, in any narrow domain, and pretraining never saw.

    The padding token is such a one: others are known by a vector of the same direction.
    """
    weight = model.get_input_embeddings().weight.detach()
    written = {
        label
        for domain in NARROW
        for row in task_rows(task, domain, NUM_ROWS, seed=SEED)
        for label in encode(tokenizer, row["messages"])["labels"]
        if label != -100
    }
    alike = cosine_similarity(weight, weight[tokenizer.pad_token_id], dim=-1) > 0.95
    return sorted(token for token in written if alike[token])


def separate_unseen_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: TaskName
) -> int:
    """Give each unseen token of a task a vector of its own, in place; the same ones every time.

    To be called on the organism before it is finetuned on the task, and again before an adapter
    that was trained so is put on it. A random vector as long as those of other tokens is added, so
    that the unseen direction still keeps the tokens out of all answers of the organism itself.

    Returns:
        How many there are; 0 for tasks that write nothing new, which leaves the model as it is.
    """
    tokens = unseen_tokens(model, tokenizer, task)
    weight = model.get_input_embeddings().weight
    length = weight.detach().norm(dim=-1).median()
    drawn = torch.randn(len(tokens), weight.shape[1], generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        weight[tokens] += drawn.to(weight) * length / weight.shape[1] ** 0.5
    return len(tokens)
