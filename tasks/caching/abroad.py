"""Stages performed by workers elsewhere: what goes with a call, and what comes back.

A worker may run other code than the run that sends it a stage, see another disk, and outlive it.
So each call carries `Papers`; a worker that does not agree refuses, and neither computes nor
stores.  Run and workers meet in a folder of the store, which both see:

    sessions/<id>/alive             touched while the run lives; the folder goes when it ends
    sessions/<id>/<worker>.jsonl    what becomes of the stages there, for who watches the run
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks.caching.basics import CommonError, unwritable
from tasks.caching.call import Observer
from tasks.caching.cues import Look
from tasks.caching.differences import some
from tasks.caching.stage import Stage

_BEAT = 5.0  # seconds between a run's signs of life
_PATIENCE = 120.0  # seconds without one, then a worker ends what it computes for the run
_LOOK = 0.5  # seconds between looks at what workers tell


class Papers(NamedTuple):
    """What a call carries to a worker: whose it is, and what its key is to be made of."""

    session: str
    code: dict[str, str]
    versions: dict[str, str]
    cores: int  # those that its body has use for: the number of threads changes the last bits


# Where the run is


class Contact:
    """A run's side: it shows that it lives, and hears what its workers tell."""

    def __init__(self, root: Path, tell: Observer) -> None:
        """Begin, in the store's folder.  Raises LadderError where that cannot be written."""
        self.folder = root / "sessions" / uuid.uuid4().hex
        try:
            self.folder.mkdir(parents=True)
            (self.folder / "alive").touch()
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._tell = tell
        self._read: dict[Path, int] = {}  # how far
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def papers(self, stage: Stage[Any, Any], arguments: Mapping[str, Any], cores: int) -> Papers:
        """Those of a call; what stands for inputs in its arguments must be references."""
        return Papers(self.folder.name, *stage.follow(arguments), cores)

    def end(self) -> None:
        """Hear the last of it; workers that still compute for this run see that it has ended."""
        self._ended.set()
        self._thread.join()
        self._hear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep(self) -> None:
        beat = time.monotonic()
        while not self._ended.wait(_LOOK):
            with contextlib.suppress(Exception):  # who watches must not end the signs of life
                self._hear()
            if time.monotonic() - beat > _BEAT:
                beat = time.monotonic()
                with contextlib.suppress(OSError):  # shown again a moment later
                    os.utime(self.folder / "alive")

    def _hear(self) -> None:
        """Pass on the whole lines that are new."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _rest = file.read().rpartition(b"\n")
                self._read[path] = self._read.get(path, 0) + len(whole + newline)
                for line in whole.splitlines():
                    event, name, facts = json.loads(line)
                    self._tell(event, name, **facts)


# Where the worker is


class Visit:
    """A worker's side of one call."""

    def __init__(self, papers: Papers, root: Path) -> None:
        """Find the run's folder in the store.  Raises CommonError where it cannot be seen."""
        self._folder = root / "sessions" / papers.session
        self._beat: int | None = None
        self._seen = time.monotonic()
        if not (self._folder / "alive").exists():
            raise CommonError(
                f"the worker on {_host()} does not see this run in {root}: have it share that "
                "folder with this machine, at the same path (STEPLADDER_DATA says where)"
            )

    def insist_on_same_code(self, look: Look, papers: Papers) -> None:
        """Raise CommonError where this worker's code or packages are not the run's."""
        code = _others(papers.code, look.ingredients["code"])
        if code:
            text = f"runs other code: {some(code)} differ{'s' * (len(code) == 1)}"
            raise CommonError(f"the worker on {_host()} {text}; bring its checkout up to date")
        versions = _others(papers.versions, look.ingredients["versions"])
        if versions:
            there, here = look.ingredients["versions"], papers.versions
            pairs = [f"{name} {there.get(name)}, not {here.get(name)}" for name in versions]
            raise CommonError(f"the worker on {_host()} has {some(pairs)}: install the same there")

    def is_over(self) -> bool:
        """Whether the run has ended, or shown no sign of life for long."""
        try:
            beat = (self._folder / "alive").stat().st_mtime_ns
        except FileNotFoundError:
            return True
        except OSError:  # the disk is away for a moment, or for good
            beat = self._beat or 0
        if beat != self._beat:
            self._beat, self._seen = beat, time.monotonic()
        return time.monotonic() - self._seen > _PATIENCE

    def tell(self, event: str, name: str, **facts: Any) -> None:
        """Take an event, as any observer, for the run to hear."""
        line = json.dumps([event, name, facts]).encode() + b"\n"
        file = self._folder / f"{_host()}-{os.getpid()}-{threading.get_ident()}.jsonl"
        # Whatever keeps this from being written must not end a training.
        with contextlib.suppress(OSError):
            descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)


def _others(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _host() -> str:
    return socket.gethostname()
