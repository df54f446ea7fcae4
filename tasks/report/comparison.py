"""Two runs compared: what moved, whether beyond luck, and why.

A report itself knows its own run alone, so that it can be stored and reused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.caching.basics import (
    LadderError,
    pointed_at,
    read_regular,
)
from tasks.caching.differences import FIRST
from tasks.caching.refs import Outcome
from tasks.report import measures, words
from tasks.report.markdown import table
from tasks.report.templates import template

COMPARED = Path(__file__).with_name("compared.html.j2").read_text(encoding="utf-8")
NOT_COMPARED = ("started", "command")  # of the environment: they always differ


def with_the_run_before(
    reports: Path, run: str, results: dict[str, Any], outcomes: Mapping[str, Outcome]
) -> dict[str, Any] | None:
    """What moved since the run that `latest` still points at, or None when there is none.

    A run that comes back to the report which is the latest already keeps what that one says.
    """
    try:
        before = pointed_at(reports / "latest")
        if before is None:
            return None
        old = json.loads(read_regular(reports / before / "results.json") or b"")
        if before == run:
            kept: dict[str, Any] | None = old["compared"]
            return kept
        why = {name: outcome.why for name, outcome in outcomes.items()}
        return {"run": before, **comparison(old, results, why)}
    except (LadderError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # no run before, or its file was written by other hands or another version


def comparison(
    old: dict[str, Any], new: dict[str, Any], why: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, Any]:
    """Compare two runs' results.json: what differs, and what moved.

    why: stage name -> the reasons it ran, where they are known.  Gives "started" and "command" of
    the old run, "same_images" (whether both were tested on the same), "differs" (texts) and
    "rows", one for each baseline and rung: "label", "before" and "now" (accuracies, None where a
    run has none), "failed" ("before" or "now", where all its seeds did), "test" (the paired test,
    None unless it can be made), "real" (whether the accuracy moved beyond luck, all these tests
    taken together) and "why" (texts).
    """
    data = [
        (each["dataset"]["testing_digest"], each["dataset"]["classes"],
         each["health"]["counts"]["testing"])
        for each in (old, new)
    ]  # fmt: skip
    same = data[0] == data[1]
    before, now = _by_label(old), _by_label(new)
    fallen = {
        name: {each["label"] for each in words.without_a_seed(results)}
        for name, results in (("before", old), ("now", new))
    }
    rows = []
    for label in [*now, *(label for label in before if label not in now)]:
        row = _row(before.get(label), now.get(label), new["dataset"]["images"]["testing"], same)
        runs = now.get(label, {}).get("runs", [])
        reasons = [r for each in runs for r in (why or {}).get(f"train[{each['label']}]", ())]
        row["failed"] = [name for name, rungs in fallen.items() if label in rungs]
        row["why"] = [r for r in dict.fromkeys([*row["why"], *reasons]) if r != FIRST]
        rows.append({"label": label, **row})
    # Of those that answer as before there is nothing to test.
    tests = [row for row in rows if row["test"] and row["test"]["won"] + row["test"]["lost"]]
    for row, p in zip(tests, measures.holm([row["test"]["p"] for row in tests]), strict=True):
        row["test"]["p_adjusted"] = p
        row["real"] = p < 0.05
    return {
        "started": old["environment"]["started"],
        "command": old["environment"]["command"],
        "same_images": same,
        "differs": [*_settings(old, new)],
        "rows": rows,
    }


def _by_label(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every baseline and rung of a run, with its `accuracy` under one name."""
    baselines = {each["label"]: each for each in results["baselines"]}
    rungs = {
        each["label"]: each | {"accuracy": each["testing_accuracy"]} for each in results["rungs"]
    }
    return baselines | rungs


def _row(
    old: dict[str, Any] | None, new: dict[str, Any] | None, n: int, same: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "before": old and old["accuracy"],
        "now": new and new["accuracy"],
        "test": None,
        "real": False,
        "why": [],
    }
    if old is None or new is None:
        return row
    row["why"] = _changes(_recipe(old), _recipe(new))
    if same:
        row["test"] = measures.compare(_sheet(new, n), _sheet(old, n))
        return row
    (low, high), (bottom, top) = old["interval"], new["interval"]
    return row | {"real": bottom > high or top < low}


def _recipe(entry: dict[str, Any]) -> dict[str, Any]:
    """What a rung was trained by, but for the seed, which its label says."""
    return {field: value for field, value in entry.get("recipe", {}).items() if field != "seed"}


def _sheet(entry: dict[str, Any], n: int) -> np.ndarray:
    """The answer sheet of a baseline, [n] bool, or of a rung, [S, n]."""
    if "runs" in entry:
        return np.stack([measures.unpacked(run["right"], n) for run in entry["runs"]])
    return measures.unpacked(entry["right"], n)


def _settings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In words, what is not the same around two runs: images, validation, versions, machine."""
    flat = [
        {
            **{f"{split} images": n for split, n in each["dataset"]["images"].items()},
            "classes": len(each["dataset"]["classes"]),
            "validation": each["validation"],
            **{k: v for k, v in each["environment"].items() if k not in NOT_COMPARED},
        }
        for each in (old, new)
    ]
    return _changes(*flat)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def moved(row: dict[str, Any]) -> str:
    """In words, whether an accuracy moved, and beyond luck or not."""
    if row["before"] is None:
        return "failed before" if "before" in row["failed"] else "new"
    if row["now"] is None:
        return "failed this time" if "now" in row["failed"] else "not climbed this time"
    if row["test"] and row["test"]["won"] + row["test"]["lost"] == 0:
        return "unchanged"
    if not row["real"]:
        return "could be luck"
    return "up, beyond luck" if row["now"] > row["before"] else "down, beyond luck"


def section_of(compared: dict[str, Any]) -> str:
    """A comparison as a section of report.html; what stayed as it was is only counted."""
    rows = [row for row in compared["rows"] if row["why"] or moved(row) != "unchanged"]
    steady = len(compared["rows"]) - len(rows)
    return template(COMPARED).render({**compared, "rows": rows}, steady=steady, moved=moved)


def markdown(compared: dict[str, Any]) -> str:
    """A comparison as a section of Markdown."""
    rows = [
        [row["label"], words.percent(row["before"]), words.percent(row["now"]), moved(row),
         "; ".join(row["why"])]
        for row in compared["rows"]
    ]  # fmt: skip
    head = ["rung", "before", "now", "moved", "why"]
    lines = ["", f"## Compared with {compared['run']}", "", *table(head, rows)]
    if compared["differs"]:
        lines += [
            "",
            *table(["what differs around the rungs"], [[d] for d in compared["differs"]]),
        ]
    return "\n".join(lines) + "\n"
