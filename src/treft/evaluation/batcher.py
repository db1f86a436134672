"""Requests that come one by one, answered in batches.

Inspect asks for one answer at a time, many at once. Whoever gets the lock first waits for the
others to arrive, answers a batch on a thread and lets the next one have the lock; the others find
their answers there. It works on asyncio and Trio, and leaves no thread behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

LINGER = 0.05
"""Seconds without a new request after which a batch that is not full starts."""


@dataclass(eq=False)
class _Waiting(Generic[Request, Answer]):
    """A request on its way."""

    request: Request
    key: Hashable
    outcome: Answer | Exception | None = None


class Batcher(Generic[Request, Answer]):
    """Collects concurrent requests.

    Args:
        run: answers a batch, on a thread; no answer is None or an exception.
        batch_size: requests run together at most.
        key: requests with equal keys may share a batch.
        in_use: held while a batch runs, so that batchers take turns.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Answer]],
        batch_size: int,
        key: Callable[[Request], Hashable],
        in_use: threading.Lock,
    ) -> None:
        self._run = run
        self._batch_size = batch_size
        self._key = key
        self._in_use = in_use
        # A lock belongs to the event loop it is used in, and each `eval` of a process has its own.
        self._of_loop: RunVar[tuple[anyio.Lock, list[_Waiting[Request, Answer]]]] = RunVar(
            "treft.batcher"
        )

    async def answer(self, request: Request) -> Answer:
        """Returns the answer to one request; an error of its batch is raised."""
        lock, queue = self._lock_and_queue()
        mine: _Waiting[Request, Answer] = _Waiting(request, self._key(request))
        queue.append(mine)
        try:
            async with lock:
                if mine.outcome is None:
                    await self._linger(queue, mine)
                    # A thread that works on other people's requests is waited for.
                    await anyio.to_thread.run_sync(self._work, self._batch(queue, mine))
        finally:
            queue.remove(mine)
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        assert mine.outcome is not None
        return mine.outcome

    def _lock_and_queue(self) -> tuple[anyio.Lock, list[_Waiting[Request, Answer]]]:
        try:
            return self._of_loop.get()
        except LookupError:
            self._of_loop.set((anyio.Lock(), []))
            return self._of_loop.get()

    async def _linger(
        self, queue: list[_Waiting[Request, Answer]], mine: _Waiting[Request, Answer]
    ) -> None:
        """Wait until the batch is full or nobody comes any more."""
        num_seen = 0
        while num_seen < (num := len(self._batch(queue, mine))) < self._batch_size:
            num_seen = num
            await anyio.sleep(LINGER)

    def _batch(
        self, queue: list[_Waiting[Request, Answer]], mine: _Waiting[Request, Answer]
    ) -> list[_Waiting[Request, Answer]]:
        """My request and others that can go with it, first come, first served."""
        others = [
            found
            for found in queue
            if found is not mine and found.outcome is None and found.key == mine.key
        ]
        return [mine, *others[: self._batch_size - 1]]

    def _work(self, batch: list[_Waiting[Request, Answer]]) -> None:
        """Answer a batch; what goes wrong is the outcome of all its requests."""
        try:
            with self._in_use:
                answers = self._run([found.request for found in batch])
        except Exception as error:
            for found in batch:
                found.outcome = error
            return
        for found, answer in zip(batch, answers, strict=True):
            found.outcome = answer
