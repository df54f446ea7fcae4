"""The store: content-named files and checksummed records, written whole or not at all.

    files/<sha256>.arrow | .safetensors | ...   what stages returned, named by content
    records/<stage>/<key>.json                  which files a key stands for, and what went into it
    last/<stage name>.<digest>.json             what went into a stage's key last time
    scratch/<key>/                              checkpoints of a stage that has not finished
    sessions/<id>/                              where a run and its workers elsewhere meet
    locks/                                      held while a key is computed
    aside/                                      damaged files, kept for a look and never read

Nothing that is read back can run code: Arrow, safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import operator
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tasks.caching import locks, records, values
from tasks.caching.basics import (
    DamagedError,
    LadderError,
    entries,
    unwritable,
    write_atomic,
)
from tasks.caching.files import Files, move_aside
from tasks.caching.records import Record, digest_of

FORMAT = 1  # raise it when files or keys change meaning: every older record then misses
LEFT = re.compile(r"([0-9a-f]{32}){1,2}(-.*)?")  # of a folder in scratch or sessions
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Store:
    """The cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = Files(root / "files", root / "aside")

    # Records

    def put(
        self,
        stage: str,
        key: str,
        value: Any,
        seconds: float,
        ingredients: dict[str, Any],
        about: Mapping[str, Any] = _NOTHING,
    ) -> Record:
        """Store a stage's value under its key, files first, so that a record never dangles."""
        files: dict[str, list[int]] = {}

        def save(data: bytes | memoryview, suffix: str) -> str:
            name = values.content_name(data, suffix)
            files[name] = self.files.save(name, data)
            return name

        tree = values.encode(value, save)
        body = {
            "format": FORMAT,
            "stage": stage,
            "key": key,
            "digest": digest_of(tree),
            "value": tree,
            "files": files,
            "seconds": round(seconds, 3),
            "ingredients": ingredients,
            "about": dict(about),
            "checked": time.time_ns(),
        }
        self._write_record(body)
        return records.to_record(body)

    def adopt(self, body: dict[str, Any]) -> None:
        """Store a record of another machine's, whose files are here by now: name -> size."""
        signatures = {name: self.files.signature(name) for name in body["files"]}
        self._write_record(body | {"files": signatures, "checked": time.time_ns()})

    def get(self, stage: str, key: str, *, thorough: bool = False) -> Record | None:
        """The record of a key with every file verified, or None when there is none.

        Raises DamagedError when something is there and is not what was stored.
        """
        path = self.record_path(stage, key)
        body = records.read_body(path)
        if body is None:
            return None
        if body["format"] != FORMAT:
            raise DamagedError(f"{path} is the record of another version")
        try:
            # What we wrote agrees with itself; what was planted may name files it does not list.
            whole = body["digest"] == digest_of(body["value"])
            names = {*values.named(body["value"]), *body["files"]}
        except (TypeError, RecursionError) as error:
            raise records.foreign(path) from error
        if not whole or names != body["files"].keys():
            raise records.foreign(path)
        stale = False
        for name in names:
            now = self.files.verify(name, body["files"][name], body["checked"], thorough)
            stale |= now is not None
            body["files"][name] = now or body["files"][name]
        if stale:
            # Checked by content just now: remember the new stat, so the next look is quick.
            # A read-only store still serves; it only stays slow.
            with contextlib.suppress(LadderError):
                self._write_record(body | {"checked": time.time_ns()})
        return records.to_record(body)

    def earlier(
        self, stage: str, ingredients: dict[str, Any], *but: str, first: str = "", since: int
    ) -> Iterator[tuple[Any, Record]]:
        """The records of a stage, newest first, whose ingredients equal these `but` for one.

        The record with the key `first` comes before all, those from `since` on (ns since the
        epoch) are left out.  `but` is the path to that ingredient, such as "parameters", "recipe",
        "epochs"; each record comes with what it has there.  Nothing is verified.
        """
        wanted = _without(ingredients, but)
        paths = [
            (path.stem == first, modified, path)
            for path in self._records_of(self.root / "records" / stage)
            if (modified := _modified(path)) < since or path.stem == first
        ]
        for *_order, path in sorted(paths, reverse=True):
            with contextlib.suppress(DamagedError, KeyError, TypeError, RecursionError):
                body = records.read_body(path)
                if body and _without(body["ingredients"], but) == wanted:
                    found = functools.reduce(operator.getitem, but, body["ingredients"])
                    yield found, records.to_record(body)

    def load(self, tree: Any) -> Any:
        """The value of a record's tree, read and held against its files' names.

        Raises as `values.load` does, and DamagedError for a file whose content is another than was
        stored; it is set aside, so that the next look at its record finds it missing.
        """
        with contextlib.suppress(RecursionError):  # what is nested so deep is not loaded either
            for name in sorted(filter(records.NAME.fullmatch, values.named(tree))):
                self.files.insist_on_content(name)
        return values.load(tree, self.files.folder)

    def set_aside(self, stage: str, key: str) -> None:
        """Move a damaged record and whichever of its files are damaged where nothing reads them."""
        path = self.record_path(stage, key)
        with contextlib.suppress(DamagedError):
            for name, signature in (records.read_body(path) or {"files": {}})["files"].items():
                self.files.set_aside_damaged(self.files.folder / name, signature)
        self._move_aside(path)

    def used(self, stage: str, key: str) -> None:
        """Note that a record was of use, so that `cache gc` spares it; once a day is enough."""
        path = self.record_path(stage, key)
        with contextlib.suppress(OSError):  # it may be another user's
            if time.time() - path.stat().st_mtime > 86_400:
                os.utime(path)

    # Upkeep

    def record_path(self, stage: str, key: str) -> Path:
        """Where the record of a key lies."""
        return self.root / "records" / stage / f"{key}.json"

    def record_paths(self) -> list[Path]:
        """Where all records lie."""
        folders = (path for path in entries(self.root / "records") if not path.is_symlink())
        return [path for folder in folders for path in self._records_of(folder)]

    def read_record(self, path: Path) -> Record | None:
        """A record without a look at its files.  Raises DamagedError."""
        body = records.read_body(path)
        return None if body is None else records.to_record(body)

    def memories(self) -> Iterator[dict[str, Any]]:
        """What each stage's last key was, with its "dataset"."""
        for path in entries(self.root / "last"):
            with contextlib.suppress(DamagedError):
                if body := records.read_memory(path):
                    yield body

    def share(self) -> int:
        """Say that this process uses the store, until the descriptor that this gives is closed."""
        return locks.share(self.root)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from using the store.  Raises LadderError while one does."""
        return locks.alone(self.root)

    def insist_on_writing(self, stage: str) -> None:
        """See that a result could be stored, before hours go into it.  Raises LadderError."""
        effective = os.access in os.supports_effective_ids
        for name in (".", "files", "records", f"records/{stage}", "locks", "scratch"):
            folder = self.root / name
            if os.access(folder, os.F_OK) and not os.access(
                folder, os.W_OK | os.X_OK, effective_ids=effective
            ):
                raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    # Memory of the last run

    def last(self, dataset: str, name: str) -> dict[str, Any] | None:
        """What went into the key that a stage had last time, or None."""
        with contextlib.suppress(LadderError):  # it is for words alone
            return records.read_memory(self._last_path(dataset, name))
        return None

    def remember(self, dataset: str, name: str, memory: dict[str, Any]) -> None:
        """Keep what went into a stage's key, for the next run to compare with."""
        path = self._last_path(dataset, name)
        memory = memory | {"dataset": dataset}
        if self.last(dataset, name) != memory:
            write_atomic(path, records.checked(memory), durable=False)  # it is for words alone

    # Turns

    def lock(
        self, key: str, stopped: Callable[[], bool] = lambda: False
    ) -> contextlib.AbstractContextManager[None]:
        """Hold a key alone among all processes; the kernel lets go when the holder dies.

        Raises StoppedError when `stopped` says, while it waits, that nobody wants it any more.
        """
        return locks.hold(self.root / "locks" / f"{key}.lock", stopped)

    def scratch(self, key: str) -> Path:
        """A folder for what a stage wants to find again if it is killed."""
        folder = self._scratch(key)
        try:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                self._move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        with contextlib.suppress(OSError):  # another user's may be of use, too
            os.utime(folder)
        return folder

    def drop_scratch(self, key: str) -> None:
        """Remove a key's scratch folder."""
        shutil.rmtree(self._scratch(key), ignore_errors=True)

    def drop_left(self) -> None:
        """Remove what failed and killed runs have left behind, where none took it up for a week."""
        long_ago = time.time_ns() - 7 * 86_400 * 10**9
        for path in [*entries(self.root / "scratch"), *entries(self.root / "sessions")]:
            ours = LEFT.fullmatch(path.name) and not path.is_symlink()
            if ours and max(map(_modified, [path, *entries(path)])) < long_ago:
                shutil.rmtree(path, ignore_errors=True)

    # Inside

    def _last_path(self, dataset: str, name: str) -> Path:
        # Class names may hold anything, so the file is named by digest, after something readable.
        readable = re.sub(r"[^\w.-]+", "_", name)[:60]
        return self.root / "last" / f"{readable}.{digest_of([dataset, name])[:12]}.json"

    def _scratch(self, key: str) -> Path:
        # Where nothing keeps two processes from the same key, they must not share checkpoints.
        own = "" if locks.work(self.root) else f"-{socket.gethostname()}-{os.getpid()}"
        return self.root / "scratch" / f"{key}{own}"

    @staticmethod
    def _records_of(folder: Path) -> list[Path]:
        return [path for path in entries(folder) if records.RECORD.fullmatch(path.name)]

    def _write_record(self, body: dict[str, Any]) -> None:
        write_atomic(self.record_path(body["stage"], body["key"]), records.checked(body))

    def _move_aside(self, path: Path) -> None:
        move_aside(path, self.root / "aside")


def _without(ingredients: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Ingredients with the one at the end of a path left out."""
    name, *rest = path
    inner = {name: _without(ingredients[name], tuple(rest))} if rest else {name: None}
    return {**ingredients, **inner}


def _modified(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0
