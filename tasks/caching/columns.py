"""Arrow columns of Python's and numpy's values, made without `pa.array`.

That one imports pandas, wherever it is installed, to see whether it is given something of pandas':
a quarter of a second in each body's process.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

_LONGEST = 2**31 - 1  # bytes that a column of texts may take in all


def texts(values: Iterable[str]) -> pa.Array:
    """A column of texts.  Raises ValueError for what is no Unicode, or over 2 GB in all."""
    return _of_bytes([each.encode() for each in values], pa.string())


def binaries(values: Iterable[bytes]) -> pa.Array:
    """A column of bytes.  Raises ValueError for over 2 GB in all."""
    return _of_bytes([*values], pa.binary())


def numbers(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """A column of the numbers or truth values[N], null where `missing`[N] bool says so.

    It shares the memory of numbers.
    """
    kind = pa.from_numpy_dtype(values.dtype)
    data = _bits(values) if values.dtype == bool else np.ascontiguousarray(values)
    there = None if missing is None else pa.py_buffer(_bits(~missing))
    return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(data)])


def digests(values: np.ndarray) -> pa.Array:
    """A column of the sha256 digests values[N, 32] uint8."""
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.binary(32), len(values), [None, data])


def _of_bytes(values: list[bytes], kind: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if ends[-1] > _LONGEST:
        raise ValueError(f"{len(values):,} texts of {ends[-1]:,} bytes are too many for a column")
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(kind, len(values), [None, offsets, pa.py_buffer(b"".join(values))])


def _bits(values: np.ndarray) -> np.ndarray:
    return np.packbits(values, bitorder="little")
