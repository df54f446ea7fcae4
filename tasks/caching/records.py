"""Records as they lie in the cache: checksummed JSON, of which nothing is believed unseen.

Whoever can write to a shared folder can plant a file there.  So a record is read only when it is a
regular file of a likely size, its checksum is right, each of its fields is what we would have
written, and every file that it names has a name of ours: no path, nothing outside the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.caching.basics import DamagedError, LadderError, read_regular

SUFFIXES = ("arrow", "safetensors", "html", "md", "json", "parquet", "csv", "txt", "png", "svg",
            "bin")  # fmt: skip
NAME = re.compile(rf"[0-9a-f]{{64}}\.(?:{'|'.join(SUFFIXES)})", re.ASCII)  # of a stored file
RECORD = re.compile(r"[0-9a-f]{64}\.json", re.ASCII)
LISTING = re.compile(r"[0-9a-f]{64}\.arrow", re.ASCII)
_LARGEST = 1 << 26  # bytes of a record: those of 1,000 classes have 200,000

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
_Integer = Annotated[int, Field(gt=-(2**64), lt=2**64)]  # times before 1970, inodes from the top
_Size = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]


class Record(NamedTuple):
    """What a key stands for."""

    key: str
    digest: str  # sha256 of the value, files included by content
    value: Any  # the value's tree, files by name
    seconds: float  # what computing it took
    ingredients: dict[str, Any]  # what went into the key
    files: dict[str, list[int]]  # name -> size, mtime, ctime and inode when last checked
    about: dict[str, Any]  # no part of the result: what its call was named, what it told of its run


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Ingredients(_Fields):
    inputs: dict[str, list[str]] = {}


class _About(_Fields):
    name: str = ""
    device: str = ""
    seen: list[str] = []
    asked: dict[str, str] = {}


class _Body(_Fields):
    """A record's fields."""

    format: int
    stage: str
    key: str
    digest: _Digest
    value: Any
    files: dict[_Name, Annotated[list[_Integer], Field(min_length=4, max_length=4)]]
    seconds: _Seconds
    ingredients: _Ingredients
    about: _About = _About()
    checked: _Integer


class _LastIngredients(_Ingredients):
    format: Any
    code: dict[str, Any]
    versions: dict[str, Any]
    parameters: dict[str, Any]


class _Memory(_Fields):
    """What went into a stage's key the last time."""

    key: str
    ingredients: _LastIngredients
    names: dict[str, list[str]]  # parameter -> what its inputs are called
    seconds: _Seconds


def canonical(value: Any) -> bytes:
    """The one JSON text of plain data, as UTF-8.  Raises ValueError for NaN and infinities."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode("utf-8", "surrogateescape")


def digest_of(value: Any) -> str:
    """Hex sha256 of plain data's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def checked(body: dict[str, Any]) -> bytes:
    """The bytes of a record or memory, for `read_body` and `read_memory`.

    Raises LadderError when they are more than those would read.
    """
    data = canonical({"checksum": digest_of(body), "body": body})
    if len(data) > _LARGEST:
        raise LadderError(
            f"a result has {len(data):,} bytes of plain data: let its stage return tensors or bytes"
        )
    return data


def read_body(path: Path) -> dict[str, Any] | None:
    """The record in records/<stage>/<key>.json, or None when there is none.

    Raises DamagedError for what was not written here, LadderError for what cannot be read now.
    """
    body = _read_checked(path)
    if body is None:
        return None
    try:
        insist_on_body(body)
    except (ValueError, RecursionError) as error:
        raise foreign(path) from error
    if (body["stage"], body["key"]) != (path.parent.name, path.stem):
        raise DamagedError(f"{path} is the record of something else")
    return body


def insist_on_body(body: dict[str, Any]) -> None:
    """Raise ValueError for what is no record's body, of this machine or another."""
    _Body.model_validate(body)
    if not all(0 <= signature[0] < 2**63 for signature in body["files"].values()):
        raise ValueError("a file has no size")


def read_memory(path: Path) -> dict[str, Any] | None:
    """What `last/` holds of a stage, or None.  Raises as `read_body` does."""
    body = _read_checked(path)
    if body is None:
        return None
    try:
        memory = _Memory.model_validate(body)
    except (ValidationError, RecursionError) as error:
        raise foreign(path) from error
    digests = memory.ingredients.inputs
    if any(len(names) != len(digests.get(key, [])) for key, names in memory.names.items()):
        raise foreign(path)
    return body


def to_record(body: dict[str, Any]) -> Record:
    """A body that was read, as a record."""
    return Record(*({"about": {}, **body}[field] for field in Record._fields))


def foreign(path: Path) -> DamagedError:
    """The error for a file that is whole, and nothing that we would have written."""
    return DamagedError(f"{path} is damaged: it was not written here")


def _read_checked(path: Path) -> dict[str, Any] | None:
    data = read_regular(path, _LARGEST)
    if data is None:
        return None
    try:
        whole = json.loads(data)
        body = whole["body"]
        if isinstance(body, dict) and whole["checksum"] == digest_of(body):
            return body
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DamagedError(f"{path} is damaged")
