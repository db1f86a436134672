"""Where steps run: processes of this machine, or a Ray cluster (`pip install 'treft[ray]'`).

A local worker is an executor of its own, so one that dies takes no other's step with it. It holds
one end of a pipe and leaves as soon as the other end closes: when it is told to, and also when the
parent is killed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from treft.errors import ConfigError, needs_extra
from treft.steps.run import MAX_RETRIES, Seconds, do_step
from treft.steps.step import Plan, Step

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


class _Share(NamedTuple):
    """What a worker may use; PyTorch reads threads at its import, GPUs when it first wants one."""

    threads: int
    gpus: tuple[str, ...]


class LocalPool:
    """Workers that share this machine's cores and GPUs, each for one step at a time.

    Args:
        num_cpus: Number of cores to use.
        gpus: The ones to use, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, num_cpus: int, gpus: tuple[str, ...] = ()) -> None:
        if num_cpus < 1:
            raise ConfigError(f"there are {num_cpus} workers; use at least one.")
        self.num_cpus = num_cpus
        self.gpus = gpus
        self._workers: list[_Worker] = []

    def check(self, plan: Plan) -> None:
        """Refuse steps that can never run here.

        Raises:
            ConfigError: A step needs more GPUs than there are.
        """
        for step in plan.named.values():
            if step.resources.gpus > len(self.gpus):
                raise ConfigError(
                    f"step {step.name} needs {step.resources.gpus} GPUs; here are {len(self.gpus)}."
                )

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds] | None:
        """Start a step; None while there is no room for it.

        A step that wants more cores than there are gets all.
        """
        busy = [worker for worker in self._workers if not worker.last.done()]
        threads = min(step.resources.cpus, self.num_cpus)
        taken = {gpu for worker in busy for gpu in worker.share.gpus}
        free = tuple(gpu for gpu in self.gpus if gpu not in taken)
        if sum(worker.share.threads for worker in busy) + threads > self.num_cpus:
            return None
        if step.resources.gpus > len(free):
            return None
        worker = self._worker(_Share(threads, free[: step.resources.gpus]))
        try:
            worker.last = worker.submit(do_step, step, store)
        except BrokenProcessPool:  # it died, in its last step or since
            self._end(worker)
            return self.submit(step, store)
        return worker.last

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in [*self._workers]:
            self._end(worker)

    def _worker(self, share: _Share) -> _Worker:
        """Returns an idle worker with this share, or a new one, in the place of an idle other."""
        idle = [worker for worker in self._workers if worker.last.done()]
        for worker in idle:
            if worker.share == share:
                return worker
        if len(self._workers) >= self.num_cpus:  # not all of them busy: there is room
            self._end(idle[-1])
        self._workers.append(_Worker(share))
        return self._workers[-1]

    def _end(self, worker: _Worker) -> None:
        worker.end()
        self._workers.remove(worker)


class _Worker(ProcessPoolExecutor):
    """One process, started by its first step."""

    def __init__(self, share: _Share) -> None:
        context = multiprocessing.get_context("spawn")
        heard, self._lifeline = context.Pipe(duplex=False)
        self.share = share
        self.last: Future[Seconds] = Future()
        self.last.cancel()
        super().__init__(1, context, _begin, (heard, share))

    def end(self) -> None:
        """Make the process leave: by itself, tidied up, or in the middle of its step."""
        if self.last.done():
            self.shutdown()
        self._lifeline.close()
        self.shutdown(cancel_futures=True)


def _begin(lifeline: Connection, share: _Share) -> None:
    """Set a worker's share before its first step, and when it leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["OMP_NUM_THREADS"] = str(share.threads)
    os.environ["MKL_NUM_THREADS"] = str(share.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if "torch" in sys.modules:  # by a script, whose top a spawned process runs again first
        sys.modules["torch"].set_num_threads(share.threads)
    os.dup2(2, 1)  # stdout has the command's result alone
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def visible_gpus() -> tuple[str, ...]:
    """Returns this machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


class RayCluster:
    """Gives each step its cores and GPUs, and a lost worker's step to another one.

    Store, data and code must be the same on all machines: a shared disk and one version of treft.

    Args:
        address: As `ray.init` takes it: host:port, `ray://host:port`, `auto` for the cluster that
            this machine belongs to, or `local` to start one here.
        num_cpus: Cores of a `local` one; default all.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, num_cpus: int | None = None) -> None:
        with needs_extra("ray", "--ray needs"):
            import ray
        _check_listens(address)
        here = address == "local"
        try:
            ray.init(
                address=address,
                num_cpus=num_cpus if here else None,
                include_dashboard=False if here else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
        self._ray: Any = ray
        self._task: Any = ray.remote(max_calls=0, max_retries=MAX_RETRIES)(do_step)

    def check(self, plan: Plan) -> None:
        """Warn of what the cluster does not have now; one that grows may get it."""
        total = self._ray.cluster_resources()
        for step in plan.named.values():
            wanted = step.resources
            if wanted.gpus > total.get("GPU", 0) or wanted.cpus > total.get("CPU", 0):
                logger.warning("step %s wants %s; the cluster has %s", step.name, wanted, total)

    def submit(self, step: Step[Any], store: Path) -> Future[Seconds]:
        """Queue a step; Ray starts it when there is room."""
        wanted = step.resources
        task = self._task.options(name=step.name, num_cpus=wanted.cpus, num_gpus=wanted.gpus)
        future: Future[Seconds] = task.remote(step, store).future()
        return future

    def close(self) -> None:
        """Leave the cluster, which ends this plan's tasks."""
        self._ray.shutdown()


def _check_listens(address: str) -> None:
    """Try the port that an address names: Ray would wait for minutes before it says so."""
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if not found or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}.") from error
