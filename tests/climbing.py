"""A climb without Prefect, for processes that are to be killed in the middle of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from flows import ladder as flow
from tasks.caching import process
from tasks.caching.basics import LadderError, StageError
from tasks.caching.plan import Ref
from tasks.caching.stage import OBSERVER, Call, Session


class StopHere(Exception):  # noqa: N818 - no error
    """The run has come to the stage it was to stop at."""


def climb(data: Path, stop: str, tell: Callable[[tuple[str, str, float]], None]) -> None:
    """The flow's own body in this process, up to a stage; tells of each stage that runs.

    Ends with the message ("end", error or "").
    """

    def submit(session: Session, task: Any, name: str, arguments: dict[str, Any]) -> Ref:
        if name == stop:
            raise StopHere
        settings = replace(session.settings, started="2026-01-01T00:00:00+00:00", command="")
        return Call(task.fn.__self__, name, arguments, settings).perform()

    def observe(event: str, name: str, **_facts: Any) -> None:
        if event in ("runs", "ran", "cached"):
            tell((event, name, time.monotonic()))

    def run_here(target: Any, arguments: Any, progress: Any, cores: int, _bodies: Any) -> Any:
        return process._function(target)(*arguments, progress=progress, cores=cores)

    error = ""
    token = OBSERVER.set(observe)
    with (
        mock.patch.dict(os.environ, STEPLADDER_DATA=str(data)),
        mock.patch.object(Session, "submit", submit),
        mock.patch.object(process, "run", run_here),
        mock.patch.object(process, "warm_up"),
        mock.patch.object(flow, "publish"),
    ):
        try:
            flow.ladder.fn("tiny", epochs=6, only="linear, cross*")
        except StopHere:
            pass
        except (LadderError, StageError) as mistake:
            error = str(mistake)
    OBSERVER.reset(token)
    tell(("end", error, time.monotonic()))


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
