"""Scan: what is in the folders now: names, stat, digests.

Every scan lists and stats all files, but reads only those whose stat differs from the last scan's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    clean,
    read_regular,
    told,
    write_atomic,
)
from tasks.caching.stage import Run
from tasks.images.layout import SUFFIXES, left_aside, not_utf8, some, survey, unreadable

MAX_BYTES = 256_000_000  # of a file: more than the largest image needs that is read
PIECE = 16_000_000  # bytes read at a time

# A file with all of these unchanged is not read again; ctime catches `cp -p` and `touch -d`.
stat_fields = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
GRANULARITY = 2_000_000_000  # ns: FAT's clock steps by two seconds, every other by less

LISTING = pa.schema([("name", pa.string()), ("digest", pa.binary(32))])
INDEX = pa.schema([("label", pa.string()), ("listing", pa.string()), ("stat", pa.binary())])


class Files(NamedTuple):
    """The image files of one class folder."""

    folder: Path
    names: list[str]  # sorted
    digests: np.ndarray  # [N, 32] uint8, sha256 of each file's bytes


class Listing(NamedTuple):
    """What a class folder holds, wherever it lies."""

    names: list[str]  # sorted
    digests: np.ndarray  # [N, 32] uint8


class Seen(NamedTuple):
    """A class folder in the stat index."""

    listing: str  # digest of its listing
    stat: np.ndarray  # [N, 5] int64, stat_fields of each file; zeros where too young to be trusted


@dataclass(frozen=True)
class Folder:
    """One class folder as it was scanned: a small reference to its listing."""

    path: str
    label: str  # "training/7"
    count: int  # files
    digest: str  # hex sha256 of the listing: names and file digests, never the path

    def load(self, root: Path) -> Files:
        """The files, from the listing under `root`; LadderError if that is lost or damaged."""
        listing = read_listing(root, self.digest)
        if listing is None:
            raise LadderError(f"{clean(self.label)}: its listing under {root} is lost; run again")
        return Files(Path(self.path), *listing)

    def explain(self, before: str, root: Path) -> str:
        """What differs from the listing with the digest `before`, in one line."""
        old, new = read_listing(root, before), read_listing(root, self.digest)
        if old is None or new is None:
            return f"{self.label} changed"
        was = dict(zip(old.names, old.digests.tolist(), strict=True))
        now = dict(zip(new.names, new.digests.tolist(), strict=True))
        differences = {
            "added": [name for name in now if name not in was],
            "removed": [name for name in was if name not in now],
            "changed": [name for name in now if name in was and now[name] != was[name]],
        }
        counts = [
            f"{len(names)} {what}" + (f" ({names[0]})" if len(names) == 1 else "")
            for what, names in differences.items()
            if names
        ]
        return f"{self.label}: {', '.join(counts) or 'unchanged'}"


@dataclass(frozen=True)
class Dataset:
    """A dataset as it was scanned; `training[i]` and `testing[i]` belong to `classes[i]`."""

    classes: list[str]
    training: list[Folder]
    testing: list[Folder]
    skipped: list[str]  # "training/7/notes.txt: not .png, .jpg or .jpeg"


def scan(path: Path, root: Path, run: Run = Run()) -> Dataset:
    """What the dataset folder `path` holds now; listings and a stat index are kept under `root`.

    Raises LadderError for a folder that is no dataset and for files that cannot be read, with a
    line for each.
    """
    path = path.resolve()
    found, problems = survey(path)
    started = time.time_ns()
    index = root / "scans" / f"{sha256(os.fsencode(path)).hexdigest()[:32]}.arrow"
    before = _read_index(index)
    places = {
        f"training/{name}": at for name, at in zip(found.classes, found.training, strict=True)
    }
    places |= {f"testing/{name}": at for name, at in zip(found.classes, found.testing, strict=True)}
    skipped = found.skipped
    listed = {label: _list(place, skipped, problems) for label, place in places.items()}
    if problems:
        raise LadderError(told(problems))
    after: dict[str, Seen] = {}
    for done, (label, now) in enumerate(listed.items()):
        run.progress(done, len(places), clean(label))
        old = before.get(label, UNSEEN)
        after[label] = _scan_folder(places[label], now, old, root, started, problems)
    if problems:
        raise LadderError(told(problems))
    run.progress(len(places), len(places), "")
    if before.keys() != after.keys() or any(after[label] is not before[label] for label in after):
        _write_index(index, after)

    folders = [
        Folder(str(places[label]), label, len(seen.stat), seen.listing)
        for label, seen in after.items()
    ]
    n = len(found.classes)
    return Dataset(found.classes, folders[:n], folders[n:], sorted(skipped))


def read_files(folder: Path, names: Iterable[str]) -> Iterator[bytes | LadderError]:
    """The bytes of each file, or why it cannot be read, for the caller to raise or to collect.

    Opening it relative to its folder takes half the time.
    """
    directory = _open(folder)
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


def _scan_folder(
    folder: Path,
    listed: tuple[list[str], np.ndarray],
    before: Seen,
    root: Path,
    started: int,
    problems: list[str],
) -> Seen:
    """The folder as it is now: `before` itself when no file had to be read."""
    names, now = listed
    old = read_listing(root, before.listing)
    if old is None or len(old.names) != len(before.stat):
        before, old = UNSEEN, EMPTY
    if old.names == names and np.array_equal(before.stat, now):
        return before
    # Row -1, appended to both, stands for "not there before" and matches no file.
    row = {name: i for i, name in enumerate(old.names)}
    rows = np.array([row.get(name, -1) for name in names])
    unknown = (np.vstack([before.stat, np.zeros((1, 5), np.int64)])[rows] != now).any(axis=1)
    digests = np.vstack([old.digests, np.zeros((1, 32), np.uint8)])[rows]
    hashes = []
    for data in read_files(folder, [names[i] for i in np.flatnonzero(unknown)]):
        if isinstance(data, LadderError):
            problems.append(str(data))
        else:
            hashes.append(sha256(data).digest())
    if problems:
        return UNSEEN  # the scan ends with them
    digests[unknown] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)

    # What changed just now may change again within the same tick of the clock: read it next time.
    times = now[:, 2:4]
    now[times.max(axis=1) >= started - GRANULARITY] = 0
    return Seen(_write_listing(root, Listing(names, digests)), now)


def _list(folder: Path, skipped: list[str], problems: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of the images, sorted, and stat[N, 5] int64; other files are added to `skipped`."""
    try:
        directory = _open(folder)
    except LadderError as error:
        problems.append(str(error))
        return [], _int64([]).reshape(-1, 5)
    place = "/".join(map(clean, folder.parts[-2:]))
    fields: list[int] = []
    try:
        entries = sorted(os.listdir(directory))
        hidden = slice(bisect(entries, "."), bisect(entries, "/"))
        skipped += left_aside(place, entries[hidden], "hidden")
        del entries[hidden]
        # Most are lower case as they are, and spare the call.
        names = [n for n in entries if n.endswith(SUFFIXES) or n.lower().endswith(SUFFIXES)]
        for name in names:
            try:
                fields += stat_fields(os.stat(name, dir_fd=directory))
            except OSError as error:
                problems.append(str(unreadable(folder / name, error)))
                fields += _UNKNOWN
    except OSError as error:
        raise unreadable(folder, error) from None
    finally:
        os.close(directory)
    now = _int64(fields).reshape(-1, 5)
    regular = np.equal(now[:, 0] & 0o170000, stat.S_IFREG)
    others: list[str] = []
    if len(names) < len(entries) or not regular.all():
        names = [name for name, is_regular in zip(names, regular, strict=True) if is_regular]
        others = sorted(set(entries).difference(names))
        skipped += _left_out(folder, place, others)
        now = now[regular]
    if not names:
        problems.append(_no_images(folder, others))
    problems += not_utf8(folder, names)
    for row in np.flatnonzero(now[:, 1] > MAX_BYTES):
        problems.append(str(too_large(folder / names[row], int(now[row, 1]))))
    return names, now


