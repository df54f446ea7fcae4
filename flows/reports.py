"""Reports that are already there: find one, open it, compare two."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shlex
import sys
import webbrowser
from pathlib import Path
from typing import Any

from flows.console import Terminal, plain, print_table
from tasks.caching.basics import (
    LadderError,
    data_root,
    entries,
    expand,
    pointed_at,
    read_regular,
    shown,
)
from tasks.caching.places import find_place


def find_report(run: str = "") -> Path:
    """The folder of a run's report.

    run: a dataset as `run` takes it or by its name (its latest run), a run's name or the beginning
    of one, "dataset/run", or the path of a report's folder or of a file in it; nothing means the
    latest run of all.
    Raises LadderError when there is none, or more than one.
    """
    path = expand(run)
    for folder in (path, path.parent) if run else ():
        if _is_file(folder / "results.json") and (folder == path or _is_file(path)):
            return folder.resolve()
    reports, runs = data_root() / "reports", all_runs()
    if not runs:
        raise LadderError(f"no report under {reports} yet; `stepladder run sample` makes one")
    if not run:
        return runs[-1].resolve()
    if home := _find_home(run, list(dict.fromkeys(each.parent for each in runs))):
        return _latest(home).resolve()
    found = [
        each
        for each in runs
        if each.name.startswith(run) or f"{each.parent.name}/{each.name}".startswith(run)
    ]
    if len(found) == 1:
        return found[0].resolve()
    if found:
        names = ", ".join(f"{each.parent.name}/{each.name}" for each in found[-3:])
        raise LadderError(f"{shown(run)} begins {len(found)} runs; say more of it, as in {names}")
    known = [name for each in runs for name in (each.parent.name, each.name)]
    near = difflib.get_close_matches(run, known, n=1)
    names = ", ".join([*dict.fromkeys(known)][-12:])
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {names}"
    raise LadderError(f"no report of a run {shown(run)}; {hint}")


def all_runs() -> list[Path]:
    """The folders of all reports, the latest last."""
    homes = entries(data_root() / "reports")
    return sorted((run for home in homes for run in _runs(home)), key=_age)


def _find_home(run: str, homes: list[Path]) -> Path | None:
    """The folder of a dataset's reports, by what means it or by its name; None where it has none.

    Raises LadderError where several have the name.
    """
    place = None
    with contextlib.suppress(LadderError):  # it may be a run's name, which is none of a dataset
        place = find_place(run)
    said = {home: _dataset_of(home) for home in homes}
    for home, dataset in said.items():
        if "home" in dataset and home.name == (place.home if place else run):
            return home
    # Versions before this one put all datasets with the same last name into one folder.
    last = place.folder.name if place else run
    named = [
        home
        for home, dataset in said.items()
        if ("home" not in dataset and home.name == last)
        or (place is None and dataset.get("name") == run)
    ]
    if len(named) > 1:
        names = ", ".join(f"{home.name}/{_latest(home).resolve().name}" for home in named)
        raise LadderError(f"{len(named)} datasets have the name {shown(run)}; say a run: {names}")
    told = [home for home in homes if home.name == run]
    return next(iter([*named, *told]), None)


def _dataset_of(home: Path) -> dict[str, Any]:
    """What the latest report says of its dataset; nothing where it cannot be read."""
    try:
        return dict(results_of(_latest(home))["dataset"])
    except (LadderError, LookupError, TypeError, ValueError):
        return {}


def dataset_of_latest() -> str:
    """What to call the dataset of the latest run of all, on a command line; "" where there is none.

    Its path, where its folder does not lie under the data root.
    """
    runs = all_runs()
    if not runs:
        return ""
    command = _results_or_nothing(runs[-1]).get("environment", {}).get("command", "")
    words = shlex.split(command) if isinstance(command, str) else []
    return words[2] if words[:2] == ["stepladder", "run"] and len(words) > 2 else ""


def _results_or_nothing(folder: Path) -> dict[str, Any]:
    try:
        return results_of(folder)
    except LadderError:
        return {}


def figures(folder: Path, *, reused: bool) -> dict[str, Any]:
    """What `run --json` tells of a report: the verdict, each rung's figures, what was promoted.

    reused: no stage ran, which a report that cannot be written may not say.
    """
    results = results_of(folder)
    names = ("label", "testing_accuracy", "interval", "validation_accuracy", "seconds")
    return {
        "headline": results["headline"],
        "best": (results["answer"] or {}).get("best"),
        "rungs": [
            {name: rung[name] for name in names} | {"cached": reused or rung["cached"]}
            for rung in results["rungs"]
        ],
        "baselines": [
            {name: each[name] for name in ("label", "accuracy", "interval")}
            for each in results["baselines"]
        ],
        "failed": {each["label"]: each["failed"] for each in results["failed"]},
        "promotion": results.get("promotion"),
    }


def _latest(home: Path) -> Path:
    """The folder of a dataset's latest run, or of the newest that is left."""
    latest = pointed_at(home / "latest")
    if latest and _is_file(home / latest / "results.json"):
        return home / latest
    return max(_runs(home), key=_age, default=home)


