"""What stages pass each other, as files: Arrow for images and tensors, safetensors for weights.

A value's *tree* is plain data, with the names of files in place of tensors.  Nothing that is read
back can run code, and nothing in a file is believed unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tasks.caching import columns, machine, records
from tasks.caching.basics import DamagedError, LadderError, open_regular, read_regular, unreadable
from tasks.caching.records import canonical, digest_of


class Stack(NamedTuple):
    """The images of one class folder, one row per file, sorted by file name."""

    images: Tensor  # [N, H, W] or [N, H, W, 3] uint8
    names: list[str]  # N file names
    digests: np.ndarray  # [N, 32] uint8, sha256 of each image's shape and pixels
    left_out: Sequence[str] = ()  # "a.png: damaged (it ends too early)" for files without a row


class Weights(NamedTuple):
    """A trained model's tensors and the text needed to use them, kept as one safetensors file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def content_name(data: bytes | memoryview, suffix: str) -> str:
    """What a file is called: its content's hex sha256."""
    return f"{hashlib.sha256(data).hexdigest()}{suffix}"


def content_digest(value: Any) -> str:
    """The digest that a value's record would have; nothing is written."""
    return digest_of(encode(value, content_name))


def encode(  # noqa: PLR0911 - one return for each kind of value
    value: Any, save: Callable[[bytes | memoryview, str], str], name: str = ""
) -> Any:
    """A value's tree: plain data, with the names that `save` gives in place of tensors.

    name: which part of the whole it is.  Raises LadderError for what cannot be stored.
    """
    match value:
        case Stack():
            return {"$stack": save(_stack_bytes(value), ".arrow")}
        case Weights():
            return {"$weights": save(weights_bytes(value), ".safetensors")}
        case Tensor() if str(value.dtype) in _DTYPES and value.layout is torch.strided:
            saved = save(_tensor_bytes(value.detach()), ".arrow")
            return {"$tensor": saved, "shape": list(value.shape), "dtype": str(value.dtype)}
        case Tensor():
            raise LadderError(
                f"a stage cannot return a tensor of {value.dtype}, {value.layout} "
                f"({name or 'its result'}): torch.view_as_real and Tensor.to_dense give what it can"
            )
        case bytes():
            suffix = Path(name).suffix
            return {"$bytes": save(value, suffix if suffix[1:] in records.SUFFIXES else ".bin")}
        case dict():
            if any(not isinstance(key, str) or key.startswith("$") for key in value):
                raise LadderError(
                    "a stage's dict keys are texts without a leading $, not those of "
                    f"{name or 'its result'}: str(key) makes one"
                )
            return {key: encode(item, save, key) for key, item in value.items()}
        case tuple() if type(value) is tuple:
            return {"$tuple": [encode(item, save, name) for item in value]}
        case float() if not math.isfinite(value):
            return {"$float": repr(value)}
        case list():
            return [encode(item, save, name) for item in value]
        case bool() | int() | float() | str() | None:
            return value
    raise LadderError(
        f"a stage cannot return {type(value).__name__} ({name or 'its result'}): return tensors, "
        "numbers, texts, bytes, or dicts, lists and tuples of them"
    )


def named(tree: Any) -> Iterator[str]:
    """The files that a value's tree names."""
    if isinstance(tree, list):
        for item in tree:
            yield from named(item)
    elif isinstance(tree, dict):
        kind = next(iter(tree), "")
        if kind in _DECODERS:
            yield tree[kind]
        else:
            yield from named(list(tree.values()))


def load(tree: Any, files: Path) -> Any:
    """The value of a tree: tensors are mapped copy-on-write from the folder of files, not read.

    Raises DamagedError for a file that is not of its kind, LadderError for one that cannot be read.
    """
    try:
        return _load(tree, files)
    except RecursionError as error:
        raise DamagedError("a stored value is nested too deep to be one of ours") from error


def _load(tree: Any, files: Path) -> Any:
    if isinstance(tree, list):
        return [_load(item, files) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree), "")
    if kind == "$tuple":
        return tuple(_load(item, files) for item in tree[kind])
    if kind == "$float":
        return float(tree[kind])
    if kind not in _DECODERS:
        return {name: _load(item, files) for name, item in tree.items()}
    path = files / tree[kind]
    try:
        return _DECODERS[kind](path, tree)
    except LadderError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except _NOT_OURS as error:
        raise DamagedError(f"{path} is damaged: it was not written here") from error


# Arrow and safetensors


AROUND = 1 << 20  # bytes that an Arrow file has beside its columns, at most


def _ipc(held: dict[str, pa.Array], metadata: dict[str, str] | None = None) -> memoryview:
    batch = pa.record_batch(list(held.values()), names=list(held))
    batch = batch.replace_schema_metadata(metadata) if metadata else batch
    if batch.nbytes <= machine.LARGE:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return memoryview(sink.getvalue())
    mapped = machine.on_disk(batch.nbytes + AROUND)
    fixed = pa.FixedSizeBufferWriter(pa.py_buffer(mapped))
    with pa.ipc.new_file(fixed, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(mapped)[: fixed.tell()]


def _rows(tensor: Tensor) -> pa.Array:
    """tensor[N, ...] -> an Arrow column of N tensors, sharing memory."""
    flat = columns.numbers(tensor.contiguous().numpy().reshape(-1))
    shape = list(tensor.shape[1:]) or [1]
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), storage)


