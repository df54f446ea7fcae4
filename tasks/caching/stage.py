"""`@stage`: a pure function whose result is kept, verified, and reused while nothing changed.

    @stage
    def mean(stack: Stack) -> Tensor: ...

    mean["7"](stacks["7"])      in a flow: a Prefect task named mean[7], given and giving references
    mean.fn(stack)              anywhere: the bare function

A stage is looked up by a key: sha256 of its name, the code it reaches, the versions of the
distributions that code imports, its parameters and the content of its inputs.  Found and verified,
the task ends in Prefect's state Cached.  Otherwise its body runs in a process of its own, which
loads the inputs, calls the function and stores what it returns.

We keep the records ourselves instead of using Prefect's result storage: that one reads pickle,
does not verify, and hands out torn files after a crash.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import inspect
import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

import torch

from tasks.caching import machine, process
from tasks.caching.basics import DamagedError, LadderError, StageError, StoppedError, told
from tasks.caching.fingerprint import check, fingerprint
from tasks.caching.plan import (
    FIRST,
    PLAN,
    Look,
    Outcome,
    Pending,
    Planned,
    Ref,
    differences,
    inputs_of,
    is_input,
    plain,
    waits_for,
)
from tasks.caching.records import Record, digest_of
from tasks.caching.store import FORMAT, Store
from tasks.caching.values import content_digest

P = ParamSpec("P")
R = TypeVar("R")


def _nothing(*_but: str) -> Iterator[tuple[Any, Any]]:
    return iter(())


def _silent(_done: int, _total: int, _note: str = "") -> None:
    pass


@dataclass(frozen=True)
class Run:
    """What a stage may use that is no part of its result's identity: never enters a key."""

    device: str = "cpu"  # "cpu" or "cuda"
    progress: Callable[[int, int, str], None] = _silent  # (done, total, note)
    scratch: Path | None = None  # for checkpoints, found again by the same key; removed at the end
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)  # stage name -> its outcome
    started: str = ""  # ISO 8601 time the run began, UTC
    command: str = ""  # how to start the same run again
    cache: Path | None = None  # the store's folder
    # earlier("inputs", "files"): results of calls that differ from this one in that ingredient
    # alone, newest first, each with what the ingredient was
    earlier: Callable[..., Iterator[tuple[Any, Any]]] = _nothing


_TOLD = {"outcomes", "started", "command"}  # of a Run: what differs from run to run


@dataclass(frozen=True)
class _Watched(Run):
    """A Run that notes what of it a stage looks at."""

    seen: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        super().__getattribute__("seen").add(name)
        return super().__getattribute__(name)


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


def log(event: str, name: str, **facts: Any) -> None:
    """Tell Prefect's run log."""
    from prefect.logging import get_run_logger

    words = facts.get("text") or "; ".join(facts.get("why", ()))
    if event == "warning":
        get_run_logger().warning("%s: %s", name, words)
    elif event != "progress":
        get_run_logger().info("%s %s%s", name, event, f": {words}" if words else "")


class Gauge:
    """A bar on Prefect's page of a stage that goes on for a while.

    Moving it takes a request to the server: once a second at most, and a hundredth of the time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._note = ""
        self._artifact: Any = None  # its id, once it is there
        self._next = math.inf

    def begin(self) -> None:
        """Begin to count: what takes less than a second gets no bar."""
        self._next = time.monotonic() + 1

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` is done, unless it is too early to move again."""
        self._note = note
        begun = time.monotonic()
        if begun >= self._next:
            self._move(100 * done / max(1, total))
            self._next = begun + max(1.0, 100 * (time.monotonic() - begun))

    def end(self) -> None:
        """Show that all is done, where anything was shown."""
        if self._artifact:
            self._move(100)

    def _move(self, percent: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.context import TaskRunContext

        if TaskRunContext.get() is None:
            return
        words = f"{self._name}: {self._note}" if self._note else self._name
        with contextlib.suppress(Exception):  # a bar that cannot be shown must not end a training
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description=words)
            else:
                update_progress_artifact(self._artifact, percent, words)


