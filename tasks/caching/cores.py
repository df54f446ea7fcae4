"""The cores of a machine, shared by all runs of one user: who uses one holds a lock on its file.

    <temporary folder>/stepladder-<user>/core-<number>   locked as long as a body has that core
                                         turn-<count>    by who is next to get so many at once

The kernel lets go of what a killed run held.  Where there is no such folder or no lock, a run goes
on without: cores that two runs use at once make both slow, and nothing wrong.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path


def usual_folder() -> Path:
    """Where the runs of this user on this machine meet."""
    return Path(tempfile.gettempdir()) / f"stepladder-{os.getuid()}"


class Claim:
    """One process's wish for so many cores at once: all of them, or none yet.

    Its place in the line is a lock: else whoever has cores would take those it gives back again
    before another had noticed.
    """

    def __init__(self, numbers: Sequence[int], count: int) -> None:
        """`numbers`: those of the cores that would do."""
        self.count = count
        # Whoever may use some alone may use the first: others begin with the last.
        self._names = [f"core-{number}" for number in reversed(numbers)]
        self._turn: int | None = None

    def take(self) -> list[int] | None:
        """The descriptors that hold the cores, when they are free now; to be closed by the taker.

        They are fewer where this system has no locks for them.
        """
        taken: list[int] = []
        try:
            if self._turn is None:
                self._turn = _lock(f"turn-{self.count}")
                if self._turn is None:
                    return None
            for name in self._names:
                if len(taken) == self.count:
                    break
                if (held := _lock(name)) is not None:
                    taken.append(held)
        except OSError:
            self.leave()
            return taken
        if len(taken) < self.count:
            close(taken)
            return None
        self.leave()
        return taken

    def leave(self) -> None:
        """Let the next one in the line have its turn."""
        if self._turn is not None:
            os.close(self._turn)
            self._turn = None


def close(descriptors: Iterable[int]) -> None:
    """Give cores back."""
    for each in descriptors:
        os.close(each)


def _lock(name: str) -> int | None:
    """The descriptor that holds a name, or None while another has it.

    Raises OSError where there are no locks, and for a folder that is another user's.
    """
    folder = usual_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise NotADirectoryError(folder)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    os.utime(handle)  # what clears old files away lets those lie that are of use
    return handle
