"""Turns among processes: locks of the kernel's, which lets go when their holder dies.

Some network file systems have no `flock`.  There a run goes on without: whatever it writes is
written whole and named by its content, so two processes may at worst compute the same thing twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.caching.basics import LadderError, StoppedError, unreadable, unwritable

# ENOTSUP is EOPNOTSUPP on Linux alone; EBADF is what NFS says of a lock on what is only read.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
_warned: set[Path] = set()


def share(folder: Path) -> int:
    """Say that this process uses a folder, until the descriptor that this gives is closed.

    Raises LadderError when there is no such folder and none can be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    handle = _open_folder(folder)
    try:
        take(handle, fcntl.LOCK_SH, folder)
    except OSError as error:
        os.close(handle)
        raise unreadable(folder, error) from error
    return handle


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others from using a folder.  Raises LadderError while one does."""
    handle = share(folder)
    try:
        take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
        yield
    except BlockingIOError:
        raise LadderError(f"a run is using {folder}; do this when it has ended") from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def hold(path: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold a name alone among all processes: an empty file, there as long as it is held.

    Raises StoppedError when `stopped` says, while it waits, that nobody wants it any more.
    """
    handle = _hold(path, stopped)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # in another's folder it stays, and locks nothing
            path.unlink()
        os.close(handle)


def work(folder: Path) -> bool:
    """Whether there are locks on the file system of a folder."""
    handle = _open_folder(folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(handle)
    return True


def _hold(path: Path, stopped: Callable[[], bool]) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = _open_lock(path)
            try:
                if not _wait_for(handle, path.parent.parent, stopped):
                    return handle
                # The holder before us removed the file: what we hold is a name nobody else sees.
                if os.fstat(handle).st_ino == _inode(path):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error


def _wait_for(handle: int, folder: Path, stopped: Callable[[], bool]) -> bool:
    """Lock what is open, for oneself; gives whether it is locked.  Raises OSError, StoppedError."""
    pause = 0.001
    while True:
        try:
            return take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, folder)
        except BlockingIOError:
            if stopped():
                raise StoppedError("its run was stopped before it began") from None
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)


def _open_lock(path: Path) -> int:
    """Open a lock's file: no link, which could lead elsewhere, and no pipe that makes one wait."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        with contextlib.suppress(OSError):  # one of another user's can be waited for all the same
            return os.open(path, os.O_RDONLY | flags)
        raise


def _inode(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return -1


def take(handle: int, how: int, folder: Path) -> bool:
    """Lock what is open; gives whether it is locked.  Raises BlockingIOError and other OSErrors."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if folder not in _warned:
            _warned.add(folder)
            logging.getLogger("stepladder").warning(
                "stepladder: %s has no file locks (%s): runs beside each other may compute the "
                "same thing twice, and `cache gc` is for when none runs", folder, error.strerror
            )  # fmt: skip
        return False
    return True


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unreadable(folder, error) from error
