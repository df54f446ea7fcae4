"""`stepladder history`: all kept runs of a dataset, in the terminal and as a page."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from flows.console import print_table
from flows.endings import say
from flows.options import Given, offers
from flows.reports import find_report
from tasks.caching.basics import LadderError
from tasks.report.history import Kept, kept_runs, place_history
from tasks.report.words import duration, percent, span

SHOWN = 30  # runs that the terminal shows


def history(
    dataset: Annotated[
        Given,
        Parameter(
            help="A dataset, or one of its runs; that of the latest run if left out",
            completer=offers("runs"),
        ),
    ] = "",
    /,
    *,
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Show every kept run of a dataset: accuracy, images, seconds, what changed; as a page too."""
    reports = find_report(str(dataset)).parent
    try:
        runs = place_history(reports)
    except LadderError as error:  # where nothing can be written, it is told all the same
        say(str(error))
        runs = kept_runs(reports)
    page = reports / "history.html"
    if json:
        told = [{k: v for k, v in asdict(run).items() if k not in ("mean", "sketch")}
                for run in runs]  # fmt: skip
        print(jsonlib.dumps({"history": str(page), "runs": told}))
        return
    head = ["best rung", "run", "accuracy", "95 % interval", "images", "new", "computing", ""]
    print_table(head, [_row(run) for run in runs[-SHOWN:]])
    if len(runs) > SHOWN:
        print(f"and {len(runs) - SHOWN} before, which the page shows")
    print(f"history: {page}")


def _row(run: Kept) -> list[str]:
    if run.accuracy is None:
        return ["-", run.run, *["-"] * 5, "its report cannot be read"]
    told = ["worse than the model in use"] * run.regression + ["promoted"] * run.promoted
    changed = [*run.changed[:1], *([f"and {len(run.changed) - 1} more"] if run.changed[1:] else [])]
    cells = [
        run.rung, run.run, percent(run.accuracy),
        span([*run.interval]), f"{run.images.get('training', 0):,}", percent(run.new),
        duration(run.seconds), "; ".join([*told, *changed]),
    ]  # fmt: skip
    return [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells]
