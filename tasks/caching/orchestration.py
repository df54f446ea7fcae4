"""All that the engine says to Prefect: tasks and their states, run log, progress, tags.

Each stage that a flow calls becomes a Prefect task named after it, such as mean[7], which is given
and gives references.  Found and verified, it ends in the state Cached.  Where a flow calls one
stage very often in a row, a task performs many of these calls: each task costs some 50 ms.

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
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.exceptions import UpstreamTaskError
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.caching import own, process
from tasks.caching.abroad import Contact, Papers, Visit
from tasks.caching.basics import (
    CommonError,
    LadderError,
    OvertimeError,
    SeveralError,
    StageError,
    StoppedError,
    in_brief,
    spelled,
    told,
)
from tasks.caching.bodies import Runner
from tasks.caching.call import Call, Observer, Settings, silent
from tasks.caching.fingerprint import KNOWN
from tasks.caching.refs import Ref, replaced, within
from tasks.caching.session import OPENING, Session
from tasks.caching.stage import SESSION, Stage

_MOST_ALONE = 64  # calls of a stage in a row that get a task each
_TOGETHER = 32  # of more, so many share one

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
        self.runner: process.Processes = process.Processes()
        self.futures: list[Any] = []
        self._names: dict[Any, list[str]] = {}  # of the stages that each future is of, by its id
        self._held: list[Promise] = []  # calls of one stage in a row, not yet handed on
        self._fallen: set[str] = set()  # stages of rungs that failed, which end no run
        self.tags = functools.cache(limited)
        self._contact: Contact | None = None  # with workers elsewhere
        self._cluster: Cluster | None = None  # where these are of a kind that we know
        self._timer = threading.Timer(settings.timeout, self._end_late)
        self._is_late = False

    def begin(self) -> Self:
        """Begin as any session; the fork server imports torch meanwhile."""
        super().begin()
        KNOWN.set({})
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

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Promise:
        """Have a stage performed; gives what stands for its reference.

        It waits for the next call, which tells whether it is one of many.
        """
        self._insist_on_time()
        held = self._held and self._held[0].stage
        if held is not stage or any(each.share is None for each in within(arguments, _is_promise)):
            self._hand_on()
        promise = Promise(stage, name, arguments)
        self._held.append(promise)
        return promise

    def _hand_on(self) -> None:
        """Submit what is held, to the flow's task runner."""
        held, self._held = self._held, []
        size = _TOGETHER if len(held) > _MOST_ALONE and not held[0].stage.is_heavy else 1
        for start in range(0, len(held), size):
            self._submit(held[start : start + size])

    def _submit(self, promises: list[Promise]) -> None:
        """Submit calls of one stage as one task."""
        stage = promises[0].stage
        task = _task(stage)
        if stage.is_heavy:
            task = task.with_options(tags=self.tags(stage.name))
        calls = [(each.name, replaced(each.arguments, _is_promise, _share)) for each in promises]
        with contextlib.ExitStack() as granted:
            papers = None
            if self._contact:
                papers = [self._papers(each) for each in promises]
                if self._cluster:
                    device = self.settings.device if stage.is_heavy else "cpu"
                    cores = max(each.cores for each in papers)
                    granted.enter_context(self._cluster.granting(cores, device))
            future = task.submit(calls, self.settings, papers)
        self.futures.append(future)
        self._names[id(future)] = [each.name for each in promises]
        for place, promise in enumerate(promises):
            promise.share = Share(future, place)

    def _papers(self, promise: Promise) -> Papers:
        assert self._contact
        cores = promise.stage.cores(promise.arguments, self.settings.device)
        known = replaced(promise.arguments, _is_promise, lambda each: Ref(each.name))
        return self._contact.papers(promise.stage, known, cores)

    def stop(self) -> None:
        """End what this run still computes, here and elsewhere."""
        self.runner.stop()
        if self._contact:
            self._contact.end()

    def fallen(self, rungs: Mapping[str, Iterable[Any]]) -> dict[str, str]:
        """Wait for their stages; of those that failed of themselves, why, in one line."""
        self._hand_on()
        why = {}
        for name, promises in rungs.items():
            parts = {each.name: self._failures(_share(each).refs) for each in promises}
            failures = [each[part] for part, each in parts.items() if part in each]
            if failures and not any(isinstance(each, CommonError) for each in failures):
                self._fallen |= parts.keys()
                text = in_brief(failures[0])
                why[name] = text.partition(f"[{name}]: ")[2] or text
        return why

    def _failures(self, future: Any) -> dict[str, Exception]:
        """Why stages of a task failed, by name."""
        failure = self._failure(future)
        if isinstance(failure, SeveralError):
            return failure.each
        return dict.fromkeys(self._names.get(id(future), [""]), failure) if failure else {}

    def _failure(self, future: Any) -> Exception | None:
        """Why a task failed, see `_failure`; whatever keeps this from waiting ends the run."""
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
        self._hand_on()
        found = [each for future in self.futures for each in self._failures(future).items()]
        failures = [error for name, error in found if name not in self._fallen]
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
        share = _share(handle)
        ref: Ref = share.refs.result()[share.place]
        return ref

    def results(self) -> dict[str, Ref]:
        """The reference of every stage that gave one, by name; for when all have finished."""
        done = [each for each in self.futures if each.state.is_completed()]
        return {ref.label: ref for future in done for ref in future.result()}


