"""What everything needs and nothing heavy is imported for: errors, where data lies, writing."""

from __future__ import annotations

import os
import re
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
    if chosen:
        return expand(chosen)
    return checkout if checkout.is_dir() else Path("data")


def expand(path: str) -> Path:
    """A path with ~ and ~user made out, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def printable(text: str) -> str:
    """Text from outside for a terminal: what could steer one stands as its escape sequence."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


# Scheme; what stands before the last @, where it may be a password; host and path; query.
_URL = re.compile(
    r"([A-Za-z][\w+.-]*://)"
    r"(?:[^\s/?#@:]+:(?!\d+/)\S*@|[^\s/?#]*@)?"
    r"([^\s?#'\"]*)([?#][^\s'\"]*)?"
)


def redacted(text: str) -> str:
    """Text without the secrets that URLs in it may hold: user, password, query and fragment."""
    return _URL.sub(lambda url: url[1] + url[2] + (f"{url[3][0]}..." if url[3] else ""), text)


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
