"""Archives: the files of a tar or zip archive, and what else one may be given instead.

An archive is hostile until proven otherwise: only regular files with plain names are written, and
neither disk nor memory takes more than what the archive's own size allows.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tasks.caching.basics import LadderError, printable
from tasks.caching.stage import Run
from tasks.images.folders import below
from tasks.images.kinds import TEXTS, kind_of
from tasks.images.layout import layout
from tasks.images.packed import PACKED, Readable
from tasks.images.sides import role_of
from tasks.images.tar import MAX_FILE, is_header, tar_members

# Control characters, line ends, and what turns the direction of a text that it is shown in
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
MAX_FILES, MAX_DEPTH = 2_000_000, 32
MAX_RATIO = 200  # bytes unpacked for one packed: images hardly shrink, so beyond is a bomb
BROKEN = (
    *(gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, EOFError, RuntimeError),
)
WANTED = "wanted is a dataset as .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"
HINTS = {  # of what people give instead
    "a Git LFS pointer": ", not the file itself (`git lfs pull` gets it)",
    "a tar archive": " whose first header is damaged",
    **dict.fromkeys(TEXTS, ", perhaps of a login or an error, instead of the archive"),
}
NO_DATASET = "it holds no dataset: wanted are training/CLASS/*.png and testing/CLASS/*.png"


def unpack(file: IO[bytes], size: int, folder: Path, note: str, run: Run) -> tuple[Path, list[str]]:
    """Unpack an archive of `size` bytes into a new folder.

    Gives the folder of the dataset in it, and the files that lie elsewhere in it.
    Raises ValueError for an archive that is hostile, damaged or of no dataset.
    """
    folder.mkdir()
    try:
        files = _write(_members(file), size, folder, lambda: run.progress(file.tell(), size, note))
    except BROKEN as error:
        raise ValueError(_in_words(error)) from None
    run.progress(size, size, note)
    dataset = _dataset_in(folder, files)
    inside = "".join(f"{part}/" for part in dataset.relative_to(folder).parts)
    return dataset, [each for each in files if not each.startswith(inside)]


def _in_words(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it ends too early: cut off, or not downloaded whole"
    if isinstance(error, zipfile.BadZipFile | gzip.BadGzipFile | zlib.error | lzma.LZMAError):
        return f"it is damaged, or was cut off ({error})"
    return str(error)


def _write(
    members: Iterator[tuple[str, bytes]], size: int, folder: Path, tell: Callable[[], None]
) -> list[str]:
    """Write what an archive holds; gives the files' paths.  Raises ValueError."""
    taken: dict[str, str] = {}
    left = MAX_RATIO * size
    for count, (name, data) in enumerate(members):
        left -= len(data)
        if count == MAX_FILES or left < 0:
            raise ValueError("it unpacks to far more than it should")
        parts = _plain_parts(name)
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if taken.get(_folded(parent)) != f"{parent}/":
                _claim(taken, parent, f"{parent}/")
                (folder / parent).mkdir()
        path = "/".join(parts)
        _claim(taken, path, path)
        with open(f"{folder}/{path}", "xb") as written:
            written.write(data)
        if count % 1000 == 0:
            tell()
    return [path for path in taken.values() if not path.endswith("/")]


def _dataset_in(folder: Path, files: list[str]) -> Path:
    """The one dataset in a folder, itself or below.  Raises ValueError that says what is there."""
    if not files:
        raise ValueError(f"it holds no files; {WANTED}")
    level = [folder]
    nearest = None  # where at least a part of a dataset is
    while level:
        fits = [each for each in level if _complaint(each) is None]
        if len(fits) == 1:
            return fits[0]
        if fits:
            names = ", ".join(sorted(each.relative_to(folder).as_posix() for each in fits)[:3])
            raise ValueError(f"it holds {len(fits)} datasets ({names}); pack one of them alone")
        nearest = nearest or next((each for each in level if _has_split(each)), None)
        level = [inner for each in level for inner in sorted(each.iterdir()) if inner.is_dir()]
    inmost = _innermost(folder)
    if _holds_classes(inmost):
        return inmost
    if nearest is None:
        raise ValueError(f"{NO_DATASET}, found: {_listed(inmost)}")
    complaint = _complaint(nearest) or ""
    for place, words in ((f"{nearest}/", ""), (str(nearest), "its content")):
        complaint = complaint.replace(place, words)
    raise ValueError(f"{complaint}; found: {_listed(nearest)}")


