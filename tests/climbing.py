"""A climb without Prefect, for processes that are to be killed in the middle of one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
from PIL import Image

from flows import ladder as flow
from tasks.caching import traces
from tasks.caching.call import Settings
from tasks.caching.refs import Ref
from tasks.caching.session import Session, opening
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.rungs.calibrate import calibrate
from tasks.rungs.measure import measure
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

FIGURES: defaultdict[str, Counter[str]] = defaultdict(Counter)  # printed after the whole suite
Event = tuple[str, str, float]  # what happened, to which stage, and when


class StopHere(Exception):  # noqa: N818 - no error
    """The run has come to the stage it was to stop at."""


def climbed(
    recipe: Recipe,
    training: list[Stack],
    testing: list[Stack],
    classes: list[str],
    validation: float | Literal["testing"] = 0.1,
    run: Run = Run(),
) -> list[dict[str, Any]]:
    """A rung, as its three stages give it."""
    watched = testing if validation == "testing" else []
    trained = train.fn(training, watched, classes, recipe, validation, run=run)
    calibration = calibrate.fn(trained)
    figures = measure.fn(trained, calibration, testing, classes, recipe, run=run)
    return [trained, calibration, figures]


def climb(
    data: Path,
    stop: str = "",
    tell: Callable[[Event], None] = lambda _event: None,
    dataset: str = "tiny",
    **options: Any,
) -> dict[str, Ref]:
    """The flow's own body on a dataset, up to a stage, with all bodies in this process.

    It climbs the post's ladder, unless asked for another.  Tells of each stage that runs, ran or
    was cached; gives the references by name.
    """
    done: dict[str, Ref] = {}

    def observe(event: str, name: str, **_facts: Any) -> None:
        if event in ("runs", "ran", "cached"):
            tell((event, name, time.monotonic()))

    class UpTo(Session):
        def __init__(self, settings: Settings) -> None:
            # What a report tells of its run is the same each time, so that runs can be compared.
            super().__init__(replace(settings, started="2026-01-01T00:00:00+00:00", command=""))
            self.refs, self._tell = done, observe

        def call(self, stage: Any, name: str, arguments: dict[str, Any]) -> Any:
            if name == stop:
                raise StopHere
            return super().call(stage, name, arguments)

    with (
        mock.patch.dict(os.environ, STEPLADDER_DATA=str(data)),
        opening(UpTo),
        mock.patch.object(flow, "publish", return_value=None),
        # What other tests' bodies asked for in this process is nothing of this climb's.
        mock.patch.dict(traces._asked, clear=True),
        # A flow's bodies have processes of their own, in which sets have one order for all.
        mock.patch.object(traces, "UNORDERED", set()),
        contextlib.suppress(StopHere),
    ):
        flow.ladder.fn(dataset, **{"which": "post"} | options)
    return done


def write_tiny(data: Path) -> None:
    """Two classes of a dozen small images."""
    generator = np.random.default_rng(0)
    for split in ("training", "testing"):
        for label in ("cat", "dog"):
            folder = data / "tiny" / split / label
            folder.mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def stored(data: Path, *but: str) -> dict[str, str]:
    """Key -> digest of each record under a data root, but those of some stages."""
    paths = (data / "cache" / "records").glob("*/*.json")
    return {
        path.stem: json.loads(path.read_text())["body"]["digest"]
        for path in paths
        if path.parent.name not in but
    }