def _runs(home: Path) -> list[Path]:
    """The folders of a dataset's reports."""
    runs = (each for each in entries(home) if each.name[0].isdecimal())
    return [each for each in runs if os.path.lexists(each / "results.json")]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any
        return False


def _age(folder: Path) -> int:
    with contextlib.suppress(OSError):  # removed meanwhile
        return (folder / "results.json").stat().st_mtime_ns
    return 0


def open_report(run: str = "") -> Path:
    """Open a run's report in the browser where there is a screen; gives its path either way.

    Raises LadderError when there is no such report.
    """
    page = find_report(run) / "report.html"
    if not page.is_file():
        raise LadderError(f"{page} is gone; the same `stepladder run` again restores it")
    if has_screen():
        webbrowser.open(page.as_uri())
    return page


def has_screen() -> bool:
    """Whether a browser could show anything: a remote shell must not start one in the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def compare(before: str, now: str) -> dict[str, Any]:
    """Compare two runs, each named as for `find_report`.

    Gives what `tasks.report.comparison.comparison` gives, with the folders as "from" and "to".
    Raises LadderError for a run that is not there or cannot be compared.
    """
    folders = [find_report(run) for run in (before, now)]
    return {
        **_comparison(*map(results_of, folders)),
        "from": str(folders[0]),
        "to": str(folders[1]),
    }


def results_of(folder: Path) -> dict[str, Any]:
    """A report's results.json.  Raises LadderError."""
    path = folder / "results.json"
    try:
        return dict(json.loads(read_regular(path) or b""))
    except (ValueError, TypeError, RecursionError) as error:
        raise LadderError(f"{path} cannot be read: {error}") from error


def _comparison(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    from tasks.report.comparison import comparison

    try:
        return comparison(old, new)
    except (LookupError, TypeError) as error:
        raise LadderError(
            f"one of the runs was written by another version of stepladder ({error} is missing); "
            "run it again"
        ) from error


def print_comparison(compared: dict[str, Any]) -> None:
    """Two runs, rung by rung: both accuracies, what moved and whether by luck, and why."""
    from tasks.report.comparison import moved

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.2%}"

    rows = []
    for row in compared["rows"]:
        won, lost = (str(row["test"][key]) if row["test"] else "" for key in ("won", "lost"))
        rows.append(
            [row["label"], percent(row["before"]), percent(row["now"]), won, lost, moved(row)]
        )
    if compared["same_images"]:
        images = "the same testing images, so each rung is compared with itself image by image"
    else:
        images = "other testing images, so only intervals that do not touch count as moved"
    changes = [f"{row['label']}: {'; '.join(row['why'])}" for row in compared["rows"] if row["why"]]
    print_table(["rung", "before", "now", "won", "lost", "moved"], rows)
    console = Terminal(soft_wrap=True)
    console.print()
    for line in (f"{compared['from']} -> {compared['to']}", images, *changes, *compared["differs"]):
        console.print(plain(line))
