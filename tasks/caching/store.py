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
import fcntl
import functools
import hashlib
import json
import mmap
import operator
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tasks.caching.basics import DamagedError, LadderError, unwritable, write_atomic

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


class Record(NamedTuple):
    """What a key stands for."""

    key: str
    digest: str  # sha256 of the value, files included by content
    value: Any  # the value's tree, files by name
    seconds: float  # what computing it took
    ingredients: dict[str, Any]  # what went into the key
    files: dict[str, list[int]]  # name -> size, mtime, ctime and inode when last checked
    about: dict[str, Any]  # no part of the result: what its call was named, what it told of its run


def canonical(value: Any) -> bytes:
    """The one JSON text of plain data, as UTF-8.  Raises ValueError for NaN and infinities."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode("utf-8", "surrogateescape")


def digest_of(value: Any) -> str:
    """Hex sha256 of plain data's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


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
        return _record(body)

    def get(self, stage: str, key: str, *, thorough: bool = False) -> Record | None:
        """The record of a key with every file verified, or None when there is none.

        Raises DamagedError when something is there and is not what was stored.
        """
        path = self.record_path(stage, key)
        body = _read_checked(path)
        if body is None:
            return None
        if (body.get("format"), body.get("stage"), body.get("key")) != (FORMAT, stage, key):
            raise DamagedError(f"{path} is the record of something else")
        try:
            # What we wrote agrees with itself; what was planted may name files it does not list.
            if body["digest"] != digest_of(body["value"]):
                raise ValueError("another digest")
            stale = False
            for name in {*_named(body["value"]), *body["files"]}:
                now = self._verify(name, body["files"][name], body["checked"], thorough)
                stale |= now is not None
                body["files"][name] = now or body["files"][name]
            record = _record(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{path} is damaged: it was not written here") from error
        if stale:
            # Checked by content just now: remember the new stat, so the next look is quick.
            # A read-only store still serves; it only stays slow.
            with contextlib.suppress(LadderError):
                self._write_record(body | {"checked": time.time_ns()})
        return record

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
            for path in (self.root / "records" / stage).glob("[!.]*.json")
            if (modified := _modified(path)) < since or path.stem == first
        ]
        for *_order, path in sorted(paths, reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                body = json.loads(path.read_bytes())["body"]
                if _without(body["ingredients"], but) == wanted:
                    found = functools.reduce(operator.getitem, but, body["ingredients"])
                    yield found, _record(body)

    def load(self, tree: Any) -> Any:
        """The value of a record's tree: tensors are mapped copy-on-write, not read."""
        if isinstance(tree, list):
            return [self.load(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        kind = next(iter(tree), "")
        if kind not in _DECODERS:
            return {name: self.load(item) for name, item in tree.items()}
        return _DECODERS[kind](self.root / "files" / tree[kind], tree)

    def set_aside(self, stage: str, key: str) -> None:
        """Move a damaged record and whichever of its files are damaged where nothing reads them."""
        path = self.record_path(stage, key)
        with contextlib.suppress(DamagedError):
            for name, signature in (_read_checked(path) or {"files": {}})["files"].items():
                try:
                    self._verify(name, signature, 0, thorough=True)
                except DamagedError:
                    self._move_aside(self.root / "files" / name)
        self._move_aside(path)

    def used(self, stage: str, key: str) -> None:
        """Note that a record was of use, so that `cache gc` spares it; once a day is enough."""
        path = self.record_path(stage, key)
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                path.touch()

    # Upkeep

    def record_path(self, stage: str, key: str) -> Path:
        """Where the record of a key lies."""
        return self.root / "records" / stage / f"{key}.json"

    def record_paths(self) -> list[Path]:
        """Where all records lie."""
        return sorted((self.root / "records").glob("*/[!.]*.json"))

    def read_record(self, path: Path) -> Record | None:
        """A record without a look at its files.  Raises DamagedError."""
        body = _read_checked(path)
        try:
            return None if body is None else _record(body)
        except KeyError as error:
            raise DamagedError(f"{path} is damaged: it was not written here") from error

    def verify_files(self) -> Iterator[str]:
        """Read all files; gives a line for each damaged one, which is set aside."""
        for path in sorted((self.root / "files").glob("[!.]*")):
            try:
                self._verify(path.name, [path.stat().st_size], 0, thorough=True)
            except FileNotFoundError:
                continue  # removed meanwhile
            except DamagedError as error:
                self._move_aside(path)
                yield str(error)

    def memories(self) -> Iterator[dict[str, list[str]]]:
        """The input digests of each stage's last key."""
        for path in (self.root / "last").glob("[!.]*.json"):
            with contextlib.suppress(DamagedError, KeyError):
                if body := _read_checked(path):
                    yield body["ingredients"]["inputs"]

    def share(self) -> int:
        """Say that this process uses the store, until the descriptor that this gives is closed."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.root, os.O_RDONLY)
        except OSError as error:
            raise unwritable(self.root, error) from error
        fcntl.flock(folder, fcntl.LOCK_SH)
        return folder

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from using the store.  Raises LadderError while one does."""
        folder = self.share()
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise LadderError(f"a run is using {self.root}; do this when it has ended") from None
        finally:
            os.close(folder)

    # Memory of the last run

    def last(self, dataset: str, name: str) -> dict[str, Any] | None:
        """What went into the key that a stage had last time, or None."""
        try:
            return _read_checked(self._last_path(dataset, name))
        except DamagedError:
            return None

    def remember(self, dataset: str, name: str, memory: dict[str, Any]) -> None:
        """Keep what went into a stage's key, for the next run to compare with."""
        path = self._last_path(dataset, name)
        if self.last(dataset, name) != memory:
            write_atomic(path, _checked(memory), durable=False)  # it is for words alone

    # Turns

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold a key alone among all processes; the kernel lets go when the holder dies."""
        path = self.root / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(handle, fcntl.LOCK_EX)
                # The holder before us removed the file: what we hold is a name nobody else sees.
                with contextlib.suppress(FileNotFoundError):
                    if os.fstat(handle).st_ino == path.stat().st_ino:
                        break
                os.close(handle)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def scratch(self, key: str) -> Path:
        """A folder for what a stage wants to find again if it is killed."""
        folder = self.root / "scratch" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder

    def drop_scratch(self, key: str) -> None:
        """Remove a key's scratch folder."""
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)

    # Inside

    def _last_path(self, dataset: str, name: str) -> Path:
        # Class names may hold anything, so the file is named by digest, after something readable.
        readable = re.sub(r"[^\w.-]+", "_", name)[:60]
        return self.root / "last" / f"{readable}.{digest_of([dataset, name])[:12]}.json"

    def _write_record(self, body: dict[str, Any]) -> None:
        write_atomic(self.record_path(body["stage"], body["key"]), _checked(body))

    def _move_aside(self, path: Path) -> None:
        aside = self.root / "aside"
        with contextlib.suppress(OSError):
            aside.mkdir(parents=True, exist_ok=True)
            path.replace(aside / f"{time.time_ns()}-{path.name}")

    def _verify(
        self, name: str, signature: list[int], checked: int, thorough: bool
    ) -> list[int] | None:
        """Hold a file against its record; returns its stat where content had to be read for that.

        Raises DamagedError.
        """
        path = self.root / "files" / name
        try:
            now = _signature(path)
            settled = checked - now[2] > _YOUNG_NS
            if now == signature and settled and not thorough:
                return None
            if now[0] != signature[0]:
                raise DamagedError(f"{path} has {now[0]} bytes, {signature[0]} were stored")
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
        if digest != name.partition(".")[0]:
            raise DamagedError(f"{path} is damaged: its content no longer matches its name")
        return now

    def _save(self, name: str, data: bytes | memoryview) -> list[int]:
        try:
            self._verify(name, [len(data)], 0, thorough=True)
        except DamagedError:
            write_atomic(self.root / "files" / name, data)
        return _signature(self.root / "files" / name)


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
            return {"$bytes": save(value, Path(name).suffix or ".bin")}
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


def _record(body: dict[str, Any]) -> Record:
    return Record(*({"about": {}, **body}[field] for field in Record._fields))


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
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _checked(body: dict[str, Any]) -> bytes:
    return canonical({"checksum": digest_of(body), "body": body})


def _read_checked(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    try:
        whole = json.loads(data)
        if whole["checksum"] == digest_of(whole["body"]):
            return dict(whole["body"])
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DamagedError(f"{path} is damaged")


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


def _open(path: Path) -> tuple[mmap.mmap, pa.RecordBatch]:
    with open(path, "rb") as file:
        # Copy-on-write: a stray write to a tensor neither kills the process nor reaches the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return mapped, pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).get_batch(0)


def _values(mapped: mmap.mmap, column: pa.Array, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """A fixed_shape_tensor column as a tensor over the mapped file itself, no copy."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    values = column.storage.values
    offset = values.buffers()[1].address - pa.py_buffer(mapped).address
    return torch.frombuffer(mapped, dtype=dtype, count=len(values), offset=offset).reshape(shape)


def _load_stack(path: Path, _tree: dict[str, Any]) -> Stack:
    mapped, batch = _open(path)
    images, names, digests = (batch.column(name) for name in ("images", "names", "digests"))
    raw = np.frombuffer(digests.buffers()[1], np.uint8, count=32 * len(digests))
    return Stack(
        _values(mapped, images, torch.uint8, [len(images), *images.type.shape]),
        [name.decode("utf-8", "surrogateescape") for name in names.to_pylist()],
        raw.reshape(-1, 32),
    )


def _load_tensor(path: Path, tree: dict[str, Any]) -> Tensor:
    mapped, batch = _open(path)
    return _values(mapped, batch.column("values"), _DTYPES[tree["dtype"]], tree["shape"])


def _load_weights(path: Path, _tree: dict[str, Any]) -> Weights:
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return Weights(tensors, dict(file.metadata() or {}))


_DECODERS = {
    "$stack": _load_stack,
    "$tensor": _load_tensor,
    "$weights": _load_weights,
    "$bytes": lambda path, _tree: path.read_bytes(),
}
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.uint8, torch.int32, torch.int64),
        *(torch.float16, torch.float32, torch.float64),
    )
}
