"""The store keeps what it was given, or says that it does not."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import stat
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

from tasks.caching.basics import DamagedError, LadderError, write_atomic
from tasks.caching.call import Settings
from tasks.caching.session import Session
from tasks.caching.store import Store
from tasks.caching.values import Stack, Weights, content_digest

VALUE = {
    "stack": Stack(
        torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4),
        ["a.png", "ü\udcff.png"],
        np.arange(64, dtype=np.uint8).reshape(2, 32),
    ),
    "weights": Weights({"0.weight": torch.randn(3, 2), "b": torch.zeros(1)}, {"z": "1", "a": "é"}),
    "mean": torch.rand(2, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "page.html": b"<p>",
    "numbers": [1, 2.5, True, None, "text"],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_is_put_comes_back_equal_and_of_the_same_kind(store: Store) -> None:
    record = store.put("stage", "key", VALUE, 1.5, {"lr": 1})
    found = store.get("stage", "key")
    assert found == record
    value = store.load(found.value)
    assert torch.equal(value["stack"].images, VALUE["stack"].images)
    assert value["stack"].names == VALUE["stack"].names
    assert np.array_equal(value["stack"].digests, VALUE["stack"].digests)
    assert value["weights"].metadata == VALUE["weights"].metadata
    assert value["weights"].tensors.keys() == VALUE["weights"].tensors.keys()
    for name in ("mean", "scalar", "empty"):
        assert torch.equal(value[name], VALUE[name])
        assert value[name].dtype == VALUE[name].dtype
    assert value["page.html"] == b"<p>"
    assert value["numbers"] == VALUE["numbers"]


def test_equal_values_have_equal_digests_whatever_the_key_and_time(store: Store) -> None:
    """Downstream keys use this digest: it is the early cutoff."""
    first = store.put("stage", "one", VALUE, 1.0, {})
    second = store.put("stage", "two", VALUE, 2.0, {"lr": 2})
    changed = store.put("stage", "three", {**VALUE, "page.html": b"<p/>"}, 1.0, {})
    assert first.digest == second.digest != changed.digest


def test_writing_to_a_loaded_tensor_does_not_reach_the_file(store: Store) -> None:
    store.put("stage", "key", VALUE, 1.0, {})
    for _ in range(2):
        images = store.load(store.get("stage", "key", thorough=True).value)["stack"].images
        assert images[0, 0, 0] == 0
        images[0, 0, 0] = 99


def test_nothing_there_is_none_and_not_an_error(store: Store) -> None:
    assert store.get("stage", "key") is None
    assert store.last("dataset", "stage") is None


def damaged(store: Store, edit, pattern: str = "files/*.arrow") -> str:
    """The complaint after one stored file was edited."""
    store.put("stage", "key", VALUE, 1.0, {})
    path = sorted(store.root.glob(pattern))[0]
    edit(path)
    with pytest.raises(DamagedError) as caught:
        store.get("stage", "key")
    assert path.name in str(caught.value)
    store.set_aside("stage", "key")
    assert store.get("stage", "key") is None
    store.put("stage", "key", VALUE, 1.0, {})
    assert store.get("stage", "key", thorough=True) is not None
    return str(caught.value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_and_hide(path: Path) -> None:
    """A flipped bit under the old size and modification time: only ctime tells."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damaged_files_are_told_and_replaced(store: Store) -> None:
    assert "is missing" in damaged(store, Path.unlink)
    assert "bytes" in damaged(store, lambda path: path.write_bytes(path.read_bytes()[:-1]))
    assert "no longer matches" in damaged(store, flip)
    assert "no longer matches" in damaged(store, flip_and_hide, "files/*.safetensors")


def edit_a_number(path: Path) -> None:
    """What is still JSON of the right fields."""
    data = path.read_bytes()
    assert data.count(b'"seconds":1.0') == 1
    path.write_bytes(data.replace(b'"seconds":1.0', b'"seconds":2.0'))


