"""`@stage`: a pure function whose result is kept, verified, and reused while nothing changed.

    @stage
    def mean(stack: Stack) -> Tensor: ...

    mean["7"](stacks["7"])      in a flow: the stage mean[7], given and giving references
    mean.fn(stack)              anywhere: the bare function

What becomes of a call is up to the session of the flow (`tasks.caching.session`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from tasks.caching import traces  # noqa: F401 - from here on what is asked for is noted
from tasks.caching.basics import LadderError
from tasks.caching.bodies import MODULES
from tasks.caching.cues import Look, look
from tasks.caching.fingerprint import Fingerprint, check, fingerprint
from tasks.caching.machine import arithmetic
from tasks.caching.reach import Unit
from tasks.caching.refs import Outcome

P = ParamSpec("P")
R = TypeVar("R")


def nothing(*_but: str) -> Iterator[tuple[Any, Any]]:
    """No earlier results."""
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
    earlier: Callable[..., Iterator[tuple[Any, Any]]] = nothing


class Caller(Protocol):
    """What takes the stages that a flow's body calls: a session."""

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Take a call; gives what stands for its result."""


SESSION: ContextVar[Caller] = ContextVar("session")  # of the flow that is running


class Stage(Generic[P, R]):
    """A pure function with a memory.  `.fn` is the bare function."""

    def __init__(
        self,
        fn: Callable[P, R],
        cores: Callable[[Mapping[str, Any], str], int],
        about: Callable[[Mapping[str, Any]], float],
        apart: Callable[[], Iterable[Any]],
        *,
        exact: bool,
    ) -> None:
        check(fn, apart)
        MODULES[fn.__module__] = None
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = fn.__name__
        self.cores, self.about = cores, about
        self._apart = apart
        self._exact = exact
        self.signature = inspect.signature(fn)

    def __getitem__(self, label: str) -> Callable[..., Any]:
        """The stage under the name `name[label]`, which tells it from its siblings."""
        return functools.partial(self._call, f"{self.name}[{label}]")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage in a flow, or look it up in a plan; gives what stands for its result."""
        return self._call(self.name, *args, **kwargs)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {key: item for key, item in bound.arguments.items() if key != "run"}
        session = SESSION.get(None)
        if session is None:
            raise LadderError(f"{name} was called outside a flow; use {self.name}.fn for that")
        return session.call(self, name, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name: whoever gets it elsewhere takes the stage of its own code."""
        return stage_named, (self.fn.__module__, self.name)

    @property
    def is_heavy(self) -> bool:
        """Whether it takes more than a core, so that one may want to limit how many run at once."""
        return self.cores is not _one_core

    def look(self, arguments: Mapping[str, Any], device: str = "cpu", cores: int = 1) -> Look:
        """The key of a call on a device and so many cores of this machine.

        Raises LadderError for code that cannot be followed.
        """
        machine: dict[str, Any] = {}
        if not self._exact:
            machine = {"processor": arithmetic(), "threads": cores}
        if self.is_heavy:
            machine["device"] = device
        return look(self.name, self.follow(arguments), arguments, machine)

    def follow(self, arguments: Mapping[str, Any]) -> Fingerprint:
        """The code that a call reaches.  Raises LadderError where it cannot be followed."""
        apart = frozenset(Unit(each.__module__, each.__qualname__) for each in self._apart())
        return fingerprint(self.fn, arguments, apart)


def stage_named(module: str, name: str) -> Any:
    """The stage that a module calls so; the module is imported."""
    return getattr(importlib.import_module(module), name)


def _one_core(_arguments: Mapping[str, Any], _device: str) -> int:
    return 1


def _nobody_knows(_arguments: Mapping[str, Any]) -> float:
    return 0.0


@overload
def stage(fn: Callable[P, R]) -> Stage[P, R]: ...
@overload
def stage(
    *,
    cores: Callable[[Mapping[str, Any], str], int] = ...,
    about: Callable[[Mapping[str, Any]], float] = ...,
    apart: Callable[[], Iterable[Any]] = ...,
    exact: bool = ...,
) -> Callable[[Callable[P, R]], Stage[P, R]]: ...
def stage(
    fn: Any = None,
    *,
    cores: Callable[[Mapping[str, Any], str], int] = _one_core,
    about: Callable[[Mapping[str, Any]], float] = _nobody_knows,
    apart: Callable[[], Iterable[Any]] = tuple,
    exact: bool = False,
) -> Any:
    """Make a function a stage.

    `cores` says how many cores its body uses, given a call's arguments and the run's device; one,
    unless told.  `about` gives the seconds that it may take beside its like, where no earlier run
    tells: of what waits for cores the longest goes first.  `apart` gives functions that cannot
    change a result, such as those that show how far it has come: their code is no part of its key.
    The result of an `exact` one is the same bits on any machine: whole numbers alone, or so few
    roundings that their order is fixed.
    Raises LadderError, with the line, when the function reaches code that cannot be followed.
    """
    if fn is None:
        return lambda function: Stage(function, cores, about, apart, exact=exact)
    return Stage(fn, cores, about, apart, exact=exact)
