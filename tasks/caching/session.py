"""One run of a flow's body: what becomes of each stage that it calls.

A `Session` performs each stage as it is called.  `tasks.caching.plan` only looks them up, and
`tasks.caching.orchestration` hands them to Prefect.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from tasks.caching import machine
from tasks.caching.bodies import Here, Runner
from tasks.caching.call import Call, Observer, Settings, silent
from tasks.caching.fingerprint import KNOWN
from tasks.caching.refs import Ref
from tasks.caching.stage import SESSION, Stage
from tasks.caching.store import Store

# What opens the session of a flow that is called in this context; None leaves it to the flow.
OPENING: ContextVar[Callable[[Settings], Session] | None] = ContextVar("opening", default=None)


class Session:
    """One run of a flow's body, each stage performed in this process as it is called."""

    def __init__(self, settings: Settings, tell: Observer = silent) -> None:
        self.settings = replace(settings, began=time.time_ns())
        self.runner: Runner = Here()
        self.refs: dict[str, Ref] = {}
        self._tell = tell

    def begin(self) -> Self:
        """Let the stages that are called from now on, in this context, belong to this run.

        Raises LadderError where the machine grants too little for one.
        """
        machine.insist_on_open_files()
        # Nobody clears the store away under a run; the kernel lets go if this process dies.
        store = Store(Path(self.settings.cache))
        weakref.finalize(self, os.close, store.share())
        store.drop_left()
        SESSION.set(self)
        KNOWN.set(None)  # bodies run here, and may change what lies in memory
        return self

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Perform a stage; gives its reference.  Raises LadderError, StageError."""
        call = Call(stage, name, arguments, self.settings, self.runner, self._tell)
        self.refs[name] = call.perform()
        return self.refs[name]

    def fallen(self, rungs: Mapping[str, Iterable[Any]]) -> dict[str, str]:
        """Of those whose stages failed, why; the run goes on without them.

        rungs: name -> what stands for its stages.  Here a failure has been raised when it happened.
        """
        return {}

    def finish(self, handle: Any) -> Ref | None:
        """Wait for every stage, then give the reference of one; None where nothing is run.

        Raises LadderError that names each stage that failed of itself.
        """
        ref: Ref = handle
        return ref

    def results(self) -> dict[str, Ref]:
        """The reference of every stage that gave one, by name; for when all have finished."""
        return self.refs


@contextlib.contextmanager
def opening(session: Callable[[Settings], Session]) -> Iterator[None]:
    """Let the flows that are called inside open sessions of this kind."""
    token = OPENING.set(session)
    try:
        yield
    finally:
        OPENING.reset(token)
