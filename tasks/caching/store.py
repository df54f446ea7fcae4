"""The store: content-named files and checksummed records, written whole or not at all.

    files/<sha256>.arrow | .safetensors | ...   what stages returned, named by content
    records/<stage>/<key>.json                  which files a key stands for, and what went into it
    last/<stage name>.<digest>.json             what went into a stage's key last time
    scratch/<key>/                              checkpoints of a stage that has not finished
    locks/                                      held while a key is computed
    aside/                                      damaged files, kept for a look and never read

Nothing that is read back can run code: Arrow, safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import operator
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tasks.caching import locks, records
from tasks.caching.basics import (
    DamagedError,
    LadderError,
    entries,
    open_regular,
    read_regular,
    unreadable,
    unwritable,
    write_atomic,
)
from tasks.caching.records import Record, canonical, digest_of

FORMAT = 1  # raise it when files or keys change meaning: every older record then misses
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_YOUNG_NS = 50_000_000  # a file changed this close before it was checked may change again unseen


class Stack(NamedTuple):
    """The images of one class folder, one row per file, sorted by file name."""

    images: Tensor  # [N, H, W] or [N, H, W, 3] uint8
    names: list[str]  # N file names
    digests: np.ndarray  # [N, 32] uint8, sha256 of each image's shape and pixels


class Weights(NamedTuple):
    """A trained model's tensors and the text needed to use them, kept as one safetensors file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class Store:
    """The cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # Records

    def put(
        self,
        stage: str,
        key: str,
        value: Any,
        seconds: float,
        ingredients: dict[str, Any],
        about: Mapping[str, Any] = _NOTHING,
    ) -> Record:
        """Store a stage's value under its key, files first, so that a record never dangles."""
        files: dict[str, list[int]] = {}

        def save(data: bytes | memoryview, suffix: str) -> str:
            name = content_name(data, suffix)
            files[name] = self._save(name, data)
            return name

        tree = _encode(value, "", save)
        body = {
            "format": FORMAT,
            "stage": stage,
            "key": key,
            "digest": digest_of(tree),
            "value": tree,
            "files": files,
            "seconds": round(seconds, 3),
            "ingredients": ingredients,
            "about": dict(about),
            "checked": time.time_ns(),
        }
        self._write_record(body)
        return records.to_record(body)

    def get(self, stage: str, key: str, *, thorough: bool = False) -> Record | None:
        """The record of a key with every file verified, or None when there is none.

        Raises DamagedError when something is there and is not what was stored.
        """
        path = self.record_path(stage, key)
        body = records.read_body(path)
        if body is None:
            return None
        if body["format"] != FORMAT:
            raise DamagedError(f"{path} is the record of another version")
        try:
            # What we wrote agrees with itself; what was planted may name files it does not list.
            whole = body["digest"] == digest_of(body["value"])
            names = {*_named(body["value"]), *body["files"]}
        except (TypeError, RecursionError) as error:
            raise records.foreign(path) from error
        if not whole or names != body["files"].keys():
            raise records.foreign(path)
        stale = False
        for name in names:
            now = self._verify(name, body["files"][name], body["checked"], thorough)
            stale |= now is not None
            body["files"][name] = now or body["files"][name]
        if stale:
            # Checked by content just now: remember the new stat, so the next look is quick.
            # A read-only store still serves; it only stays slow.
            with contextlib.suppress(LadderError):
                self._write_record(body | {"checked": time.time_ns()})
        return records.to_record(body)

    def earlier(
        self, stage: str, ingredients: dict[str, Any], *but: str, first: str = "", since: int
    ) -> Iterator[tuple[Any, Record]]:
        """The records of a stage, newest first, whose ingredients equal these `but` for one.

        The record with the key `first` comes before all, those from `since` on (ns since the
        epoch) are left out.  `but` is the path to that ingredient, such as "parameters", "recipe",
        "epochs"; each record comes with what it has there.  Nothing is verified.
        """
        wanted = _without(ingredients, but)
        paths = [
            (path.stem == first, modified, path)
            for path in self._records_of(self.root / "records" / stage)
            if (modified := _modified(path)) < since or path.stem == first
        ]
        for *_order, path in sorted(paths, reverse=True):
            with contextlib.suppress(DamagedError, KeyError, TypeError, RecursionError):
                body = records.read_body(path)
                if body and _without(body["ingredients"], but) == wanted:
                    found = functools.reduce(operator.getitem, but, body["ingredients"])
                    yield found, records.to_record(body)

    def load(self, tree: Any) -> Any:
        """The value of a record's tree: tensors are mapped copy-on-write, not read.

        Raises DamagedError for a file that is not of its kind.
        """
        try:
            return self._load(tree)
        except RecursionError as error:
            raise DamagedError("a stored value is nested too deep to be one of ours") from error

    def _load(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self._load(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        kind = next(iter(tree), "")
        if kind not in _DECODERS:
            return {name: self._load(item) for name, item in tree.items()}
        path = self.root / "files" / tree[kind]
        try:
            return _DECODERS[kind](path, tree)
        except LadderError:
            raise
        except OSError as error:
            raise unreadable(path, error) from error
        except _NOT_OURS as error:
            raise DamagedError(f"{path} is damaged: it was not written here") from error

    def set_aside(self, stage: str, key: str) -> None:
        """Move a damaged record and whichever of its files are damaged where nothing reads them."""
        path = self.record_path(stage, key)
        with contextlib.suppress(DamagedError):
            for name, signature in (records.read_body(path) or {"files": {}})["files"].items():
                self._set_aside_damaged(self.root / "files" / name, signature)
        self._move_aside(path)

    def used(self, stage: str, key: str) -> None:
        """Note that a record was of use, so that `cache gc` spares it; once a day is enough."""
        path = self.record_path(stage, key)
        with contextlib.suppress(OSError):  # it may be another user's
            if time.time() - path.stat().st_mtime > 86_400:
                os.utime(path)

    # Upkeep

    def record_path(self, stage: str, key: str) -> Path:
        """Where the record of a key lies."""
        return self.root / "records" / stage / f"{key}.json"

    def record_paths(self) -> list[Path]:
        """Where all records lie."""
        folders = (path for path in entries(self.root / "records") if not path.is_symlink())
        return [path for folder in folders for path in self._records_of(folder)]

    def read_record(self, path: Path) -> Record | None:
        """A record without a look at its files.  Raises DamagedError."""
        body = records.read_body(path)
        return None if body is None else records.to_record(body)

    def verify_files(self) -> Iterator[str]:
        """Read all files; gives a line for each damaged one, which is set aside."""
        for path in self.file_paths():
            if complaint := self._set_aside_damaged(path, None):
                yield complaint

    def file_paths(self) -> list[Path]:
        """Where all stored files lie; what has no name of ours is not touched, nor looked at."""
        return [path for path in entries(self.root / "files") if records.NAME.fullmatch(path.name)]

    def memories(self) -> Iterator[dict[str, list[str]]]:
        """The input digests of each stage's last key."""
        for path in entries(self.root / "last"):
            with contextlib.suppress(DamagedError):
                if body := records.read_memory(path):
                    yield body["ingredients"]["inputs"]

    def share(self) -> int:
        """Say that this process uses the store, until the descriptor that this gives is closed."""
        return locks.share(self.root)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from using the store.  Raises LadderError while one does."""
        return locks.alone(self.root)

    def insist_on_writing(self, stage: str) -> None:
        """See that a result could be stored, before hours go into it.  Raises LadderError."""
        effective = os.access in os.supports_effective_ids
        for name in (".", "files", "records", f"records/{stage}", "locks", "scratch"):
            folder = self.root / name
            if os.access(folder, os.F_OK) and not os.access(
                folder, os.W_OK | os.X_OK, effective_ids=effective
            ):
                raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    # Memory of the last run

    def last(self, dataset: str, name: str) -> dict[str, Any] | None:
        """What went into the key that a stage had last time, or None."""
        with contextlib.suppress(LadderError):  # it is for words alone
            return records.read_memory(self._last_path(dataset, name))
        return None

    def remember(self, dataset: str, name: str, memory: dict[str, Any]) -> None:
        """Keep what went into a stage's key, for the next run to compare with."""
        path = self._last_path(dataset, name)
        if self.last(dataset, name) != memory:
            write_atomic(path, records.checked(memory), durable=False)  # it is for words alone

    # Turns

    def lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Hold a key alone among all processes; the kernel lets go when the holder dies."""
        return locks.hold(self.root / "locks" / f"{key}.lock")

    def scratch(self, key: str) -> Path:
        """A folder for what a stage wants to find again if it is killed."""
        folder = self._scratch(key)
        try:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                self._move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder

    def drop_scratch(self, key: str) -> None:
        """Remove a key's scratch folder."""
        shutil.rmtree(self._scratch(key), ignore_errors=True)

    # Inside

    def _last_path(self, dataset: str, name: str) -> Path:
        # Class names may hold anything, so the file is named by digest, after something readable.
        readable = re.sub(r"[^\w.-]+", "_", name)[:60]
        return self.root / "last" / f"{readable}.{digest_of([dataset, name])[:12]}.json"

    def _scratch(self, key: str) -> Path:
        # Where nothing keeps two processes from the same key, they must not share checkpoints.
        own = "" if locks.work(self.root) else f"-{socket.gethostname()}-{os.getpid()}"
        return self.root / "scratch" / f"{key}{own}"

    @staticmethod
    def _records_of(folder: Path) -> list[Path]:
        return [path for path in entries(folder) if records.RECORD.fullmatch(path.name)]

    def _write_record(self, body: dict[str, Any]) -> None:
        write_atomic(self.record_path(body["stage"], body["key"]), records.checked(body))

    def _set_aside_damaged(self, path: Path, signature: list[int] | None) -> str:
        """Read a stored file; where it is there and damaged, move it away and say so."""
        try:
            self._verify(path.name, signature, 0, thorough=True)
        except DamagedError as error:
            if os.path.lexists(path):
                self._move_aside(path)
                return str(error)
        return ""

    def _move_aside(self, path: Path) -> None:
        """Move what lies in the cache under a name of ours, itself and not what it links to."""
        aside = self.root / "aside"
        with contextlib.suppress(OSError):
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / f"{time.time_ns()}-{path.name}")

    def _verify(
        self, name: str, signature: list[int] | None, checked: int, thorough: bool
    ) -> list[int] | None:
        """Hold a file against its record; returns its stat where content had to be read for that.

        Without a signature, against its name alone.
        Raises DamagedError, and LadderError for what cannot be read now.
        """
        path = self.root / "files" / name
        try:
            now = _signature(path)
            settled = checked - now[2] > _YOUNG_NS
            if now == signature and settled and not thorough:
                return None
            with open_regular(path) as (file, _status):
                if signature and now[0] != signature[0]:
                    raise DamagedError(f"{path} has {now[0]} bytes, {signature[0]} were stored")
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except OSError as error:
            raise unreadable(path, error) from error
        if digest != name.partition(".")[0]:
            raise DamagedError(f"{path} is damaged: its content no longer matches its name")
        return now

    def _save(self, name: str, data: bytes | memoryview) -> list[int]:
        path = self.root / "files" / name
        try:
            self._verify(name, [len(data)], 0, thorough=True)
        except DamagedError:
            if os.path.isdir(path):  # noqa: PTH112 - which raises nothing
                self._move_aside(path)  # all else is replaced in one step
            write_atomic(path, data)
        return _signature(path)


def content_name(data: bytes | memoryview, suffix: str) -> str:
    """What a file is called: its content's hex sha256."""
    return f"{hashlib.sha256(data).hexdigest()}{suffix}"


def content_digest(value: Any) -> str:
    """The digest that a value's record would have; nothing is written."""
    return digest_of(_encode(value, "", content_name))


def _encode(  # noqa: PLR0911 - one return for each kind of value
    value: Any, name: str, save: Callable[[bytes | memoryview, str], str]
) -> Any:
    """A value's tree: plain data, with the names that `save` gives in place of tensors."""
    match value:
        case Stack():
            return {"$stack": save(_stack_bytes(value), ".arrow")}
        case Weights():
            return {"$weights": save(_weights_bytes(value), ".safetensors")}
        case Tensor():
            saved = save(_tensor_bytes(value), ".arrow")
            return {"$tensor": saved, "shape": list(value.shape), "dtype": str(value.dtype)}
        case bytes():
            suffix = Path(name).suffix
            return {"$bytes": save(value, suffix if suffix[1:] in records.SUFFIXES else ".bin")}
        case dict():
            if any(not isinstance(key, str) or key.startswith("$") for key in value):
                raise TypeError(f"a stage's dict keys are texts without a leading $: {name}")
            return {key: _encode(item, key, save) for key, item in value.items()}
        case list():
            return [_encode(item, name, save) for item in value]
        case bool() | int() | float() | str() | None:
            return value
    raise TypeError(f"a stage cannot return {type(value).__name__} ({name or 'its result'})")


def _named(tree: Any) -> Iterator[str]:
    """The files that a value's tree names."""
    if isinstance(tree, list):
        for item in tree:
            yield from _named(item)
    elif isinstance(tree, dict):
        kind = next(iter(tree), "")
        if kind in _DECODERS:
            yield tree[kind]
        else:
            yield from _named(list(tree.values()))


def _without(ingredients: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Ingredients with the one at the end of a path left out."""
    name, *rest = path
    inner = {name: _without(ingredients[name], tuple(rest))} if rest else {name: None}
    return {**ingredients, **inner}


def _modified(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def _signature(path: Path) -> list[int]:
    status = path.stat()
    # A stat of what is no regular file equals none that was stored: it is looked at again.
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return [size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


# Arrow and safetensors


def _ipc(columns: dict[str, pa.Array]) -> memoryview:
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _rows(tensor: Tensor) -> pa.Array:
    """tensor[N, ...] -> an Arrow column of N tensors, sharing memory."""
    values = tensor.contiguous().numpy().reshape(-1)
    # Not pa.array, which would import numpy.ma in each body's process.
    kind, buffers = pa.from_numpy_dtype(values.dtype), [None, pa.py_buffer(values)]
    flat = pa.Array.from_buffers(kind, len(values), buffers, 0)
    shape = list(tensor.shape[1:]) or [1]
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, shape), storage)


def _stack_bytes(stack: Stack) -> memoryview:
    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), len(stack.names), [None, pa.py_buffer(np.ascontiguousarray(stack.digests))]
    )
    names = pa.array([name.encode("utf-8", "surrogateescape") for name in stack.names], pa.binary())
    return _ipc({"images": _rows(stack.images), "names": names, "digests": digests})


def _tensor_bytes(tensor: Tensor) -> memoryview:
    return _ipc({"values": _rows(tensor if tensor.dim() else tensor.reshape(1))})


def _weights_bytes(weights: Weights) -> bytes:
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
    if values.type != _ARROW[dtype] or len(values) != math.prod(shape):
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
    )


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
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.uint8, torch.int32, torch.int64),
        *(torch.float16, torch.float32, torch.float64),
    )
}
_ARROW = {dtype: pa.from_numpy_dtype(str(dtype).partition(".")[2]) for dtype in _DTYPES.values()}
# What reading a file raises that holds something else than it should.
_NOT_OURS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError,
             pa.ArrowException, safetensors.SafetensorError)  # fmt: skip
