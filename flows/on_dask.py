"""Stages performed by Dask's workers: those of a scheduler that runs, or a cluster of the run's.

Each body still has a process of its own there.  A worker says how many cores it has for stages by
`--resources cores=8`, and should import what takes seconds before it is given work:

    dask worker ADDRESS --resources cores=8 --preload flows.worker
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Self

import distributed
from dask.base import annotate
from prefect_dask.task_runners import DaskTaskRunner

from flows.endings import KEPT
from flows.runners import PATIENCE, insist_on_answer
from tasks.caching import machine
from tasks.caching.basics import CommonError, LadderError


class Runner(DaskTaskRunner):
    """Prefect's, which knows what workers offer, and when all of them are lost."""

    def __init__(self, address: str | None = None, **options: Any) -> None:
        if address is None:
            cores = machine.available_cores()
            options["cluster_kwargs"] = {
                "n_workers": 1,
                "threads_per_worker": 2 * cores + 2,  # they only wait
                "resources": {"cores": cores},
                "preload": ["flows.worker"],
                "dashboard_address": None,
                "memory_limit": 0,  # that of its bodies is theirs
            }
        super().__init__(address=address, **options)

    def duplicate(self) -> Self:
        """One with the same settings."""
        return type(self)(self.address)

    def __enter__(self) -> Self:
        """Start, and connect.  Raises LadderError where no scheduler answers."""
        if self.address:
            insist_on_answer("dask", self.address)
        super().__enter__()
        try:
            self.client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            where = f"dask={self.address}" if self.address else "dask"
            self.__exit__(None, None, None)
            raise LadderError(
                f"--runner {where}: no scheduler or no worker answers ({error}); start them with "
                "`dask scheduler` and `dask worker ADDRESS --preload flows.worker`"
            ) from error
        return self

    def granting(self, cores: int, _device: str) -> contextlib.AbstractContextManager[Any]:
        """Let what is submitted inside have so many of the cores that a worker offers."""
        most = max(
            (each.get("resources", {}).get("cores", 0) for each in self._workers()), default=0
        )
        if most:
            return annotate(resources={"cores": min(cores, most)})
        return contextlib.nullcontext()

    def wait(self, future: Any) -> None:
        """Wait for a future.  Raises CommonError when the cluster is lost, or gives it up."""
        inner: distributed.Future = future.wrapped_future
        seen, done = time.monotonic(), threading.Event()
        inner.add_done_callback(lambda _future: done.set())
        while not done.wait(2):
            if self.client.status == "running" and self._workers():
                seen = time.monotonic()
            if time.monotonic() - seen > PATIENCE:
                raise CommonError(f"Dask's scheduler or all of its workers are lost; {KEPT}")
        if inner.status != "finished":
            why = inner.exception() if inner.status == "error" else inner.status
            raise CommonError(f"Dask gave a stage up: {why}; {KEPT}")

    def _workers(self) -> list[dict[str, Any]]:
        return [*self.client.scheduler_info(n_workers=-1).get("workers", {}).values()]
