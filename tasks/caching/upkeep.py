"""Look after the store: what it holds, whether it is whole, and what may go."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tasks.caching.basics import LITTER, DamagedError, LadderError, entries, pointed_at, shown
from tasks.caching.records import LISTING, Record
from tasks.caching.store import Store

_HOUR, _DAY = 3600, 86_400


class Held(NamedTuple):
    """A record, with what it costs and when it was last of use."""

    stage: str
    record: Record
    size: int  # bytes of the record itself
    used: float  # seconds since the epoch; a hit refreshes it once a day

    @property
    def name(self) -> str:
        """What its stage was called, such as decode[training/7]."""
        return str(self.record.about.get("name", self.stage))

    @property
    def total(self) -> int:
        """Bytes of the record and its files, which other records may share."""
        return self.size + sum(signature[0] for signature in self.record.files.values())


class Freed(NamedTuple):
    """What a clearing took away."""

    records: int
    files: int
    size: int  # bytes


def held(store: Store) -> list[Held]:
    """Every record that can be read, the least recently used first."""
    found = []
    for path in store.record_paths():
        with contextlib.suppress(DamagedError, FileNotFoundError):
            if record := store.read_record(path):
                status = path.stat()
                found.append(Held(path.parent.name, record, status.st_size, status.st_mtime))
    return sorted(found, key=lambda each: each.used)


def users(store: Store) -> dict[str, list[str]]:
    """By key, the datasets whose latest run came to it, sorted."""
    found: dict[str, list[str]] = {}
    for body in store.memories():
        if dataset := body.get("dataset"):
            found.setdefault(str(body["key"]), []).append(str(dataset))
    return {key: sorted(names) for key, names in found.items()}


def verify(store: Store) -> Iterator[str]:
    """Read everything again; gives a line for each damaged file or record, which is set aside."""
    yield from store.files.verify_all()
    for path in store.record_paths():
        try:
            store.get(path.parent.name, path.stem)
        except DamagedError as error:
            store.set_aside(path.parent.name, path.stem)
            yield f"{path.parent.name}/{path.stem[:8]} will be computed again: {error}"


def clear(store: Store, *, keep_last: int = 1, max_size: int = 0) -> Freed:
    """Remove what no kept report needs until the rest fits, and what dead runs left behind.

    Kept are each dataset's `keep_last` newest reports, and the latest.  Of the other records those
    longest without use go first, until all is at most `max_size` bytes.
    Raises LadderError while a run uses the store.
    """
    with store.alone():
        records = held(store)
        needed = _needed(records, _kept_reports(store.root.parent / "reports", keep_last))
        gone = _until_it_fits(records, needed, max_size)
        for each in gone:
            _remove(store.record_path(each.stage, each.record.key))
        going = {(each.stage, each.record.key) for each in gone}
        kept = [each for each in records if (each.stage, each.record.key) not in going]
        litter = [*_unnamed(store, kept, gone), *_abandoned(store.root)]
        size = sum(map(_size, litter)) + sum(each.size for each in gone)
        for path in litter:
            _remove(path)
    return Freed(len(gone), len(litter), size)


def parse_size(text: str) -> int:
    """Bytes, from a text such as 500MB, 1.5 GB or 2GiB.  Raises LadderError."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise LadderError(f"{shown(text)} is no size; give one such as 500MB or 2GB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** "_kmgt".index(unit or "_"))


def _kept_reports(folder: Path, count: int) -> set[str]:
    """The key starts of the reports to keep: folders are named after their time and their key."""
    kept = set()
    for dataset in entries(folder):
        reports = [
            path.name
            for path in entries(dataset)
            if "-" in path.name and not path.name.startswith(".") and not path.is_symlink()
        ]
        names = {*reports[len(reports) - min(count, len(reports)) :]}
        names |= {pointed_at(dataset / "latest") or ""} - {""}
        kept |= {name.rpartition("-")[2] for name in names}
    return kept


def _needed(records: list[Held], starts: set[str]) -> set[str]:
    """The keys of the reports' records and of all that their inputs came from, to the end."""
    by_digest = defaultdict(list)
    for each in records:
        by_digest[each.record.digest].append(each)
    waiting = [each for each in records if any(map(each.record.key.startswith, starts))]
    needed: set[str] = set()
    while waiting:
        each = waiting.pop()
        if each.record.key not in needed:
            needed.add(each.record.key)
            for digest in _flat(_inputs(each)):
                waiting += by_digest[digest]
    return needed


def _inputs(each: Held) -> dict[str, list[str]]:
    inputs: dict[str, list[str]] = each.record.ingredients.get("inputs", {})
    return inputs


def _flat(inputs: Mapping[str, list[str]]) -> Iterator[str]:
    """The digests of all inputs, whatever parameter they belong to."""
    return itertools.chain.from_iterable(inputs.values())


def _until_it_fits(records: list[Held], needed: set[str], max_size: int) -> list[Held]:
    users = Counter(name for each in records for name in each.record.files)
    sizes = {name: sign[0] for each in records for name, sign in each.record.files.items()}
    total = sum(sizes.values()) + sum(each.size for each in records)
    gone = []
    for each in records:
        if total > max_size and each.record.key not in needed:
            gone.append(each)
            users.subtract(each.record.files.keys())
            freed = (sizes[name] for name in each.record.files if not users[name])
            total -= each.size + sum(freed)
    return gone


def _unnamed(store: Store, kept: list[Held], gone: list[Held]) -> Iterator[Path]:
    """Files and listings that no record names any more.

    Young ones that never had a record may be a result that another machine is just storing.
    """
    named = {name for each in kept for name in each.record.files}
    freed = {name for each in gone for name in each.record.files}
    for path in store.files.paths():
        if path.name not in named and (path.name in freed or _age(path) > _HOUR):
            yield path
    inputs = [_inputs(each) for each in kept]
    inputs += [body["ingredients"]["inputs"] for body in store.memories()]
    listed = {digest for each in inputs for digest in _flat(each)}
    for path in entries(store.root / "listings"):
        if LISTING.fullmatch(path.name) and path.stem not in listed and _age(path) > _HOUR:
            yield path


def _abandoned(root: Path) -> Iterator[Path]:
    """What killed runs and damage left behind, by the names that we give; nothing of others."""
    for folder in (root, root.parent / "reports"):
        for place, _folders, names in os.walk(folder):
            paths = (Path(place, name) for name in names if LITTER.fullmatch(name))
            yield from (path for path in paths if _age(path) > _HOUR)
    yield from (path for path in entries(root / "aside") if re.match(r"\d{15,}-", path.name))
    for path in entries(root / "scratch"):
        if re.match(r"[0-9a-f]{64}(-|$)", path.name) and _age(path) > _DAY:
            yield path
    for path in entries(root / "sessions"):  # of runs that were killed
        if re.fullmatch(r"[0-9a-f]{32}", path.name) and _age(path / "alive") > _DAY:
            yield path


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it.  Raises LadderError."""
    try:
        with contextlib.suppress(FileNotFoundError):  # another was quicker
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise LadderError(
            f"cannot remove {path}: {error.strerror}; let its owner clear the cache"
        ) from error


def _age(path: Path) -> float:
    """Seconds since a file, or what a folder holds, was last changed."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime
    return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder; a link's own."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        return sum(map(_size, entries(path))) if stat.S_ISDIR(status.st_mode) else status.st_size
    return 0
