"""Notice that nothing changed before anything heavy is imported: no torch, no Prefect, no Arrow.

A run leaves behind a digest of all that its plan could depend on: the options, this project's
sources, what could be imported, the stat of every image, cached file and report file, and what the
project's modules asked for when they were imported (`flows.watch`).
When a later run or plan finds that digest unchanged, its plan could only say "cached" of every
stage, which are remembered with the seconds they took.  In any doubt (a stat differs, a file is
too young for its stat to be trusted) there is no short cut, and the plan itself decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import marshal
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.watch import Seen, Watch, importable
from tasks.caching.basics import DamagedError, LadderError, pointed_at, read_regular, write_atomic
from tasks.caching.machine import available_cores, disk_of, processor, stat_tells
from tasks.images.folders import JUNK
from tasks.images.sides import folders_read

_LARGEST = 1 << 24  # bytes of a memory: a name for each stage
_YOUNG_NS = 2_000_000_000  # the coarsest clock of a file system steps by two seconds
_PACKAGES = Path(__file__).resolve().parents[1]
# How texts and times are read, and where --device auto computes
_ALWAYS = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "STEPLADDER_DATA", "CUDA_VISIBLE_DEVICES")
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of which one is there with a GPU


class Known(NamedTuple):
    """How a run ended that nothing has changed since."""

    folder: Path  # of its report
    stages: list[Cached]


class Cached(NamedTuple):
    """What a plan says of a stage that nothing has changed for."""

    stage: str
    seconds: float  # what it took
    state: str = "cached"
    why: tuple[str, ...] = ()


class Memory:
    """What the last run with these options left behind."""

    def __init__(self, data: Path, dataset: Path, options: dict[str, Any]) -> None:
        self.data = data
        self._dataset = dataset
        self._options = options
        told = [options.get(name, "None") for name in ("labels", "class_from")]
        self._is_labelled = told != ["None", "None"]  # so its images may lie anywhere in it
        identity = json.dumps([str(dataset), options, _here()], sort_keys=True)
        name = hashlib.sha256(identity.encode()).hexdigest()[:24]
        self._path = data / "cache" / "quick" / f"{name}.json"
        self._before: tuple[str, int] | None = None
        self._looked = 0  # ns since the epoch
        self.seen: Seen | None = None  # what else the plan of this run depends on
        self._stages: dict[str, float] = {}  # in the plan's order, and what each took

    def look(self) -> None:
        """See what a run that begins now reads; when that has been seen already, do nothing."""
        if not self._looked:
            self._looked = time.time_ns()
            self._before = self._reads()

    @property
    def is_first(self) -> bool:
        """Whether no run with these options has left anything behind."""
        return not os.path.isfile(self._path)  # noqa: PTH113 - which raises nothing

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the project's modules ask for while they are imported and planned inside."""
        watch = Watch()
        watch.begin()
        try:
            yield
        finally:
            watch.end()
        self.seen = watch.seen(self._dataset, self.data / "cache", self.data / "reports")

    def recall(self) -> Known | None:
        """How the last run ended, when nothing that it depends on has changed since."""
        try:
            memory = json.loads(read_regular(self._path, _LARGEST) or b"")
            self.look()  # after that: where nothing is left behind, to look can wait
            folder = Path(memory["folder"])
            if not folder.resolve().is_relative_to((self.data / "reports").resolve()):
                return None  # not written here
            same = self._before and memory["read"] == self._before[0]
            seen = Seen(*map(dict.fromkeys, memory["seen"])).again(os.environ)
            same = same and memory["were"] == _digest([*seen])
            if same and memory["written"] == self._writes(folder):
                self.seen = seen
                self._stages = {str(name): float(took) for name, took in memory["stages"].items()}
                return Known(folder, [Cached(*each) for each in self._stages.items()])
        except (LadderError, OSError, ValueError, LookupError, TypeError, AttributeError,
                RecursionError):  # fmt: skip
            pass
        return None

    def hold(self, stages: dict[str, float], asked: dict[str, str]) -> None:
        """Take the run's stages, and what their bodies asked for to what its plan depends on."""
        from tasks.caching.held import changed, located

        if self.seen is None or changed(asked):
            self.seen = None
            return
        self._stages = stages
        variables = [name[1:] for name in asked if name.startswith("$")]
        paths = [located(name) for name in asked if not name.startswith("$")]
        folders = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112 - as the rest
        files = [path for path in paths if path not in folders]
        more = Seen(*map(dict.fromkeys, (files, folders, [], variables))).again(os.environ)
        self.seen = Seen(*(one | other for one, other in zip(self.seen, more, strict=True)))

    def keep(self, folder: Path) -> None:
        """Write down the state that a finished run saw, when it began to look, and left."""
        if self._before is None or self.seen is None:
            return
        newest = max([self._before[1], *(max(row[1:3]) for row in self.seen.paths.values() if row)])
        if self._looked - newest < _YOUNG_NS:
            return  # what changed just before the run may have changed again in the same tick
        # What cannot be looked at or written only stays slower.
        with contextlib.suppress(LadderError, OSError):
            memory = {
                "folder": str(folder),
                "stages": self._stages,
                "read": self._before[0],
                "seen": [[*each] for each in self.seen],
                "were": _digest([*self.seen]),
                "written": self._writes(folder),
            }
            write_atomic(self._path, json.dumps(memory).encode())

    def _reads(self) -> tuple[str, int] | None:
        """What a plan reads, as a digest, and when the latest of it changed, ns since the epoch."""
        try:
            sources = [*_stats(_PACKAGES / "tasks"), *_stats(_PACKAGES / "flows")]
            images = list(_looked_at(self._dataset, is_labelled=self._is_labelled))
            if not all(stat_tells(Path(folder)) for folder, _rows in [*sources, *images]):
                return None
            disk = disk_of(self._dataset)
        except OSError:
            return None
        paths = [*dict.fromkeys(map(str, sys.path))]
        found = [importable(path) for path in paths]
        newest = max(max(row[2], row[3]) for _, rows in [*sources, *images] for row in rows)
        python = [sys.version, [*sys.flags], paths, [os.environ.get(name) for name in _ALWAYS]]
        gpus = [os.path.exists(path) for path in _GPUS]  # noqa: PTH110 - which raises nothing
        state = [python, found, self._options, sources, images, disk, gpus]
        return _digest(state), newest

    def _writes(self, folder: Path) -> str:
        """What a run leaves behind, as a digest."""
        cache = self.data / "cache"
        latest = pointed_at(folder.parent / "latest")
        kept = [*_stats(cache / "records"), *_stats(cache / "files"), *_stats(folder)]
        return _digest([latest, kept])


