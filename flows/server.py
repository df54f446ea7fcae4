"""A Prefect server for one run, for whoever has none: it starts while the run still imports torch.

Prefect's own temporary server starts when the flow does, which then waits for it.  This one ends
with its process, even one that is killed: it watches its standard input.  Loopback alone would
protect nothing, as any web page that is open here may ask it: it answers only who knows its secret.
Run as a script, this file is the server.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import gc
import http.client
import ipaddress
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.caching.basics import LadderError

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# As Prefect starts its own.
_FOR_ONE_RUN = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
_PATIENCE = 180  # seconds; it is up in five, but not on a busy machine or with a new database


class TemporaryServer:
    """Started by `begin`, used within `use`, and gone when this process ends."""

    def __init__(
        self, lost: Callable[[], object] = lambda: None, port: int = 0, *, whole: bool = False
    ) -> None:
        """`lost` is called, in a thread, when the server ends while it is used.

        A whole one has all of a server's services, such as its scheduler, and its pages; its
        secret may be set, as Prefect's own server's.
        """
        self._lost = lost
        self._process: subprocess.Popen[bytes] | None = None
        self._port = port  # 0 is a free one
        self._whole = whole
        own = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") if whole else ""
        self._secret = own or f"stepladder:{secrets.token_urlsafe(24)}"
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._failure: Exception | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process

    def begin(self) -> None:
        """Start it, unless it has started or another server is named by the environment."""
        if self._process or os.environ.get("PREFECT_API_URL"):
            return
        with self._listen() as listening:
            self._port = listening.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={
                    **os.environ,
                    **({} if self._whole else _FOR_ONE_RUN),
                    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
                    "PREFECT_UI_API_URL": f"http://127.0.0.1:{self._port}/api",
                    "PREFECT_SERVER_API_AUTH_STRING": self._secret,
                    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{self._port}",
                },
                start_new_session=True,  # Ctrl-C is for the run, which has yet to say good-bye
            )
        # After Prefect has sent what it still holds.
        atexit.register(self._end, self._process, 30 if self._whole else 5)
        self._asking.start()

    def _listen(self) -> socket.socket:
        """A socket on loopback.  Raises LadderError for a port that is taken."""
        try:
            return socket.create_server(("127.0.0.1", self._port))
        except (OSError, OverflowError) as error:
            raise LadderError(
                f"port {self._port} cannot be had ({error}): --port 0 takes a free one, or set "
                "PREFECT_API_URL to the server that has it"
            ) from error

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Wait until it answers and point Prefect at it, unless Prefect knows a server.

        Raises LadderError when it does not come up, or when the server that Prefect knows cannot
        be reached.
        """
        from prefect.context import refresh_global_settings_context
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            temporary_settings,
        )

        if url := PREFECT_API_URL.value():
            with _reach(url):
                yield
            return
        self.begin()
        self._wait()
        threading.Thread(target=self._watch, daemon=True).start()
        # Past the flow's end too: what Prefect still holds, it sends when this process ends.
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{self._port}/api"
        os.environ["PREFECT_API_AUTH_STRING"] = self._secret
        _leave_proxies()
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
            known = base64.b64encode(self._secret.encode()).decode()
            headers = {"authorization": f"Basic {known}"}
            connection.request("GET", "/api/admin/version", headers=headers)
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
                f"Prefect's temporary server did not start ({said[-1]}): set PREFECT_HOME to a "
                "folder that can be written and that no other program holds, or start a server "
                "and set PREFECT_API_URL"
            ) from self._failure

    def _watch(self) -> None:
        """Tell when it ends before its run has: Prefect would ask on and on for minutes."""
        assert self._process
        assert self._process.stdin
        self._process.wait()
        if not self._process.stdin.closed:
            self._lost()

    @staticmethod
    def _end(process: subprocess.Popen[bytes], patience: float = 5) -> None:
        """Let it end: what is still being written is soon done, or it goes on to do that alone."""
        assert process.stdin
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def insist_on_server() -> None:
    """See that Prefect knows a server that lasts.  Raises LadderError."""
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is None:
        raise LadderError(
            "no Prefect server is set; `prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )


@contextlib.contextmanager
def _reach(url: str) -> Iterator[None]:
    """Let Prefect talk to a server that somebody else has started.

    Raises LadderError when that cannot be reached, directly or through a proxy.
    """
    host = urlsplit(url).hostname or ""
    proxies = " or ".join(name for name in os.environ if name.lower() in _PROXIES)
    if proxies and (_is_here(host) or urllib.request.proxy_bypass(host)):
        _leave_proxies()
        proxies = ""
    if proxies:
        _check(proxies, host)
    try:
        yield
    except RuntimeError as error:
        if not re.search("reach API|Prefect API server", str(error)):
            raise
        by_proxy = f"mend the proxy in {proxies}, or add {host} to no_proxy, or "
        raise LadderError(
            f"Prefect's server cannot be used ({error}): {by_proxy if proxies else ''}start it, "
            "or `prefect config unset PREFECT_API_URL` for a temporary one"
        ) from error


def _is_here(host: str) -> bool:
    """Whether a name is that of this machine's loopback, which no proxy can reach."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    return host == "localhost"


def _leave_proxies() -> None:
    """Let this process ask its server directly, whatever proxy the environment names.

    To name the server alone is not enough: where httpx cannot use a proxy, it fails at once.
    Stages' bodies keep the environment as it was.
    """
    os.environ.update(no_proxy="*", NO_PROXY="*")


def _check(proxies: str, host: str) -> None:
    """Raise LadderError for proxies that Prefect's client cannot use."""
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        said = str(error).partition(". ")[0].partition(" URL(")[0]  # no password
        raise LadderError(
            f"the proxy in {proxies} cannot be used ({said}): set one of http://, or add {host} "
            "to no_proxy"
        ) from error


class _Lock:
    """Held by one server at a time, while it makes or migrates the database in Prefect's home.

    Two that do so at once get in each other's way, and one ends.
    """

    def __init__(self, home: Path) -> None:
        self._handle = -1
        with contextlib.suppress(OSError):  # where there are no locks, or no home to write to
            home.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(home / "stepladder.lock", os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def release(self) -> None:
        """Let the next one."""
        if self._handle >= 0:
            os.close(self._handle)


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
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    if PREFECT_API_URL.value():
        return  # a profile names a server
    gc.disable()  # an import makes many objects, and no garbage
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            lock.release()

    gc.enable()
    lock = _Lock(PREFECT_HOME.value())
    server = Server(uvicorn.Config(create_app, factory=True, log_level="error"))
    server.run([socket.socket(fileno=listening)])
    os._exit(0)  # all is written; taking the interpreter apart takes a second


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    _serve(int(sys.argv[1]))
