"""Folders: what lies in one, the bytes of its files, and what to say of what cannot be used.

Nothing is left aside without a line.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.caching.basics import LadderError, clean
from tasks.images.kinds import of_suffix

# What operating systems, storage boxes and tools leave in folders, in lower case
JUNK = {
    *("__macosx", "desktop.ini", "thumbs.db", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "@tmp", "#recycle", "@recycle", "#snapshot", "~snapshot"),
    *("__pycache__", "found.000"),
}
# What failed is this computer, not the file
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ADVICE = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (`ulimit -n`) and run again"),
    errno.ENOMEM: "close other programs and run again",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "make it readable or remove it"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
        "the file may be whole: look at its disk or network share, then run again",
    ),
}
LINK = "a link to a folder inside a class, not followed"
MAX_BYTES = 256_000_000  # of a file: more than the largest image needs that is read
PIECE = 16_000_000  # bytes read at a time


class Entries(NamedTuple):
    """What a folder holds, sorted: what counts, and the lines of what does not."""

    folders: list[str]
    files: list[str]
    skipped: list[str]


def entries(folder: Path, place: str) -> Entries:
    """What a folder holds; `place` is what the lines of what is left aside call it."""
    folders: list[str] = []
    files: list[str] = []
    hidden, junk = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    hidden.append(entry.name)
                elif entry.name.lower() in JUNK:
                    junk.append(entry.name)
                else:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise LadderError(
            f"{clean(folder)}: no such folder; give a dataset's folder, or fetch one first"
        ) from None
    except OSError as error:
        raise unreadable(folder, error) from None
    skipped = [
        *left_aside(place, hidden, "hidden"),
        *left_aside(place, junk, "left by a system, no images"),
    ]
    return Entries(sorted(folders), sorted(files), skipped)


def left_aside(place: str, names: Iterable[str], why: str) -> Iterator[str]:
    """The line that tells why some of what lies at a place is not used; none where there is none.

    "training/cat/notes.txt: not ..." for one, "training/cat: not ... (12: a.txt, b.txt, ...)".
    """
    names = sorted(names)
    if len(names) == 1:
        yield f"{place}/{clean(names[0])}: {why}"
    elif names:
        yield f"{place}: {why} ({len(names):,}: {some(names)})"


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join([*map(clean, names[:5]), *["..."] * (len(names) > 5)])


def not_utf8(folder: Path, names: list[str]) -> Iterator[str]:
    """A line for each name that is no text."""
    if not is_text("".join(names)):
        for name in names:
            if not is_text(name):
                yield f"{clean(folder)}: the name {clean(name)} is not UTF-8; rename it"


def is_text(name: str) -> bool:
    """Whether a name is UTF-8 on the disk; what is not comes as surrogates."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def unreadable(path: Path, error: OSError) -> LadderError:
    """The error for a file or folder that cannot be read, with what to do about it.

    Where this computer is short of something, which no other file would mend, it is raised.
    """
    why = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "mend or remove it")
    if error.errno == errno.ENOENT:
        if path.is_symlink():
            why = "a broken link"
        else:
            why, advice = "it has just vanished", "run again"
    told = LadderError(f"{clean(path)} cannot be read ({why}): {advice}")
    if error.errno in _OURS:
        raise told from None
    return told


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def below(folder: Path, place: str, skipped: list[str]) -> list[str]:
    """The paths of all images in a folder and in those within it, sorted; of others, lines."""
    found: list[str] = []
    queue = [""]
    while queue:
        inner = queue.pop()
        at = f"{place}/{clean(inner)}" if inner else place
        held = entries(folder / inner, at)
        start = f"{inner}/" if inner else ""
        links = [name for name in held.folders if inner and (folder / inner / name).is_symlink()]
        skipped += [*held.skipped, *left_aside(at, links, LINK)]
        queue += [f"{start}{name}" for name in held.folders if name not in links]
        found += [f"{start}{name}" for name in held.files if of_suffix(name)]
    return sorted(found)


# Their bytes


def read_files(folder: Path, names: Iterable[str]) -> Iterator[bytes | LadderError]:
    """The bytes of each file, or why it cannot be read, for the caller to raise or to collect.

    Opening it relative to its folder takes half the time.
    """
    directory = open_folder(folder)
    try:
        for name in names:
            data: bytes | LadderError
            try:
                # Without O_NONBLOCK a pipe put in its place meanwhile would be waited for.
                file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)
                try:
                    data = os.read(file, 65536)
                    if len(data) == 65536:  # most files are shorter, and save two calls
                        data = _whole(file, data, folder / name)
                finally:
                    os.close(file)
            except OSError as error:
                data = unreadable(folder / name, error)
            except LadderError as error:
                data = error
            except MemoryError:
                raise LadderError(
                    f"{clean(folder / name)}: there is too little memory to read it; close other "
                    "programs and run again"
                ) from None
            yield data
    finally:
        os.close(directory)


def _whole(file: int, start: bytes, path: Path) -> bytes:
    """An open file's bytes from its start; LadderError for what would hardly end."""
    state = os.fstat(file)
    if not stat.S_ISREG(state.st_mode):
        raise LadderError(f"{clean(path)} is no regular file any more: run again")
    pieces, held = [start], len(start)
    while held <= MAX_BYTES >= state.st_size and (more := os.read(file, PIECE)):
        pieces.append(more)
        held += len(more)
    if max(held, state.st_size) > MAX_BYTES:
        raise too_large(path, max(held, state.st_size))
    return b"".join(pieces)


def too_large(path: Path, size: int) -> LadderError:
    """The error for a file that no image needs to be as large as."""
    return LadderError(
        f"{clean(path)} has {size:,} bytes; at most {MAX_BYTES:,} are read of a file: shrink it or "
        "remove it"
    )


def open_folder(folder: Path) -> int:
    """A descriptor of a folder, for the caller to close; LadderError where there is none."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unreadable(folder, error) from None
