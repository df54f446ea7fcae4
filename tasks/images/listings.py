"""Listings: what scans have seen, kept under the store's root, so that the next one reads little.

A listing holds a class folder's names and digests, and is named by its own digest.  The stat index
of a dataset says which listing each folder had, and how its files looked from outside.  Whatever is
missing, damaged or foreign counts as never written.
"""

from __future__ import annotations

import contextlib
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.caching import columns
from tasks.caching.basics import (
    DamagedError,
    LadderError,
    read_regular,
    write_atomic,
)

LISTING = pa.schema([("name", pa.string()), ("digest", pa.binary(32))])
INDEX = pa.schema(
    [
        *(("label", pa.string()), ("listing", pa.string())),
        *(("stat", pa.binary()), ("headers", pa.binary()), ("own", pa.binary())),
    ]
)


class Listing(NamedTuple):
    """What a class folder holds, wherever it lies."""

    names: list[str]  # sorted
    digests: np.ndarray  # [N, 32] uint8


class Seen(NamedTuple):
    """A class folder in the stat index."""

    listing: str  # digest of its listing
    stat: np.ndarray  # [N, 5] int64, stat_fields of each file; zeros where too young to be trusted
    headers: np.ndarray  # [N, 3] int32, as `tasks.images.headers.header` gives them
    own: np.ndarray  # [N, 32 or more] uint8, what draws each image's side; [N, 0] for nothing


EMPTY = Listing([], np.zeros((0, 32), np.uint8))
UNSEEN = Seen(
    "", np.zeros((0, 5), np.int64), np.zeros((0, 3), np.int32), np.zeros((0, 0), np.uint8)
)


def read_listing(root: Path, digest: str) -> Listing | None:
    """The listing, or None when it is missing, damaged or foreign."""
    batch = _read(_listing_path(root, digest), LISTING)
    if batch is None:
        return None
    digests = np.frombuffer(batch["digest"].buffers()[1], np.uint8, 32 * len(batch))
    listing = Listing(batch["name"].to_pylist(), digests.reshape(-1, 32))
    return listing if _listing_digest(listing) == digest else None


def write_listing(root: Path, listing: Listing) -> str:
    """Keep a listing under `root`, unless it is there; gives its digest."""
    digest = _listing_digest(listing)
    if read_listing(root, digest) is None:
        held = [columns.texts(listing.names), columns.digests(listing.digests)]
        _write(_listing_path(root, digest), LISTING, held)
    return digest


def _listing_path(root: Path, digest: str) -> Path:
    return root / "listings" / f"{digest}.arrow"


def _listing_digest(listing: Listing) -> str:
    # No name holds a zero byte, so the text cannot be read in two ways.
    text = "\0".join([*listing.names, ""]).encode()
    return sha256(b"%d\0" % len(listing.names) + text + listing.digests.tobytes()).hexdigest()


def read_index(path: Path) -> dict[str, Seen]:
    """What the last scan saw, by label; nothing when the index is missing, damaged or foreign."""
    batch = _read(path, INDEX)
    rows = [] if batch is None else batch.to_pylist()
    if any(
        len(row["stat"]) % 40
        or 12 * len(row["stat"]) != 40 * len(row["headers"])
        or len(row["own"]) * 40 % max(1, len(row["stat"]))
        for row in rows
    ):
        return {}
    return {
        row["label"]: Seen(
            row["listing"],
            np.frombuffer(row["stat"], np.int64).reshape(-1, 5),
            np.frombuffer(row["headers"], np.int32).reshape(-1, 3),
            np.frombuffer(row["own"], np.uint8).reshape(len(row["stat"]) // 40, -1),
        )
        for row in rows
    }


def write_index(path: Path, index: dict[str, Seen]) -> None:
    """Keep what a scan saw, by label, for the next one."""
    parts = [(each.stat, each.headers, each.own) for each in index.values()]
    held = [
        columns.texts(index),
        columns.texts(seen.listing for seen in index.values()),
        *(columns.binaries(each.tobytes() for each in part) for part in zip(*parts, strict=True)),
    ]
    with contextlib.suppress(LadderError):  # a store that cannot be written only stays slower
        _write(path, INDEX, held)


def _read(path: Path, schema: pa.Schema) -> pa.RecordBatch | None:
    try:
        batch = pa.ipc.open_file(read_regular(path) or b"").get_batch(0)
        batch.validate(full=True)  # a flipped bit must not lead outside the buffers
        whole = batch.schema == schema and not any(column.null_count for column in batch.columns)
    except (DamagedError, OSError, ValueError, MemoryError, pa.ArrowException):
        return None
    return batch if whole and len(batch) else None


def _write(path: Path, schema: pa.Schema, held: list[pa.Array]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(held, schema=schema))
    write_atomic(path, memoryview(sink.getvalue()))