def _complaint(folder: Path) -> str | None:
    """Why a folder is no dataset with splits, on one line; None where it is one."""
    try:
        return NO_DATASET if "all" in layout(folder).sides else None
    except LadderError as error:
        return str(error).replace("\n", "; ")


def _holds_classes(folder: Path) -> bool:
    """Whether a folder is a dataset without splits, each class of which has images."""
    try:
        classes = layout(folder).sides.get("all", [])
    except LadderError:
        return False
    return bool(classes) and all(below(each.folder, "", []) for each in classes)


def _has_split(folder: Path) -> bool:
    return any(role_of(each.name) for each in folder.iterdir() if each.is_dir())


def _innermost(folder: Path) -> Path:
    """The folder itself, or the one within those that hold nothing but another."""
    inside = list(folder.iterdir())
    return _innermost(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def _listed(folder: Path) -> str:
    """The first few names in a folder, those of folders with a slash."""
    names = sorted(f"{each.name}/" if each.is_dir() else each.name for each in folder.iterdir())
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return printable(", ".join(names[:5])) + more


def what_instead(start: bytes) -> str:
    """In words, what a file is that begins so and is no archive of images; nothing for an archive.

    start: its first 512 bytes, fewer where it has no more.
    """
    if start.startswith((b"PK\3\4", b"PK\5\6", *PACKED)) or is_header(start):
        return ""
    return _what(start)


def _what(start: bytes) -> str:
    kind = kind_of(start) or ("of an unknown kind" if start else "empty")
    return kind + HINTS.get(kind, "")


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in an archive.  Raises ValueError for what is none."""
    start = file.read(512)
    file.seek(0)
    if words := what_instead(start):
        raise ValueError(f"it is {words}; {WANTED}")
    if start.startswith(b"PK"):
        return _zip_members(file)
    stream: Readable = file
    for sign, (name, opened) in PACKED.items():
        if start.startswith(sign):
            stream = opened(file)
            start = stream.read(512)
            if not is_header(start) and start != bytes(512):
                raise ValueError(f"what is packed in it with {name} is {_what(start)}; {WANTED}")
            return tar_members(stream, start)
    return tar_members(stream, stream.read(512))


def _claim(taken: dict[str, str], path: str, what: str) -> None:
    """Take a path; ValueError where a file system that ignores case or accents would clash."""
    if _folded(path) in taken:
        raise ValueError(f"{path!r} is there twice, or differs in case or accents alone")
    taken[_folded(path)] = what


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _plain_parts(name: str) -> list[str]:
    """The parts of a relative path that stays where it is unpacked; ValueError for any other."""
    if "\\" in name:
        raise ValueError(f"{printable(name[:200])} holds a backslash; pack it with / after folders")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = {
        "is no plain relative name": not parts or ".." in parts or re.match("/|[A-Za-z]:", name),
        "holds characters that no name should: rename it": STEERING.search(name),
        f"lies in over {MAX_DEPTH} folders": len(parts) > MAX_DEPTH,
        "has a name of over 255 bytes": any(len(os.fsencode(part)) > 255 for part in parts),
    }
    for words, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{name[:200]!r} {words}")
    return parts


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each regular file of a zip archive; anything else raises ValueError."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG) or info.orig_filename != info.filename:
                raise ValueError(
                    f"{info.filename[:200]!r} is a link or a device, no file; pack it without"
                )
            if info.file_size > MAX_FILE:
                raise ValueError(f"{info.filename[:200]!r} is too large")
            if info.flag_bits & 1:
                raise ValueError(
                    f"{info.filename[:200]!r} is locked with a password; pack it without"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(
                    f"{info.filename[:200]!r} is packed in an unusual way; pack it with deflate"
                )
            yield info.filename, archive.read(info)