OBSERVER: ContextVar[Observer] = ContextVar("observer", default=log)
AUDIT: ContextVar[tuple[str, ...]] = ContextVar("audit", default=())  # for sessions begun here
_SESSION: ContextVar[Session] = ContextVar("session")


class Stage(Generic[P, R]):
    """A pure function with a memory.  `.fn` is the bare function, `.task` the Prefect task."""

    def __init__(self, fn: Callable[P, R], cores: Callable[[Mapping[str, Any], str], int]) -> None:
        check(fn)
        process.PRELOAD[fn.__module__] = None
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = fn.__name__
        self.cores = cores
        self.signature = inspect.signature(fn)

    def __getitem__(self, label: str) -> Callable[..., Any]:
        """The stage under the name `name[label]`, which tells it from its siblings."""
        return functools.partial(self._call, f"{self.name}[{label}]")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Submit the stage in a flow, or look it up in a plan; gives a reference."""
        return self._call(self.name, *args, **kwargs)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: item for key, item in bound.arguments.items() if key != "run"}
        session = _SESSION.get(None)
        if session is None:
            raise LadderError(f"{name} was called outside a flow; use {self.name}.fn for that")
        if session.planned is None:
            return session.submit(self, name, arguments)
        ref, planned = Call(self, name, arguments, session.settings).plan()
        session.planned.append(planned)
        return ref

    @property
    def is_heavy(self) -> bool:
        """Whether it takes more than a core, so that one may want to limit how many run at once."""
        return self.cores is not _one_core

    @functools.cached_property
    def task(self) -> Any:
        """The Prefect task of this stage."""
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        named: Any = lambda parameters: spoken(parameters["name"])  # noqa: E731
        return Task(
            self._perform,
            name=self.name,
            description=inspect.getdoc(self.fn),
            task_run_name=named,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    def _perform(self, name: str, arguments: dict[str, Any], settings: Settings) -> Any:
        """The body of the Prefect task: a Cached state, or the reference of what was computed."""
        from prefect.states import Completed

        ref = Call(self, name, arguments, settings).perform()
        if ref.outcome.state == "ran":
            return ref
        return Completed(name="Cached", message=f"same key as before: {ref.key[:12]}", data=ref)

    def look(self, arguments: Mapping[str, Any]) -> Look:
        """The key of a call.  Raises LadderError for code that cannot be followed."""
        code, versions = fingerprint(self.fn, arguments)
        inputs = {name: list(inputs_of(item)) for name, item in arguments.items()}
        ingredients = {
            "format": FORMAT,
            "stage": self.name,
            "code": code,
            "versions": versions,
            "parameters": {name: plain(item) for name, item in arguments.items()},
            "inputs": {name: [each.digest for each in found] for name, found in inputs.items()},
        }
        names = {name: [each.label for each in found] for name, found in inputs.items()}
        return Look(key=digest_of(ingredients), ingredients=ingredients, names=names)


class Call:
    """A stage with the arguments of one call."""

    def __init__(
        self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any], settings: Settings
    ) -> None:
        self.stage = stage
        self.name = name
        self.arguments = arguments
        self.settings = settings
        self.store = Store(Path(settings.cache))
        self.look = stage.look(arguments)
        self.last = self.store.last(settings.dataset, name)
        self.refresh = any(matches(name, glob) for glob in settings.refresh)

    def plan(self) -> tuple[Ref | Pending, Planned]:
        """Look the call up without running it."""
        seconds = self.last["seconds"] if self.last else None
        waits = [each.label for each in inputs_of(self.arguments) if isinstance(each, Pending)]
        changes = self._differences()
        planned = functools.partial(
            Planned, self.name, look=self.look, last=self.last, changes=changes
        )
        if waits:
            why = (*changes, waits_for(waits))
            return Pending(self.name), planned("may run", why, seconds)
        record, why = self._find()
        if record is None:
            return Pending(self.name), planned("will run", why, seconds)
        ref = self._ref(record, ())
        comparable = self._comparable(record, record.about.get("seen", ()))
        return ref, planned("cached", (), record.seconds, ref, comparable=comparable)

    def perform(self) -> Ref:
        """Give what is stored, or compute and store it.  Raises LadderError, StageError."""
        record, why = self._find()
        if record is None:
            self.store.insist_on_writing(self.stage.name)
            # Another process may be computing this key, or have done so just now.
            with self.store.lock(self.look.key):
                if not self.refresh:
                    record, why = self._find()
                record = record or self._compute(why)
        elif self.name in self.settings.audit:
            self._audit(record)
        ref = self._ref(record, why)
        memory = {**self.look.model_dump(), "seconds": record.seconds}
        # A read-only store still serves what it holds.
        with contextlib.suppress(LadderError):
            self.store.remember(self.settings.dataset, self.name, memory)
        self.store.used(self.stage.name, self.look.key)
        self._tell(ref.outcome.state, seconds=record.seconds, why=why)
        return ref

    def _find(self) -> tuple[Record | None, tuple[str, ...]]:
        """The verified record of the key, or None and why the stage must run."""
        if self.refresh:
            return None, ("asked for by --refresh",)
        try:
            record = self.store.get(self.stage.name, self.look.key)
        except DamagedError as error:
            return None, (str(error),)
        if record is not None:
            return record, ()
        if self.last is None:
            return None, (FIRST,)
        known = self.last["key"] == self.look.key
        otherwise = "its record is missing" if known else "its key changed"
        return None, self._differences() or (otherwise,)

    def _differences(self) -> tuple[str, ...]:
        return differences(self.look, self.last, self.arguments, self.store.root)

    def _ref(self, record: Record, why: tuple[str, ...]) -> Ref:
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

    def _comparable(self, record: Record, seen: Iterable[str]) -> bool:
        """Whether computing a record again now is bound to give the same.

        A GPU is not: some of its sums, of a convolution's gradients for one, have no fixed order.
        """
        seen = {*seen}
        devices = {record.about.get("device"), self.settings.device}
        return not (seen & _TOLD or ("device" in seen and devices != {"cpu"}))

    def _audit(self, record: Record) -> None:
        """Compute a hit again and compare.  Raises LadderError when it comes out differently."""
        digest, seen = self._run("compare", ("asked for by --audit",))
        if digest != record.digest and self._comparable(record, seen):
            text = (
                f"audit: computed again it came out differently ({record.digest[:12]} was stored, "
                f"{digest[:12]} came out), so it depends on something outside its key; "
                f"--refresh '{self.name}' replaces it"
            )
            self._tell("failed", text=text)
            raise LadderError(f"{self.name}: {text}")
        self._tell("audited", same=digest == record.digest)

    def _run(self, purpose: str, why: tuple[str, ...]) -> tuple[str, set[str]]:
        """The stage's body in a process of its own.  Raises LadderError, StageError."""
        self._tell("waits")
        session = _SESSION.get(None)
        where = (self.stage.fn.__module__, self.stage.name, self.name)
        gauge = Gauge(spoken(self.name))

        def progress(*at: Any) -> None:
            if at:
                self._tell("progress", at=at)
                gauge(*at)
            else:
                self._tell("runs", why=why)
                gauge.begin()

        try:
            result: tuple[str, set[str]] = process.run(
                (__name__, "run_body"),
                (where, self.arguments, self.look.key, self.settings, purpose),
                progress,
                self.stage.cores(self.arguments, self.settings.device),
                self.last["seconds"] if self.last else 0.0,
                session.bodies if session else process.Bodies(),
            )
            gauge.end()
            return result
        except (LadderError, StageError) as error:
            self._tell("failed", text=str(error))
            raise type(error)(f"{self.name}: {error}") from None

    def _tell(self, event: str, **facts: Any) -> None:
        OBSERVER.get()(event, self.name, **facts)


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
    loaded = {name: _load(item, store.root) for name, item in arguments.items()}
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
        earlier=earlier if purpose == "store" else _nothing,
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