def test_damaged_records_are_told_and_replaced(store: Store) -> None:
    records = "records/stage/key.json"
    assert "is damaged" in damaged(store, flip, records)
    assert "is damaged" in damaged(store, lambda path: path.write_bytes(b""), records)
    assert "is damaged" in damaged(store, edit_a_number, records)
    assert "is damaged" in damaged(store, lambda path: path.write_bytes(b"\x80\x04N."), records)


def test_a_record_under_another_key_is_foreign(store: Store) -> None:
    store.put("stage", "key", VALUE, 1.0, {})
    folder = store.root / "records" / "stage"
    (folder / "other.json").write_bytes((folder / "key.json").read_bytes())
    with pytest.raises(DamagedError, match="record of something else"):
        store.get("stage", "other")


def test_a_settled_file_is_trusted_by_stat_and_a_touched_one_is_read(store: Store) -> None:
    """Hits are quick: content is read again only where the stat differs."""
    store.put("stage", "key", VALUE, 1.0, {})
    time.sleep(0.06)
    store.get("stage", "key")  # too young to trust: read, and the record now says when
    record = (store.root / "records/stage/key.json").read_bytes()
    store.get("stage", "key")
    assert (store.root / "records/stage/key.json").read_bytes() == record
    next(store.root.glob("files/*.arrow")).touch()
    assert store.get("stage", "key") is not None
    assert (store.root / "records/stage/key.json").read_bytes() != record


KINDS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "float16", "bfloat16", "float32", "float64")  # fmt: skip
SHAPES = ((), (1,), (0,), (3,), (2, 3), (0, 3), (3, 0), (2, 0, 3), (2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_of_every_kind_and_shape_come_back(store: Store, kind: str, shape: tuple) -> None:
    """And are Arrow files that pyarrow opens."""
    dtype = getattr(torch, kind)
    tensor = (torch.arange(24)[: math.prod(shape)] % 3).reshape(shape).to(dtype)
    record = store.put("stage", "key", {"value": [tensor]}, 1.0, {})
    (value,) = store.load(record.value)["value"]
    assert value.dtype == dtype
    assert value.shape == shape
    assert torch.equal(value.double(), tensor.double())
    with pa.OSFile(str(next((store.root / "files").glob("*.arrow")))) as file:
        pa.ipc.open_file(file).read_all().validate(full=True)


def test_each_kind_and_shape_has_a_digest_of_its_own() -> None:
    zeros = [torch.zeros(shape, dtype=getattr(torch, kind)) for kind in KINDS for shape in SHAPES]
    others = [(1, 2), [1, 2], (1.0, 2), float("nan"), float("inf"), "nan", (), [], {}]
    digests = [content_digest(value) for value in (*zeros, *others)]
    assert len({*digests}) == len(digests)


@pytest.mark.parametrize(
    "value", [(1, (2, "a")), (), float("inf"), -float("inf"), {"a": (torch.ones(1),)}], ids=str
)
def test_tuples_and_infinities_come_back(store: Store, value: object) -> None:
    record = store.put("stage", "key", [value, float("nan")], 1.0, {})
    loaded, nan = store.load(store.get("stage", "key").value)
    assert loaded == value
    assert type(loaded) is type(value)
    assert math.isnan(nan)
    assert record.digest == content_digest([value, float("nan")])


def test_a_subclass_of_dict_comes_back_as_a_dict(store: Store) -> None:
    record = store.put("stage", "key", OrderedDict(a=1), 1.0, {})
    assert type(store.load(record.value)) is dict


class Named(NamedTuple):
    """Which would come back as a tuple without names."""

    a: int


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({1: 2}, "str(key)"),
        ({"$stack": 1}, "texts without a leading $"),
        ({"$tuple": [1]}, "texts without a leading $"),
        (object(), "return tensors, numbers, texts"),
        (Named(1), "return tensors, numbers, texts"),
        (1j, "return tensors, numbers, texts"),
        (torch.zeros(2, dtype=torch.complex64), "torch.view_as_real"),
        (torch.eye(2).to_sparse(), "Tensor.to_dense"),
    ],
    ids=lambda value: type(value).__name__ if type(value) is object else str(value),
)
def test_what_would_not_come_back_is_refused(store: Store, value: object, advice: str) -> None:
    """With what to do."""
    with pytest.raises(LadderError, match=re.escape(advice)):
        store.put("stage", "key", {"value": value}, 1.0, {})
    assert store.get("stage", "key") is None


