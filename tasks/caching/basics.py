"""What everything needs and nothing heavy is imported for: errors, where data lies, writing."""

from __future__ import annotations

import os
import secrets
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


def printable(text: str) -> str:
    """Text from outside for a terminal: what could steer one stands as its escape sequence."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def write_atomic(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Without `durable` no fsync is waited for: a power cut may cost the file, a kill may not.
    Raises LadderError that names the path when the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> LadderError:
    """The error for a path that cannot be written, with what to do about it."""
    return LadderError(f"cannot write {path}: {error.strerror}; free some space there, "
                       "make it writable, or set STEPLADDER_DATA")  # fmt: skip
