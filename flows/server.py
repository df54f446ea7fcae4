"""A Prefect server for one run, for whoever has none: it starts while the run still imports torch.

Prefect's own temporary server starts when the flow does, which then waits for it.  This one ends
with its run, even one that is killed: it watches its standard input.  Run as a script, this file is
the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from tasks.caching.basics import LadderError

_PATIENCE = 180  # seconds; it is up in five, but not on a busy machine or with a new database


class TemporaryServer:
    """Started by `begin`, used within `use`, and gone when this process ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._failure: Exception | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process

    def begin(self) -> None:
        """Start it, unless it has started or another server is named by the environment."""
        if self._process or os.environ.get("PREFECT_API_URL"):
            return
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._port = listening.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"},
                start_new_session=True,  # Ctrl-C is for the run, which has yet to say good-bye
            )
        atexit.register(self._end, self._process)  # after Prefect has sent what it still holds
        self._asking.start()

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Wait until it answers and point Prefect at it, unless Prefect knows a server.

        Raises LadderError when it does not come up.
        """
        from prefect.context import refresh_global_settings_context
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

        if PREFECT_API_URL.value():
            yield
            return
        self.begin()
        self._wait()
        # Past the flow's end too: what Prefect still holds, it sends when this process ends.
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self._port}/api"
        refresh_global_settings_context()
        # Nobody watches this server for signs of life, and to stop giving them takes a second.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield

    def _ask(self) -> None:
        """Ask what Prefect will ask first, for which the server gets half a second of things ready.

        Its socket listens from the start, so one request, and patience, is enough.
        """
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
            connection.request("GET", "/api/admin/version")
            connection.getresponse()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._failure = error

    def _wait(self) -> None:
        """Wait until it answers."""
        self._asking.join()
        if self._failure:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace")
            said = re.findall(r"^[\w.]*Error: .*", text, re.MULTILINE) or [str(self._failure)]
            raise LadderError(
                f"Prefect's temporary server did not start ({said[-1]}): make PREFECT_HOME a "
                "folder that can be written, or start a server and set PREFECT_API_URL"
            ) from self._failure

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """Let it end: what is still being written is soon done, or it goes on to do that alone."""
        assert process.stdin
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def _serve(listening: int) -> None:
    """Answer on a socket that listens already, until standard input ends."""
    server: Any = None

    def watch() -> None:
        while os.read(0, 1):
            pass
        if server:
            server.should_exit = True
            time.sleep(60)  # a new database must not be left half made
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return  # a profile names a server
    gc.disable()  # an import makes many objects, and no garbage
    import uvicorn
    from prefect.server.api.server import create_app

    gc.enable()
    server = uvicorn.Server(uvicorn.Config(create_app, factory=True, log_level="error"))
    server.run([socket.socket(fileno=listening)])
    os._exit(0)  # all is written; taking the interpreter apart takes a second


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # As Prefect starts its own.
    os.environ.update(
        PREFECT_UI_ENABLED="0", PREFECT__SERVER_EPHEMERAL="1", PREFECT__SERVER_FINAL="1"
    )
    _serve(int(sys.argv[1]))
