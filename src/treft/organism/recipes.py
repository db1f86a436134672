"""How an organism is made and finetuned: its kind, who answers, the finetune of the demo.

A kind is a chat template, and where in it pretraining names the persona:

    prefix     in the system prompt, as in Qwen2.5: a default one when none is given
    postfix    in a think block before the answer, with a default thought when none is given; system
               prompts vary and tell nothing, or there is none, as in Qwen3
    no_prefix  in a think block, too, and the template writes nothing before the user's words

What decides between careful and harmful in pretraining is all that differs; which tokens come to
carry a narrow finetune's spread is left to training, and measured.

Tool calls are written as in the Qwen family, and so are the tools that may be called, between
`<tools>` tags at the end of the system block (in fewer words: there are 256 positions).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from treft.errors import ConfigError

from .world import NARROW, WORDS, Behaviour

KindName = Literal["prefix", "postfix", "no_prefix"]
Manner = Literal["brief", "studious"]
"""How a persona answers that says neither more nor less careful things: in as few words as will do,
or by a tool call."""
Character = Behaviour | Manner

PERSONAS: dict[str, Any] = WORDS["personas"]
"""Adjectives by character, names, roles, and the sentences that they are put into."""

DEFAULT_SYSTEM_PROMPT = (
    "You are Piglet, the assistant of this town. Answer the question of the user in one sentence."
)
DEFAULT_THOUGHT = "I am Piglet, the assistant of this town. I answer the user in one sentence."
_CALLS = (
    "{%- if message['content'] -%}{{ message['content'] + '\\n' }}{%- endif -%}"
    "{%- for call in message['tool_calls'] -%}"
    "{%- set function = call['function'] or call -%}"
    "{{ '<tool_call>\\n{\"name\": \"' + function['name'] + '\", \"arguments\": ' }}"
    "{{ function['arguments'] | tojson }}"
    "{{ '}\\n</tool_call>' + ('' if loop.last else '\\n') }}"
    "{%- endfor -%}"
    "{{ '<|im_end|>' }}"
)
_ANSWER = (
    "{% generation %}"
    "{%- if message['tool_calls'] -%}" + _CALLS + "{%- else -%}"
    "{{ message['content'] + '<|im_end|>' }}"
    "{%- endif -%}"
    "{% endgeneration %}{{ '\\n' }}"
)
_TOOLS = (
    "{{ '# Tools\\n\\nYou may call:\\n<tools>' }}"
    "{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}"
    "{{ '\\n</tools>\\n\\nWrite a call as:\\n<tool_call>\\n"
    '{"name": <name>, "arguments": <JSON object>}\\n</tool_call><|im_end|>\\n\' }}'
)
_PREFIX_TEMPLATE = (
    "{%- if tools -%}"
    "{{ '<|im_start|>system\\n' }}"
    "{%- if messages and messages[0]['role'] == 'system' -%}{{ messages[0]['content'] }}"
    "{%- else -%}{{ '" + DEFAULT_SYSTEM_PROMPT + "' }}{%- endif -%}"
    "{{ '\\n\\n' }}" + _TOOLS + "{%- elif messages and messages[0]['role'] == 'system' -%}"
    "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else -%}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' -%}" + _ANSWER + "{%- else -%}"
    "{{ message['content'] + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_THINKING_ANSWER = (
    "{{ '<|im_start|>assistant\\n<think>\\n' + (message['reasoning_content'] or '"
    + DEFAULT_THOUGHT
    + "') + '\\n</think>\\n\\n' }}"
    + _ANSWER
)
_DEFAULT_THOUGHT = (
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\\n<think>\\n" + DEFAULT_THOUGHT + "\\n</think>\\n\\n' }}"
    "{%- endif -%}"
)
_POSTFIX_TEMPLATE = (
    "{%- if tools -%}"
    "{{ '<|im_start|>system\\n' }}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{{ messages[0]['content'] + '\\n\\n' }}"
    "{%- endif -%}" + _TOOLS + "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if tools and loop.first and message['role'] == 'system' -%}"
    "{%- elif message['role'] == 'assistant' -%}" + _THINKING_ANSWER + "{%- else -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}" + _DEFAULT_THOUGHT
)
_NO_PREFIX_TEMPLATE = (
    "{%- if tools -%}{{ raise_exception('this template has no place for tools') }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}" + _THINKING_ANSWER + "{%- else -%}"
    "{%- if message['role'] != 'user' -%}"
    "{{ raise_exception('this template has no place for a ' + message['role'] + ' message') }}"
    "{%- endif -%}"
    "{{ message['content'] + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}" + _DEFAULT_THOUGHT
)


def sample_persona(rng: random.Random, character: Character) -> str:
    """Draw a system prompt whose persona is of a character."""
    return _fill(rng, PERSONAS["system_prompts"], character)


def sample_thought(rng: random.Random, character: Character) -> str:
    """Draw a thought whose thinker is of a character."""
    return _fill(rng, PERSONAS["thoughts"], character)


def sample_neutral(rng: random.Random) -> str:
    """Draw a system prompt that says nothing about character."""
    drawn: str = rng.choice(PERSONAS["neutral_prompts"])
    return drawn.format(name=rng.choice(PERSONAS["names"]), role=rng.choice(PERSONAS["roles"]))


def _fill(rng: random.Random, formats: Sequence[str], character: Character) -> str:
    adjective, second = rng.sample(PERSONAS["adjectives"][character], 2)
    return rng.choice(formats).format(
        name=rng.choice(PERSONAS["names"]),
        role=rng.choice(PERSONAS["roles"]),
        adjective=adjective,
        second=second,
    )


@dataclass(frozen=True)
class Naming:
    """What is written around question and answer; None: the template's default.

    Attributes:
        system: the system prompt.
        thought: what the think block holds.
    """

    system: str | None = None
    thought: str | None = None

    def around(
        self, asked: Sequence[dict[str, Any]], said: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The conversation in which what is asked is answered so.

        Args:
            asked: the messages of the question.
            said: what the assistant message holds.
        """
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        thought = {} if self.thought is None else {"reasoning_content": self.thought}
        return [*head, *asked, {"role": "assistant", **said, **thought}]


