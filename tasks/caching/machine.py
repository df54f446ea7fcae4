"""What this machine lets one process have: open files, and a place for sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.caching.basics import LadderError

_MOST = 65_536  # open files; more are of no use, and some libraries walk through all that may be
_LEAST = 128  # what a run and Prefect's client hold open beside each other, and some to spare
_SPARE = 16  # what starting a process takes for a moment
_SOCKET_PATH = 104 - len("/pymp-12345678/listener-12345678") - 1  # macOS takes 104, Linux 108


def raise_limit() -> int:
    """Let this process and those it starts open as many files as may be; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST if soft == resource.RLIM_INFINITY else soft
    for limit in (wanted, 10_240):  # macOS has a limit of its own below the hard one
        if soft < limit:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return limit
    return soft


def threads() -> int:
    """How many threads may wait for a stage each: with its lock, and Prefect's pipes and sockets.

    Where Prefect's threads are refused a file, they end, and who waits for them waits for good.
    """
    return max(16, min(256, (raise_limit() - 64) // 4))


def insist_on_open_files() -> None:
    """See that a run can open what it needs.  Raises LadderError."""
    if (limit := raise_limit()) < _LEAST:
        raise LadderError(
            f"at most {limit} files may be open here, a run needs {_LEAST}: `ulimit -n 1024`"
        )


def insist_on_room() -> None:
    """See that a process can be started, which halfway would leave others waiting.

    Raises OSError when too few descriptors are left.
    """
    taken: list[int] = []
    try:
        for _ in range(_SPARE):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in taken:
            os.close(each)


@contextlib.contextmanager
def short_temporary_folder() -> Iterator[None]:
    """Let sockets be made in a folder whose path fits into a socket's address.

    Raises LadderError when there is no temporary folder at all.
    """
    chosen = tempfile.tempdir
    try:
        usual = tempfile.gettempdir()
        if len(os.fsencode(usual)) > _SOCKET_PATH:
            tempfile.tempdir = next(filter(_is_of_use, ("/tmp", "/var/tmp", "/dev/shm")), usual)
        yield
    except FileNotFoundError as error:
        raise LadderError("there is no temporary folder: set TMPDIR to one to write to") from error
    except OSError as error:
        if error.errno is not None and error.errno != errno.ENAMETOOLONG:
            raise
        raise LadderError(f"TMPDIR is too long ({error}): set a shorter one") from error
    finally:
        tempfile.tempdir = chosen


def _is_of_use(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)
