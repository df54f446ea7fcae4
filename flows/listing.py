"""`stepladder list`: the datasets that are there, how often each ran, and how well."""

from __future__ import annotations

import contextlib
import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows.console import print_table
from flows.datasets import known
from flows.reports import all_runs, results_of
from tasks.caching.basics import LadderError, data_root
from tasks.report.words import percent, rung_of
from tasks.serving.registry import Registry


def datasets(
    *, json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False
) -> None:
    """List the datasets: how many runs each has, the latest, its accuracy, the model in use."""
    found = listed()
    if json:
        print(jsonlib.dumps({"datasets": found}))
        return
    rows = [
        [
            each["dataset"], str(each["runs"]), each["latest"] or "-",
            percent(each["accuracy"]).replace("\N{NO-BREAK SPACE}", " "),
            str(each["model"] or "-"), each["rung"] or "" if each["there"] else "not fetched yet",
        ]
        for each in found
    ]  # fmt: skip
    print_table(["dataset", "runs", "latest run", "accuracy", "model", ""], rows)


def listed() -> list[dict[str, Any]]:
    """Each dataset, by name those under the data root, then others that have reports.

    "dataset", "there" (whether its images are), "runs", "latest", and of that "rung", the best, and
    its "accuracy", 0 to 1; "model", the number of the model in use.
    """
    runs: dict[str, list[Path]] = {name: [] for name in known()}
    for run in all_runs():
        runs.setdefault(run.parent.name, []).append(run)
    return [_told(name, each) for name, each in runs.items()]


def _told(name: str, runs: list[Path]) -> dict[str, Any]:
    best, used = None, None
    with contextlib.suppress(LadderError, LookupError, TypeError, StopIteration, IndexError):
        results = results_of(runs[-1])
        best = rung_of(results, results["answer"]["best"])
    with contextlib.suppress(LadderError):
        used = Registry(name).current()
    return {
        "dataset": name,
        "there": bool(runs) or (data_root() / name).is_dir(),
        "runs": len(runs),
        "latest": runs[-1].name if runs else None,
        "rung": best and best["label"],
        "accuracy": best and best["testing_accuracy"],
        "model": used and used["number"],
    }
