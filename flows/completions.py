"""What the shell offers after Tab: datasets, runs, stages, models and losses that are there.

Each function is given what cyclopts knows of the line so far, and must be quick: no torch.
"""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path
from typing import Any

from flows.datasets import known
from flows.reports import all_runs, find_report, results_of
from tasks.caching.basics import LadderError, data_root, entries

_RUNGS = Path(__file__).resolve().parents[1] / "tasks" / "rungs"


def datasets(_context: Any) -> list[str]:
    """The datasets that are there or can be fetched."""
    return known()


def with_models(_context: Any) -> list[str]:
    """The datasets that have models."""
    return [each.name for each in entries(data_root() / "models") if each.is_dir()]


def runs(_context: Any) -> list[str]:
    """The datasets that have reports, and their runs, the latest first."""
    found = all_runs()[::-1]
    return [*dict.fromkeys(run.parent.name for run in found), *(run.name for run in found)]


def stages(context: Any) -> list[str]:
    """The stages of the dataset's latest report, or of the latest of all."""
    dataset = context["dataset"].raw or ""
    with contextlib.suppress(LadderError, LookupError, TypeError):
        return [*(each["stage"] for each in results_of(find_report(dataset))["stages"]), "report"]
    return []


def models(_context: Any) -> list[str]:
    """Our models' names."""
    return _registered("models.py", "MODELS")


def losses(_context: Any) -> list[str]:
    """Our losses' names."""
    return _registered("losses.py", "LOSSES")


def _registered(file: str, registry: str) -> list[str]:
    """The names in a registry at a chapter's foot, read without importing it."""
    for node in ast.parse((_RUNGS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            if [getattr(each, "id", "") for each in targets] == [registry] and node.value:
                return [
                    each.value
                    for each in ast.walk(node.value)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
    raise LookupError(json.dumps([file, registry]))


OFFERED = {
    "datasets": datasets,
    "with models": with_models,
    "runs": runs,
    "stages": stages,
    "models": models,
    "losses": losses,
}
