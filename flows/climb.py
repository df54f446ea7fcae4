"""What `stepladder run` does when it is not plain at a glance that nothing changed.

The plan comes first.  Where it has nothing to run, the stored report is served, without Prefect;
else the flow runs, on a server of its own where there is none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from pathlib import Path
from typing import Any

from flows.endings import stop_without_server
from flows.options import Given, Options
from flows.quick import Memory
from tasks.caching.basics import LadderError, cache_root
from tasks.caching.places import Place, find_place

CHAPTERS = (  # those with stages
    "tasks.images.decode",
    "tasks.rungs.baseline",
    "tasks.rungs.calibrate",
    "tasks.rungs.familiar",
    "tasks.rungs.measure",
    "tasks.rungs.mirror",
    "tasks.rungs.train",
    "tasks.report.page",
    "tasks.report.twins",
)


def climb(
    dataset: Given,
    options: Options,
    display: Any,
    audit: int,
    memory: Memory | None,
    *,
    verbose: bool,
) -> Path:
    """Run the flow, unless its plan shows that nothing is to be done.  Gives the report's folder.

    The first run with these options starts a server without waiting for that plan.
    """
    from flows.server import TemporaryServer
    from tasks.caching import process

    tame_prefect(verbose)
    process.warm_up(*CHAPTERS)  # it imports torch and these, while this process does
    server = TemporaryServer(stop_without_server)
    if memory:
        if memory.is_first:
            server.begin()
        memory.look()
    display.wait("looking at what has changed")
    with memory.watching() if memory else contextlib.nullcontext():
        parameters = options.parameters(dataset)
        planned = planned_by(parameters)
    folder = _run(planned, parameters, display, audit, server)
    if memory and (place := find_place(parameters["dataset"], parameters["name"])):
        _hold(memory, place.home, [each.stage for each in planned])
    return folder


def _hold(memory: Memory, dataset: str, stages: list[str]) -> None:
    """Tell the memory of the stages that were planned, by the records that they came to.

    Where one is not to be had, nobody can tell what the next plan depends on.
    """
    from tasks.caching.store import Store

    store = Store(cache_root())
    seconds: dict[str, float] = {}
    asked: dict[str, str] = {}
    for name in stages:
        with contextlib.suppress(LadderError):
            if last := store.last(dataset, name):
                path = store.record_path(name.partition("[")[0], last["key"])
                if record := store.read_record(path):
                    seconds[name] = record.seconds
                    asked |= record.about.get("asked", {})
    if len(seconds) == len(stages):
        memory.hold(seconds, asked)
    else:
        memory.seen = None


def _serve(planned: list[Any], place: Place | None, rule: Any) -> Path:
    """Place the stored report of a run in which every stage is cached."""
    from tasks.caching.store import Store
    from tasks.report.publish import place as put
    from tasks.serving.candidate import consider

    store = Store(cache_root())
    for each in planned:
        if each.changes and place:
            # Going back to what is stored is a last time, too, for the next plan's reasons.
            memory = {**each.look.to_remember(), "seconds": each.seconds}
            with contextlib.suppress(LadderError):  # a read-only store still serves
                store.remember(place.home, each.stage, memory)
    refs = {each.stage: each.ref for each in planned}
    return put(refs["report"], refs, store.root, functools.partial(consider, rule=rule))


def _run(
    planned: list[Any], parameters: dict[str, Any], display: Any, audit: int, server: Any
) -> Path:
    hits = [each.stage for each in planned if each.state == "cached" and each.comparable]
    audited = random.sample(hits, min(audit, len(hits)))
    if all(each.state == "cached" for each in planned) and not audited:
        display.states |= {each.stage: "cached" for each in planned}
        place = find_place(parameters["dataset"], parameters["name"])
        return _serve(planned, place, parameters["promote_if"])
    display.wait("starting Prefect")
    from flows.ladder import PLANNED, ladder
    from tasks.caching.orchestration import AUDIT, OBSERVER

    OBSERVER.set(display)
    AUDIT.set(tuple(audited))
    PLANNED.set(planned)
    with server.use():
        return Path(ladder(**parameters))


def planned_by(parameters: dict[str, Any]) -> list[Any]:
    """The plan of a run with these parameters of the flow."""
    from flows import ladder

    return ladder.plan(parameters)


def tame_prefect(verbose: bool) -> None:
    """Keep Prefect's log off the terminal unless asked for; the server gets it all the same.

    Must come before Prefect is imported.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
