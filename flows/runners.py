"""Where a run's stages are performed: on this machine, or by workers of Dask or of Ray.

`--runner`, or STEPLADDER_RUNNER for deployments too: local, dask, dask=ADDRESS, ray, ray=ADDRESS.
Results are the same everywhere, so a runner is no part of any key.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import socket
from typing import Any

from tasks.caching import machine
from tasks.caching.basics import LadderError, shown

NAMED = "STEPLADDER_RUNNER"
PATIENCE = 60.0  # seconds that a cluster may be without anybody who works
_KINDS = {"dask": "flows.on_dask", "ray": "flows.on_ray"}


def choose(given: str) -> None:
    """Have the runs of this process performed there.  Raises LadderError for what is no runner."""
    if not re.fullmatch(r"local|(dask|ray)(=\S+)?", given):
        raise LadderError(
            f"--runner {shown(given)} is none; give local, dask, dask=ADDRESS, ray or ray=ADDRESS"
        )
    os.environ[NAMED] = given


def task_runner() -> Any:
    """Prefect's task runner that the environment names.

    Raises LadderError for what names none, or is not installed.
    """
    choose(os.environ.get(NAMED) or "local")
    kind, _, address = os.environ[NAMED].partition("=")
    if kind == "local":
        from prefect.task_runners import ThreadPoolTaskRunner

        # Threads only wait: each stage's body runs in a process of its own, as cores come free.
        return ThreadPoolTaskRunner(max_workers=machine.threads())
    if address:
        _insist_on_server(kind, address)
    try:
        return importlib.import_module(_KINDS[kind]).Runner(address or None)
    except ModuleNotFoundError as error:
        raise LadderError(
            f"--runner {kind} needs the package {error.name}: pip install 'stepladder[{kind}]'"
        ) from error


def _insist_on_server(kind: str, address: str) -> None:
    """See that workers on other machines reach Prefect's server.  Raises LadderError."""
    from prefect.settings import PREFECT_API_URL

    if not is_here(address) and not PREFECT_API_URL.value():
        raise LadderError(
            f"--runner {kind}={address}: its workers cannot reach a server that this run has to "
            "itself; set PREFECT_API_URL to one that all machines reach"
        )


def insist_on_answer(kind: str, address: str) -> None:
    """See that something listens there, for which Dask waits 30 s and Ray minutes.

    Raises LadderError.
    """
    host, _, port = re.sub(r"^[a-z]+://", "", address).rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
        except OSError as error:
            start = {"dask": "dask scheduler", "ray": "ray start --head"}[kind]
            raise LadderError(
                f"--runner {kind}={address}: nothing answers there ({error}); start it with "
                f"`{start}`"
            ) from error


def is_here(address: str) -> bool:
    """Whether an address such as tcp://127.0.0.1:8786 or auto is of this machine alone."""
    host = re.sub(r"^[a-z]+://|:\d+$", "", address).strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("auto", "localhost")
