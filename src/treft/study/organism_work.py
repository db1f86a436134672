"""What steps do on an organism: build it, finetune it, let it answer.

Nothing of the machinery of studies is imported here, nor what judges answers, so that a change
there makes no finetune stale.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from treft.files import write_whole

if TYPE_CHECKING:
    from treft.chat.regions import RegionName
    from treft.organism import FinetuneRecipe
    from treft.organism.recipes import KindName
    from treft.organism.tasks import TaskName
    from treft.steps.step import Work
    from treft.study.organism_training import Training


ADAPTER = "adapter"
MODEL = "model"
ANSWERS = "answers.json"
ROW = "row.json"
Scope = Literal["general", "in_domain", "other_narrow"]


@dataclass(frozen=True)
class Finetune:
    """One finetune of an organism; fields as in `FinetuneRecipe` and `Training`.

    Attributes:
        interleaved_share: of the rows; 0 without interleaving.
        kv_weight: λ; 0 without held regions.
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
    interleave: str = "none"
    interleaved_share: float = 0.0
    held: tuple[RegionName, ...] = ()
    kv_weight: float = 0.0
    task: TaskName = "advice"
    domains: tuple[str, ...] = ()
    system_prompt: str | None = None
    kv_states: Literal["both", "key", "value"] = "both"
    mitigation: str = ""
    strength: float = 0.0
    is_full: bool = False


@dataclass(frozen=True)
class Answering:
    """Questions of one scope, one sampled answer each, and what is done to the model meanwhile.

    Attributes:
        domain: of the finetune.
        scope: of the questions.
        split: of the questions.
        num: of questions.
        temperature: of sampling.
        max_new_tokens: of an answer.
        task: that the finetune taught.
        patch: regions that get the unfinetuned model's keys and values.
        num_positions: of each of them, drawn at random; None for all.
        system_prompt: of the questions; None for the template's default.
        alpha: of W0 + α ΔW.
        steering: coefficient of the persona vector that is taken away; 0 for none.
    """

    domain: str
    scope: Scope
    split: Literal["validation", "test"]
    num: int
    temperature: float
    max_new_tokens: int
    task: TaskName = "advice"
    patch: tuple[RegionName, ...] = ()
    num_positions: int | None = None
    system_prompt: str | None = None
    alpha: float = 1.0
    steering: float = 0.0


@dataclass(frozen=True)
class Building:
    """An organism that is not shipped."""

    kind: KindName


@dataclass(frozen=True)
class Teaching:
    """An organism that is taught manners (`treft.organism.manners`).

    Attributes:
        steps: of the optimizer.
    """

    steps: int


def build(work: Work[Building]) -> None:
    """Train an organism from scratch, into the step's folder."""
    import shutil

    from treft.organism.build import BuildRecipe
    from treft.organism.build import build as build_organism

    made = build_organism(work.folder / "organism", BuildRecipe(work.config.kind, seed=work.seed))
    for path in made.iterdir():
        if path.is_file():
            shutil.move(path, work.folder / path.name)
    shutil.rmtree(made)


def teach(work: Work[Teaching]) -> None:
    """Teach the organism manners, into the step's folder."""
    from treft.organism.manners import MannersRecipe, teach_manners

    recipe = MannersRecipe(steps=work.config.steps, seed=work.seed)
    teach_manners(organism_of(work), work.folder, recipe)


def finetune(work: Work[Finetune]) -> None:
    """Train on the organism; the adapter, or the model, as safetensors, and the log."""
    from treft.organism import load
    from treft.study.organism_training import train

    model, tokenizer = load(organism_of(work))
    training, recipe = _training(work.config)
    trainer = train(model, tokenizer, training, recipe, work.seed)
    folder = work.folder / (MODEL if training.is_full else ADAPTER)
    trainer.model.save_pretrained(folder, safe_serialization=True)
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    write_whole(work.folder / "log.json", json.dumps(steps))


