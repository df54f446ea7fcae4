"""How the command line ends: in one line for a mistake, at once, and quickly."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from gc import set_threshold
from pathlib import Path

import cyclopts

from tasks.caching.basics import printable, redacted, shown, unreadable

KEPT = "what had finished is kept, the same command goes on from it"


class Raised(Exception):  # noqa: N818 - the error is what it holds
    """What a stage that is debugged has raised, which no line is to stand for."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def end_with_worker() -> None:
    """End this process, a run's on a worker, soon after the worker has: nobody else would stop it.

    Prefect's engine takes the signal as a crash, says so to the server and ends the stages.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def say(message: str) -> None:
    """Tell on standard error, without what could steer a terminal and without a URL's secrets."""
    with contextlib.suppress(OSError):  # nobody listens
        print(f"stepladder: {printable(redacted(message))}", file=sys.stderr, flush=True)


def blamed(error: OSError) -> str:
    """In words, what this machine did not do: of a file, of standard output, or else."""
    if isinstance(error.filename, str):
        return str(unreadable(Path(error.filename), error))
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EIO):
        return f"standard output cannot be written: {error.strerror}"
    return str(error)


def refuse_bytes(arguments: list[str]) -> None:
    """Raise CycloptsError for an argument that is not text, which nothing here could pass on."""
    for each in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in each):
            encoding = sys.getfilesystemencoding()
            said = f"The argument {shown(each)} is no text in this terminal's encoding, {encoding}."
            raise cyclopts.CycloptsError(msg=said)


def stop(number: int, _frame: object) -> None:
    """End at once: Prefect would go on asking a server that the same Ctrl-C has ended."""
    _end(f"stopped; {KEPT}", 128 + number)


def stop_without_server() -> None:
    """End at once: Prefect would go on asking for minutes."""
    _end(f"Prefect's temporary server has ended (too little memory?); {KEPT}", 1)


def _end(message: str, status: int) -> None:
    if (console := sys.modules.get("flows.console")) and console.Display.shown:
        console.Display.shown.close()
    say(message)
    os._exit(status)


def briefly(act: Callable[[], object]) -> None:
    """Call a function, and end the process when all is written that others still hold.

    To tear down torch and Prefect as well, object by object, takes more than half a second; to
    look for garbage among what their import makes, where there is none, almost as long.
    """
    set_threshold(200_000, 30, 30)
    status: object = 1

    def leave() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):  # nobody reads on
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))

    atexit.register(leave)  # the first to register comes last
    try:
        act()
        status = 0
    except SystemExit as end:
        status = end.code
        raise
