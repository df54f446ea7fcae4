"""`stepladder` and `prefect`, forked from a process that has imported torch and Prefect.

The project itself is imported by each fork anew, from the folder the command is run in.  Run as a
script, this file is the process that forks.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

BEFORE_PREFECT = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # read when it is imported


class Shell:
    """Runs command lines in one environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, **BEFORE_PREFECT},
        )  # fmt: skip

    def run(
        self,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        module: str = "flows.cli",
    ) -> subprocess.CompletedProcess[str]:
        """What `stepladder` (or `python -m` another module) with these arguments does there."""
        assert self._server.stdin
        assert self._server.stdout
        with tempfile.TemporaryDirectory() as place:
            streams = [str(Path(place) / name) for name in ("out", "err")]
            request = [module, arguments, str(folder), environment, streams]
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            printed, errors = (Path(stream).read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess(arguments, status, printed, errors)

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate(timeout=60)


def serve() -> None:
    """Answer each line on standard input with the exit status of the command on it."""
    import matplotlib.figure  # noqa: F401 - what the project imports, before the forks
    import prefect.cli.deploy
    import prefect.task_runners  # noqa: F401
    import torch.optim  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            start(*json.loads(line))
            return
        _pid, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def start(
    module: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[str]
) -> None:
    """Become the command."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    if environment.get("TMPDIR") == os.environ.get("TMPDIR"):  # what it leaves goes with `streams`
        environment["TMPDIR"] = tempfile.tempdir = os.path.dirname(streams[0])  # noqa: PTH120
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
