"""Scan: what is in the folders now: names, stat, digests.

Every scan lists and stats all files, but reads only those whose stat differs from the last scan's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    clean,
    read_regular,
    told,
    write_atomic,
)
from tasks.caching.machine import disk_of, stat_tells
from tasks.caching.stage import Run
from tasks.images.drawing import drawn_for_testing, together
from tasks.images.folders import (
    JUNK,
    LINK,
    MAX_BYTES,
    left_aside,
    not_utf8,
    open_folder,
    read_files,
    some,
    too_large,
    unreadable,
)
from tasks.images.headers import header
from tasks.images.kinds import SUFFIXES, of_suffix
from tasks.images.labelled import Images, Layout
from tasks.images.layout import AS_IT_IS, Reading, survey
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
from tasks.images.own import DIGEST, LOOKS, looks, own_digest, own_looks

# A file with all of these unchanged is not read again; ctime catches `cp -p` and `touch -d`.
stat_fields = attrgetter("st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
ENDINGS = tuple(SUFFIXES)
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
            raise lost(self.label, root)
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
    """A dataset as it was scanned; a side's folders are in the order of `classes`."""

    classes: list[str]
    training: list[Folder]
    validation: list[Folder]  # empty where validation is to be drawn from training
    testing: list[Folder]
    split: str  # in words, how the sides came about
    skipped: list[str]  # "training/7/notes.txt: not .png, .jpg or .jpeg"
    # [N, 3] int32, of every image, as `tasks.images.headers.header` gives them
    headers: np.ndarray = field(compare=False)


def scan(path: Path, root: Path, reading: Reading = AS_IT_IS, run: Run = Run()) -> Dataset:
    """What the dataset folder `path` holds now; listings and a stat index are kept under `root`.

    Raises LadderError for a folder that is no dataset and for files that cannot be read, with a
    line for each.
    """
    path = path.resolve()
    found, problems = survey(path, reading)
    started = time.time_ns()
    told_apart = [
        os.fsencode(path),
        b"%d" % disk_of(path),
        *(text.encode() for text in reading.which() if text),
    ]
    index = root / "scans" / f"{sha256(b'|'.join(told_apart)).hexdigest()[:32]}.arrow"
    before = read_index(index)
    places = {
        f"{side}/{name}": at
        for side, images in found.sides.items()
        for name, at in zip(found.classes, images, strict=True)
    }
    skipped = found.skipped
    listed = {label: listed_in(place, skipped, problems) for label, place in places.items()}
    if problems:
        raise LadderError(told(problems))
    after: dict[str, Seen] = {}
    for done, (label, now) in enumerate(listed.items()):
        run.progress(done, len(places), clean(label))
        old = before.get(label, UNSEEN)
        own = (DIGEST + LOOKS * reading.keep_together) * label.startswith("all/")
        after[label] = _scan_folder(places[label].folder, now, old, root, started, problems, own)
    if problems:
        raise LadderError(told(problems))
    run.progress(len(places), len(places), "")
    if before.keys() != after.keys() or any(after[label] is not before[label] for label in after):
        write_index(index, after)

    if "all" in found.sides:
        sides = _drawn(path, found, after, reading, root)
    else:
        sides = {
            side: [
                Folder(str(at.folder), label, len(after[label].stat), after[label].listing)
                for name, at in zip(found.classes, images, strict=True)
                for label in [f"{side}/{name}"]
            ]
            for side, images in found.sides.items()
        }
    headers = np.concatenate([seen.headers for seen in after.values()])
    return Dataset(
        found.classes, sides["training"], sides.get("validation", []), sides["testing"],
        found.split, sorted(skipped), headers,
    )  # fmt: skip


def lost(label: str, root: Path) -> LadderError:
    """The error for a folder whose listing is gone since it was scanned."""
    return LadderError(f"{clean(label)}: its listing under {root} is lost; run again")


