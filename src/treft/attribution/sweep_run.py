"""Run a patching sweep cell by cell, and go on where it stopped.

In the sweep's folder lie

    plan.json           what decides the answers; a folder holds one sweep
    own_states.json     the control that must change nothing
    answers/CELL.jsonl  answers under one patch
    scored.jsonl        all answers with all judgements

Each file appears whole, and what is there is not done again. At most `batch_size` answers are
generated at a time. The base's keys and values are recorded once for all patches of a region, or
batch by batch where they are too many to keep (`MAX_KEPT_TOKENS`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from treft.attribution.forcing import OwnStates, check_own_states
from treft.attribution.perturb import Vocabulary
from treft.attribution.scoring import panel_for, score_answers
from treft.attribution.sweep import SweepCell
from treft.attribution.sweep_plan import BASE, SweepPlan, SweepRow, answers_path
from treft.core.conversations import region_requests
from treft.core.patch_spec import random_tokens_source, row_patches
from treft.core.patching import RowPatch
from treft.core.recording import ReferenceRequest, Source, other_model
from treft.core.reference import MAX_CACHED_TOKENS, ReferenceBank
from treft.data.messages import read_rows
from treft.errors import DataError
from treft.files import write_whole
from treft.models.adapters import adapter_off
from treft.models.pair import ModelPair, answer_tokens
from treft.models.residual import ResidualReference, stream_bank
from treft.progress import Progress
from treft.statistics.records import ScoredAnswer

OWN_STATES = "own_states.json"
SCORED = "scored.jsonl"

MAX_KEPT_TOKENS = MAX_CACHED_TOKENS
"""Tokens of one region over all prompts whose states are kept from one patch to the next."""


@dataclass(frozen=True)
class Sweep:
    """What came out.

    Attributes:
        scored: answers by cell, the two unpatched models first.
        own_states: the control that must change nothing.
        num_tokens: mean number of tokens that each patch replaced in a prompt.
    """

    scored: Mapping[str, Sequence[ScoredAnswer]]
    own_states: OwnStates
    num_tokens: Mapping[str, float]


def run_sweep(
    plan: SweepPlan,
    pair: ModelPair,
    folder: Path,
    *,
    judges: Sequence[str] = (),
    batch_size: int = 32,
    progress: Progress = lambda label, done, total: None,
) -> Sweep:
    """Check the patching itself, answer under each patch, and judge.

    Args:
        plan: of the sweep.
        pair: the models.
        folder: for its files; a sweep that was begun there goes on.
        judges: Inspect model names, or `oracle`; see `panel_for`.
        batch_size: prompts run together.
        progress: told about every batch.

    Raises:
        ConfigError: the folder holds another sweep, the two models are equal, patching cannot be
            trusted on this model, or a judge does not fit the questions.
        DataError: a file is damaged or does not fit.
    """
    panel_for(plan.questions, judges)
    pair.check_differ(plan.chats[0].input_ids)
    plan.claim(folder, pair)
    own = _own_states(plan, pair, folder, batch_size)
    run = _Run(plan, pair, folder, batch_size, progress)
    cells = {cell.name: cell for cell in plan.cells}
    answers = {name: run.answers(name, cells.get(name)) for name in plan.names}
    scored: dict[str, list[ScoredAnswer]] = {}
    for number, (name, found) in enumerate(answers.items()):
        progress("judging", number, len(answers))
        scored[name] = _scored(plan, name, cells.get(name), found, judges)
    progress("judging", len(answers), len(answers))
    write_whole(folder / SCORED, _lines(asdict(one) for found in scored.values() for one in found))
    return Sweep(scored, own, {name: _mean_tokens(plan, cell) for name, cell in cells.items()})


def _own_states(plan: SweepPlan, pair: ModelPair, folder: Path, batch_size: int) -> OwnStates:
    path = folder / OWN_STATES
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return OwnStates(**{name: kept[name] for name in OwnStates.__dataclass_fields__})
    with pair.use("finetuned") as model:
        found = check_own_states(
            model, plan.tokenizer, plan.chats, plan.request.options.regions, batch_size
        )
    write_whole(path, json.dumps(found.to_dict()) + "\n")
    return found


@dataclass
class _Run:
    """What is the same for all cells."""

    plan: SweepPlan
    pair: ModelPair
    folder: Path
    batch_size: int
    progress: Progress

    def answers(self, name: str, cell: SweepCell | None) -> list[str]:
        """Answers of one cell: from its file, or generated and written there."""
        rows, path = self.plan.rows, answers_path(self.folder, name)
        if path.is_file():
            return _kept(path, rows)
        bank = None if cell is None else self._bank(cell)

        def patches(batch: Sequence[int]) -> list[list[RowPatch]]:
            assert cell is not None
            assert bank is not None
            indices = [rows[number].index for number in batch]
            chats = [self.plan.chats[index] for index in indices]
            return row_patches(cell.spec, chats, indices, bank)

        self.progress(name, 0, len(rows))
        with self.pair.use("base" if name == BASE else "finetuned") as model:
            found = answer_tokens(
                model,
                self.plan.tokenizer,
                [self.plan.chats[row.index].input_ids for row in rows],
                [row.seed for row in rows],
                sampling=self.plan.request.sampling,
                max_new_tokens=self.plan.request.max_new_tokens,
                batch_size=self.batch_size,
                patches=None if cell is None else patches,
                on_batch=lambda done: self.progress(name, done, len(rows)),
            )
        pairs = zip(rows, found, strict=True)
        write_whole(path, _lines({**row.key, "answer": answer} for row, answer in pairs))
        return found

    def _bank(self, cell: SweepCell) -> ReferenceBank:
        if cell.source == "stream":
            assert cell.stream_layer is not None
            return self._stream_banks[cell.stream_layer]
        return self._base_bank if cell.source == "base" else self._random_bank

    @cached_property
    def _stream_banks(self) -> dict[int, ReferenceBank]:
        """Empty until they are asked; all draw on the same recorded streams."""
        model = self.pair.finetuned
        streams = ResidualReference(model, self.pair.base)
        return {layer: stream_bank(model, layer, streams) for layer in range(self.plan.num_layers)}

    @cached_property
    def _base_bank(self) -> ReferenceBank:
        return self._filled(self._source)

    @cached_property
    def _random_bank(self) -> ReferenceBank:
        words = Vocabulary.of(self.plan.tokenizer, len(self.pair.embedding)).ordinary
        seed = self.plan.request.options.position_seed
        return self._filled(random_tokens_source(self._source, words, seed))

    @property
    def _source(self) -> Source:
        base = self.pair.base
        return adapter_off(self.pair.finetuned) if base is None else other_model(base)

    def _filled(self, source: Source) -> ReferenceBank:
        """A bank that keeps the states of each region, unless they are too many."""
        bank = ReferenceBank(source)
        for region in self.plan.request.options.regions:
            found = (
                request for chat in self.plan.chats for request in region_requests(chat, region)
            )
            requests: list[ReferenceRequest] = list(dict.fromkeys(found))
            if sum(len(request.keep) for request in requests) <= MAX_KEPT_TOKENS:
                bank.pin(requests)
        return bank


def _kept(path: Path, rows: Sequence[SweepRow]) -> list[str]:
    """The answers in a file, if they are to these very prompts.

    Raises:
        DataError: they are not.
    """
    found = [row for row, _ in read_rows(path)]
    keys = [{name: row.get(name) for name in rows[0].key} for row in found]
    are_texts = all(isinstance(row.get("answer"), str) for row in found)
    if keys != [row.key for row in rows] or not are_texts:
        raise DataError(f"{path}: does not answer this sweep's prompts: remove it to answer anew.")
    return [row["answer"] for row in found]


def _scored(
    plan: SweepPlan,
    name: str,
    cell: SweepCell | None,
    answers: Sequence[str],
    judges: Sequence[str],
) -> list[ScoredAnswer]:
    """Judge the answers of one cell; each knows its patch."""
    rows = plan.rows
    found = score_answers(
        [plan.questions[row.index] for row in rows],
        answers,
        epochs=[row.sample for row in rows],
        scope=plan.request.scope,
        judges=judges,
    )
    about: dict[str, Any] = {"cell": name}
    if cell is not None:
        about |= {"source": cell.source, "spec": asdict(cell.spec)}
    return [
        replace(answer, metadata={**about, "seed": row.seed})
        for answer, row in zip(found, rows, strict=True)
    ]


def _mean_tokens(plan: SweepPlan, cell: SweepCell) -> float:
    """Tokens that a patch replaces in a prompt, on average; of short prompts what they have."""
    total = 0
    for chat in plan.chats:
        for region in cell.spec.regions:
            num = len(chat.positions(region))
            if cell.spec.window is not None:
                first_turn = chat.positions(region, chat.turns[chat.require(region)[0]])
                num = len(first_turn[slice(*cell.spec.window)])
            total += min(num, cell.spec.num_positions or num)
    return total / len(plan.chats)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
