"""`treft sft`: what `trl sft` takes, flags and YAML alike, plus `kv_*` options and own files."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from datasets import Dataset, load_dataset
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from treft.cli.output import EXIT_INTERRUPTED
from treft.data.messages import load_messages
from treft.docstrings import with_help
from treft.errors import ConfigError, TreftError
from treft.mitigations.registry import MitigationArguments, build
from treft.models.loading import model_path
from treft.training import TReFTConfig, TReFTTrainer
from treft.training.output import StopOnInterrupt, claim_output_dir, find_checkpoint
from treft.training.terms import Mitigation

logger = logging.getLogger(__name__)


@with_help
@dataclass
class SftArguments(ScriptArguments):
    """TRL's script arguments and ours.

    Attributes:
        train_file: JSONL file, one {'messages': [...]} a line, to train on.
        eval_file: JSONL file to evaluate on; at the end by default.
        overwrite_output_dir: Start anew in an output_dir that holds files.
        json: Print the result as one JSON object on stdout.
    """

    train_file: str | None = None
    eval_file: str | None = None
    overwrite_output_dir: bool = False
    json: bool = False


@dataclass(frozen=True)
class Job:
    """Everything that was asked for."""

    script: SftArguments
    training: TReFTConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    mitigations: Any


def main(argv: list[str]) -> None:
    """Train as told by command-line arguments; see docs/training.md for the JSON result.

    Args:
        argv: arguments after `treft sft`.

    Raises:
        TreftError: something asked for cannot be done; raised before training starts.
        SystemExit: 2 for a value of the wrong type; 130 after Ctrl-C, with a checkpoint to go on
            from.
    """
    job = _parse(argv)
    # Whatever libraries print goes to stderr when stdout has to be JSON.
    aside = contextlib.redirect_stdout(sys.stderr) if job.script.json else contextlib.nullcontext()
    with aside:
        result = _run(job)
    if job.script.json:
        print(json.dumps(result))
    else:
        _print_result(result)


def _parse(argv: list[str]) -> Job:
    """Flags and YAML through TRL's parser, whose complaints become one line each.

    Raises:
        ConfigError: an option is unknown or unusable, or the YAML file is.
    """
    parser = TrlParser(
        (SftArguments, TReFTConfig, ModelConfig, DatasetMixtureConfig, MitigationArguments),
        prog="treft sft",
    )
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True)  # else TRL's bf16 default refuses to start here
    try:
        *parsed, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    except TreftError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if unknown:
        raise ConfigError(f"unknown options: {' '.join(unknown)} (treft sft --help lists all).")
    return Job(*parsed)


def _run(job: Job) -> dict[str, Any]:
    """Train, save, and say what came out."""
    training = job.training
    folder = Path(training.output_dir)
    checkpoint = find_checkpoint(folder, training.resume_from_checkpoint)
    train_dataset, eval_dataset = _load_datasets(job)
    mitigations = build(job.mitigations, job.model.model_name_or_path or "", training.seed)
    claim_output_dir(
        folder, resumes=checkpoint is not None, overwrite=job.script.overwrite_output_dir
    )
    trainer = _build_trainer(job, train_dataset, eval_dataset, mitigations)
    start = time.monotonic()
    with StopOnInterrupt() as interrupt:
        trainer.add_callback(interrupt)
        output = trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.interrupted:
        _leave_resumable(trainer)
    trainer.save_model(training.output_dir)
    result = _result(job, trainer, train_dataset, output.training_loss)
    if eval_dataset is not None:
        result["eval"] = _plain(trainer.evaluate())
    result["seconds"] = round(time.monotonic() - start, 3)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=job.script.dataset_name)
    trainer.end()
    return result


def _load_datasets(job: Job) -> tuple[Any, Any]:
    """Training and evaluation data (None for none), from files, the hub or a mixture.

    Raises:
        ConfigError: no training data is named, or it is named twice.
        DataError: a line of a file cannot be used; names file and line.
    """
    script, training = job.script, job.training
    name = script.dataset_name
    is_file = name is not None and Path(name).is_file()
    named = [bool(script.train_file), name is not None, bool(job.mixture.datasets)]
    if sum(named) != 1:
        raise ConfigError(
            "name the training data once: --train_file rows.jsonl, --dataset_name (a hub id or a "
            f"JSONL file), or `datasets` in the YAML file; {sum(named)} were given."
        )
    evaluates = str(training.eval_strategy) not in ("no", "IntervalStrategy.NO")
    evaluation = _read(script.eval_file) if script.eval_file else None
    if script.train_file or is_file:
        train = _read(script.train_file or cast(str, name))
        if evaluates and evaluation is None:
            raise ConfigError(
                "eval_strategy is set: name the rows to evaluate on with --eval_file."
            )
        return train, evaluation
    if name is None:
        found = get_dataset(job.mixture)
    else:
        found = load_dataset(name, script.dataset_config, streaming=script.dataset_streaming)
    if evaluates and evaluation is None:
        evaluation = _split(found, script.dataset_test_split)
    return _split(found, script.dataset_train_split), evaluation


def _read(path: str) -> Dataset:
    # As JSON, rows keep their own keys; a common schema would fill tool calls with nulls.
    return Dataset.from_list(load_messages(path), on_mixed_types="use_json")


def _split(found: Any, split: str) -> Any:
    if split not in found:
        raise ConfigError(f"the dataset has no split {split!r}, only {', '.join(found)}.")
    return found[split]


def _build_trainer(
    job: Job, train_dataset: Any, eval_dataset: Any, mitigations: Sequence[Mitigation]
) -> TReFTTrainer:
    """The trainer, for a model or for an adapter that is to be trained further."""
    training, options = job.training, job.model
    if options.model_name_or_path is None:
        raise ConfigError("name the model to finetune: --model_name_or_path (a folder or hub id).")
    name = model_path(options.model_name_or_path)
    init_kwargs = {
        "revision": options.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": options.attn_implementation,
        "dtype": options.dtype,
        **(cast(dict[str, Any], training.model_init_kwargs) or {}),
    }
    training.model_init_kwargs = init_kwargs
    columns = train_dataset.column_names or []
    try:
        is_adapter = find_adapter_config_file(name, revision=options.model_revision) is not None
        model: Any = _load_adapter(job, name) if is_adapter else name
        # A tokenizer by name: for models that see, TRL would load a processor instead.
        sees = "image" in columns or "images" in columns
        tokenizer = None if sees else _load_tokenizer(job, name, model)
    except OSError as error:
        raise ConfigError(f"the model {name} cannot be loaded: {error}") from error
    return TReFTTrainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        quantization_config=None if is_adapter else get_quantization_config(options),
        peft_config=get_peft_config(options),
        mitigations=mitigations,
    )


def _load_adapter(job: Job, name: str) -> PeftModel:
    """Returns an existing adapter on the base it names, ready to be trained further."""
    options, training = job.model, job.training
    if options.use_peft:
        raise ConfigError(
            f"{name} is an adapter, which is trained further as it is: drop --use_peft and the "
            "--lora_* options, or merge it into its base and pass the merged model."
        )
    kwargs = dict(cast(dict[str, Any], training.model_init_kwargs))
    revision = kwargs.pop("revision")
    base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
    if not base:
        raise ConfigError(f"the adapter {name} does not say which base model it belongs to.")
    quantization = get_quantization_config(options)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    training.model_init_kwargs = None
    model = AutoModelForCausalLM.from_pretrained(base, **kwargs)
    return PeftModel.from_pretrained(model, name, revision=revision, is_trainable=True)


def _load_tokenizer(job: Job, name: str, model: Any) -> Any:
    """Returns the tokenizer beside the model or adapter; an adapter without one uses its base's."""
    kwargs = {"trust_remote_code": job.training.trust_remote_code}
    if isinstance(model, PeftModel) and not (Path(name) / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(model.get_base_model().config._name_or_path, **kwargs)
    return AutoTokenizer.from_pretrained(name, revision=job.model.model_revision, **kwargs)


def _leave_resumable(trainer: TReFTTrainer) -> None:
    """Say after Ctrl-C, when a checkpoint is saved, how to go on, and leave.

    Raises:
        SystemExit: always, with the shell's code for an interrupted command.
    """
    print(
        f"Stopped after step {trainer.state.global_step}; go on with the same command and "
        "--resume_from_checkpoint true",
        file=sys.stderr,
    )
    raise SystemExit(EXIT_INTERRUPTED)


def _result(job: Job, trainer: TReFTTrainer, train_dataset: Any, loss: float) -> dict[str, Any]:
    """Returns what `--json` prints; every key is documented in docs/training.md."""
    training = job.training
    streams = not isinstance(train_dataset, Dataset)
    last: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        last.update(entry)
    return {
        "command": "sft",
        "output_dir": str(training.output_dir),
        "model": job.model.model_name_or_path,
        "num_rows": None if streams else len(train_dataset),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": loss,
        "sft_loss": last.get("sft_loss", last.get("loss")),
        "kv_penalty": last.get("kv_penalty"),
        "kv_loss": last.get("kv_loss"),
        "kv_weight": last.get("kv_weight", training.kv_weight),  # auto: of the last logged step
        "kv_regions": list(training.kv_regions),
        "reference": trainer.reference_kind,
        "mitigations": [mitigation.name for mitigation in trainer.mitigations],
    }


def _plain(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): float(value) for name, value in metrics.items()}


def _print_result(result: dict[str, Any]) -> None:
    """Print a few lines for people."""
    for name, value in result.items():
        print(f"{name:>12}  {value}")