def _drawn(
    path: Path, found: Layout, after: dict[str, Seen], reading: Reading, root: Path
) -> dict[str, list[Folder]]:
    """The two sides of a dataset without any, each image on one by its own content.

    Raises LadderError for classes that cannot be on both.
    """
    owns = [after[f"all/{name}"].own for name in found.classes]
    if reading.keep_together:
        owns = _led(owns, root)
    out = drawn_for_testing(owns, reading.testing)
    problems = [
        f"{clean(path)}: the class {clean(name)} has "
        + ("one image" if len(held) == 1 else f"{len(held):,} images, all of them equal")
        + ", and one is needed for training and one for testing: add some, or remove the class"
        for name, held in zip(found.classes, out, strict=True)
        if held.all() or not held.any()
    ]
    if problems:
        raise LadderError(told(problems))
    sides: dict[str, list[Folder]] = {"training": [], "testing": []}
    for name, images, held in zip(found.classes, found.sides["all"], out, strict=True):
        whole = read_listing(root, after[f"all/{name}"].listing)
        if whole is None:
            raise lost(name, root)
        for side, chosen in (("training", ~held), ("testing", held)):
            rows = np.flatnonzero(chosen)
            part = Listing([whole.names[row] for row in rows], whole.digests[rows])
            digest = write_listing(root, part)
            sides[side].append(Folder(str(images.folder), f"{side}/{name}", len(rows), digest))
    return sides


def _led(owns: list[np.ndarray], root: Path) -> list[np.ndarray]:
    """What `together` gives, kept under `root`: it compares each image with every other."""
    whole = np.concatenate(owns)
    path = root / "scans" / f"{sha256(whole.tobytes()).hexdigest()[:32]}.together"
    kept = None
    with contextlib.suppress(DamagedError):
        kept = read_regular(path)
    if kept is None or len(kept) != DIGEST * (len(whole) + 1) or not _is_whole(kept):
        led = np.concatenate(together([own[:, :DIGEST] for own in owns], looks(whole))).tobytes()
        kept = sha256(led).digest() + led
        with contextlib.suppress(LadderError):  # a store that cannot be written only stays slower
            write_atomic(path, kept)
    digests = np.frombuffer(kept, np.uint8).reshape(-1, DIGEST)[1:]
    return np.split(digests, np.cumsum([len(each) for each in owns])[:-1])


def _is_whole(kept: bytes) -> bool:
    return sha256(kept[DIGEST:]).digest() == kept[:DIGEST]


def _scan_folder(
    folder: Path,
    listed: tuple[list[str], np.ndarray],
    before: Seen,
    root: Path,
    started: int,
    problems: list[str],
    own: int,
) -> Seen:
    """The folder as it is now: `before` itself when no file had to be read.

    own: how many bytes are wanted of what draws each image's side.
    """
    names, now = listed
    old = read_listing(root, before.listing)
    known = old is not None and len(old.names) == len(before.stat) and before.own.shape[1] == own
    if old is None or not known or not stat_tells(folder):
        before, old = UNSEEN._replace(own=np.zeros((0, own), np.uint8)), EMPTY
    if old.names == names and np.array_equal(before.stat, now):
        return before
    # Row -1, appended to each, stands for "not there before" and matches no file.
    row = {name: i for i, name in enumerate(old.names)}
    rows = np.array([row.get(name, -1) for name in names])
    unknown = (np.vstack([before.stat, np.zeros((1, 5), np.int64)])[rows] != now).any(axis=1)
    digests = np.vstack([old.digests, np.zeros((1, 32), np.uint8)])[rows]
    headers = np.vstack([before.headers, np.zeros((1, 3), np.int32)])[rows]
    owns = np.vstack([before.own, np.zeros((1, own), np.uint8)])[rows]
    hashes, new, drawing = [], [], []
    to_read = [names[i] for i in np.flatnonzero(unknown)]
    for name, data in zip(to_read, read_files(folder, to_read), strict=True):
        if isinstance(data, LadderError):
            problems.append(str(data))
        else:
            hashes.append(sha256(data).digest())
            new.append(header(data, name))
            drawing.append(own_digest(data) if own else b"")
            drawing.append(own_looks(data, name) if own > DIGEST else b"")
    if problems:
        return UNSEEN  # the scan ends with them
    digests[unknown] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    headers[unknown] = np.array(new, np.int32).reshape(-1, 3)
    owns[unknown] = np.frombuffer(b"".join(drawing), np.uint8).reshape(len(new), own)

    # What changed just now may change again within the same tick of the clock: read it next time.
    times = now[:, 2:4]
    now[times.max(axis=1) >= started - GRANULARITY] = 0
    return Seen(write_listing(root, Listing(names, digests)), now, headers, owns)


