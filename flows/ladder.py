"""The pipeline: from folders of labelled images to a report of what each rung buys.

Read the body of `ladder` first: it is the table of contents of `tasks/`.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import inspect
import shlex
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.datasets import find_dataset
from flows.parameters import (
    Command,
    Dataset,
    Device,
    Name,
    Only,
    Refresh,
    Size,
    Validation,
    within_limits,
)
from tasks.caching import machine
from tasks.caching.basics import LadderError, cache_root, shown
from tasks.caching.call import Settings, matches
from tasks.caching.orchestration import Orchestrated, begin
from tasks.caching.places import Place, find_place
from tasks.caching.plan import Planned, asleep
from tasks.caching.session import Session
from tasks.images.decode import decode
from tasks.images.scan import scan
from tasks.report.artifacts import announce
from tasks.report.page import report
from tasks.report.publish import publish
from tasks.rungs.baseline import DISTANCES, baseline, mean
from tasks.rungs.ladders import default_ladder, label, left_out, select
from tasks.rungs.limits import Epochs, allowed
from tasks.rungs.recipes import Recipes
from tasks.rungs.train import train

PLANNED: ContextVar[list[Planned] | None] = ContextVar("planned", default=None)  # of this run

# Threads only wait: each stage's body runs in a process of its own, as cores come free.
_RUNNER: Any = ThreadPoolTaskRunner(max_workers=machine.threads())


# Prefect's own look at parameters takes many lines to say no, and a plan would go without it.
@flow(
    name="ladder",
    task_runner=_RUNNER,
    flow_run_name=lambda: run_name(flow_run.parameters),
    validate_parameters=False,
)
def ladder(
    dataset: Dataset = "mnist",
    recipes: Recipes | None = None,
    validation: Validation = 0.1,
    epochs: Epochs | None = None,
    only: Only = "*",
    device: Device = "auto",
    refresh: Refresh = [],  # noqa: B006 - Prefect copies parameters, and nothing here changes it
    size: Size | None = None,
    name: Name = "",
    command: Command = "",
) -> str | None:
    """Climb the ladder on a dataset; run again, redo only what a change can reach.

    Gives the path of the report's folder.  Raises LadderError for what its user can mend.

    Args:
        dataset: sample, mnist, another folder under the data root, or the path of any dataset
        recipes: What to train, a rung each; None climbs the default ladder
        validation: Share of training held out, 0 to 1, or "testing" for the post's shortcut
        epochs: Train every recipe this long; None leaves each its own number
        only: Glob over recipe names, such as linear*, for a part of the ladder
        device: Where to train; auto takes a GPU where there is one
        refresh: Globs over stage names, such as train*, to run again even when cached
        size: Resize every image to [height, width]; None takes them as they are
        name: What to call the dataset, and whose history it goes on; left empty, its place's own
        command: How to start this run again, for the report; left empty, it is found out

    """
    # The form in Prefect's UI takes its descriptions from here; it drops those of a Field.
    dataset, recipes, validation, epochs, only, device, refresh, size, name, command = (
        within_limits(ladder.fn, locals())
    )
    place = find_dataset(dataset, name)
    session = open_session(place, device, refresh, command)
    chosen = label(select(recipes or default_ladder(), epochs, only))

    data = scan(place.folder, Path(session.settings.cache))
    training = [decode[each.label](each, size) for each in data.training]
    testing = [decode[each.label](each, size) for each in data.testing]

    means = [mean[name](stack) for name, stack in zip(data.classes, training, strict=True)]
    baselines = [baseline[d](means, testing, data.classes, d) for d in DISTANCES]

    rungs = {
        name: train[name](training, testing, data.classes, recipe, validation)
        for name, recipe in chosen.items()
    }
    page = report(
        place.name, data.classes, training, testing, means, baselines, rungs, chosen, validation,
        data.skipped, left_out(chosen.values()), place.home,
    )  # fmt: skip
    return publish(session, page)


def run_name(parameters: dict[str, Any]) -> str:
    """What a run of the flow is called: as its dataset."""
    dataset = parameters.get("dataset", inspect.signature(ladder.fn).parameters["dataset"].default)
    with contextlib.suppress(LadderError):
        name = allowed("name", Name, parameters.get("name", ""))
        if place := find_place(allowed("dataset", Dataset, dataset), name):
            return place.name
    return shown(dataset)


def open_session(place: Place, device: str, refresh: list[str], command: str) -> Session:
    """Begin a run on a dataset; show in Prefect what it is about to do, and why.

    Raises LadderError for a GPU that is not there.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session = begin(
        Settings(
            cache=str(cache_root()),
            dataset=place.home,
            device=machine.find_device(device),
            refresh=tuple(refresh),
            started=now,
            command=command or command_of({**flow_run.parameters, "dataset": place.given}),
        )
    )
    if isinstance(session, Orchestrated) and flow_run.id:
        announce(session, PLANNED.get() or plan(flow_run.parameters))
    return session


def command_of(parameters: dict[str, Any]) -> str:
    """The command line that starts the same run, but for what must be in a file of recipes."""
    words = ["stepladder", "run", parameters["dataset"]]
    usual = inspect.signature(ladder.fn).parameters
    for name in ("name", "validation", "epochs", "only", "device", "size"):
        value = parameters.get(name, usual[name].default)
        if value != usual[name].default:
            words += [f"--{name}", "x".join(map(str, value)) if name == "size" else str(value)]
    if parameters.get("recipes"):
        words += ["--recipes", "recipes.toml"]
    return shlex.join(words)


def plan(parameters: dict[str, Any]) -> list[Planned]:
    """What a run with these parameters would do: the flow itself, its stages asleep.

    Raises LadderError where that is known to fail, and for a refresh that matches no stage.
    """
    with asleep() as planned:
        contextvars.copy_context().run(ladder.fn, **parameters)
    for glob in parameters.get("refresh") or []:
        if not any(matches(each.stage, glob) for each in planned):
            raise LadderError(
                f"--refresh {shown(glob)} matches no stage; `stepladder plan` shows them"
            )
    return planned
