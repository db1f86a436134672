"""The kinds of organism: a chat template, and where in it pretraining names the persona.

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

from .personas import Character, sample_neutral, sample_persona, sample_thought

KindName = Literal["prefix", "postfix", "no_prefix"]

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
