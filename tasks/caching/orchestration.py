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
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import UpstreamTaskError
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.caching import own, process
from tasks.caching.abroad import Contact, Papers, Visit
from tasks.caching.basics import (
    CommonError,
    LadderError,
    OvertimeError,
    StageError,
    StoppedError,
    in_brief,
    spelled,
    told,
)
from tasks.caching.call import Call, Observer, Settings, silent
from tasks.caching.refs import Ref, replaced
from tasks.caching.session import OPENING, Session
from tasks.caching.stage import SESSION, Stage

OBSERVER: ContextVar[Observer] = ContextVar("observer", default=silent)  # is told what Prefect is
AUDIT: ContextVar[tuple[str, ...]] = ContextVar("audit", default=())  # for sessions begun here


class Cluster(Protocol):
    """A task runner of Prefect's whose workers are elsewhere, and that we know more of."""

    def granting(self, cores: int, device: str) -> contextlib.AbstractContextManager[Any]:
        """Let what is submitted inside have so many of a worker's cores, and a GPU for cuda."""

    def wait(self, future: Any) -> None:
        """Wait for a future.  Raises CommonError when the cluster is lost meanwhile."""


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
        self._fallen: list[Any] = []  # futures of rungs that failed, which end no run
        self.tags = functools.cache(limited)
        self._contact: Contact | None = None  # with workers elsewhere
        self._cluster: Cluster | None = None  # where these are of a kind that we know
        self._timer = threading.Timer(settings.timeout, self._end_late)
        self._is_late = False

    def begin(self) -> Self:
        """Begin as any session; the fork server imports torch meanwhile."""
        super().begin()
        Plainly.begin()
        self._timer.daemon = True
        if self.settings.timeout:
            self._timer.start()
        context = FlowRunContext.get()
        runner: Any = context and context.task_runner
        if runner is None or isinstance(runner, ThreadPoolTaskRunner):
            process.warm_up()
            return self
        self._contact = Contact(Path(self.settings.cache), OBSERVER.get())
        self._cluster = runner if hasattr(runner, "granting") else None
        return self

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Hand a stage to the flow's task runner; gives a Prefect future of its reference."""
        self._insist_on_time()
        task = _task(stage)
        if stage.is_heavy:
            task = task.with_options(tags=self.tags(stage.name))
        with contextlib.ExitStack() as granted:
            papers = None
            if self._contact:
                cores = stage.cores(arguments, self.settings.device)
                known = replaced(arguments, _is_future, lambda _future: Ref(""))
                papers = self._contact.papers(stage, known, cores)
                if self._cluster:
                    device = self.settings.device if stage.is_heavy else "cpu"
                    granted.enter_context(self._cluster.granting(cores, device))
            future = task.submit(name, arguments, self.settings, papers)
        self.futures.append(future)
        return future

    def stop(self) -> None:
        """End what this run still computes, here and elsewhere."""
        self.runner.stop()
        if self._contact:
            self._contact.end()

    def fallen(self, rungs: Mapping[str, Iterable[Any]]) -> dict[str, str]:
        """Wait for their stages; of those that failed of themselves, why, in one line."""
        why = {}
        for name, futures in rungs.items():
            failures = [error for future in futures if (error := self._failure(future))]
            if failures and not any(isinstance(each, CommonError) for each in failures):
                self._fallen += futures
                text = in_brief(failures[0])
                why[name] = text.partition(f"[{name}]: ")[2] or text
        return why

    def _failure(self, future: Any) -> Exception | None:
        """Why a stage failed, see `_failure`; whatever keeps this from waiting ends the run."""
        try:
            if self._cluster:
                self._cluster.wait(future)
            failure = _failure(future)
        except BaseException:
            self.stop()
            raise
        self._insist_on_time()
        return failure

    def _end_late(self) -> None:
        self._is_late = True
        self.stop()

    def _insist_on_time(self) -> None:
        """Raise OvertimeError when the run has taken longer than it was given, all of it ended."""
        if self._is_late:
            for each in self.futures:
                each.wait(10)
            cancel(self.futures)
            raise OvertimeError(
                f"the run took longer than {spelled(self.settings.timeout)}: give it more time "
                "(timeout); what had finished is kept, and the next run goes on from it"
            )

    def finish(self, handle: Any) -> Ref | None:
        """Wait for every stage, then give the reference of one.

        Raises LadderError that names each stage that failed of itself, and is of no fallen rung.
        """
        waited = [each for each in self.futures if each not in self._fallen]
        failures = [error for future in waited if (error := self._failure(future))]
        self._timer.cancel()
        if self._contact:
            self._contact.end()
        if failures:
            cancel(self.futures)
            mistakes = [str(error) for error in failures if isinstance(error, LadderError)]
            others = [str(error) for error in failures if not isinstance(error, LadderError)]
            raise LadderError("\n".join([*once(others), *[told(once(mistakes))] * bool(mistakes)]))
        if FlowRunContext.get():
            get_run_logger().info(summary(self.results().values()))
        ref: Ref = handle.result()
        return ref

    def results(self) -> dict[str, Ref]:
        """The reference of every stage that gave one, by name; for when all have finished."""
        done = [each for each in self.futures if each.state.is_completed()]
        refs: list[Ref] = [future.result() for future in done]
        return {ref.label: ref for ref in refs}


