"""Put a report where people look: `reports/<home>/<run>/`, `latest` beside it, and Prefect.

A dataset's home is its name where nothing else can have that; see `tasks.caching.places`.

Here it is also compared with the run before: a report itself knows its own run alone, so that it
can be stored and reused.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    RungsError,
    point_to,
    read_regular,
    told,
    write_atomic,
)
from tasks.caching.refs import Ref
from tasks.caching.session import Session
from tasks.caching.store import Store
from tasks.caching.values import named
from tasks.report.artifacts import show_in_prefect
from tasks.report.comparison import markdown, section_of, with_the_run_before
from tasks.report.graph import drawn, of_run
from tasks.report.history import place_history
from tasks.report.seeds import models_of
from tasks.report.words import escaped

SLOT = b"<!-- compared with the run before -->"  # in report.html; no name can hold its brackets
GRAPH = b"<!-- which stage depends on which -->"  # as SLOT
IN_USE = b"<!-- the model in use -->"  # as SLOT
BEFORE = b"\n## What ran\n"  # in report.md; no name can hold its line breaks


# What becomes of the dataset's model: of results.json, the run's name, its stages and the cache.
Judge = Callable[[dict[str, Any], str, Mapping[str, Ref], Path], dict[str, Any] | None]


def publish(session: Session, page: Any, failed: Mapping[str, str], judge: Judge) -> str | None:
    """Wait for the report, place its files, and show it in Prefect.  In a plan, do nothing.

    failed: rung -> why it failed.  judge: see `place`.  Gives the path of the report's folder.
    Raises LadderError that names each stage that failed, and RungsError, when all is in its place,
    where rungs did.
    """
    ref = session.finish(page)
    if ref is None:
        return None
    results = session.results()
    folder = place(ref, results, Path(session.settings.cache), judge)
    show_in_prefect(folder, {name: each.outcome for name, each in results.items()})
    if failed:
        why = told(f"{name} failed: {reason}" for name, reason in failed.items())
        raise RungsError(f"{why}\nthe rest is in the report: {folder / 'report.html'}", folder)
    return str(folder)


def place(ref: Ref, stages: Mapping[str, Ref], cache: Path, judge: Judge = lambda *_: None) -> Path:
    """Write a stored report's files to its folder, restoring what was deleted there.

    The folder is named after the run that wrote the report; a later run that changes nothing
    comes back to it and only notes in results.json that each rung was cached.  What moved since
    the run before is put into the page, the Markdown and results.json, and where its weights lie,
    and what `judge` makes of the dataset's model.
    """
    files, results = _of_a_report(ref.load(cache))
    outcomes = {name: each.outcome for name, each in stages.items()}
    for rung in results["rungs"]:
        trainings = {each["label"]: stages.get(f"train[{each['label']}]") for each in rung["runs"]}
        rung["cached"] = all(each and each.outcome.state == "cached" for each in trainings.values())
        for each in rung["runs"]:
            training = trainings[each["label"]]
            each["weights"] = training and _weights(training, cache)
        rung["weights"] = models_of([rung])[rung["chosen"]]["weights"]
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
    graph = of_run(stages, Store(cache), results["dataset"]["home"])
    files["report.html"] = files["report.html"].replace(GRAPH, drawn(graph).encode())
    mistake = None
    try:
        judged = results["promotion"] = judge(results, folder.name, stages, cache)
    except LadderError as error:  # the report itself is whole
        judged, mistake = None, error
        results["promotion"] = {
            "number": None, "promoted": False, "regression": False, "said": str(error)
        }  # fmt: skip
    results["first_judged"] = _first_judged(folder, results["promotion"])
    if judged:
        files["predictions.parquet"] = _with_those_in_use(
            folder / "predictions.parquet", files["predictions.parquet"], judged
        )
        said = Markup("<p>{}</p>").format(judged["said"])
        files["report.html"] = files["report.html"].replace(IN_USE, said.encode())
        files["report.md"] = files["report.md"].replace(
            BEFORE, f"\n{escaped(judged['said'])}\n".encode() + BEFORE, 1
        )
    files["results.json"] = json.dumps(results, indent=1, allow_nan=False).encode()
    whole = all((folder / name).is_file() for name in files)
    try:
        for name, data in files.items():
            if not _holds(folder / name, data):
                write_atomic(folder / name, data)
        point_to(reports / "latest", folder.name)
        place_history(reports)
    except LadderError:
        if not whole:  # where nothing can be written, what is there serves as it is
            raise
    if mistake and not whole:
        raise mistake
    return folder


def _first_judged(folder: Path, now: dict[str, Any] | None) -> dict[str, bool]:
    """What became of the dataset's model when this run first ended: a later one keeps it."""
    with contextlib.suppress(LadderError, ValueError, LookupError, TypeError, RecursionError):
        before = json.loads(read_regular(folder / "results.json") or b"{}")["first_judged"]
        return {name: bool(before[name]) for name in ("promoted", "regression")}
    return {name: bool((now or {}).get(name)) for name in ("promoted", "regression")}


def _with_those_in_use(path: Path, best: bytes, judged: dict[str, Any]) -> bytes:
    """predictions.parquet: the best rung's, and those of a model that stays in use beside it.

    When nothing has changed since, that model is not asked again, and the file stays as it is.
    """
    more = judged.pop("predictions", None)
    if more is None:
        with contextlib.suppress(DamagedError):
            return read_regular(path) or best
        return best
    both = [pq.read_table(io.BytesIO(each)) for each in (best, more)]
    file = io.BytesIO()
    pq.write_table(pa.concat_tables(both), file, compression="zstd")
    return file.getvalue()


def _weights(training: Ref, cache: Path) -> dict[str, str] | None:
    """Where the weights of a training lie, as a path under the data root, and their sha256."""
    record = Store(cache).get(training.stage, training.key)
    if record is None:
        return None
    [name] = named(record.value["weights"])
    return {"path": f"{cache.name}/files/{name}", "digest": name.partition(".")[0]}


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
