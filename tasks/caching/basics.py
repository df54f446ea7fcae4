"""What everything else needs and nothing heavy is imported for: the errors, and where data lies."""

from __future__ import annotations

import os
from pathlib import Path


class LadderError(Exception):
    """A mistake its reader can mend: one line that names the culprit and says what to do."""


class DamagedError(LadderError):
    """A cached file or record is not what was stored."""


class StageError(Exception):
    """A stage's own code failed; carries the traceback of its process."""


def data_root() -> Path:
    """The folder of datasets, cache and reports: STEPLADDER_DATA, or `data/` of the checkout."""
    chosen = os.environ.get("STEPLADDER_DATA")
    checkout = Path(__file__).resolve().parents[2] / "data"
    return Path(chosen).expanduser() if chosen else checkout if checkout.is_dir() else Path("data")


def find_folder(dataset: str) -> Path | None:
    """The folder of a dataset, given as its name under the data root or as a path; or None."""
    for folder in (data_root() / dataset, Path(dataset).expanduser()):
        if folder.is_dir():
            return folder.resolve()
    return None
