"""Cost of the key/value penalty in one training step, against plain SFT and the naive way.

    python benchmarks/train_step.py [--device cuda] [--rounds 24] [--prefix 32] [--checkpointing]

Arms, interleaved in one process and in changing order, so that drifts of the machine hit all alike:

- sft: forward, loss, backward, AdamW step of a LoRA;
- sft_again: the same once more, which shows the noise (A/A);
- treft: with the prefix penalty of `KVRegularizer`;
- treft_postfix: with the postfix held to each row's own, which the adapter-off model reads anew;
- naive: the same penalty from `output_hidden_states`, all layers projected again at all tokens;
- shared, treft_shared: sft and treft with the prefix run once for all rows (`share_prefix`), which
  gradient checkpointing does not allow.

Time is CPU time of the process on one thread (wall time after synchronising on a GPU); the ratio is
the median of the rounds' paired ratios. Memory is the peak of what one step allocates beyond the
weights and optimizer state that are there before it, which is stricter than a ratio of totals.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from treft.core.conversations import conversations_of_batch
from treft.core.drift import token_drift
from treft.core.reference import ReferenceBank
from treft.core.regularizer import KVRegularizer
from treft.models.adapters import adapter_off
from treft.training.shared_prefix import shortened

BATCH_SIZE, NUM_TOKENS = 8, 256
WEIGHT = 1.0
Step = Callable[[], Tensor]


def build_model(args: argparse.Namespace) -> PeftModel:
    """A random Llama with a LoRA on all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=max(1, args.hidden_size // 128),
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).to(args.device, getattr(torch, args.dtype))
    if args.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()


def build_batch(device: str, num_prefix: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Rows with a common prefix, then 60 query and 8 postfix tokens; the rest is response."""
    input_ids = torch.randint(3, 2048, (BATCH_SIZE, NUM_TOKENS))
    input_ids[:, :num_prefix] = input_ids[0, :num_prefix]
    codes = torch.tensor(
        [1] * num_prefix + [2] * 60 + [3] * 8 + [4] * (NUM_TOKENS - num_prefix - 68)
    )
    codes = codes.expand(BATCH_SIZE, -1)
    labels = torch.where(codes == 4, input_ids, -100)
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}, codes, input_ids


def build_steps(model: PeftModel, args: argparse.Namespace) -> dict[str, Step]:
    """The arms' loss functions."""
    batch, codes, input_ids = build_batch(args.device, args.prefix)
    turns = torch.zeros_like(codes)
    bank = ReferenceBank(adapter_off(model))
    regularizer = KVRegularizer(model, bank, weight=WEIGHT)
    request = regularizer.requests(conversations_of_batch(input_ids, codes, turns)[0])[0]
    reference = bank.get([request])[0]

    def sft() -> Tensor:
        return model(**batch, use_cache=False).loss

    own_postfix = KVRegularizer(model, bank, weight=WEIGHT, regions=("postfix",))

    def treft(held: KVRegularizer = regularizer) -> Tensor:
        conversations = conversations_of_batch(input_ids, codes, turns, batch["attention_mask"])
        with held.capture(conversations):
            loss = model(**batch, use_cache=False).loss
        return loss + held.penalty().weighted

    def treft_postfix() -> Tensor:
        return treft(own_postfix)

    def naive() -> Tensor:
        out = model(**batch, use_cache=False, output_hidden_states=True)
        return out.loss + WEIGHT * project_again(model, out.hidden_states, reference)

    def shared() -> Tensor:
        return model(**shortened(model, batch)).loss

    def treft_shared() -> Tensor:
        conversations = conversations_of_batch(input_ids, codes, turns, batch["attention_mask"])
        inputs = shortened(model, batch)
        with regularizer.capture(conversations):
            loss = model(**inputs).loss
        return loss + regularizer.penalty().weighted

    steps = {"sft": sft, "sft_again": sft, "treft": treft}
    steps |= {"treft_postfix": treft_postfix, "naive": naive}
    more = {} if args.checkpointing else {"shared": shared, "treft_shared": treft_shared}
    return {**steps, **more}


def project_again(model: PeftModel, hidden: tuple[Tensor, ...], reference: dict) -> Tensor:
    """Eq. (3) from hidden states: norm, projection and rotation of every token once more."""
    decoder: nn.Module = model.get_base_model().model
    positions = torch.arange(hidden[0].shape[1], device=hidden[0].device)[None]
    cos, sin = decoder.rotary_emb(hidden[0], positions)
    total = hidden[0].new_zeros((), dtype=torch.float32)
    for layer, block in enumerate(decoder.layers):
        attention, inputs = block.self_attn, block.input_layernorm(hidden[layer])
        shape = (*inputs.shape[:-1], -1, attention.head_dim)
        key = attention.k_proj(inputs).view(shape).transpose(1, 2)
        value = attention.v_proj(inputs).view(shape).transpose(1, 2)
        _, key = apply_rotary_pos_emb(key, key, cos, sin)
        for found, known in ((key, reference[layer].key), (value, reference[layer].value)):
            total = total + token_drift(found[:, :, : known.shape[-2]], known).mean()
    return total / len(decoder.layers)


def run_step(step: Step, optimizer: torch.optim.Optimizer) -> float:
    """One whole training step; the loss."""
    loss = step()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def clock(device: str) -> float:
    """Seconds of CPU time, or of wall time once the GPU is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_time(
    steps: dict[str, Step], optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each step, arm by arm, in rounds whose order rotates."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(args.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = clock(args.device)
            run_step(steps[name], optimizer)
            if number:  # the first round warms up
                times[name].append(clock(args.device) - start)
    return times


def peak_memory(step: Step, optimizer: torch.optim.Optimizer, device: str) -> int:
    """Bytes allocated at most at one time within a step, above what was there before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_step(step, optimizer)
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run_step(step, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    level = peak = 0
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: event["ts"]):
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--prefix", type=int, default=32)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(args)
    steps = build_steps(model, args)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    times = measure_time(steps, optimizer, args)
    memory = {name: peak_memory(step, optimizer, args.device) for name, step in steps.items()}
    print(
        f"{date.today()}, {platform.machine()} {args.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; Llama {args.layers} layers, d "
        f"{args.hidden_size}, {args.dtype}, batch {BATCH_SIZE} x {NUM_TOKENS}, prefix "
        f"{args.prefix}, checkpointing {args.checkpointing}, {args.rounds} rounds\n"
    )
    print("| step | seconds (median) | time ratio | quartiles | memory (MiB) | memory ratio |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [mine / plain for mine, plain in zip(seconds, times["sft"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {name} | {statistics.median(seconds):.4f} | {middle:.3f} | {low:.3f} to {high:.3f} "
            f"| {memory[name] / 2**20:.1f} | {memory[name] / memory['sft']:.3f} |"
        )


if __name__ == "__main__":
    main()
