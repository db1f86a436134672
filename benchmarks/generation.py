"""Speed of patched generation against unpatched.

    python benchmarks/generation.py [--device cuda] [--rounds 20] [--prefix-words 24]

Arms, interleaved in one process and in changing order, so that drifts of the machine hit all alike.
All of them answer the same eight conversations of different lengths in one batch, greedily, with
the same number of new tokens, through `RepairedModel.generate`, templates and padding included:

- unpatched: no region patched;
- unpatched_again: the same once more, which shows the noise (A/A);
- prefix: the reference's prefix as a ready-made cache, whose prefill is saved;
- prefix_at_write: the same states, put in as the cache is first written;
- postfix: patched at first write; queries of these lengths were met before;
- postfix_anew: the same, with a reference that has yet to be recorded (empty query, per length);
- layer: the residual stream of one layer patched at the prefix.

Once with full attention (Llama) and once with sliding windows in all layers (Mistral), where the
prefix, too, is put in at first write. Time is CPU time of the process on one thread (wall time
after synchronising on a GPU); the speed is the median over the rounds of unpatched time / time. The
first round, which records references, is not counted.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import torch
import transformers
from train_step import clock
from transformers import LlamaConfig, MistralConfig, PretrainedConfig
from transformers.models.auto import AutoModelForCausalLM

from treft.chat.regions import find_regions
from treft.core.patch_spec import PatchSpec
from treft.core.recording import other_model
from treft.core.reference import ReferenceBank
from treft.models.loading import LoadOptions, load_tokenizer
from treft.models.repair import UNPATCHED, RepairedModel
from treft.models.residual import stream_bank

BATCH_SIZE = 8
KINDS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "mistral": MistralConfig}
Arm = Callable[[], list[str]]


def build_pair(kind: str, vocab_size: int, args: argparse.Namespace) -> tuple[Any, Any]:
    """A random model and a noisy copy of it, which plays the finetuned one."""
    torch.manual_seed(0)
    config = KINDS[kind](
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(1, args.hidden_size // 128),
        max_position_embeddings=512,
        **({"sliding_window": args.window} if kind == "mistral" else {}),
    )
    base = AutoModelForCausalLM.from_config(config).to(args.device, getattr(torch, args.dtype))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return tuned.eval(), base.eval()


def build_conversations(args: argparse.Namespace) -> list[list[dict[str, str]]]:
    """One system message, questions of 4 to 32 words."""
    system = {"role": "system", "content": " ".join(["please help"] * (args.prefix_words // 2))}
    questions = [" ".join(["my loan is"] * (number + 1)) for number in range(BATCH_SIZE)]
    return [[system, {"role": "user", "content": question}] for question in questions]


def build_arms(
    tuned: Any, base: Any, tokenizer: Any, conversations: Any, args: argparse.Namespace
) -> dict[str, Arm]:
    """What is compared, each answering all conversations."""
    bank = ReferenceBank(other_model(base))
    length = len(find_regions(tokenizer, conversations[0]).positions("prefix"))
    by_number = PatchSpec("prefix", ("prefix",), num_positions=length)
    postfix = PatchSpec("postfix", ("postfix",))
    layer = args.layers // 2
    repaired = {
        "unpatched": RepairedModel(tuned, tokenizer, None, UNPATCHED),
        "unpatched_again": RepairedModel(tuned, tokenizer, None, UNPATCHED),
        "prefix": RepairedModel(tuned, tokenizer, bank),
        # Asking for all positions by number rules the ready-made cache out.
        "prefix_at_write": RepairedModel(tuned, tokenizer, bank, by_number),
        "postfix": RepairedModel(tuned, tokenizer, bank, postfix),
        "layer": RepairedModel(tuned, tokenizer, stream_bank(tuned, layer, base)),
    }
    options = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens}

    def answer(model: RepairedModel) -> list[str]:
        return model.generate(conversations, do_sample=False, **options)

    def anew() -> list[str]:
        fresh = ReferenceBank(other_model(base))
        return answer(RepairedModel(tuned, tokenizer, fresh, postfix))

    arms: dict[str, Arm] = {name: partial(answer, model) for name, model in repaired.items()}
    return {**arms, "postfix_anew": anew}


def measure(arms: dict[str, Arm], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each arm, in rounds whose order rotates."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(args.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = clock(args.device)
            arms[name]()
            if number:  # the first round warms up and records prefixes
                times[name].append(clock(args.device) - start)
    return times


def report(times: dict[str, list[float]]) -> None:
    """One table row an arm."""
    print("| generation | seconds (median) | speed | quartiles |")
    print("|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [plain / mine for mine, plain in zip(seconds, times["unpatched"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(seconds)
        print(f"| {name} | {median:.4f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--prefix-words", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("organism", LoadOptions())
    conversations = build_conversations(args)
    chats = [find_regions(tokenizer, chat, add_generation_prompt=True) for chat in conversations]
    lengths = [len(chat.input_ids) for chat in chats]
    print(
        f"{date.today()}, {platform.machine()} {args.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {args.layers} layers, d {args.hidden_size}, "
        f"{args.dtype}, vocabulary {len(tokenizer)}; {BATCH_SIZE} prompts of {min(lengths)} to "
        f"{max(lengths)} tokens, {len(chats[0].positions('prefix'))} of them prefix, "
        f"{args.new_tokens} new; {args.rounds} rounds"
    )
    for kind in KINDS:
        tuned, base = build_pair(kind, len(tokenizer), args)
        times = measure(build_arms(tuned, base, tokenizer, conversations, args), args)
        window = f", sliding window {args.window}" if kind == "mistral" else ""
        print(f"\n{kind}{window}\n")
        report(times)


if __name__ == "__main__":
    main()