# Tasks


@functools.cache
def _task(stage: Stage[Any, Any]) -> Task[..., Any]:
    """The Prefect task of a stage."""

    def perform(
        name: str, arguments: dict[str, Any], settings: Settings, papers: Papers | None
    ) -> Any:
        try:
            if papers:
                return _perform_abroad(stage, name, arguments, settings, papers)
            return _perform(stage, name, arguments, settings)
        except StoppedError as error:
            return Cancelled(message=str(error))

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
    """The body of a task in the run's own process."""
    session = SESSION.get(None)
    runner = session.runner if isinstance(session, Session) else process.Processes()
    return _ended(Call(stage, name, arguments, settings, runner, Telling(name)).perform())


def _perform_abroad(
    stage: Stage[Any, Any],
    name: str,
    arguments: dict[str, Any],
    settings: Settings,
    papers: Papers,
) -> Any:
    """The body of a task on a worker elsewhere.  Raises CommonError where that does not agree."""
    Plainly.begin()
    visit = Visit(papers, Path(settings.cache))
    own.search(settings.places)
    token = OBSERVER.set(visit.tell)
    try:
        runner = process.Processes(visit.is_over)
        call = Call(stage, name, arguments, settings, runner, Telling(name), papers.cores)
        visit.insist_on_same_code(call.look)
        return _ended(call.perform())
    finally:
        OBSERVER.reset(token)


def _ended(ref: Ref) -> Any:
    """What a task gives: a Cached state, or the reference of what was computed."""
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


def _is_future(value: Any) -> bool:
    return isinstance(value, PrefectFuture)


def _failure(future: Any) -> Exception | None:
    """Why a stage failed, or nothing for one that did not, or whose input did."""
    future.wait()
    if not (future.state.is_failed() or future.state.is_crashed()):
        return None
    error = future.state.result(raise_on_failure=False)
    mine = isinstance(error, LadderError | StageError)
    return error if mine else StageError(f"{future.state.name}: {error}")


def cancel(futures: Iterable[Any]) -> None:
    """Call those cancelled that wait and will never begin: Prefect would let them, for good.

    Each only once the server knows of its last state, which comes to it as an event.
    """
    waiting = {str(future.task_run_id) for future in futures if future.state.is_pending()}
    if not waiting:
        return
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter

    never: Any = Cancelled(message="what it waits for failed or was stopped")
    deadline = time.monotonic() + 10
    # A server that does not answer must not hide why the run failed.
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        while waiting and time.monotonic() < deadline:
            named = {"name": {"any_": ["NotReady"]}}
            of_them = TaskRunFilter.model_validate({"id": {"any_": [*waiting]}, "state": named})
            for run in client.read_task_runs(task_run_filter=of_them):
                client.set_task_run_state(run.id, never, force=True)
                waiting.remove(str(run.id))
            time.sleep(0.2)


# What is told


def once(failures: Iterable[str]) -> list[str]:
    """Failures of stages, the same one of many told once: "decode[a]: no room (and 19 more)"."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in failures:
        why = text.partition(": ")[2]
        first.setdefault(why, text)
        counts[why] += 1
    more = {why: f" (and {counts[why] - 1:,} more)" * (counts[why] > 1) for why in first}
    return [text + more[why] for why, text in first.items()]


def summary(refs: Iterable[Ref]) -> str:
    """In one line, how many stages of each kind ran and how many were cached."""
    counts: dict[str, Counter[str]] = {}
    for ref in refs:
        counts.setdefault(ref.stage, Counter())[ref.outcome.state] += 1
    kinds = [f"{stage} {' and '.join(f'{n} {state}' for state, n in sorted(each.items()))}"
             for stage, each in counts.items()]  # fmt: skip
    return f"{sum(map(Counter.total, counts.values()))} stages: {', '.join(kinds)}"


class Plainly(logging.Filter):
    """Keeps a run's log to what one wants to read in the morning.

    A mistake is told in one line by the stage, and by the run's last state: no traceback of ours
    belongs there.  Nor does each stage's state, which Prefect's page shows.
    """

    said: ClassVar[set[str]] = set()  # of failures, so that the same one comes once

    @classmethod
    def begin(cls) -> None:
        """Have it so from now on, for a new run."""
        cls.said.clear()
        for name in ("prefect.task_runs", "prefect.flow_runs"):
            logger = logging.getLogger(name)
            if not any(isinstance(each, cls) for each in logger.filters):
                logger.addFilter(cls())

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, LadderError | StageError | UpstreamTaskError):
            return False
        of_stage = record.name.startswith("prefect.task_runs")
        return not (of_stage and record.getMessage().startswith("Finished in state"))


Plainly.begin()  # a run may be refused before its session begins


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
    """Tell Prefect's run log what is news: why a stage runs, what was wrong."""
    words = facts.get("text") or "; ".join(facts.get("why", ()))
    if event == "warning":
        get_run_logger().warning("%s: %s", name, words)
    elif event == "failed" and not facts.get("stopped") and words not in Plainly.said:
        Plainly.said.add(words)
        get_run_logger().error("%s failed: %s", name, words)
    elif event in ("runs", "audited"):
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
