"""A stage with the arguments of one call: looked up by its key, and computed where it must be.

A key is sha256 of the stage's name, the code it reaches, the versions of the distributions that
code imports, its parameters and the content of its inputs.  What is found under it and verified is
the result.  Otherwise a runner runs the body, which loads the inputs, calls the function and
stores what it returns.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tasks.caching.basics import DamagedError, LadderError, StageError
from tasks.caching.bodies import Body, Here, Runner
from tasks.caching.cues import find
from tasks.caching.records import Record
from tasks.caching.refs import Outcome, Ref, inputs_of, is_input
from tasks.caching.stage import Run, Stage, nothing
from tasks.caching.store import Store
from tasks.caching.values import content_digest


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


@dataclass(frozen=True)
class _Watched(Run):
    """A Run that notes what of it a stage looks at."""

    seen: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        super().__getattribute__("seen").add(name)
        return super().__getattribute__(name)


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
    ) -> None:
        self.stage = stage
        self.name = name
        self.arguments = arguments
        self.settings = settings
        self._runner = runner or Here()
        self._observer = tell
        self.store = Store(Path(settings.cache))
        self.look = stage.look(arguments)
        self.last = self.store.last(settings.dataset, name)
        self.refresh = any(matches(name, glob) for glob in settings.refresh)

    def perform(self) -> Ref:
        """Give what is stored, or compute and store it.  Raises LadderError, StageError."""
        record, why = self.find()
        if record is None:
            self.store.insist_on_writing(self.stage.name)
            # Another process may be computing this key, or have done so just now.
            with self.store.lock(self.look.key):
                if not self.refresh:
                    record, why = self.find()
                record = record or self._compute(why)
        elif self.name in self.settings.audit:
            self._audit(record)
        ref = self.ref(record, why)
        memory = {**self.look.memory(), "seconds": record.seconds}
        # A read-only store still serves what it holds.
        with contextlib.suppress(LadderError):
            self.store.remember(self.settings.dataset, self.name, memory)
        self.store.used(self.stage.name, self.look.key)
        self._tell(ref.outcome.state, seconds=record.seconds, why=why)
        return ref

    def find(self) -> tuple[Record | None, tuple[str, ...]]:
        """The verified record of the key, or None and why the stage must run."""
        return find(self.store, self.stage.name, self.look, self.last, refresh=self.refresh)

    def changes(self) -> tuple[str, ...]:
        """In words, what differs from the last time."""
        return self.look.differences(self.last, self.store.root)

    def ref(self, record: Record, why: tuple[str, ...]) -> Ref:
        """The reference to a record, with the reasons it had to be made for."""
        outcome = Outcome("ran" if why else "cached", why, record.seconds)
        return Ref(self.name, self.stage.name, self.look.key, record.digest, outcome)

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
            __name__,
            "run_body",
            (where, self.arguments, self.look.key, self.settings, purpose),
            self.stage.cores(self.arguments, self.settings.device),
            self.last["seconds"] if self.last else 0.0,
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
            self._tell("failed", text=str(error))
            raise type(error)(f"{self.name}: {error}") from None

    def _tell(self, event: str, **facts: Any) -> None:
        self._observer(event, self.name, **facts)


def run_body(
    where: tuple[str, str, str],
    arguments: dict[str, Any],
    key: str,
    settings: Settings,
    purpose: str,
    *,
    progress: Callable[..., None],
    cores: int,
) -> tuple[str, set[str]]:
    """Run a stage in this process: load, call, store.

    `purpose` is "store", "refresh" (store, and take nothing from earlier results) or "compare"
    (take nothing and store nothing).  Gives the result's digest and what the stage saw of its Run.
    Raises LadderError when the code here is not the code that the key was made from.
    """
    progress()
    torch.set_num_threads(cores)
    module, name, label = where
    stage: Stage[Any, Any] = getattr(importlib.import_module(module), name)
    look = stage.look(arguments)
    if look.key != key:
        raise LadderError(
            "its code changed while the run went on, or a module's value is another each time it "
            "is imported (a set's order, the time); run again, and if this stays, mend that"
        )
    store = Store(Path(settings.cache))
    loaded = {name: load_inputs(item, store.root) for name, item in arguments.items()}
    seen: set[str] = set()
    last = store.last(settings.dataset, label) or {"key": ""}
    earlier = functools.partial(
        _earlier, store, stage.name, look.ingredients, last["key"], settings.began
    )
    run = _Watched(
        seen=seen,
        device=settings.device,
        progress=progress,
        scratch=store.scratch(key) if purpose == "store" else None,
        outcomes={ref.label: ref.outcome for ref in inputs_of(arguments) if isinstance(ref, Ref)},
        started=settings.started,
        command=settings.command,
        cache=store.root,
        earlier=earlier if purpose == "store" else nothing,
    )
    if "run" in stage.signature.parameters:
        loaded["run"] = run
    start = time.perf_counter()
    value = stage.fn(**loaded)
    seconds = time.perf_counter() - start
    if purpose == "compare":
        return content_digest(value), seen
    about = {"name": label, "device": settings.device, "seen": sorted(seen)}
    record = store.put(stage.name, key, value, seconds, look.ingredients, about)
    store.drop_scratch(key)
    return record.digest, seen


def _earlier(
    store: Store, stage: str, ingredients: dict[str, Any], last: str, since: int, *but: str
) -> Iterator[tuple[Any, Any]]:
    """What `Run.earlier` gives, each verified before it is loaded; damaged ones are passed over."""
    for was, record in store.earlier(stage, ingredients, *but, first=last, since=since):
        with contextlib.suppress(DamagedError):
            verified = store.get(stage, record.key)
            if verified is not None:
                yield was, store.load(verified.value)


def load_inputs(value: Any, root: Path) -> Any:
    """An argument with what its references stand for, from the store's folder."""
    if is_input(value):
        return value.load(root)
    if isinstance(value, Mapping):
        return {key: load_inputs(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [load_inputs(item, root) for item in value]
    return value
