"""Scan: what is in the folders now: names, stat, digests.

Every scan lists and stats all files, but reads only those whose stat differs from the last scan's.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.caching.basics import (
    LadderError,
    clean,
    told,
)
from tasks.caching.stage import Run
from tasks.images.folders import (
    MAX_BYTES,
    left_aside,
    not_utf8,
    open_folder,
    read_files,
    some,
    too_large,
    unreadable,
)
from tasks.images.layout import SUFFIXES, survey
from tasks.images.listings import (
    EMPTY,
    UNSEEN,
    Listing,
    Seen,
    read_index,
    read_listing,
    write_index,
    write_listing,
)

# A file with all of these unchanged is not read again; ctime catches `cp -p` and `touch -d`.
stat_fields = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
GRANULARITY = 2_000_000_000  # ns: FAT's clock steps by two seconds, every other by less


class Files(NamedTuple):
    """The image files of one class folder."""

    folder: Path
    names: list[str]  # sorted
    digests: np.ndarray  # [N, 32] uint8, sha256 of each file's bytes


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
    before = read_index(index)
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
        write_index(index, after)

    folders = [
        Folder(str(places[label]), label, len(seen.stat), seen.listing)
        for label, seen in after.items()
    ]
    n = len(found.classes)
    return Dataset(found.classes, folders[:n], folders[n:], sorted(skipped))


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
    return Seen(write_listing(root, Listing(names, digests)), now)


def _list(folder: Path, skipped: list[str], problems: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of the images, sorted, and stat[N, 5] int64; other files are added to `skipped`."""
    try:
        directory = open_folder(folder)
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


_UNKNOWN = (stat.S_IFREG, 0, 0, 0, 0)  # the stat fields of a file that cannot be looked at
