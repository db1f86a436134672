"""Steps as tasks of a Ray cluster (`pip install 'treft[ray]'`).

Store, data and code must be the same on all machines: a shared disk and one version of treft.
"""

from __future__ import annotations

import logging
import socket
from concurrent.futures import Future
from typing import Any

from treft.errors import ConfigError, needs_extra
from treft.study.step import Plan
from treft.study.worker import Report, Ticket, do_step

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


class RayCluster:
    """Gives each step its cores and GPUs, and a lost worker's step to another one.

    Args:
        address: as `ray.init` takes it: host:port, `ray://host:port`, `auto` for the cluster that
            this machine belongs to, or `local` to start one here.
        num_cpus: cores of a `local` one; default all.
        max_retries: times that a step is started again after its worker was lost.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, num_cpus: int | None = None, max_retries: int = 2) -> None:
        self._ray = _import_ray()
        _check_listens(address)
        try:
            self._ray.init(
                address=address,
                num_cpus=num_cpus if address == "local" else None,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
        self._task = self._ray.remote(max_calls=0, max_retries=max_retries)(do_step)

    def check(self, plan: Plan) -> None:
        """Warn of what the cluster does not have now; one that grows may get it."""
        total = self._ray.cluster_resources()
        for planned in plan.steps:
            wanted = planned.step.resources
            if wanted.gpus > total.get("GPU", 0) or wanted.cpus > total.get("CPU", 0):
                logger.warning(
                    "step %s wants %s; the cluster has %s", planned.step.name, wanted, total
                )

    def submit(self, ticket: Ticket) -> Future[Report]:
        """Queue a step; Ray starts it when there is room."""
        wanted = ticket.planned.step.resources
        reference: Any = self._task.options(
            name=ticket.planned.step.name, num_cpus=wanted.cpus, num_gpus=wanted.gpus
        ).remote(ticket)
        future: Future[Report] = reference.future()
        return future

    def close(self) -> None:
        """Leave the cluster, which ends this study's tasks."""
        self._ray.shutdown()


def _check_listens(address: str) -> None:
    """Where the address names a port: Ray itself would wait for minutes before it says so."""
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if not found or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}.") from error


def _import_ray() -> Any:
    with needs_extra("ray", "--ray needs"):
        import ray
    return ray
