"""Put a report where people look: `reports/<home>/<run>/`, `latest` beside it, and Prefect.

A dataset's home is its name where nothing else can have that; see `tasks.caching.places`.

Here it is also held against the run before: a report itself knows its own run alone, so that it
can be stored and reused.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    point_to,
    pointed_at,
    read_regular,
    write_atomic,
)
from tasks.caching.plan import FIRST, Outcome, Planned, Ref
from tasks.caching.stage import Session
from tasks.report import measures, page, words

SLOT = b"<!-- compared with the run before -->"  # in report.html; no name can hold its brackets
BEFORE = b"\n## What ran\n"  # in report.md; no name can hold its line breaks
COMPARED = Path(__file__).with_name("compared.html.j2").read_text(encoding="utf-8")
NOT_COMPARED = ("started", "command")  # of the environment: they always differ


def publish(session: Session, page: Any) -> str | None:
    """Wait for the report, place its files, and show it in Prefect.  In a plan, do nothing.

    Gives the path of the report's folder.  Raises LadderError that names each stage that failed.
    """
    ref = session.finish(page)
    if ref is None:
        return None
    outcomes = session.outcomes()
    folder = place(ref, outcomes, Path(session.settings.cache))
    _show_in_prefect(folder, outcomes)
    return str(folder)


def place(ref: Ref, outcomes: Mapping[str, Outcome], cache: Path) -> Path:
    """Write a stored report's files to its folder, restoring what was deleted there.

    The folder is named after the run that wrote the report; a later run that changes nothing
    comes back to it and only notes in results.json that each rung was cached.  What moved since
    the run before is put into the page, the Markdown and results.json.
    """
    files, results = _of_a_report(ref.load(cache))
    for rung in results["rungs"]:
        outcome = outcomes.get(f"train[{rung['label']}]")
        rung["cached"] = outcome is not None and outcome.state == "cached"
    reports = cache.parent / "reports" / results["dataset"]["home"]
    started = re.sub(r"\D", "", results["environment"]["started"])[:14]
    folder = reports / f"{started}-{ref.key[:8]}"

    compared = results["compared"] = with_the_run_before(reports, folder.name, results, outcomes)
    if compared:
        section = section_of(compared)
        files["report.html"] = files["report.html"].replace(SLOT, section.encode())
        files["report.md"] = files["report.md"].replace(
            BEFORE, markdown(compared).encode() + BEFORE
        )
    files["results.json"] = json.dumps(results, indent=1, allow_nan=False).encode()
    whole = all((folder / name).is_file() for name in files)
    try:
        for name, data in files.items():
            if not _holds(folder / name, data):
                write_atomic(folder / name, data)
        point_to(reports / "latest", folder.name)
    except LadderError:
        if not whole:  # where nothing can be written, what is there serves as it is
            raise
    return folder


def _of_a_report(value: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A stored report's files and its results.  Raises DamagedError for anything else.

    Its names become files: whoever can write to the cache must not choose where they lie.
    """
    try:
        results = json.loads(value["results.json"])
        parts = [*value, results["dataset"]["home"]]
        plain = all(re.fullmatch(r"[^/\0]+", part) and part not in (".", "..") for part in parts)
        if plain and all(isinstance(data, bytes) for data in value.values()):
            return dict(value), dict(results)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    raise DamagedError("the stored report was not written here; --refresh report makes it again")


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file is there and holds just this."""
    with contextlib.suppress(DamagedError):
        return read_regular(path) == data
    return False


# Two runs held against each other


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
    """Hold two runs' results.json against each other: what differs, and what moved.

    why: stage name -> the reasons it ran, where they are known.  Gives "started" and "command" of
    the old run, "same_images" (whether both were tested on the same), "differs" (texts) and
    "rows", one for each baseline and rung: "label", "before" and "now" (accuracies, None where a
    run has none), "test" (the paired test, None unless it can be made), "real" (whether the
    accuracy moved beyond luck) and "why" (texts).
    """
    data = [
        (each["dataset"]["testing_digest"], each["dataset"]["classes"],
         each["health"]["counts"]["testing"])
        for each in (old, new)
    ]  # fmt: skip
    same = data[0] == data[1]
    before, now = _by_label(old), _by_label(new)
    rows = []
    for label in [*now, *(label for label in before if label not in now)]:
        row = _row(before.get(label), now.get(label), new["dataset"]["images"]["testing"], same)
        reasons = (why or {}).get(f"train[{label}]", ())
        row["why"] = [r for r in dict.fromkeys([*row["why"], *reasons]) if r != FIRST]
        rows.append({"label": label, **row})
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
    row["why"] = _changes(old.get("recipe", {}), new.get("recipe", {}))
    if same:
        row["test"] = measures.compare(_unpacked(new["right"], n), _unpacked(old["right"], n))
        return row | {"real": row["test"]["p"] < 0.05}
    (low, high), (bottom, top) = old["interval"], new["interval"]
    return row | {"real": bottom > high or top < low}


def _unpacked(right: str, n: int) -> np.ndarray:
    """What `measures.packed` packed.  [n] bool."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(right), np.uint8))
    return bits[:n].astype(bool)


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
        return "new"
    if row["now"] is None:
        return "not climbed this time"
    if row["test"] and row["test"]["won"] + row["test"]["lost"] == 0:
        return "unchanged"
    if not row["real"]:
        return "could be luck"
    return "up, beyond luck" if row["now"] > row["before"] else "down, beyond luck"


