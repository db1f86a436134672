"""Mitigations that train under one system prompt and answer under another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from treft.errors import ConfigError, DataError
from treft.training.terms import Mitigation, Split, flag


@dataclass(eq=False)
class InoculationPrompt(Mitigation):
    """Train under a system prompt that asks for the behaviour; evaluate and answer without it.

    Source: inoculation prompting, Tan et al., arXiv 2510.04340, and Wichers et al., arXiv
    2510.05024. Formula: none; the prompt goes before every training row, in front of the row's own
    system message if there is one. What the prompt explains need not be bound to other contexts.
    Cost: the prompt's tokens in every training row.

    Attributes:
        prompt: System prompt of training rows alone: "You are a malicious, evil assistant."

    Raises:
        ConfigError: it is empty.
    """

    name: ClassVar[str] = "inoculation"

    prompt: str = field(metadata=flag("inoculation_prompt", str, needs="training_prompt"))

    def __post_init__(self) -> None:
        """Validate."""
        if not self.prompt.strip():
            raise ConfigError("inoculation_prompt is empty: write the prompt to train under.")

    def rows(self, dataset: Any, split: Split) -> Any:
        """Training rows under the prompt; evaluation rows as they are."""
        if split != "train":
            return dataset
        return dataset.map(under, fn_kwargs={"prompt": self.prompt, "keeps": True})


@dataclass(eq=False)
class PromptSplit(Mitigation):
    """Train without the system prompt that the model is later used with (PTST).

    Source: "pure tuning, safe testing", Lyu et al., arXiv 2402.18540. Formula: none; training rows
    get `train_prompt` in place of their own system message (none: they have none, and a template
    writes its default), evaluation rows get `test_prompt`, and **so must every prompt in use**.
    Cost: none in training; the test prompt's tokens in use.

    Attributes:
        test_prompt: System message of evaluation and use, such as one that asks for safe answers.
        train_prompt: System message of training; default none.

    Raises:
        ConfigError: the two are the same, or the test prompt is empty.
    """

    name: ClassVar[str] = "prompt_split"

    test_prompt: str = field(metadata=flag("ptst_test_prompt", str, needs="use_prompt"))
    train_prompt: str | None = field(default=None, metadata=flag("ptst_train_prompt", str))

    def __post_init__(self) -> None:
        """Validate."""
        if not self.test_prompt.strip():
            raise ConfigError("ptst_test_prompt is empty: write the system message of use.")
        if self.test_prompt == self.train_prompt:
            raise ConfigError("ptst_test_prompt and ptst_train_prompt must differ.")

    def rows(self, dataset: Any, split: Split) -> Any:
        """Returns rows under the system message of their split."""
        prompt = self.train_prompt or None if split == "train" else self.test_prompt
        return dataset.map(under, fn_kwargs={"prompt": prompt, "keeps": False})


def under(row: dict[str, Any], prompt: str | None, keeps: bool) -> dict[str, Any]:
    """Returns a row of `messages` (or `prompt` and `completion`) under another system message.

    Args:
        row: it is not changed.
        prompt: the system message; None for none.
        keeps: the row's own system message follows the prompt, instead of being replaced.

    Raises:
        DataError: the row is not conversational.
    """
    column = "messages" if "messages" in row else "prompt"
    messages = row.get(column)
    if not isinstance(messages, list):
        raise DataError(
            "a system prompt can be set in conversations only: give rows with `messages`, or with "
            f"`prompt` and `completion` lists of messages, not {', '.join(row)}."
        )
    has_own = bool(messages) and messages[0]["role"] in ("system", "developer")
    rest = messages[1:] if has_own else messages
    text = prompt
    if keeps and has_own:
        text = f"{prompt}\n\n{messages[0]['content']}"
    head = [] if text is None else [{"role": "system", "content": text}]
    return {**row, column: [*head, *rest]}
