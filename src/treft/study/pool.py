"""Worker processes of this machine, each for one step at a time.

A worker is an executor of its own, so one that dies takes no other's step with it. Workers hold one
end of a pipe and leave as soon as the other end closes: when they are told to, and also when the
parent is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection

from treft.errors import ConfigError
from treft.study.memory import keep_freed_memory
from treft.study.step import Plan, Resources
from treft.study.worker import Report, Ticket, do_step


@dataclass(frozen=True)
class _Share:
    """What a worker may use; PyTorch reads threads at its import, GPUs when it first wants one."""

    threads: int
    gpus: tuple[str, ...]


class LocalPool:
    """Workers that share this machine's cores and GPUs.

    Args:
        num_cpus: cores to use.
        gpus: to use, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, num_cpus: int, gpus: tuple[str, ...] = ()) -> None:
        if num_cpus < 1:
            raise ConfigError(f"there are {num_cpus} workers; use at least one.")
        self.num_cpus = num_cpus
        self.gpus = gpus
        self._idle: list[_Worker] = []
        self._busy: dict[Future[Report], _Worker] = {}

    def check(self, plan: Plan) -> None:
        """Refuse steps that can never run here.

        Raises:
            ConfigError: a step needs more GPUs than there are.
        """
        for planned in plan.steps:
            if planned.step.resources.gpus > len(self.gpus):
                raise ConfigError(
                    f"step {planned.step.name} needs {planned.step.resources.gpus} GPUs; here are "
                    f"{len(self.gpus)}."
                )

    def submit(self, ticket: Ticket) -> Future[Report] | None:
        """Start a step; None while there is no room for it."""
        self._collect()
        share = self._share(ticket.planned.step.resources)
        if share is None:
            return None
        worker = self._worker(share)
        try:
            future = worker.executor.submit(do_step, ticket)
        except BrokenProcessPool:  # it died while it was idle
            worker.end()
            worker = _Worker(share)
            future = worker.executor.submit(do_step, ticket)
        self._busy[future] = worker
        return future

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        self._collect()
        for worker in self._busy.values():
            worker.end()
        for worker in self._idle:
            worker.leave()
        self._idle.clear()
        self._busy.clear()

    def _collect(self) -> None:
        """Workers that are done are idle, unless they died."""
        for future in [future for future in self._busy if future.done()]:
            worker = self._busy.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                worker.end()
            else:
                self._idle.append(worker)

    def _share(self, wanted: Resources) -> _Share | None:
        """Part of what is free; a step that wants more cores than there are gets all."""
        shares = [worker.share for worker in self._busy.values()]
        threads = min(wanted.cpus, self.num_cpus)
        taken = {gpu for share in shares for gpu in share.gpus}
        free = tuple(gpu for gpu in self.gpus if gpu not in taken)
        if sum(share.threads for share in shares) + threads > self.num_cpus:
            return None
        return None if wanted.gpus > len(free) else _Share(threads, free[: wanted.gpus])

    def _worker(self, share: _Share) -> _Worker:
        """An idle worker with this share, or a new one in the place of the idle others."""
        for worker in self._idle:
            if worker.share == share:
                self._idle.remove(worker)
                return worker
        while self._idle and len(self._idle) + len(self._busy) >= self.num_cpus:
            self._idle.pop().leave()
        return _Worker(share)


class _Worker:
    """One process, started by its first step."""

    def __init__(self, share: _Share) -> None:
        context = multiprocessing.get_context("spawn")
        self.share = share
        self._ours_to_hear, self._lifeline = context.Pipe(duplex=False)
        self.executor = ProcessPoolExecutor(
            1,
            mp_context=context,
            initializer=_begin,
            initargs=(self._ours_to_hear, share),
        )

    def leave(self) -> None:
        """Let the process, which has no step, end by itself and tidy up."""
        self.executor.shutdown()
        self.end()

    def end(self) -> None:
        """Make the process leave, even in the middle of a step."""
        self._lifeline.close()
        self.executor.shutdown(cancel_futures=True)
        self._ours_to_hear.close()


def visible_gpus() -> tuple[str, ...]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


def _begin(lifeline: Connection, share: _Share) -> None:
    """Before a worker's first step: its share, and when to leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["OMP_NUM_THREADS"] = str(share.threads)
    os.environ["MKL_NUM_THREADS"] = str(share.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if "torch" in sys.modules:  # by a script, whose top a spawned process runs again first
        sys.modules["torch"].set_num_threads(share.threads)
    keep_freed_memory()
    os.dup2(2, 1)  # stdout has the command's result alone
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)
