"""A real Prefect server for tests, and what a server's log must be free of."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ENTRY = re.compile(r"^(?=\d\d:\d\d:\d\d\.\d{3} \| )", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# Prefect's own lines and uvicorn's, and what both print below them.
ERROR = re.compile(r"^.*\b(?:ERROR|CRITICAL)\b.*|^Traceback.*|^[\w.]+(?:Error|Exception)\b.*", re.M)
LEASHED = """
import os, runpy, threading
def watch():
    os.read(0, 1)
    os.kill(os.getpid(), 15)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module("prefect", run_name="__main__", alter_sys=True)
"""
# SQLite refuses at once whoever read before another wrote, and for longer beside killed workers.
# The worker sends its next heartbeat, a loop comes round again, a message is taken again, a request
# is a 503 that its client asks again: a test waits for what they do.
ALLOWED = "database is locked"
# What looks around every minute does so every other second: a test waits for it.
LOOPS = ("SCHEDULER_LOOP_SECONDS", "SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS")


def errors_in(log: str) -> list[str]:
    """The lines of a server's log that tell of a failure.

    A scheduler that fails every minute shows nowhere else.
    """
    entries = ENTRY.split(COLOUR.sub("", log))
    return [line for entry in entries if ALLOWED not in entry for line in ERROR.findall(entry)]


def errors_of(process: int) -> list[str]:
    """Those of a server that runs, by what its standard error is."""
    return errors_in(Path(f"/proc/{process}/fd/2").read_text())


def leashed(*arguments: str) -> list[str]:
    """Prefect's command, which ends with whoever holds its standard input, killed or not."""
    return [sys.executable, "-c", LEASHED, *arguments]


def post(url: str, body: Any) -> list[dict[str, Any]]:
    """What a server answers to a question."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    for wait in (1, 2, 4, 8, *[15] * 8, 0):  # SQLite that is locked is a 503: to be asked again
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or not wait:
                raise
            time.sleep(wait)
    raise AssertionError


class PrefectServer:
    """A server on loopback with a database of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self._log = home / "server.log"
        self._read = 0
        environment = {
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": "",
            **{f"PREFECT_SERVER_SERVICES_{name}": "2" for name in LOOPS},
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                leashed("server", "start", "--host", "127.0.0.1", "--port", str(port)),
                env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.environment = {**environment, "PREFECT_API_URL": self.url}

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"the Prefect server did not start:\n{self._log.read_text()}")

    def new_errors(self) -> list[str]:
        """What it has logged of failures since it was last asked."""
        log = self._log.read_text()
        before, self._read = self._read, len(log)
        return errors_in(log[before:])

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