def test_a_write_that_fails_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    with pytest.raises(LadderError, match=r"cannot write .*folder/file"):
        write_atomic(tmp_path / "folder" / "file", b"data")
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(("umask", "others"), [(0o002, 0o775), (0o027, 0o750)])
def test_who_may_read_the_store_is_up_to_the_umask(store: Store, umask: int, others: int) -> None:
    """Folders and files, a lock too: a group that shares one sets it once."""
    before = os.umask(umask)
    try:
        with store.lock("12" * 32):
            store.put("stage", "key", VALUE, 1.0, {})
            store.scratch("12" * 32)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in store.root.rglob("*")}
    assert len(modes) > 6
    assert modes == {path: others if path.is_dir() else others & 0o666 for path in modes}


def test_only_data_formats_are_ever_read() -> None:
    """No module imports pickle, or calls anything of other libraries that loads all of it.

    torch.load with weights_only reads tensors and plain containers, and runs nothing.
    """
    forbidden = r"\b(import|from) (pickle|cloudpickle|joblib|marshal|shelve)\b|"
    forbidden += r"(?<!safetensors\.)\b(torch|np)\.load\("
    for path in Path(__file__).parents[1].joinpath("tasks").rglob("*.py"):
        source = re.sub(r"torch\.load\([^\n]*weights_only=True\)", "", path.read_text())
        if path.name == "source.py":  # reads bytecode that Python is about to run, and runs none
            source = source.replace("import marshal\n", "")
        if path.name == "memory.py":  # writes pickles, for their digest alone
            assert not re.search(r"pickle\.(load|Unpickler|_)", source)
            source = source.replace("import pickle\n", "")
        assert not re.search(forbidden, source), path


def test_what_nobody_took_up_for_a_week_is_cleared_by_the_next_run(store: Store) -> None:
    """Of what failed and killed runs leave; a checkpoint that is in use or may be stays."""
    days = {"a" * 64: 8, "b" * 64: 6, "c" * 64 + "-host-7": 8, "d" * 64: 8, "notes": 8}
    for name, age in days.items():
        checkpoint = store.root / "scratch" / name / "checkpoint"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        then = time.time() - age * 86_400
        os.utime(checkpoint, (then, then))
        os.utime(checkpoint.parent, (then, then))
    left = store.root / "sessions" / ("e" * 32)
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    elsewhere = store.root / "elsewhere"
    (store.root / "scratch" / ("f" * 64)).symlink_to(elsewhere)
    elsewhere.mkdir()
    os.utime(elsewhere, (0, 0))
    store.scratch("d" * 64)  # a training goes on from it
    Session(Settings(str(store.root), "tiny")).begin()
    kept = {path.name for path in (store.root / "scratch").iterdir()}
    assert kept == {"b" * 64, "d" * 64, "f" * 64, "notes"}
    assert not left.exists()
    assert elsewhere.exists()


def hold(root: Path, ready, seconds: float) -> None:
    with Store(root).lock("key"):
        ready.set()
        time.sleep(seconds)


def test_a_lock_is_held_alone_and_dies_with_its_holder(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(store.root, ready, 60))
    process.start()
    assert ready.wait(60)
    locks = list((store.root / "locks").iterdir())
    assert len(locks) == 1
    assert stat.S_ISREG(locks[0].stat().st_mode)
    os.kill(process.pid, signal.SIGKILL)
    with store.lock("key"):
        pass  # reached at all: a killed holder blocks nobody
    process.join()
    assert list((store.root / "locks").iterdir()) == []