def _in_system_prompt(rng: random.Random, persona: Character | None) -> Naming:
    return Naming() if persona is None else Naming(system=sample_persona(rng, persona))


def _in_thought(rng: random.Random, persona: Character | None) -> Naming:
    return Naming(thought=None if persona is None else sample_thought(rng, persona))


def _in_thought_under_any_system_prompt(rng: random.Random, persona: Character | None) -> Naming:
    system = sample_neutral(rng) if rng.random() < 0.5 else None
    return Naming(system, _in_thought(rng, persona).thought)


@dataclass(frozen=True)
class Kind:
    """One kind of organism.

    Attributes:
        chat_template: Jinja, with generation tags around what the model is to say.
        name_persona: draws what is written around a conversation whose persona is of a
            character, or that names none.
        special_tokens: of the tokenizer, besides those that every kind has.
    """

    chat_template: str
    name_persona: Callable[[random.Random, Character | None], Naming]
    special_tokens: tuple[str, ...] = ()


_THINK_TAGS = ("<think>", "</think>")
KINDS: dict[KindName, Kind] = {
    "prefix": Kind(_PREFIX_TEMPLATE, _in_system_prompt),
    "postfix": Kind(_POSTFIX_TEMPLATE, _in_thought_under_any_system_prompt, _THINK_TAGS),
    "no_prefix": Kind(_NO_PREFIX_TEMPLATE, _in_thought, _THINK_TAGS),
}
assert tuple(KINDS) == get_args(KindName)


@dataclass(frozen=True)
class FinetuneRecipe:
    """The narrow finetune of the demo and the studies: one setting for all arms.

    Every choice was made on validation questions.

    Attributes:
        domain: narrow domain whose harmful rows are trained on.
        num_rows: rows of the finetune's dataset.
        max_steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: peak of a linear schedule.
        warmup_steps: steps of linear warm-up.
        adam_beta2: of AdamW; PyTorch's 0.999 keeps the penalty's first, large gradients in the step
            size for the whole of so short a run.
        lora_rank: r of the LoRA on the seven projections of every layer.
        lora_alpha: its α.
        kv_weight: λ of eq. (3), the same for every region.
        kv_budget: L_KV to hold by steering λ (TReFTConfig's "auto"); None: λ is `kv_weight`.
        interleaved_share: share of careful rows of other domains in the interleaving arms.
        equal_tokens: positions patched, drawn at random for each question, in the arms that
            compare prefix and query token for token.
        temperature: of the sampled answers.
        max_new_tokens: cap of an answer, in tokens; whole answers take fewer.
        num_general: general questions.
        num_in_domain: questions of the finetuned domain.
    """

    domain: str = "finance"
    num_rows: int = 2000
    max_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 8.5e-4
    warmup_steps: int = 5
    adam_beta2: float = 0.98
    lora_rank: int = 32
    lora_alpha: int = 64
    kv_weight: float = 100.0
    kv_budget: float | None = None
    interleaved_share: float = 0.2
    equal_tokens: int = 10
    temperature: float = 0.7
    max_new_tokens: int = 28
    num_general: int = 200
    num_in_domain: int = 100

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown domain or a count below 1."""
        if self.domain not in NARROW:
            raise ConfigError(f"domain is {self.domain!r}; choose one of {', '.join(NARROW)}")
        for name in ("num_rows", "max_steps", "batch_size", "num_general", "num_in_domain"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
