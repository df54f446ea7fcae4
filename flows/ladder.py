"""The pipeline: from folders of labelled images to a report of what each rung adds.

Read the body of `ladder` first: it is the table of contents of `tasks/`.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import functools
import inspect
import os
import shlex
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.datasets import find_dataset, validates
from flows.endings import end_with_worker
from flows.parameters import (
    Columns,
    Command,
    Dataset,
    Device,
    Fields,
    Fit,
    Flag,
    Name,
    Only,
    Pattern,
    PromoteIf,
    Refresh,
    Size,
    Testing,
    Timeout,
    Validation,
    Which,
    seconds,
    within_limits,
)
from flows.parameters import (
    Path as FilePath,
)
from flows.runners import task_runner
from tasks.caching import machine
from tasks.caching.basics import LadderError, cache_root, shown
from tasks.caching.call import Settings, matches
from tasks.caching.orchestration import Orchestrated, begin
from tasks.caching.places import Place, find_place
from tasks.caching.plan import Planned, asleep
from tasks.caching.session import Session
from tasks.images.decode import decode
from tasks.images.headers import choose, converted, shape_of
from tasks.images.layout import Reading
from tasks.images.scan import scan
from tasks.report.artifacts import announce, ended
from tasks.report.page import report
from tasks.report.publish import publish
from tasks.report.twins import twins
from tasks.rungs.baseline import DISTANCES, baseline, mean
from tasks.rungs.calibrate import calibrate
from tasks.rungs.familiar import familiar
from tasks.rungs.ladders import label, ladder_for, left_out, mirror_trial, select
from tasks.rungs.limits import Epochs, allowed
from tasks.rungs.measure import measure
from tasks.rungs.mirror import mirror
from tasks.rungs.recipes import Recipes
from tasks.rungs.train import train
from tasks.serving.candidate import consider

PLANNED: ContextVar[list[Planned] | None] = ContextVar("planned", default=None)  # of this run

_ATTEMPTS = 3  # of a run that crashes, where automations/ has it begin again
_RUNNER: Any = task_runner()


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
    testing: Testing = 0.2,
    epochs: Epochs | None = None,
    only: Only = "*",
    device: Device = "auto",
    refresh: Refresh = [],  # noqa: B006 - Prefect copies parameters, and nothing here changes it
    size: Size | None = None,
    fit: Fit = "crop",
    strict: Flag = False,
    skip_bad: Flag = False,
    labels: FilePath = "",
    columns: Columns = {},  # noqa: B006 - nor this
    class_from: Pattern = "",
    keep_together: Flag = False,
    name: Name = "",
    which: Which = "auto",
    promote_if: PromoteIf = "p<0.05",
    fields: Fields = {},  # noqa: B006 - nor this
    timeout: Timeout | None = None,
    stage_timeout: Timeout | None = None,
    command: Command = "",
) -> Any:
    """Climb the ladder on a dataset; run again, redo only what a change can reach.

    Gives the path of the report's folder.  Raises LadderError for what its user can mend.

    Args:
        dataset: sample, mnist, another folder under the data root, or the path of any dataset
        recipes: What to train, a rung each; None climbs the ladder that `which` says
        validation: Share of training held out, 0 to 1, or "testing" for the post's shortcut
        testing: Share drawn for testing, 0 to 1, where no folder says which images are
        epochs: Train every recipe this long; None leaves each its own number
        only: Glob over recipe names, such as linear*, for a part of the ladder
        device: Where to train; auto takes a GPU where there is one
        refresh: Globs over stage names, such as train*, to run again even when cached
        size: Resize every image to [height, width]; None chooses it where they differ, at most 64
        fit: How an image of another aspect is resized: crop, pad or stretch
        strict: Take images as they are, and refuse what differs or would be converted
        skip_bad: Leave damaged files out, and list them, instead of refusing them
        labels: A manifest, CSV, Parquet or JSON lines, that says what each image shows
        columns: What the manifest's columns path, label and split are called, if not as usual
        class_from: Regular expression that finds the class in an image's path, its first group
        keep_together: Draw near duplicates for one side
        name: What to call the dataset, and whose history it goes on; left empty, its place's own
        which: auto climbs a ladder that fits the images, post that of the post, as MNIST's do
        promote_if: When the best rung becomes the model in use: p<0.05, better, never or always
        fields: Set these fields of every recipe; a list of values makes a rung of each
        timeout: End the run when it takes longer: seconds, or 90s, 30m, 8h; None for any time
        stage_timeout: End a stage when it takes longer, and leave its rung out
        command: How to start this run again, for the report; left empty, it is found out

    """
    # The form in Prefect's UI takes its descriptions from here; it drops those of a Field.
    (
        dataset, recipes, validation, testing, epochs, only, device, refresh, size, fit, strict,
        skip_bad, labels, columns, class_from, keep_together, name, which, promote_if, fields,
        timeout, stage_timeout, command,
    ) = within_limits(ladder.fn, locals())  # fmt: skip
    place = find_dataset(dataset, name)
    times = seconds(timeout), seconds(stage_timeout)
    session = open_session(place, device, refresh, command, times)

    reading = Reading(testing, labels, columns, class_from, keep_together)
    data = scan(place.folder, Path(session.settings.cache), reading)
    validated_by = validates(validation, is_given=bool(data.validation))
    form = choose(data.headers, size, fit, strict, skip_bad)
    count = sum(each.count for each in data.training)
    whole = ladder_for(shape_of(data.headers, form), count, which)
    chosen = label(select(recipes or whole, epochs, only, fields))
    training = [decode[each.label](each, form) for each in data.training]
    held = [decode[each.label](each, form) for each in data.validation]
    tested = [decode[each.label](each, form) for each in data.testing]

    means = [mean[name](stack) for name, stack in zip(data.classes, training, strict=True)]
    baselines = [baseline[d](means, tested, data.classes, d) for d in DISTANCES]

    usual = familiar(training)
    watched = tested if validation == "testing" else held
    mirrored: list[Any] = []
    if trial := mirror_trial(chosen.values(), count):
        tried = train["mirror trial"](training, watched, data.classes, trial, validated_by)
        mirrored = [tried, mirror(tried, training, watched, data.classes, trial, validated_by)]
    rungs, stages = {}, {}
    for name, recipe in chosen.items():
        first = mirrored if recipe.flip == "auto" else []
        found = first[-1] if first else None
        trained = train[name](training, watched, data.classes, recipe, validated_by, found)
        calibration = calibrate[name](trained)
        figures = measure[name](trained, calibration, tested, data.classes, recipe)
        rungs[name] = [trained, calibration, figures]
        stages[name] = [*first, *rungs[name]]

    alike = twins(training, held, tested, data.classes)
    failed = session.fallen(stages)
    stood = {name: parts for name, parts in rungs.items() if name not in failed}
    page = report(
        place.name, data.classes, training, tested, means, baselines, stood, chosen, validated_by,
        data.skipped, left_out([chosen[name] for name in stood], whole), place.home,
        held, data.split, alike,
        converted(data.headers, form, chosen=size is not None), failed, fit, usual,
    )  # fmt: skip
    folder = publish(session, page, failed, functools.partial(consider, rule=promote_if))
    return ended(folder)


def run_name(parameters: dict[str, Any]) -> str:
    """What a run of the flow is called: as its dataset."""
    dataset = parameters.get("dataset", inspect.signature(ladder.fn).parameters["dataset"].default)
    with contextlib.suppress(LadderError):
        name = allowed("name", Name, parameters.get("name", ""))
        if place := find_place(allowed("dataset", Dataset, dataset), name):
            return place.name
    return shown(dataset).strip("'")


def open_session(
    place: Place, device: str, refresh: list[str], command: str, times: tuple[int, int]
) -> Session:
    """Begin a run on a dataset; show in Prefect what it is about to do, and why.

    times: the seconds that the run and each of its stages are given, 0 for any number

    Raises LadderError for a GPU that is not there, and for a run that has crashed too often.
    """
    if (flow_run.run_count or 0) > _ATTEMPTS:
        raise LadderError(
            f"this run has crashed {_ATTEMPTS} times: see the worker's log (too little memory?), "
            "and start it anew"
        )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session = begin(
        Settings(
            cache=str(cache_root()),
            dataset=place.home,
            device=machine.find_device(device),
            refresh=tuple(refresh),
            started=now,
            command=command or command_of({**flow_run.parameters, "dataset": place.given}),
            timeout=times[0],
            stage_timeout=times[1],
        )
    )
    if os.environ.get("PREFECT__FLOW_RUN_ID"):  # started by a worker
        end_with_worker()
    if isinstance(session, Orchestrated) and flow_run.id:
        announce(session, PLANNED.get() or plan(flow_run.parameters))
    return session


def command_of(parameters: dict[str, Any]) -> str:
    """The command line that starts the same run, but for what must be in a file of recipes."""
    words = ["stepladder", "run", parameters["dataset"]]
    usual = inspect.signature(ladder.fn).parameters
    for name in ("name", "validation", "testing", "labels", "class_from", "epochs", "only",
                 "device", "size", "fit", "which", "promote_if", "timeout",
                 "stage_timeout"):  # fmt: skip
        value = parameters.get(name, usual[name].default)
        if value != usual[name].default:
            option = "ladder" if name == "which" else name.replace("_", "-")
            words += [f"--{option}", "x".join(map(str, value)) if name == "size" else str(value)]
    if columns := parameters.get("columns"):
        words += ["--columns", ",".join(f"{what}={name}" for what, name in columns.items())]
    for name in ("strict", "skip_bad", "keep_together"):
        words += [f"--{name.replace('_', '-')}"] * bool(parameters.get(name))
    for name, value in (parameters.get("fields") or {}).items():
        values = value if isinstance(value, list) else [value]
        option = "seeds" if name == "seed" else name.replace("_", "-")
        words += [f"--{option}", ",".join(map(str, values))]
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
