"""Scan: what is in the folders now: names, stat, digests.

Every scan lists and stats all files, but reads only those whose stat differs from the last scan's.
"""

from __future__ import annotations

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

from tasks.caching.basics import LadderError, write_atomic
from tasks.caching.stage import Run

TRAINING = ("training", "train")
TESTING = ("testing", "test", "valid")
SUFFIXES = (".png", ".jpg", ".jpeg")

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
            raise LadderError(f"{self.label}: its listing under {root} is lost; run again")
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

    name: str
    path: str
    classes: list[str]
    training: list[Folder]
    testing: list[Folder]
    skipped: list[str]  # "training/7/notes.txt: not .png, .jpg or .jpeg"


def scan(path: Path, root: Path, run: Run = Run()) -> Dataset:
    """What the dataset folder `path` holds now; listings and a stat index are kept under `root`.

    Raises LadderError for a folder that is no dataset and for a file that cannot be read.
    """
    path = path.resolve()
    splits, classes, skipped = layout(path)
    started = time.time_ns()
    index = root / "scans" / f"{sha256(os.fsencode(path)).hexdigest()[:32]}.arrow"
    before = _read_index(index)
    after: dict[str, Seen] = {}
    places = {f"{split}/{name}": splits[split] / name for split in splits for name in classes}
    for done, (label, place) in enumerate(places.items()):
        run.progress(done, len(places), label)
        after[label] = _scan_folder(place, before.get(label, UNSEEN), root, started, skipped)
    run.progress(len(places), len(places), "")
    if before.keys() != after.keys() or any(after[label] is not before[label] for label in after):
        _write_index(index, after)

    folders = [
        Folder(str(places[label]), label, len(seen.stat), seen.listing)
        for label, seen in after.items()
    ]
    n = len(classes)
    return Dataset(path.name, str(path), classes, folders[:n], folders[n:], sorted(skipped))


