"""A stage with the arguments of one call: looked up by its key, and computed where it must be.

A key is sha256 of the stage's name, the code it reaches, the versions of the distributions that
code imports, what of the machine changes the last bits, its parameters and the content of its
inputs.  What is found under it and verified is
the result.  Otherwise a runner runs the body, which loads the inputs, calls the function and
stores what it returns.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.caching import own
from tasks.caching.basics import (
    CommonError,
    DamagedError,
    LadderError,
    StageError,
    StoppedError,
    in_brief,
)
from tasks.caching.bodies import CORES, Body, Here, Runner
from tasks.caching.cues import find
from tasks.caching.records import Record
from tasks.caching.refs import Outcome, Ref
from tasks.caching.remote import complain, shared
from tasks.caching.stage import Stage
from tasks.caching.store import Store


@dataclass(frozen=True)
class Settings:
    """What a run was started with; travels with every task, to other processes and machines too."""

    cache: str  # the store's folder
    dataset: str  # its name
    device: str = "cpu"
    refresh: tuple[str, ...] = ()  # globs over stage names that are to run even when cached
    started: str = ""
    command: str = ""
    audit: tuple[str, ...] = ()  # names of stages to compute again and compare, though cached
    # ns since the epoch; what the run itself has stored since is no earlier result to search
    began: int = sys.maxsize
    timeout: int = 0  # seconds that the run is given; 0 for any number
    stage_timeout: int = 0  # seconds that each body is given, once it has its cores
    # Folders in which users' own functions lie; that they are there is no part of a result.
    places: tuple[str, ...] = field(default_factory=lambda: tuple(own.PLACES))


class Observer(Protocol):
    """Is told what happens to stages while they happen."""

    def __call__(self, event: str, name: str, **facts: Any) -> None:
        """Take "waits", "runs", "progress", "ran", "cached", "audited", "warning" or "failed"."""


def silent(event: str, name: str, **facts: Any) -> None:
    """Observe nothing."""


def matches(name: str, glob: str) -> bool:
    """Whether a stage's name matches a glob of * and ?; brackets stand for themselves."""
    return fnmatch.fnmatchcase(name, glob.replace("[", "[[]"))


_TOLD = {"outcomes", "started", "command"}  # of a Run: what differs from run to run