# Tasks


class Promise:
    """What stands for the result of a call until a task has it: a flow hands it on."""

    def __init__(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> None:
        self.stage, self.name, self.arguments = stage, name, arguments
        self.share: Share | None = None  # once it is submitted


class Share(NamedTuple):
    """A call's part of what its task gives."""

    refs: Any  # a Prefect future of the references, which is these themselves inside a task
    place: int


def _is_promise(value: Any) -> bool:
    return isinstance(value, Promise)


def _share(promise: Promise) -> Share:
    assert promise.share, "what a call is given is submitted before it"
    return promise.share


def _is_share(value: Any) -> bool:
    return isinstance(value, Share)


def _taken(share: Share) -> Ref:
    ref: Ref = share.refs[share.place]
    return ref


Calls = list[tuple[str, dict[str, Any]]]  # names and arguments of calls of one stage


@functools.cache
def _task(stage: Stage[Any, Any]) -> Task[..., Any]:
    """The Prefect task of calls of a stage: most often of one, which then is its name."""

    def perform(calls: Calls, settings: Settings, papers: list[Papers] | None) -> Any:
        calls = [(name, replaced(given, _is_share, _taken)) for name, given in calls]
        try:
            if papers:
                return _ended(_perform_abroad(stage, calls, settings, papers))
            return _ended(_perform(stage, calls, settings))
        except StoppedError as error:
            return Cancelled(message=str(error))

    named: Any = lambda parameters: _spoken([name for name, _given in parameters["calls"]])  # noqa: E731
    return Task(
        perform,
        name=stage.name,
        description=inspect.getdoc(stage.fn),
        task_run_name=named,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _perform(stage: Stage[Any, Any], calls: Calls, settings: Settings) -> list[Ref]:
    """The body of a task in the run's own process."""
    session = SESSION.get(None)
    processes = session.runner if isinstance(session, Orchestrated) else process.Processes()

    def perform(name: str, arguments: dict[str, Any], runner: Runner) -> Ref:
        return Call(stage, name, arguments, settings, runner, Telling(name)).perform()

    return _all_of(calls, processes, perform)


def _perform_abroad(
    stage: Stage[Any, Any], calls: Calls, settings: Settings, papers: list[Papers]
) -> list[Ref]:
    """The body of a task on a worker elsewhere.  Raises CommonError where that does not agree."""
    Plainly.begin()
    visit = Visit(papers[0], Path(settings.cache))
    own.search(settings.places)
    token = OBSERVER.set(visit.tell)
    shown = {name: each for (name, _given), each in zip(calls, papers, strict=True)}

    def perform(name: str, arguments: dict[str, Any], runner: Runner) -> Ref:
        cores = shown[name].cores
        call = Call(stage, name, arguments, settings, runner, Telling(name), cores)
        visit.insist_on_same_code(call.look, shown[name])
        return call.perform()

    try:
        return _all_of(calls, process.Processes(visit.is_over), perform)
    finally:
        OBSERVER.reset(token)


def _all_of(
    calls: Calls,
    processes: process.Processes,
    perform: Callable[[str, dict[str, Any], Runner], Ref],
) -> list[Ref]:
    """The references of all calls.

    Where some fail the others are performed, and SeveralError says which; what keeps all from
    running is raised at once.
    """
    if len(calls) == 1:
        return [perform(*calls[0], processes)]
    refs: list[Ref] = []
    failures: dict[str, Exception] = {}
    with processes.together() as runner:
        for name, arguments in calls:
            try:
                refs.append(perform(name, arguments, runner))
            except (CommonError, StoppedError):
                raise
            except (LadderError, StageError) as error:
                failures[name] = error
    if failures:
        raise SeveralError(failures)
    return refs


def _ended(refs: list[Ref]) -> Any:
    """What a task gives: a Cached state, or the references of what was computed."""
    if any(ref.outcome.state == "ran" for ref in refs):
        return refs
    keys = ", ".join(ref.key[:12] for ref in refs[:3]) + " ..." * (len(refs) > 3)
    return Completed(name="Cached", message=f"same key as before: {keys}", data=refs)


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


def _spoken(names: list[str]) -> str:
    """What a task of these stages is called."""
    first, last = spoken(names[0]), spoken(names[-1])
    return first if len(names) == 1 else f"{first} to {last.partition(' ')[2]}"
