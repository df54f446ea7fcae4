"""Put a report where people look: `reports/<dataset>/<run>/`, `latest` beside it, and Prefect."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.caching.plan import Outcome, Ref
from tasks.caching.stage import Session
from tasks.caching.store import LadderError, write_atomic


def publish(session: Session, page: Any) -> str | None:
    """Wait for the report, place its files, and show it in Prefect.  In a plan, do nothing.

    Gives the path of the report's folder.  Raises LadderError that names each stage that failed.
    """
    ref = session.finish(page)
    if ref is None:
        return None
    folder = place(ref, session.outcomes(), Path(session.settings.cache))
    _show_in_prefect(folder, session.settings.dataset)
    return str(folder)


def place(ref: Ref, outcomes: Mapping[str, Outcome], cache: Path) -> Path:
    """Write a stored report's files to its folder, restoring what was deleted there.

    The folder is named after the run that wrote the report; a later run that changes nothing
    comes back to it and only notes in results.json that each rung was cached.
    """
    files: dict[str, bytes] = ref.load(cache)
    results = json.loads(files["results.json"])
    for rung in results["rungs"]:
        outcome = outcomes.get(f"train[{rung['label']}]")
        rung["cached"] = outcome is not None and outcome.state == "cached"
    files["results.json"] = json.dumps(results, indent=1, allow_nan=False).encode()

    reports = cache.parent / "reports" / results["dataset"]["name"]
    started = re.sub(r"\D", "", results["environment"]["started"])[:14]
    folder = reports / f"{started}-{ref.key[:8]}"
    for name, data in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(path, data)
    _point(reports / "latest", folder.name)
    return folder


def _point(link: Path, target: str) -> None:
    """Make a symbolic link point elsewhere in one step, so that it is never missing."""
    if link.is_symlink() and str(link.readlink()) == target:
        return
    temporary = link.with_name(f".latest-{secrets.token_hex(4)}")
    try:
        temporary.symlink_to(target)
        temporary.replace(link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LadderError(f"cannot write {link}: {error.strerror}") from error


def _show_in_prefect(folder: Path, dataset: str) -> None:
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(
        markdown=(folder / "report.md").read_text(encoding="utf-8"),
        key="ladder-" + (re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "report"),
        description=f"The whole report: {folder / 'report.html'}",
    )