class Call:
    """A stage with the arguments of one call."""

    def __init__(
        self,
        stage: Stage[Any, Any],
        name: str,
        arguments: dict[str, Any],
        settings: Settings,
        runner: Runner | None = None,
        tell: Observer = silent,
        cores: int = 0,
    ) -> None:
        """`cores`: those that its body has use for, where the run has said so."""
        self._cores = min(cores or stage.cores(arguments, settings.device), CORES.total)
        self.stage = stage
        self.name = name
        self.arguments = arguments
        self.settings = settings
        self._runner = runner or Here()
        self._observer = tell
        self.store = Store(Path(settings.cache))
        self.look = stage.look(arguments, settings.device, self._cores)
        self.last = self.store.last(settings.dataset, name)
        self.refresh = any(matches(name, glob) for glob in settings.refresh)

    def perform(self) -> Ref:
        """Give what is stored, or compute and store it.  Raises LadderError, StageError."""
        record, why = self.find()
        if record is None:
            self.store.insist_on_writing(self.stage.name)
            # Another process may be computing this key, or have done so just now.
            with self.store.lock(self.look.key, self._runner.is_stopped):
                if not self.refresh:
                    record, why = self.find()
                record = record or self._compute(why)
        elif self.name in self.settings.audit:
            self._audit(record)
        ref = self.ref(record, why)
        self._remember(record.seconds)
        self.store.used(self.stage.name, self.look.key)
        self._tell(ref.outcome.state, seconds=record.seconds, why=why)
        return ref

    def find(self) -> tuple[Record | None, tuple[str, ...]]:
        """The verified record of the key, or None and why the stage must run."""
        if (others := shared()) and not self.refresh:
            others.fetch(self.store, self.stage.name, self.look.key, self._warn)
        return find(self.store, self.stage.name, self.look, self.last, refresh=self.refresh)

    def changes(self) -> tuple[str, ...]:
        """In words, what differs from the last time."""
        return self.look.differences(self.last, self.store.root)

    def ref(self, record: Record, why: tuple[str, ...]) -> Ref:
        """The reference to a record, with the reasons it had to be made for."""
        outcome = Outcome("ran" if why else "cached", why, record.seconds)
        return Ref(self.name, self.stage.name, self.look.key, record.digest, outcome)

    def _remember(self, seconds: float, **failed: str) -> None:
        """Keep what this call was, for the next time's reasons: `failed=` why, if it did."""
        memory = {**self.look.to_remember(), "seconds": seconds, **failed}
        # A read-only store still serves what it holds.
        with contextlib.suppress(LadderError):
            self.store.remember(self.settings.dataset, self.name, memory)

    def _compute(self, why: tuple[str, ...]) -> Record:
        try:
            self.store.get(self.stage.name, self.look.key)
        except DamagedError as error:
            self._tell("warning", text=f"{error}; set aside and computed again")
            self.store.set_aside(self.stage.name, self.look.key)
        self._run("refresh" if self.refresh else "store", why)
        # Just written, so only its own checksum is looked at.
        record = self.store.read_record(self.store.record_path(self.stage.name, self.look.key))
        if record is None:
            raise DamagedError(f"{self.name}: its record vanished while it was stored; run again")
        if others := shared():
            others.store(self.store, self.stage.name, self.look.key, self._warn)
        return record

    def comparable(self, record: Record, seen: Iterable[str]) -> bool:
        """Whether computing a record again now is bound to give the same.

        A GPU is not: some of its sums, of a convolution's gradients for one, have no fixed order.
        """
        seen = {*seen}
        devices = {record.about.get("device"), self.settings.device}
        return not (seen & _TOLD or ("device" in seen and devices != {"cpu"}))

    def _audit(self, record: Record) -> None:
        """Compute a hit again and compare.  Raises LadderError when it comes out differently."""
        digest, seen = self._run("compare", ("asked for by --audit",))
        if digest != record.digest and self.comparable(record, seen):
            text = (
                f"audit: computed again it came out differently ({record.digest[:12]} was stored, "
                f"{digest[:12]} came out), so it depends on something outside its key; "
                f"--refresh '{self.name}' replaces it"
            )
            self._tell("failed", text=text)
            raise LadderError(f"{self.name}: {text}")
        self._tell("audited", same=digest == record.digest)

    def _run(self, purpose: str, why: tuple[str, ...]) -> tuple[str, set[str]]:
        """Have the stage's body run.  Raises LadderError, StageError."""
        self._tell("waits")
        where = (self.stage.fn.__module__, self.stage.name, self.name)
        body = Body(
            "tasks.caching.compute",
            "run_body",
            (where, self.arguments, self.look.key, self.settings, purpose),
            self._cores,
            (self.last or {}).get("seconds") or self.stage.about(self.arguments),
            self.settings.stage_timeout,
            "look_ahead",
        )

        def progress(*at: Any) -> None:
            if at:
                self._tell("progress", at=at)
            else:
                self._tell("runs", why=why)

        try:
            result: tuple[str, set[str]] = self._runner.run(body, progress)
            return result
        except (LadderError, StageError) as error:
            # What was stopped has not failed: another reason is told, of the run.
            self._tell("failed", text=str(error), stopped=isinstance(error, StoppedError))
            if purpose != "compare" and not isinstance(error, StoppedError | CommonError):
                self._remember(self.last["seconds"] if self.last else 0.0, failed=in_brief(error))
            raise type(error)(f"{self.name}: {error}") from None

    def _warn(self, text: str) -> None:
        if self._observer is silent:
            complain(text)
        else:
            self._tell("warning", text=text)

    def _tell(self, event: str, **facts: Any) -> None:
        self._observer(event, self.name, **facts)
