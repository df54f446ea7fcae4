"""Placing: a new dataset is put in its place in one step, and what it came from is noted.

What a person made there is never replaced, and what a fetch made is never deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import filecmp
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from tasks.caching.basics import LadderError, write_atomic

RESERVED = ("cache", "models", "reports")  # the data root's folders that are no datasets


def put(made: Path, target: Path, tell: Callable[[str], None]) -> None:
    """Put a new dataset in its place, in one step; not in that of what a person made.

    Raises LadderError for that.
    """
    if not os.path.lexists(target):
        made.replace(target)
    elif not _alike(made, target):
        if origin(target) is None:
            raise LadderError(
                f"{target} is there already, and its images are not known to be from an archive; "
                f"choose another name, or move it away: mv {target} {target}.old"
            )
        kept = aside(target)
        made.rename(kept)
        _swap(kept, target)
        tell(f"{target} is new; what was there is in {kept}: remove it when you need it no more")


def _swap(one: Path, other: Path) -> None:
    """Let two folders change places: at once where the system can, so that none is ever missing."""
    libc = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2") and libc.renameat2(-100, names[0], -100, names[1], 2) == 0:
        return  # Linux: both relative to the current folder, RENAME_EXCHANGE
    if hasattr(libc, "renamex_np") and libc.renamex_np(*names, 2) == 0:
        return  # macOS: RENAME_SWAP
    other.rename(parted(other))
    one.rename(other)
    parted(other).rename(one)


def aside(target: Path) -> Path:
    """A free name for what makes way for a newer dataset."""
    stem = f"{target.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}-{number}" if number else stem for number in itertools.count())
    return next(path for path in map(target.with_name, names) if not os.path.lexists(path))


def parted(target: Path) -> Path:
    """Where a dataset is while it changes places in more than one step."""
    return target.with_name(f".{target.name}.swap")


def _alike(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, but for hidden ones."""
    files = [_files(each) for each in (one, other)]
    return files[0] == files[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in files[0]
    )


def _files(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size, but hidden ones."""
    found: dict[str, int] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder)
        found |= {
            (inside / name).as_posix(): (Path(place) / name).lstat().st_size
            for name in files
            if not name.startswith(".")
        }
    return found


def origin(target: Path) -> str | None:
    """The sha256 of the archive that a dataset's folder came from; None where that is not known.

    The folder is known by its inode and when a name in it last changed: one that a person has put
    in its place since is another.
    """
    try:
        known = json.loads(_record(target).read_bytes())
        return str(known["sha256"]) if known["folder"] == _sign(target) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remember(target: Path, sha256: str) -> None:
    """Note that a dataset's folder, as it is now, came from the archive of this sha256."""
    text = json.dumps({"sha256": sha256, "folder": _sign(target)})
    with contextlib.suppress(LadderError):  # it only saves unpacking the same once more
        write_atomic(_record(target), text.encode())


def _sign(target: Path) -> list[int]:
    state = target.stat()
    return [state.st_ino, state.st_mtime_ns]


def _record(target: Path) -> Path:
    return target.parent / "cache" / "fetched" / f"{target.name}.json"
