"""All that the engine says to Prefect: tasks and their states, run log, progress, tags.

Each stage that a flow calls becomes a Prefect task named after it, such as mean[7], which is given
and gives references.  Found and verified, it ends in the state Cached.

We keep the records ourselves instead of using Prefect's result storage: that one reads pickle,
does not verify, and hands out torn files after a crash.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import time
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Self

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from tasks.caching import process
from tasks.caching.basics import LadderError, StageError, StoppedError, told
from tasks.caching.call import Call, Observer, Settings, silent
from tasks.caching.refs import Outcome, Ref
from tasks.caching.session import OPENING, Session
from tasks.caching.stage import SESSION, Stage

OBSERVER: ContextVar[Observer] = ContextVar("observer", default=silent)  # is told what Prefect is
AUDIT: ContextVar[tuple[str, ...]] = ContextVar("audit", default=())  # for sessions begun here


def begin(settings: Settings) -> Session:
    """Open the session of a flow's body: stages called after it belong to it.

    It is Prefect's, unless the flow is called to be planned or without Prefect.
    """
    opening = OPENING.get() or Orchestrated
    return opening(settings).begin()


class Orchestrated(Session):
    """One run of a flow's body whose stages are tasks of Prefect's, side by side."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(replace(settings, audit=AUDIT.get()))
        self.runner = process.Processes()
        self.futures: list[Any] = []
        self.tags = functools.cache(limited)

    def begin(self) -> Self:
        """Begin as any session; the fork server imports torch meanwhile."""
        super().begin()
        process.warm_up()
        return self

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Hand a stage to the flow's task runner; gives a Prefect future of its reference."""
        task = _task(stage)
        if stage.is_heavy:
            task = task.with_options(tags=self.tags(stage.name))
        future = task.submit(name, arguments, self.settings)
        self.futures.append(future)
        return future

    def finish(self, handle: Any) -> Ref | None:
        """Wait for every stage, then give the reference of one.

        Raises LadderError that names each stage that failed of itself.
        """
        try:
            failures = [error for future in self.futures if (error := _failure(future))]
        except BaseException:
            self.runner.stop()
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


# Tasks


@functools.cache
def _task(stage: Stage[Any, Any]) -> Task[..., Any]:
    """The Prefect task of a stage."""

    def perform(name: str, arguments: dict[str, Any], settings: Settings) -> Any:
        return _perform(stage, name, arguments, settings)

    named: Any = lambda parameters: spoken(parameters["name"])  # noqa: E731
    return Task(
        perform,
        name=stage.name,
        description=inspect.getdoc(stage.fn),
        task_run_name=named,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _perform(
    stage: Stage[Any, Any], name: str, arguments: dict[str, Any], settings: Settings
) -> Any:
    """The body of a task: a Cached state, or the reference of what was computed."""
    session = SESSION.get(None)
    runner = session.runner if isinstance(session, Session) else process.Processes()
    ref = Call(stage, name, arguments, settings, runner, Telling(name)).perform()
    if ref.outcome.state == "ran":
        return ref
    return Completed(name="Cached", message=f"same key as before: {ref.key[:12]}", data=ref)


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


# What is told


class Telling:
    """Tells Prefect, and whoever else looks on, what becomes of one stage."""

    def __init__(self, name: str) -> None:
        self._gauge = Gauge(spoken(name))

    def __call__(self, event: str, name: str, **facts: Any) -> None:
        """Take an event, as any observer."""
        log(event, name, **facts)
        OBSERVER.get()(event, name, **facts)
        match event:
            case "runs":
                self._gauge.begin()
            case "progress":
                self._gauge(*facts["at"])
            case "ran" | "audited":
                self._gauge.end()


def log(event: str, name: str, **facts: Any) -> None:
    """Tell Prefect's run log."""
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


def spoken(name: str) -> str:
    """A stage's name as Prefect's pages show it: train[mlp, ...] without the brackets."""
    return name.removesuffix("]").replace("[", " ", 1)