def layout(path: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """The split folders, class names and stray files of a dataset; LadderError if it is none."""
    splits = {"training": _split(path, TRAINING), "testing": _split(path, TESTING)}
    skipped: list[str] = []
    classes, tested = (_classes(split, skipped) for split in splits.values())
    _insist_on_equal(splits["training"], classes, splits["testing"], tested)
    return splits, classes, skipped


def read_files(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The bytes of each file; opening it relative to its folder takes half the time.

    Raises LadderError naming the file that cannot be read.
    """
    directory = _open(folder)
    try:
        for name in names:
            try:
                file = os.open(name, os.O_RDONLY, dir_fd=directory)
                try:
                    data = more = os.read(file, 65536)
                    while len(more) == 65536:  # most files end here, and save a call
                        data += (more := os.read(file, 65536))
                finally:
                    os.close(file)
            except OSError as error:
                raise _unreadable(folder / name, error) from None
            yield data
    finally:
        os.close(directory)


def _split(path: Path, names: tuple[str, ...]) -> Path:
    if not path.is_dir():
        raise LadderError(f"{path}: no such folder; give a dataset's folder, or fetch one first")
    found = [path / name for name in names if (path / name).is_dir()]
    if not found:
        raise LadderError(
            f"{path} has no folder {' or '.join(names)}; a dataset is laid out as "
            "training/CLASS/*.png and testing/CLASS/*.png"
        )
    if len(found) > 1:
        raise LadderError(f"{path} has both {found[0].name} and {found[1].name}; keep one of them")
    return found[0]


def _classes(split: Path, skipped: list[str]) -> list[str]:
    """The names of the class folders, sorted; what else lies there is added to `skipped`."""
    try:
        entries = [entry for entry in os.listdir(split) if not entry.startswith(".")]
    except OSError as error:
        raise _unreadable(split, error) from None
    classes = [entry for entry in entries if (split / entry).is_dir()]
    strays = set(entries).difference(classes)
    skipped += [f"{split.name}/{_shown(entry)}: not in a class folder" for entry in strays]
    _insist_on_utf8(split, classes)
    return sorted(classes)  # by code point, which is the order of their UTF-8 bytes too


def _insist_on_equal(training: Path, classes: list[str], testing: Path, tested: list[str]) -> None:
    if not classes:
        raise LadderError(f"{training} has no class folders; make one folder of images per class")
    for here, there, names in (
        (testing, training, set(tested) - set(classes)),
        (training, testing, set(classes) - set(tested)),
    ):
        for name in sorted(names):
            raise LadderError(
                f"{there} lacks the class {name}: add {there / name} or remove {here / name}"
            )


def _scan_folder(folder: Path, before: Seen, root: Path, started: int, skipped: list[str]) -> Seen:
    """The folder as it is now: `before` itself when no file had to be read."""
    names, now = _list(folder, skipped)
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
    fresh = read_files(folder, [names[i] for i in np.flatnonzero(unknown)])
    hashes = b"".join([sha256(data).digest() for data in fresh])
    digests[unknown] = np.frombuffer(hashes, np.uint8).reshape(-1, 32)

    # What changed just now may change again within the same tick of the clock: read it next time.
    times = now[:, 2:4]
    now[times.max(axis=1) >= started - GRANULARITY] = 0
    return Seen(_write_listing(root, Listing(names, digests)), now)


def _list(folder: Path, skipped: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of the images, sorted, and stat[N, 5] int64; other files are added to `skipped`."""
    directory = _open(folder)
    fields: list[int] = []
    try:
        entries = sorted(os.listdir(directory))
        del entries[bisect(entries, ".") : bisect(entries, "/")]  # hidden files
        # Most are lower case as they are, and spare the call.
        names = [n for n in entries if n.endswith(SUFFIXES) or n.lower().endswith(SUFFIXES)]
        for name in names:
            fields += stat_fields(os.stat(name, dir_fd=directory))
    except OSError as error:
        raise _unreadable(folder / str(error.filename), error) from None
    finally:
        os.close(directory)
    now = _int64(fields).reshape(-1, 5)
    regular = np.equal(now[:, 0] & 0o170000, stat.S_IFREG)
    if len(names) < len(entries) or not regular.all():
        names = [name for name, is_regular in zip(names, regular, strict=True) if is_regular]
        skipped += [_why_skipped(folder / name) for name in set(entries).difference(names)]
        now = now[regular]
    if not names:
        raise LadderError(f"{folder} holds no .png, .jpg or .jpeg: add images or remove it")
    _insist_on_utf8(folder, names)
    return names, now


def _int64(values: list[int]) -> np.ndarray:
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:  # some file systems number their inodes from the top
        return np.array([value % 2**63 for value in values], np.int64)


def _why_skipped(path: Path) -> str:
    if path.is_dir():
        why = "a folder inside a class folder"
    elif path.is_file():
        why = "not .png, .jpg or .jpeg"
    else:
        why = "not a regular file"
    return f"{'/'.join(map(_shown, path.parts[-3:]))}: {why}"


def _insist_on_utf8(folder: Path, names: list[str]) -> None:
    if _shown("".join(names)) != "".join(names):
        name = next(name for name in names if _shown(name) != name)
        raise LadderError(f"{folder}: the name {_shown(name)} is not UTF-8; rename it")


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _open(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(path: Path, error: OSError) -> LadderError:
    broken = path.is_symlink() and not path.exists()
    why = "a broken link" if broken else error.strerror
    return LadderError(f"{_shown(str(path))} cannot be read ({why}): mend or remove it")


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
    _write(path, INDEX, [list(index), listings, [seen.stat.tobytes() for seen in index.values()]])


def _read(path: Path, schema: pa.Schema) -> pa.RecordBatch | None:
    try:
        batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
        batch.validate(full=True)  # a flipped bit must not lead outside the buffers
        whole = batch.schema == schema and not any(column.null_count for column in batch.columns)
    except (OSError, ValueError, MemoryError, pa.ArrowException):
        return None
    return batch if whole and len(batch) else None


def _write(path: Path, schema: pa.Schema, columns: list[Any]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    write_atomic(path, memoryview(sink.getvalue()))


EMPTY = Listing([], np.zeros((0, 32), np.uint8))
UNSEEN = Seen("", np.zeros((0, 5), np.int64))
