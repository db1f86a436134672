"""What Transformers' `generate` may be given along with a patched cache, and what it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from treft.errors import ConfigError

OWN_ARGUMENTS = (
    "past_key_values",
    "input_ids",
    "inputs",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
)
NEEDS_OWN_CACHE = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
"""Options of `generate` that do not write one prompt, then token by token, into the cache."""


def setting(pretrained: PreTrainedModel, options: Mapping[str, Any], name: str) -> Any:
    """The value `generate` goes by: its keyword, its `generation_config`, the model's default."""
    if name in options:
        return options[name]
    given = options.get("generation_config")
    value = None if given is None else given.to_dict().get(name)
    return pretrained.generation_config.to_dict().get(name) if value is None else value


def repeats_rows(pretrained: PreTrainedModel, options: Mapping[str, Any]) -> bool:
    """Whether `generate` will run more rows than prompts."""
    names = ("num_beams", "num_return_sequences")
    return any((setting(pretrained, options, name) or 1) > 1 for name in names)


def check_options(
    pretrained: PreTrainedModel, options: Mapping[str, Any], is_patched: bool
) -> None:
    """Refuse options that contradict what the conversations give, or that a patch cannot follow.

    Raises:
        ConfigError: names them.
    """
    given = sorted(set(OWN_ARGUMENTS) & set(options))
    if given:
        raise ConfigError(f"{given} are made from the conversations and cannot be given.")
    if not is_patched:
        return
    barred = [name for name in NEEDS_OWN_CACHE if setting(pretrained, options, name)]
    # A kind of cache that the checkpoint names by default gives way to ours.
    named = options.get("generation_config")
    if options.get("cache_implementation") or (named and named.cache_implementation):
        barred.append("cache_implementation")
    if not options.get("use_cache", True):
        barred.append("use_cache=False")
    if barred:
        raise ConfigError(
            f"patching works in the cache and cannot go with {barred}: leave them out, or turn off "
            "what the model's generation_config turns on (for instance use_mtp=None)."
        )