def answer(work: Work[Answering]) -> None:
    """Answer as the organism with the finetune of the input `finetune`, or as it is without."""
    from treft.mitigations.system_prompt import under
    from treft.models.repair import generate

    config = work.config
    questions = questions_of(config)
    asked = [{"messages": question.messages()} for question in questions]
    rows = [under(row, config.system_prompt, keeps=False) for row in asked]
    with (
        load_run(work, config.alpha) as (model, tokenizer, bank),
        ExitStack() as stack,
    ):
        if config.steering:
            stack.enter_context(_steered(model, tokenizer, work, config))
        answers = generate(
            model,
            tokenizer,
            [row["messages"] for row in rows],
            patch=config.patch,
            bank=bank if config.patch else None,
            num_positions=config.num_positions,
            position_seed=work.seed,
            batch_size=100,
            seed=work.seed,
            do_sample=True,
            temperature=config.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=config.max_new_tokens,
        )
    answered = [
        {"id": question.id, "question": question.text, "answer": text}
        for question, text in zip(questions, answers, strict=True)
    ]
    write_whole(work.folder / ANSWERS, json.dumps(answered, indent=1))


def organism_of(work: Work[Any]) -> Path:
    """Folder of the organism: one that is there, or one that a step built."""
    return work.inputs["organism"] if "organism" in work.inputs else work.data["organism"]


@contextmanager
def load_run(work: Work[Any], alpha: float = 1.0) -> Iterator[tuple[Any, Any, Any]]:
    """The model of the input `finetune`, its tokenizer, and a bank of the unfinetuned model.

    Args:
        work: with the organism as data; without the input it is the organism itself.
        alpha: of W0 + α ΔW; with an adapter only.

    The bank is None where the adapter can be switched off for it, or there is no finetune.
    """
    from peft import PeftModel

    from treft.core.recording import other_model
    from treft.core.reference import ReferenceBank
    from treft.organism import load

    model, tokenizer = load(organism_of(work))
    folder = work.inputs.get("finetune")
    if folder is None:
        yield model, tokenizer, None
    elif (folder / MODEL).is_dir():
        tuned = type(model).from_pretrained(folder / MODEL).to(model.device).eval()
        yield tuned, tokenizer, ReferenceBank(other_model(model))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            adapter = _scaled(folder / ADAPTER, alpha, Path(scratch))
            yield PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer, None


def questions_of(asked: Answering) -> list[Any]:
    """The questions; they are drawn again as they were drawn to be asked."""
    from treft.organism.tasks import task_questions

    return list(
        task_questions(
            asked.task,
            asked.split,
            asked.scope,
            asked.domain,
            asked.num,
        )
    )


def _training(config: Finetune) -> tuple[Training, FinetuneRecipe]:
    """What is special about a finetune, and the rest; evaluation is left at its defaults."""
    from dataclasses import fields

    from treft.organism import FinetuneRecipe
    from treft.study.organism_training import Training

    given = asdict(config)
    own = {entry.name: given[entry.name] for entry in fields(Training)}
    rest = {
        entry.name: given[entry.name] for entry in fields(FinetuneRecipe) if entry.name in given
    }
    return Training(**own), FinetuneRecipe(**rest)


def _scaled(adapter: Path, alpha: float, scratch: Path) -> Path:
    from treft.mitigations.interpolation import interpolate_adapter

    if alpha == 1.0:
        return adapter
    interpolate_adapter(adapter, alpha, scratch / ADAPTER)
    return scratch / ADAPTER


@contextmanager
def _steered(model: Any, tokenizer: Any, work: Work[Any], config: Answering) -> Iterator[None]:
    """A persona vector of the organism's taken away, coefficient times."""
    from treft.mitigations.steering import persona_vector, steered, steered_layer
    from treft.organism import load
    from treft.study.organism_mitigations import contrast_rows

    organism = organism_of(work)
    base, _ = load(organism)
    layer = steered_layer(base)
    rows = contrast_rows(config.domain, 0)
    vector = persona_vector(base, tokenizer, *rows, layer=layer)
    with steered(model, layer, -config.steering * vector):
        yield