def _load(value: Any, root: Path) -> Any:
    if is_input(value):
        return value.load(root)
    if isinstance(value, Mapping):
        return {key: _load(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_load(item, root) for item in value]
    return value


def spoken(name: str) -> str:
    """A stage's name as Prefect's pages show it: train[mlp, ...] without the brackets."""
    return name.removesuffix("]").replace("[", " ", 1)


def matches(name: str, glob: str) -> bool:
    """Whether a stage's name matches a glob of * and ?; brackets stand for themselves."""
    return fnmatch.fnmatchcase(name, glob.replace("[", "[[]"))


def _one_core(_arguments: Mapping[str, Any], _device: str) -> int:
    return 1


@overload
def stage(fn: Callable[P, R]) -> Stage[P, R]: ...
@overload
def stage(
    *, cores: Callable[[Mapping[str, Any], str], int]
) -> Callable[[Callable[P, R]], Stage[P, R]]: ...
def stage(fn: Any = None, *, cores: Callable[[Mapping[str, Any], str], int] = _one_core) -> Any:
    """Make a function a stage.

    `cores` says how many cores its body uses, given a call's arguments and the run's device; one,
    unless told.
    Raises LadderError, with the line, when the function reaches code that cannot be followed.
    """
    if fn is None:
        return lambda function: Stage(function, cores)
    return Stage(fn, cores)


# Sessions


class Session:
    """One run of a flow's body, awake or asleep."""

    def __init__(self, settings: Settings, planned: list[Planned] | None) -> None:
        self.settings = settings
        self.planned = planned  # what a plan has said so far; None when awake
        self.futures: list[Any] = []
        self.bodies = process.Bodies()
        self.tags = functools.cache(limited)

    def submit(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Hand a stage to the flow's task runner; gives a Prefect future of its reference."""
        task = stage.task.with_options(tags=self.tags(stage.name)) if stage.is_heavy else stage.task
        future = task.submit(name, arguments, self.settings)
        self.futures.append(future)
        return future

    def finish(self, handle: Any) -> Ref | None:
        """Wait for every stage, then give the reference of one; None in a plan.

        Raises LadderError that names each stage that failed of itself.
        """
        if self.planned is not None:
            return None
        try:
            failures = [error for future in self.futures if (error := _failure(future))]
        except BaseException:
            self.bodies.stop()
            raise
        if failures:
            mistakes = [str(error) for error in failures if isinstance(error, LadderError)]
            others = [str(error) for error in failures if not isinstance(error, LadderError)]
            raise LadderError("\n".join([*others, *[told(mistakes)] * bool(mistakes)]))
        ref: Ref = handle.result()
        return ref

    def outcomes(self) -> dict[str, Outcome]:
        """What became of every stage, by name; for when all have finished."""
        refs: list[Ref] = [future.result() for future in self.futures]
        return {ref.label: ref.outcome for ref in refs}


def limited(stage: str) -> set[str]:
    """The stage's name, as a tag for its tasks, when Prefect's server limits their number.

    Before each task Prefect asks for a slot of every tag, and a busy server answers after seconds.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            client.read_concurrency_limit_by_tag(stage)
    except ObjectNotFound:
        return set()
    return {stage}


def _failure(future: Any) -> Exception | None:
    """Why a stage failed, or nothing for one that did not, or whose input did."""
    future.wait()
    if not (future.state.is_failed() or future.state.is_crashed()):
        return None
    error = future.state.result(raise_on_failure=False)
    if isinstance(error, StoppedError):
        return None  # the run was, for a reason that another tells
    mine = isinstance(error, LadderError | StageError)
    return error if mine else StageError(f"{future.state.name}: {error}")


def begin(settings: Settings) -> Session:
    """Open the session of a flow's body: stages called after it belong to it."""
    session = Session(replace(settings, audit=AUDIT.get(), began=time.time_ns()), PLAN.get())
    if session.planned is None:
        machine.insist_on_open_files()
        process.warm_up()
        # Nobody clears the store away under a run; the kernel lets go if this process dies.
        weakref.finalize(session, os.close, Store(Path(settings.cache)).share())
    _SESSION.set(session)
    return session