def _here() -> list[Any]:
    """What is another machine or another place on it, where modules may have other values."""
    try:
        folder = str(Path.cwd())
    except OSError:  # it is gone
        folder = ""
    machine = os.uname()
    return [
        folder,
        sys.executable,
        machine.nodename,
        machine.machine,
        processor(),
        os.getuid(),
        available_cores(),
    ]


def mark_cached(folder: Path) -> bool:
    """Note in a report's results.json that its latest run took every rung from the cache.

    Gives whether that was news.  Raises LadderError for a file that is not one of ours.
    """
    path = folder / "results.json"
    try:
        results = json.loads(read_regular(path) or b"")
        if all(rung["cached"] for rung in results["rungs"]):
            return False
        for rung in results["rungs"]:
            rung["cached"] = True
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: remove it, and run again") from error
    with contextlib.suppress(LadderError):  # where nothing can be written, it serves as it is
        write_atomic(path, json.dumps(results, indent=1).encode())
        return True
    return False


def _looked_at(dataset: Path, *, is_labelled: bool) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """As `_stats`, of what a scan looks at: a dataset's folder, its splits or else all in it.

    Beside splits other folders may hold anything: a home, millions of files.
    """
    yield from _stats(dataset, 0)
    folders = [
        entry.name
        for entry in os.scandir(dataset)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in JUNK
    ]
    for name in sorted(folders if is_labelled else folders_read(folders)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            yield from _stats(dataset / name, linked=1)


def _stats(
    folder: Path, depth: int = 99, linked: int = 0
) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Every folder below, down to a depth, with (name, size, mtime, ctime, inode) of what is in it.

    Sorted.  Links to folders are followed at the first `linked` levels.  Raises OSError.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    rows, inner = [], []
    try:
        for name in sorted(os.listdir(handle)):
            if name == "__pycache__":
                continue
            try:
                stat = os.stat(name, dir_fd=handle)
            except FileNotFoundError:
                continue  # another process's temporary file, or a link that leads nowhere
            if stat.st_mode & 0o170000 == 0o040000 and (linked or not (folder / name).is_symlink()):
                inner.append(name)
            rows.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    finally:
        os.close(handle)
    yield str(folder), rows
    for name in inner if depth else ():
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            yield from _stats(folder / name, depth - 1, max(0, linked - 1))


def _digest(state: Any) -> str:
    # marshal writes plain tuples, texts and numbers an order faster than json; nothing reads it.
    return hashlib.sha256(marshal.dumps(state, 2)).hexdigest()
