"""Inspect's model provider `treft/<folder or hub id>`: models that run here, patched or not.

    inspect eval treft/em_general --model treft/./sft -M patch=prefix -M base=./base

Both arms of a comparison run on this backend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from treft.answers.inspect_internals import errors_in_one_line
from treft.errors import ConfigError
from treft.evaluation.batcher import Batcher
from treft.evaluation.local_model import (
    IN_USE,
    LocalModel,
    LocalOptions,
    Prompt,
)
from treft.evaluation.translation import (
    assistant_message,
    logprobs_of,
    template_messages,
    template_tools,
)
from treft.models.sampling import Generated, SamplingOptions, before_stop, mixed_seed

MAX_TOKENS = 1024
"""New tokens of an answer when nobody says otherwise."""

BATCH_SIZE = 32

_UNSUPPORTED = (
    "best_of",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "prompt_logprobs",
    "response_schema",
    "reasoning_effort",
    "modalities",
)


class TreftAPI(ModelAPI):
    """Answers with a model of this machine; `LocalOptions` has its arguments.

    Unset sampling options mean temperature 1 and no truncation, whatever the model was saved with.

    Raises:
        ConfigError: an argument is wrong, or something cannot be loaded or patched.
    """

    @errors_in_one_line
    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **model_args: Any,
    ) -> None:
        if base_url is not None:
            raise ConfigError("a treft model runs here and has no base URL.")
        options = LocalOptions.of(model_args)
        _sampling(config)  # what is not supported is refused before anything is loaded
        self.local = LocalModel(model_name, options)
        # Inspect's cache of answers knows a model by name and URL, not by its arguments.
        super().__init__(model_name, f"treft:{self.local.fingerprint()}", config=config)
        self.batch_size = options.batch_size or config.max_connections or BATCH_SIZE
        self._batcher: Batcher[Prompt, Generated] = Batcher(
            self.local.answer, self.batch_size, lambda prompt: prompt.sampling, IN_USE
        )

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a conversation; requests of the same moment share a batch.

        Raises:
            ConfigError: an option, or offering tools, is not supported.
            DataError: the conversation cannot be asked.
        """
        start = time.monotonic()
        offered = _offered(tools, tool_choice)
        prompt = self.local.prompt(
            template_messages(input),
            template_tools(offered),
            config.seed,
            replace(_sampling(config), batch_size=self.batch_size),
        )
        answers = await self._answers(prompt, config.num_choices or 1)
        num_input = len(prompt.chat.input_ids)
        num_output = sum(answer.num_tokens for answer in answers)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(prompt, answer, offered, config) for answer in answers],
            usage=ModelUsage(
                input_tokens=num_input,
                output_tokens=num_output,
                total_tokens=num_input + num_output,
            ),
            time=time.monotonic() - start,
        )

    def max_tokens(self) -> int:
        """New tokens of an answer when nobody says otherwise."""
        return MAX_TOKENS

    def max_connections(self) -> int:
        """Returns as many requests at once as a batch takes."""
        return self.batch_size

    def connection_key(self) -> str:
        """Models with other weights or patches have connections of their own."""
        return str(self.base_url)

    def collapse_user_messages(self) -> bool:
        """Chat templates want users and assistants in turn."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Chat templates want users and assistants in turn."""
        return True

    def collapse_system_messages(self) -> bool:
        """Chat templates take one system message."""
        return True

    async def count_text_tokens(self, text: str) -> int:
        """Number of tokens by the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids by the model's own tokenizer."""
        return list(self.local.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _answers(self, prompt: Prompt, num: int) -> list[Generated]:
        """Returns one or several answers to a prompt, each with a seed of its own."""
        seeds = [prompt.seed, *(mixed_seed(prompt.seed, choice) for choice in range(1, num))]
        answers: dict[int, Generated] = {}

        async def answer(choice: int) -> None:
            answers[choice] = await self._batcher.answer(replace(prompt, seed=seeds[choice]))

        if num == 1:
            await answer(0)
        else:
            async with anyio.create_task_group() as group:
                for choice in range(num):
                    group.start_soon(answer, choice)
        return [answers[choice] for choice in range(num)]

    def _choice(
        self,
        prompt: Prompt,
        answer: Generated,
        tools: Sequence[ToolInfo],
        config: GenerateConfig,
    ) -> ChatCompletionChoice:
        # A template may open the think block itself.
        opening = "<think>" if prompt.chat.text.rstrip().endswith("<think>") else ""
        tokenizer, ids = self.local.tokenizer, [token.token_id for token in answer.drawn]
        written = before_stop(tokenizer.decode(ids), prompt.sampling.stop)
        message = assistant_message(
            opening + written,
            opening + answer.text,
            tools,
            self.model_name,
            f"{prompt.seed:016x}"[-8:],
        )
        return ChatCompletionChoice(
            message=message,
            stop_reason="tool_calls" if message.tool_calls else _reason(prompt, answer),
            logprobs=logprobs_of(answer.drawn, tokenizer) if config.logprobs else None,
        )


def _reason(prompt: Prompt, answer: Generated) -> StopReason:
    """Whether an end token or stop text, the cap or the model's context ended the answer."""
    if answer.is_ended:
        return "stop"
    return "model_length" if prompt.is_cut else "max_tokens"


def _sampling(config: GenerateConfig) -> SamplingOptions:
    """Returns how to draw.

    Raises:
        ConfigError: an option is not supported.
    """
    given = [name for name in _UNSUPPORTED if getattr(config, name) is not None]
    if given:
        raise ConfigError(f"treft models have no {', '.join(given)}.")
    return SamplingOptions(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        num_logprobs=(config.top_logprobs or 0) if config.logprobs else None,
        max_new_tokens=config.max_tokens or MAX_TOKENS,
        stop=tuple(config.stop_seqs or ()),
    )


def _offered(tools: Sequence[ToolInfo], choice: ToolChoice) -> list[ToolInfo]:
    """The tools that the model may call.

    Raises:
        ConfigError: it would have to be made to call one.
    """
    if not tools or choice == "none":
        return []
    if choice != "auto":
        raise ConfigError("treft models cannot be made to call a tool: use tool_choice auto.")
    return list(tools)