def _int64(values: list[int]) -> np.ndarray:
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:  # some file systems number their inodes from the top
        return np.array([value % 2**63 for value in values], np.int64)


def _left_out(folder: Path, place: str, names: list[str]) -> Iterator[str]:
    """The lines of what lies in a class folder and is no image, one for each kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            why = "a folder inside a class folder"
        elif path.is_file():
            why = "not .png, .jpg or .jpeg"
        else:
            why = "not a regular file"
        kinds.setdefault(why, []).append(name)
    for why, these in kinds.items():
        yield from left_aside(place, these, why)


def _no_images(folder: Path, others: list[str]) -> str:
    found = f", only {some(others)}" if others else ""
    return (
        f"{clean(folder)} holds no .png, .jpg or .jpeg{found}: add images to it, or remove the "
        f"class {clean(folder.name)} from training and testing"
    )


def _open(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unreadable(folder, error) from None


def _listing_path(root: Path, digest: str) -> Path:
    return root / "listings" / f"{digest}.arrow"


def _listing_digest(listing: Listing) -> str:
    # No name holds a zero byte, so the text cannot be read in two ways.
    text = "\0".join([*listing.names, ""]).encode()
    return sha256(b"%d\0" % len(listing.names) + text + listing.digests.tobytes()).hexdigest()


def read_listing(root: Path, digest: str) -> Listing | None:
    """The listing, or None when it is missing, damaged or foreign."""
    batch = _read(_listing_path(root, digest), LISTING)
    if batch is None:
        return None
    digests = np.frombuffer(batch["digest"].buffers()[1], np.uint8, 32 * len(batch))
    listing = Listing(batch["name"].to_pylist(), digests.reshape(-1, 32))
    return listing if _listing_digest(listing) == digest else None


def _write_listing(root: Path, listing: Listing) -> str:
    digest = _listing_digest(listing)
    if read_listing(root, digest) is None:
        size = len(listing.names)
        data = pa.py_buffer(np.ascontiguousarray(listing.digests))
        digests = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), size, [None, data])
        _write(_listing_path(root, digest), LISTING, [listing.names, digests])
    return digest


def _read_index(path: Path) -> dict[str, Seen]:
    """What the last scan saw, by label; nothing when the index is missing, damaged or foreign."""
    batch = _read(path, INDEX)
    rows = [] if batch is None else batch.to_pylist()
    if any(len(row["stat"]) % 40 for row in rows):
        return {}
    return {
        row["label"]: Seen(row["listing"], np.frombuffer(row["stat"], np.int64).reshape(-1, 5))
        for row in rows
    }


def _write_index(path: Path, index: dict[str, Seen]) -> None:
    listings = [seen.listing for seen in index.values()]
    columns = [list(index), listings, [seen.stat.tobytes() for seen in index.values()]]
    with contextlib.suppress(LadderError):  # a store that cannot be written only stays slower
        _write(path, INDEX, columns)


def _read(path: Path, schema: pa.Schema) -> pa.RecordBatch | None:
    try:
        batch = pa.ipc.open_file(read_regular(path) or b"").get_batch(0)
        batch.validate(full=True)  # a flipped bit must not lead outside the buffers
        whole = batch.schema == schema and not any(column.null_count for column in batch.columns)
    except (DamagedError, OSError, ValueError, MemoryError, pa.ArrowException):
        return None
    return batch if whole and len(batch) else None


def _write(path: Path, schema: pa.Schema, columns: list[Any]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    write_atomic(path, memoryview(sink.getvalue()))


_UNKNOWN = (stat.S_IFREG, 0, 0, 0, 0)  # the stat fields of a file that cannot be looked at
EMPTY = Listing([], np.zeros((0, 32), np.uint8))
UNSEEN = Seen("", np.zeros((0, 5), np.int64))
