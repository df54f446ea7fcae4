"""Content-named files: written whole, checked by their stat, and by their content in any doubt."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

from tasks.caching import records
from tasks.caching.basics import (
    DamagedError,
    entries,
    open_regular,
    replacing,
    unreadable,
    write_atomic,
)

_YOUNG_NS = 50_000_000  # a file changed this close before it was checked may change again unseen
_READ: dict[Path, list[int] | None] = {}  # the stat of what this process has read and found whole


class Files:
    """The folder of files that are named by their content's sha256, and where damaged ones go."""

    def __init__(self, folder: Path, aside: Path) -> None:
        self.folder = folder
        self._aside = aside

    def save(self, name: str, data: bytes | memoryview) -> list[int]:
        """Write a file, unless it is there and whole; gives its signature."""
        path = self.folder / name
        try:
            self.verify(name, [len(data)], 0, thorough=True)
        except DamagedError:
            if os.path.isdir(path):  # noqa: PTH112 - which raises nothing
                move_aside(path, self._aside)  # all else is replaced in one step
            write_atomic(path, data)
        return _signature(path)

    @contextlib.contextmanager
    def receiving(self, name: str) -> Iterator[BufferedRandom]:
        """A file to write what another machine has under this name; kept when it is of the name.

        Raises DamagedError where it is not, LadderError where it cannot be written.
        """
        path = self.folder / name
        with replacing(path) as file:
            yield file
            file.flush()
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != name.partition(".")[0]:
                raise DamagedError(f"{name[:12]} is damaged: its content is not of its name")

    def verify(
        self, name: str, signature: list[int] | None, checked: int, thorough: bool
    ) -> list[int] | None:
        """Hold a file against its record; returns its stat where content had to be read for that.

        Without a signature, against its name alone.
        Raises DamagedError, and LadderError for what cannot be read now.
        """
        path = self.folder / name
        try:
            now = _signature(path)
            settled = checked - now[2] > _YOUNG_NS
            if now == signature and settled and not thorough:
                return None
            with open_regular(path) as (file, _status):
                if signature and now[0] != signature[0]:
                    raise DamagedError(f"{path} has {now[0]} bytes, {signature[0]} were stored")
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except OSError as error:
            raise unreadable(path, error) from error
        if digest != name.partition(".")[0]:
            raise DamagedError(f"{path} is damaged: its content no longer matches its name")
        return now

    def insist_on_content(self, name: str) -> None:
        """Read a file that is about to be used, once in a process while its stat stays.

        Raises DamagedError for one that is set aside, as its content is not of its name.
        """
        path = self.folder / name
        if path.is_file() and _READ.get(path) == _signature(path):
            return
        try:
            _READ[path] = self.verify(name, None, 0, thorough=True)
        except DamagedError as error:
            move_aside(path, self._aside)
            raise DamagedError(f"{error}; the next run makes it again") from None

    def signature(self, name: str) -> list[int]:
        """How a file looks from outside."""
        return _signature(self.folder / name)

    def paths(self) -> list[Path]:
        """Where all stored files lie; what has no name of ours is not touched, nor looked at."""
        return [path for path in entries(self.folder) if records.NAME.fullmatch(path.name)]

    def verify_all(self) -> Iterator[str]:
        """Read all files; gives a line for each damaged one, which is set aside."""
        for path in self.paths():
            if complaint := self.set_aside_damaged(path, None):
                yield complaint

    def set_aside_damaged(self, path: Path, signature: list[int] | None) -> str:
        """Read a stored file; where it is there and damaged, move it away and say so."""
        try:
            self.verify(path.name, signature, 0, thorough=True)
        except DamagedError as error:
            if os.path.lexists(path):
                move_aside(path, self._aside)
                return str(error)
        return ""


def move_aside(path: Path, aside: Path) -> None:
    """Move what lies in the cache under a name of ours, itself and not what it links to."""
    with contextlib.suppress(OSError):
        aside.mkdir(parents=True, exist_ok=True)
        path.replace(aside / f"{time.time_ns()}-{path.name}")


def _signature(path: Path) -> list[int]:
    status = path.stat()
    # A stat of what is no regular file equals none that was stored: it is looked at again.
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return [size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
