"""Stages performed by Ray's workers: those of a cluster that runs, or of one of the run's own.

Each body still has a process of its own there; Ray counts the cores and GPUs that stages have.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Self

import ray
from prefect_ray.context import remote_options
from prefect_ray.task_runners import RayTaskRunner

from flows.endings import KEPT
from flows.runners import PATIENCE, insist_on_answer
from tasks.caching import machine
from tasks.caching.basics import CommonError, LadderError


class Runner(RayTaskRunner[Any]):
    """Prefect's, which knows what nodes offer, and when all of them are lost."""

    def __init__(self, address: str | None = None) -> None:
        cores = machine.available_cores()
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            # Else Ray sets it to 1, and other numbers of threads give other last bits.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(cores)}},
        }
        if address is None:
            options |= {"num_cpus": cores, "include_dashboard": False}
        super().__init__(address, options)

    def duplicate(self) -> Self:
        """One with the same settings."""
        return type(self)(self.address)

    def __enter__(self) -> Self:
        """Start, and connect.  Raises LadderError where nothing answers."""
        if self.address:
            insist_on_answer("ray", self.address)
        try:
            return super().__enter__()
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"ray={self.address}" if self.address else "ray"
            raise LadderError(
                f"--runner {where}: no cluster answers ({str(error).splitlines()[0]}); start one "
                "with `ray start --head`"
            ) from error

    def granting(self, cores: int, device: str) -> contextlib.AbstractContextManager[Any]:
        """Let what is submitted inside have so many of a node's cores, and a GPU for cuda."""
        most = max((each["Resources"].get("CPU", 0) for each in _nodes()), default=0)
        return remote_options(num_cpus=min(cores, most), num_gpus=int(device == "cuda"))

    def wait(self, future: Any) -> None:
        """Wait for a future.  Raises CommonError when the cluster is lost."""
        seen = time.monotonic()
        try:
            while not ray.wait([future.wrapped_future], timeout=2)[0]:
                if _nodes():
                    seen = time.monotonic()
                if time.monotonic() - seen > PATIENCE:
                    raise CommonError(f"all nodes of the Ray cluster are lost; {KEPT}")
        except (ray.exceptions.RayError, ConnectionError) as error:
            said = str(error).splitlines()[0]
            raise CommonError(f"the Ray cluster is lost ({said}); {KEPT}") from error


def _nodes() -> list[dict[str, Any]]:
    return [each for each in ray.nodes() if each["Alive"]]
