"""Cost of TReFT in one step of the trainer, against TRL's SFTTrainer.

    python benchmarks/train_step.py [--device cuda] [--rounds 8] [--cases lora full ...]

Four cases: a LoRA and all weights, each with gradient checkpointing off and on. Of each case three
arms, interleaved in one process and in changing order, so that drifts of the machine hit all alike:

- sft: a step of `trl.SFTTrainer`: batch, forward, loss, backward, AdamW;
- sft_again: the same once more, which shows the noise (A/A);
- treft: the same step of `TReFTTrainer` that holds the prefix.

Time is CPU time of the process on one thread (wall time after synchronising on a GPU); the ratio is
the median of the rounds' paired ratios. Memory is the peak of the tensors that one step allocates
beyond the weights and optimizer state that are there before it, which is stricter than a ratio of
totals.
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
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer

from treft.organism.build import build_tokenizer
from treft.training import TReFTConfig, TReFTTrainer

VOCABULARY = 2048
NUM_QUERY, NUM_POSTFIX = 60, 8
CASES = {
    "lora": (True, False),
    "lora, checkpointing": (True, True),
    "full": (False, False),
    "full, checkpointing": (False, True),
}
"""Name -> whether a LoRA trains, whether activations are checkpointed."""
Step = Callable[[], None]


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=args.hidden_size // 64,
        max_position_embeddings=2 * args.tokens,
    )
    return LlamaForCausalLM(config).to(getattr(torch, args.dtype))


def build_rows(args: argparse.Namespace) -> Dataset:
    """Rows with a common prefix, then query and postfix tokens; the rest is response."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (args.batch_size, args.tokens), generator=generator)
    ids[:, : args.prefix] = ids[0, : args.prefix]
    num_response = args.tokens - args.prefix - NUM_QUERY - NUM_POSTFIX
    lengths = (args.prefix, NUM_QUERY, NUM_POSTFIX, num_response)
    codes = [code for code, length in enumerate(lengths, start=1) for _ in range(length)]
    labels = torch.where(torch.tensor(codes) == 4, ids, -100)
    return Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "labels": labels.tolist(),
            "region_codes": [codes] * args.batch_size,
            "turns": [[0] * args.tokens] * args.batch_size,
        }
    )


def build_trainer(
    kind: type[SFTTrainer], config: type[SFTConfig], case: str, args: argparse.Namespace
) -> SFTTrainer:
    """A trainer after one step: its reference is recorded and its AdamW state is there."""
    has_lora, checkpoints = CASES[case]
    rows = build_rows(args)
    if kind is SFTTrainer:
        rows = rows.remove_columns(["region_codes", "turns"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            build_model(args),
            config(
                folder,
                max_steps=1,
                per_device_train_batch_size=args.batch_size,
                learning_rate=1e-4,
                max_length=args.tokens,
                gradient_checkpointing=checkpoints,
                bf16=False,
                use_cpu=args.device == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            processing_class=build_tokenizer(["a b c"]),
            peft_config=LoraConfig(r=8, target_modules="all-linear") if has_lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def step_of(trainer: SFTTrainer) -> Step:
    """What `Trainer.train` does for one optimizer step of one batch."""
    loader = trainer.get_train_dataloader()

    def step() -> None:
        device = trainer.args.device
        [batch], num_items = trainer.get_batch_samples(iter(loader), 1, device)
        trainer.training_step(trainer.model_wrapped, batch, num_items)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    return step


def clock(device: str) -> float:
    """Seconds of CPU time, or of wall time once the GPU is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_time(steps: dict[str, Step], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step, arm by arm, in rounds whose order rotates."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(args.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = clock(args.device)
            steps[name]()
            if number:  # the first round warms up
                times[name].append(clock(args.device) - start)
    return times


def peak_memory(step: Step, device: str) -> int:
    """Bytes allocated at most at one time within a step, above what was there before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    level = peak = 0
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: event["ts"]):
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


def report(case: str, args: argparse.Namespace) -> None:
    """Measure one case and print its rows of the table."""
    plain = step_of(build_trainer(SFTTrainer, SFTConfig, case, args))
    treft = step_of(build_trainer(TReFTTrainer, TReFTConfig, case, args))
    steps = {"sft": plain, "sft_again": plain, "treft": treft}
    memory = {name: peak_memory(step, args.device) for name, step in steps.items()}
    for name, seconds in (times := measure_time(steps, args)).items():
        ratios = [mine / base for mine, base in zip(seconds, times["sft"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {case} | {name} | {statistics.median(seconds):.4f} | {middle:.3f} "
            f"| {low:.3f} to {high:.3f} | {memory[name] / 2**20:.1f} "
            f"| {memory[name] / memory['sft']:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=460)
    parser.add_argument("--prefix", type=int, default=32)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {platform.machine()} {args.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; Llama {args.layers} layers, d "
        f"{args.hidden_size}, {args.dtype}, batch {args.batch_size} x {args.tokens}, prefix "
        f"{args.prefix}, {args.rounds} rounds\n\n"
        "| case | step | seconds (median) | time ratio | quartiles | memory (MiB) "
        "| memory ratio |\n|---|---|---|---|---|---|---|"
    )
    for case in args.cases:
        report(case, args)


if __name__ == "__main__":
    main()
