from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from treft.evaluation.batcher import Batcher


class Work:
    """Doubles numbers and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()

    def __call__(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        self.threads.add(threading.get_ident())
        if 13 in requests:
            raise ValueError("thirteen")
        return [2 * request for request in requests]


def batcher(work: Any, batch_size: int = 4) -> Batcher[int, int]:
    return Batcher(work, batch_size, lambda request: request // 100, threading.Lock())


async def ask(found: Batcher[int, int], requests: Sequence[int]) -> dict[int, Any]:
    """All at once; an error is kept in place of the answer."""
    answers: dict[int, Any] = {}

    async def one(request: int) -> None:
        try:
            answers[request] = await found.answer(request)
        except ValueError as error:
            answers[request] = str(error)

    async with anyio.create_task_group() as group:
        for request in requests:
            group.start_soon(one, request)
    return answers


def test_concurrent_requests_share_batches_of_the_given_size() -> None:
    work = Work()
    answers = anyio.run(ask, batcher(work), list(range(10)))
    assert answers == {request: 2 * request for request in range(10)}
    assert [len(batch) for batch in work.batches] == [4, 4, 2]
    assert threading.get_ident() not in work.threads


def test_only_requests_with_equal_keys_share_a_batch() -> None:
    work = Work()
    answers = anyio.run(ask, batcher(work), [1, 101, 2, 201, 102])
    assert answers == {request: 2 * request for request in (1, 101, 2, 201, 102)}
    assert sorted(map(sorted, work.batches)) == [[1, 2], [101, 102], [201]]


def test_an_error_reaches_its_batch_alone() -> None:
    work = Work()
    answers = anyio.run(ask, batcher(work, 2), [1, 13, 5, 6])
    assert answers == {1: "thirteen", 13: "thirteen", 5: 10, 6: 12}


def test_one_after_the_other_and_in_another_event_loop() -> None:
    work = Work()
    found = batcher(work)

    async def in_turn() -> list[int]:
        return [await found.answer(1), await found.answer(2)]

    assert anyio.run(in_turn) == [2, 4]
    assert anyio.run(in_turn) == [2, 4]
    assert work.batches == [[1], [2], [1], [2]]


def test_whoever_gives_up_takes_nobody_along() -> None:
    work, started, go = Work(), threading.Event(), threading.Event()

    def slow(requests: Sequence[int]) -> list[int]:
        started.set()
        assert go.wait(10)
        return work(requests)

    found = batcher(slow, 2)

    async def scenario() -> dict[int, int]:
        answers: dict[int, int] = {}

        async def one(request: int) -> None:
            answers[request] = await found.answer(request)

        async with anyio.create_task_group() as stays, anyio.create_task_group() as gives_up:
            gives_up.start_soon(one, 1)
            stays.start_soon(one, 2)
            stays.start_soon(one, 3)
            while not started.is_set():
                await anyio.sleep(0.01)
            gives_up.cancel_scope.cancel()
            go.set()
        return answers

    assert anyio.run(scenario) in ({2: 4, 3: 6}, {1: 2, 2: 4, 3: 6})
    assert sorted(request for batch in work.batches for request in batch) == [1, 2, 3]


def test_two_batchers_with_one_lock_take_turns() -> None:
    in_use, running = threading.Lock(), []

    def run(requests: Sequence[int]) -> list[int]:
        running.append("in")
        assert running.count("in") - running.count("out") == 1
        threading.Event().wait(0.02)
        running.append("out")
        return list(requests)

    one, two = (Batcher(run, 1, lambda _: 0, in_use) for _ in range(2))

    async def both() -> None:
        async with anyio.create_task_group() as group:
            for request in (1, 2, 3):
                group.start_soon(one.answer, request)
                group.start_soon(two.answer, request)

    anyio.run(both)
    assert running == ["in", "out"] * 6


def test_errors_do_not_stop_the_next_batch() -> None:
    found = batcher(Work())

    async def scenario() -> int:
        with pytest.raises(ValueError, match="thirteen"):
            await found.answer(13)
        return await found.answer(4)

    assert anyio.run(scenario) == 8