def listed_in(
    images: Images, skipped: list[str], problems: list[str]
) -> tuple[list[str], np.ndarray]:
    """Names of the images, sorted, and stat[N, 5] int64; other files are added to `skipped`."""
    folder = images.folder
    try:
        directory = open_folder(folder)
    except LadderError as error:
        problems.append(str(error))
        return [], _int64([]).reshape(-1, 5)
    place = "/".join(map(clean, folder.parts[-2:]))
    others: list[str] = []
    try:
        if images.names is None:
            names, now = _inside(folder, directory, "", place, skipped, problems, others)
        else:
            names, now = _stat(folder, directory, images.names, problems)
            wrong = [n for n, mode in zip(names, now[:, 0].tolist(), strict=True)
                     if not (stat.S_ISREG(mode) and of_suffix(n))]  # fmt: skip
            problems += [f"{clean(folder / name)} is no image file that is read: remove its row"
                         for name in wrong]  # fmt: skip
    finally:
        os.close(directory)
    if not names:
        problems.append(_no_images(folder, others))
    problems += not_utf8(folder, names)
    for row in np.flatnonzero(now[:, 1] > MAX_BYTES):
        problems.append(str(too_large(folder / names[row], int(now[row, 1]))))
    return names, now


def _inside(
    folder: Path, directory: int, inner: str, place: str, skipped: list[str], problems: list[str],
    others: list[str],
) -> tuple[list[str], np.ndarray]:  # fmt: skip
    """As `_list`, of a folder, `inner` being the path to it; of what is no image to `others`."""
    try:
        entries = sorted(os.listdir(directory) if not inner else _listdir(directory, inner))
    except OSError as error:
        raise unreadable(folder / inner, error) from None
    hidden = slice(bisect(entries, "."), bisect(entries, "/"))
    skipped += left_aside(place, entries[hidden], "hidden")
    del entries[hidden]
    # Most are lower case as they are, and spare the call.
    names = [n for n in entries if n.endswith(ENDINGS) or n.lower().endswith(ENDINGS)]
    paths = [inner + name for name in names] if inner else names
    paths, now = _stat(folder, directory, paths, problems)
    regular = np.equal(now[:, 0] & 0o170000, stat.S_IFREG)
    if len(names) == len(entries) and regular.all():
        return paths, now
    paths = [path for path, is_regular in zip(paths, regular, strict=True) if is_regular]
    now = now[regular]
    taken = {path[len(inner) :] for path in paths}
    left = [name for name in entries if name not in taken]
    others += [inner + name for name in left]
    deeper = list(_left_out(folder / inner, place, left, skipped))
    for name in deeper:
        more = _inside(
            folder, directory, f"{inner}{name}/", f"{place}/{clean(name)}", skipped, problems,
            others,
        )  # fmt: skip
        paths, now = paths + more[0], np.concatenate([now, more[1]])
    if deeper:
        order = sorted(range(len(paths)), key=paths.__getitem__)
        paths, now = [paths[row] for row in order], now[order]
    return paths, now


def _listdir(directory: int, inner: str) -> list[str]:
    handle = os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    try:
        return os.listdir(handle)
    finally:
        os.close(handle)


def _stat(
    folder: Path, directory: int, names: list[str], problems: list[str]
) -> tuple[list[str], np.ndarray]:
    """The names again, and stat[N, 5] int64 of each."""
    fields: list[int] = []
    for name in names:
        try:
            fields += stat_fields(os.stat(name, dir_fd=directory))
        except OSError as error:
            problems.append(str(unreadable(folder / name, error)))
            fields += _UNKNOWN
    return names, _int64(fields).reshape(-1, 5)


def _int64(values: list[int]) -> np.ndarray:
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:  # some file systems number their inodes from the top
        return np.array([value % 2**63 for value in values], np.int64)


def _left_out(folder: Path, place: str, names: list[str], skipped: list[str]) -> Iterator[str]:
    """The folders among what is no image; of all else lines are added to `skipped`, one a kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            if name.lower() not in JUNK and not path.is_symlink():
                yield name
                continue
            why = LINK if path.is_symlink() else "left by a system, no images"
        elif path.is_file():
            suffix = path.suffix.lower()
            why = f"{suffix} is no image that is read" if suffix else "no image by its name"
        else:
            why = "not a regular file"
        kinds.setdefault(why, []).append(name)
    for why, these in kinds.items():
        skipped += left_aside(place, these, why)


def _no_images(folder: Path, others: list[str]) -> str:
    found = f", only {some(others)}" if others else ""
    return (
        f"{clean(folder)} holds no images{found}: add images to it, or remove the "
        f"class {clean(folder.name)} from training and testing"
    )


_UNKNOWN = (stat.S_IFREG, 0, 0, 0, 0)  # the stat fields of a file that cannot be looked at
