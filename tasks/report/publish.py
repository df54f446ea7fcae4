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
from pathlib import Path
from typing import Any

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    point_to,
    read_regular,
    write_atomic,
)
from tasks.caching.refs import Outcome, Ref
from tasks.caching.session import Session
from tasks.report.artifacts import show_in_prefect
from tasks.report.comparison import markdown, section_of, with_the_run_before

SLOT = b"<!-- compared with the run before -->"  # in report.html; no name can hold its brackets
BEFORE = b"\n## What ran\n"  # in report.md; no name can hold its line breaks


def publish(session: Session, page: Any) -> str | None:
    """Wait for the report, place its files, and show it in Prefect.  In a plan, do nothing.

    Gives the path of the report's folder.  Raises LadderError that names each stage that failed.
    """
    ref = session.finish(page)
    if ref is None:
        return None
    outcomes = session.outcomes()
    folder = place(ref, outcomes, Path(session.settings.cache))
    show_in_prefect(folder, outcomes)
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