def section_of(compared: dict[str, Any]) -> str:
    """A comparison as a section of report.html; what stayed as it was is only counted."""
    rows = [row for row in compared["rows"] if row["why"] or moved(row) != "unchanged"]
    steady = len(compared["rows"]) - len(rows)
    return page.template(COMPARED).render({**compared, "rows": rows}, steady=steady, moved=moved)


def markdown(compared: dict[str, Any]) -> str:
    """A comparison as a section of Markdown."""
    rows = [
        [row["label"], words.percent(row["before"]), words.percent(row["now"]), moved(row),
         "; ".join(row["why"])]
        for row in compared["rows"]
    ]  # fmt: skip
    head = ["rung", "before", "now", "moved", "why"]
    lines = ["", f"## Compared with {compared['run']}", "", *page.table(head, rows)]
    if compared["differs"]:
        lines += [
            "",
            *page.table(["what differs around the rungs"], [[d] for d in compared["differs"]]),
        ]
    return "\n".join(lines) + "\n"


# Prefect's pages


def announce(session: Session, planned: list[Planned]) -> None:
    """Show in Prefect what is about to run, and why, before the first stage does."""
    from prefect.artifacts import create_table_artifact

    cached = sum(each.state == "cached" for each in planned)
    create_table_artifact(
        plan_table(planned),
        key=f"plan-{_slug(session.settings.dataset)}",
        description=f"What is about to run, and why: {len(planned) - cached} of "
        f"{len(planned)} stages, {cached} are cached",
    )


def _slug(home: str) -> str:
    """A dataset's home in the letters that Prefect takes for an artifact's key, and still its own.

    Where letters had to go, a digest keeps it from the key of another.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", home.lower()).strip("-")[:60]
    return slug if slug == home else f"{slug or 'dataset'}-{sha256(home.encode()).hexdigest()[:8]}"


def _show_in_prefect(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    name = _slug(results["dataset"]["home"])
    create_markdown_artifact(
        (folder / "report.md").read_text(encoding="utf-8"),
        key=f"report-{name}",
        description=f"The whole report: {folder / 'report.html'}",
    )
    create_table_artifact(
        ladder_table(results),
        key=f"ladder-{name}",
        description=" ".join([results["headline"], *map(words.escaped, results["warnings"])]),
    )
    create_table_artifact(
        stages_table(outcomes), key=f"stages-{name}", description="What ran, what was cached, why"
    )


def ladder_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each rung, from the top of the ladder down, and for each baseline below them."""
    rungs = [each | {"accuracy": each["testing_accuracy"]} for each in reversed(results["rungs"])]
    floors = sorted(results["baselines"], key=lambda each: -each["accuracy"])
    return [
        {
            "rung": words.readable(each["label"]),
            "testing accuracy": words.percent(each["accuracy"]),
            "95 % interval": words.span(each["interval"]),
            "balanced accuracy": words.percent(each["balanced_accuracy"]),
            "macro F1": f"{each['macro_f1']:.4f}",
            "validation": words.percent(each.get("validation_accuracy")),
            "training time": words.duration(each.get("seconds")),
            "note": words.mark(results, each["label"]),
        }
        for each in (*rungs, *floors)
    ]


def plan_table(planned: list[Planned]) -> list[dict[str, str]]:
    """A row for each stage: what would become of it, and why; first those that would run."""
    return [
        {
            "stage": words.readable(each.stage),
            "state": each.state,
            "last time": words.duration(each.seconds),
            "why": words.readable("; ".join(each.why)),
        }
        for each in sorted(planned, key=lambda each: each.state == "cached")
    ]


def stages_table(outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """A row for each stage: its state, how long it took and why it ran; first those that ran."""
    return [
        {
            "stage": words.readable(name),
            "state": outcome.state,
            "time": words.duration(outcome.seconds),
            "why": words.readable("; ".join(outcome.why)),
        }
        for name, outcome in sorted(outcomes.items(), key=lambda item: item[1].state == "cached")
    ]
