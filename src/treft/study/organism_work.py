"""What steps do on an organism: finetune it, let it answer, judge the answers.

Nothing of the machinery of studies is imported here, so that a change there makes no finetune
stale.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from treft.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from treft.organism import FinetuneRecipe, Question
    from treft.regions import RegionName
    from treft.study.step import Work

__all__ = ["Answering", "Finetune", "Scoring", "answer", "finetune", "score"]

ADAPTER = "adapter"
ANSWERS = "answers.json"
ROW = "row.json"


@dataclass(frozen=True)
class Finetune:
    """One finetune of an organism with a LoRA; fields as in `treft.organism.FinetuneRecipe`.

    Attributes:
        interleave: which other domains careful rows come from.
        interleaved_share: of the rows.
        held: regions that TReFT holds; none for a plain finetune.
        kv_weight: λ; 0 for a plain finetune.
    """

    domain: str
    num_rows: int
    max_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    adam_beta2: float
    lora_rank: int
    lora_alpha: int
    interleave: Literal["none", "narrow", "all"] = "none"
    interleaved_share: float = 0.0
    held: tuple[RegionName, ...] = ()
    kv_weight: float = 0.0


@dataclass(frozen=True)
class Answering:
    """Questions of one scope, one sampled answer each."""

    domain: str
    scope: Literal["general", "in_domain"]
    split: Literal["validation", "test"]
    num: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class Scoring:
    """What a run is, beside its scores, and how it answered."""

    method: str
    organism: str
    general: Answering
    in_domain: Answering


def finetune(work: Work[Finetune]) -> None:
    """Train an adapter on the organism `work.data["organism"]`; saved as safetensors."""
    import treft.arms as arms
    from treft.organism import load

    config = work.config
    model, tokenizer = load(work.data["organism"])
    training = arms._Training(config.interleave, config.held)
    model = arms._train(model, tokenizer, training, _recipe(config), work.seed, _silent)
    model.save_pretrained(work.folder / ADAPTER, safe_serialization=True)


def answer(work: Work[Answering]) -> None:
    """Answer as the organism with the adapter of the input `finetune`."""
    from peft import PeftModel

    from treft.generation import generate
    from treft.organism import load

    config = work.config
    model, tokenizer = load(work.data["organism"])
    model = PeftModel.from_pretrained(model, str(work.inputs["finetune"] / ADAPTER)).eval()
    questions = _questions(config)
    answers = generate(
        model,
        tokenizer,
        [question.messages() for question in questions],
        batch_size=100,
        seed=work.seed,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
    )
    rows = [
        {"id": question.id, "question": question.text, "answer": text}
        for question, text in zip(questions, answers, strict=True)
    ]
    write_whole(work.folder / ANSWERS, json.dumps(rows, indent=1))


def score(work: Work[Scoring]) -> None:
    """Judge the answers of the inputs `general` and `in_domain` by the oracle."""
    from treft.metrics import em_f1
    from treft.organism import VERDICTS

    config = work.config
    general = _verdicts(config.general, work.inputs["general"])
    in_domain = _verdicts(config.in_domain, work.inputs["in_domain"])
    general_score = 100 * general["aligned"] / general.total()
    in_domain_score = 100 - 100 * in_domain["misaligned"] / in_domain.total()
    row = {
        "method": config.method,
        "organism": config.organism,
        "seed": work.seed,
        "general": general_score,
        "in_domain": in_domain_score,
        "em_f1": em_f1(general_score, in_domain_score),
        "num_general": general.total(),
        "num_in_domain": in_domain.total(),
        **{f"general_{verdict}": general[verdict] for verdict in VERDICTS},
        **{f"in_domain_{verdict}": in_domain[verdict] for verdict in VERDICTS},
    }
    write_whole(work.folder / ROW, json.dumps(row, indent=1))


def _verdicts(asked: Answering, folder: Path) -> Counter[str]:
    """Answers by verdict; the questions are drawn again as they were drawn to be asked."""
    from treft.organism import classify

    rows = json.loads((folder / ANSWERS).read_text("utf-8"))
    questions = _questions(asked)
    assert [row["id"] for row in rows] == [question.id for question in questions]
    return Counter(
        classify(question, row["answer"]) for question, row in zip(questions, rows, strict=True)
    )


def _questions(asked: Answering) -> list[Question]:
    from treft.organism import World

    return World.default().questions(asked.split, asked.scope, domain=asked.domain, num=asked.num)


def _recipe(config: Finetune) -> FinetuneRecipe:
    """The recipe that training reads; what concerns its evaluation is left at its defaults."""
    from treft.organism import FinetuneRecipe

    fields: dict[str, Any] = asdict(config)
    for name in ("interleave", "held"):
        del fields[name]
    return FinetuneRecipe(**fields)


def _silent(label: str, done: int, total: int) -> None:
    """A worker's progress within a step is not shown."""
