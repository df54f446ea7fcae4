"""A recipe file: from its path to its tables."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tasks.caching.basics import DamagedError, LadderError, open_regular, shortened

MOST_BYTES = 1_000_000  # of a recipe file


def read_small(path: Path) -> bytes:
    """A recipe file's bytes.  Raises LadderError for what is no file, too large or unreadable."""
    place = f"--recipes {shortened(path)}"
    try:
        with open_regular(path) as (file, status):
            if status.st_size > MOST_BYTES:
                raise LadderError(
                    f"{place} has {status.st_size:,} bytes; a recipe file at most {MOST_BYTES:,}"
                )
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        raise LadderError(f"{place}: there is no such file") from None
    except DamagedError:
        raise LadderError(f"{place} is no file: give the path of a TOML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LadderError(f"{place} cannot be read: {reason}") from None


def read_toml(data: bytes) -> dict[str, Any]:
    """A TOML file's tables.  Raises LadderError when it cannot be read."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise LadderError("not readable as TOML: it is UTF-16 or no text; save it as UTF-8")
    for place, line in enumerate(data.split(b"\n"), 1):
        if line.partition(b"#")[0].count(b".") > 100:  # tomllib takes hours over a long dotted key
            raise LadderError(f"not readable as TOML: line {place} has more than 100 dots")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # Windows' editors begin it with a mark
    except UnicodeDecodeError as error:
        place = data[: error.start].count(b"\n") + 1
        raise LadderError(
            f"not readable as TOML: line {place} is not UTF-8 text; save it as UTF-8"
        ) from None
    except RecursionError:
        raise LadderError("not readable as TOML: brackets lie too deep in each other") from None
    except ValueError as error:
        reason = "a number is far too long" if "digits" in str(error) else error
        raise LadderError(f"not readable as TOML: {reason}") from None