def _stack_bytes(stack: Stack) -> memoryview:
    names = columns.binaries(name.encode("utf-8", "surrogateescape") for name in stack.names)
    digests = columns.digests(stack.digests)
    held = {"images": _rows(stack.images), "names": names, "digests": digests}
    if stack.left_out:
        return _ipc(held, {"left_out": json.dumps([*stack.left_out])})
    return _ipc(held)


def _tensor_bytes(tensor: Tensor) -> memoryview:
    if tensor.dtype in _AS_BYTES:  # which Arrow has not, or packs as bits
        tensor = tensor.contiguous().view(_AS_BYTES[tensor.dtype])
    # The shape stands in the tree; Arrow has none without a value in a row.
    return _ipc(
        {"values": _rows(tensor if tensor.dim() and tensor.numel() else tensor.reshape(-1))}
    )


def weights_bytes(weights: Weights) -> bytes:
    """A safetensors file with its header sorted: the library's order changes from run to run."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    data = safetensors.torch.save(tensors, weights.metadata)
    length = int.from_bytes(data[:8], "little")
    header = canonical(json.loads(data[8 : 8 + length]))
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _open(path: Path) -> tuple[torch.UntypedStorage, pa.RecordBatch]:
    """A file's bytes, mapped until the last tensor over them is gone, and the columns in them.

    Copy-on-write: a stray write to a tensor neither kills the process nor reaches the file.  And
    torch, unlike Python's mmap, keeps no descriptor of what is mapped: there may be thousands.
    Raises ValueError for what is not ours.
    """
    with open_regular(path) as (_file, status):
        mapped = _mapped(path, status.st_size)
    buffer = pa.foreign_buffer(mapped.data_ptr(), mapped.nbytes(), mapped)
    batch = pa.ipc.open_file(buffer).get_batch(0)
    batch.validate(full=True)  # nothing in it may lead outside the file
    if any(column.null_count for column in batch.columns):
        raise ValueError("something is missing in it")
    return mapped, batch


def _mapped(path: Path, size: int) -> torch.UntypedStorage:
    if size == 0:
        raise ValueError("it is empty")
    try:
        mapped: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    except RuntimeError as error:
        number = re.search(r"\((\d+)\)$", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    return cast("torch.UntypedStorage", mapped)


def _values(
    mapped: torch.UntypedStorage, column: pa.Array, dtype: torch.dtype, shape: list[int]
) -> Tensor:
    """A fixed_shape_tensor column as a tensor over the mapped file itself, no copy."""
    values = column.storage.values
    kind = _ARROW[_AS_BYTES.get(dtype, dtype)]
    if values.type != kind or len(values) != math.prod(shape):
        raise ValueError("it holds other values")
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    offset = values.buffers()[1].address - mapped.data_ptr() + values.offset * dtype.itemsize
    if offset < 0 or offset + len(values) * dtype.itemsize > mapped.nbytes():
        raise ValueError("its values lie elsewhere")
    whole = torch.empty(0, dtype=torch.uint8).set_(mapped)
    return whole[offset : offset + len(values) * dtype.itemsize].view(dtype).reshape(shape)


def _load_stack(path: Path, _tree: dict[str, Any]) -> Stack:
    mapped, batch = _open(path)
    images, names, digests = (batch.column(name) for name in ("images", "names", "digests"))
    if (names.type, digests.type) != (pa.binary(), pa.binary(32)):
        raise ValueError("its columns are of other types")
    raw = np.frombuffer(digests.buffers()[1], np.uint8, count=32 * len(digests))
    return Stack(
        _values(mapped, images, torch.uint8, [len(images), *images.type.shape]),
        [name.decode("utf-8", "surrogateescape") for name in names.to_pylist()],
        raw.reshape(-1, 32),
        _left_out(batch.schema.metadata),
    )


def _left_out(metadata: dict[bytes, bytes] | None) -> list[str]:
    lines = json.loads((metadata or {}).get(b"left_out", b"[]"))
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("what was left out of it is no list of lines")
    return lines


def _load_tensor(path: Path, tree: dict[str, Any]) -> Tensor:
    mapped, batch = _open(path)
    shape = tree["shape"]
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise ValueError("it has no such shape")
    return _values(mapped, batch.column("values"), _DTYPES[tree["dtype"]], shape)


def _load_weights(path: Path, _tree: dict[str, Any]) -> Weights:
    with open_regular(path):
        pass  # the library would wait for what a pipe may bring
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Weights(tensors, dict(file.metadata() or {}))


def _load_bytes(path: Path, _tree: dict[str, Any]) -> bytes:
    data = read_regular(path)
    if data is None:
        raise DamagedError(f"{path} is missing")
    return data


_DECODERS = {
    "$stack": _load_stack,
    "$tensor": _load_tensor,
    "$weights": _load_weights,
    "$bytes": _load_bytes,
}
_AS_BYTES = {torch.bool: torch.uint8, torch.bfloat16: torch.int16}
_ARROW = {
    dtype: pa.from_numpy_dtype(str(dtype).partition(".")[2])
    for dtype in (
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.float32, torch.float64),
    )
}
_DTYPES = {str(dtype): dtype for dtype in (*_ARROW, *_AS_BYTES)}
# What reading a file raises that holds something else than it should.
_NOT_OURS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError,
             pa.ArrowException, safetensors.SafetensorError)  # fmt: skip
