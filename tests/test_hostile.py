"""A cache that others can write to: whatever lies there, nothing hangs, leaves or gets in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_upkeep import Chain, key_of

from flows import cli, quick
from flows.reports import find_report
from tasks.caching import records, upkeep
from tasks.caching.basics import DamagedError, LadderError, point_to, pointed_at, read_regular
from tasks.caching.records import checked, digest_of
from tasks.caching.store import Store
from tasks.caching.values import Stack, content_name
from tasks.images import listings
from tasks.report.publish import place

KEY, OTHER = key_of("key"), key_of("other")


@pytest.fixture(autouse=True)
def no_hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits for a pipe that nobody writes to fails instead; and no power is cut here."""

    def stop(*_signal: Any) -> None:
        raise TimeoutError("it hangs")

    monkeypatch.setattr(os, "fsync", lambda _file: None)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A store with a report and what it was made of; beside it a file that is none of it."""
    chain = Chain(tmp_path / "data")
    chain.climb(1)
    (tmp_path / "victim.txt").write_text("mine")
    (tmp_path / f"{'a' * 64}.json").write_text("mine")
    return chain


def plant(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a record so that its checksum is right all the same."""
    body = json.loads(path.read_bytes())["body"]
    edit(body)
    path.write_bytes(checked(body))


def of(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(fields)


def unmoved(root: Path) -> bool:
    """Whether what lies beside the store is as it was."""
    return (root / "victim.txt").read_text() == (root / f"{'a' * 64}.json").read_text() == "mine"


# Names


NAMES = [
    "../../../victim.txt", "../../victim.txt", "/etc/hostname", "..", "", "\0", "a" * 300,
    f"{'a' * 64}.arrow/../../../../victim.txt", f"{'a' * 64}.arrow\n", f"{'A' * 64}.arrow",
    f"{'a' * 64}", f"{'a' * 64}.exe", f"{'٣' * 64}.bin",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_record_that_names_what_is_not_ours_moves_and_opens_nothing(
    chain: Chain, tmp_path: Path, name: str
) -> None:
    """Its checksum right, its digest too: set aside itself, and all it names stays where it is."""
    path = chain.record("train", "train1")
    tree = {"$bytes": name}
    plant(path, of(value=tree, digest=digest_of(tree), files={name: [4, 0, 0, 0]}))
    with pytest.raises(DamagedError):
        chain.store.get("train", key_of("train1"))
    with pytest.raises(DamagedError):
        chain.store.read_record(path)
    assert len(list(upkeep.verify(chain.store))) == 1
    assert unmoved(tmp_path)
    assert not path.exists()
    upkeep.clear(chain.store)
    assert unmoved(tmp_path)


def test_a_record_in_a_place_of_its_own_choice_is_foreign(chain: Chain, tmp_path: Path) -> None:
    """The key that it names is never made a path: gc would remove what lies there."""
    path = chain.store.record_path("train", OTHER)
    path.write_bytes(chain.record("train", "train1").read_bytes())
    plant(path, of(key=f"../../../../{'a' * 64}"))
    assert OTHER not in {each.record.key for each in upkeep.held(chain.store)}
    upkeep.clear(chain.store)
    assert len(list(upkeep.verify(chain.store))) == 1
    assert unmoved(tmp_path)


def test_what_has_no_name_of_ours_is_left_alone(chain: Chain, tmp_path: Path) -> None:
    """In every folder of the cache, by verify and by gc, however old it is."""
    (chain.store.root / "records" / "link").symlink_to(tmp_path)
    names = ("files/notes.txt", "records/train/notes.json", "listings/x.arrow", "scratch/mine/y",
             "aside/notes", "files/.vimrc.tmp", f"listings/{'A' * 64}.arrow")  # fmt: skip
    strangers = [chain.store.root / name for name in names]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    chain.age(hours=100)
    assert list(upkeep.verify(chain.store)) == []
    upkeep.clear(chain.store)
    assert all(path.read_text() == "mine" for path in strangers)
    assert unmoved(tmp_path)


@pytest.mark.parametrize("name", ["../../../victim.txt", "/tmp/victim.txt", "..", "a\0b", ""])
def test_a_planted_report_chooses_no_place(tmp_path: Path, name: str) -> None:
    class Planted:
        key = KEY

        def load(self, _root: Path) -> dict[str, bytes]:
            return files

    for others, home in (({name: b"x"}, "tiny"), ({}, name)):
        said = {"dataset": {"home": home}, "rungs": [], "environment": {"started": "2026"}}
        files = {"results.json": json.dumps(said).encode(), **others}
        with pytest.raises(DamagedError, match="--refresh report"):
            place(Planted(), {}, tmp_path / "data" / "cache")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Contents


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


BODIES: list[Callable[[dict[str, Any]], None]] = [
    *(of(files=files) for files in (None, [], 1, "x", {"x": 1}, {f"{'a' * 64}.bin": [1, 2]})),
    *(of(files={f"{'a' * 64}.bin": [size, 0, 0, 0]}) for size in ("1", 1.5, None, -1, 2**64, [])),
    *(of(seconds=seconds) for seconds in (None, "1", -1, 10**400, 1e300, [], True)),
    *(of(ingredients=given) for given in (None, [], 1, {"inputs": 1}, {"inputs": {"a": [1]}})),
    *(of(about=about) for about in (None, [], {"seen": 1}, {"seen": [[]]}, {"name": {}})),
    *(of(checked=when) for when in (None, "x", 10**400, 1.5)),
    *(of(digest=digest) for digest in (None, 5, "", "x" * 64)),
    *(of(format=number) for number in (None, "1", 0, 10**400)),
    *(of(stage=stage) for stage in (None, [], "other")),
    of(value={"$bytes": ["x"]}),
    of(value={"$tensor": {"a": 1}}),
    lambda body: body.clear(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_record_of_other_types_is_damaged(chain: Chain, number: int) -> None:
    """Under a right checksum: told as damage wherever it is met, and never an error of ours."""
    path = chain.record("train", "train1")
    plant(path, BODIES[number])
    with pytest.raises(DamagedError):
        chain.store.get("train", key_of("train1"))
    upkeep.held(chain.store)
    upkeep.clear(chain.store, max_size=10**9)
    assert list(chain.store.earlier("train", {}, "lr", since=2**63)) == []
    assert len(list(upkeep.verify(chain.store))) == 1


TEXTS = {
    "nothing": b"", "null": b"null", "number": b"1" * 5000, "list": b"[[]]", "text": b'"x"',
    "not UTF-8": b'{"body": "\xff"}', "deep": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"checksum": "x", "body": {"a": NaN}}',
    "pairs": b'{"checksum": 1, "body": [["a", 1]]}',
    "surrogate": b'{"checksum": "x", "body": {"a": "\\ud800"}}',
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_no_record_is_damaged(
    chain: Chain, tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as a memory of the last run, of the quick way, and as the results of a report."""
    store, path = chain.store, chain.record("train", "train1")
    path.write_bytes(text)
    with pytest.raises(DamagedError):
        store.get("train", key_of("train1"))
    store._last_path("tiny", "train").parent.mkdir(exist_ok=True)
    store._last_path("tiny", "train").write_bytes(text)
    assert store.last("tiny", "train") is None
    assert list(store.memories()) == []
    memory = quick.Memory(tmp_path / "data", tmp_path, {})
    memory._path.parent.mkdir(exist_ok=True)
    memory._path.write_bytes(text)
    assert memory.recall() is None
    report = chain.report(1)
    (report / "results.json").write_bytes(text)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    assert find_report() == report
    with pytest.raises(LadderError, match="run again"):
        quick.mark_cached(report)


@pytest.mark.parametrize(
    "memory",
    [{"key": 1}, {"names": []}, {"ingredients": {}}, {"names": {"a": ["x"]}}, {"seconds": "1"},
     {"ingredients": {"format": 1, "code": [], "versions": {}, "parameters": {}, "inputs": {}}}],
)  # fmt: skip
def test_a_memory_of_other_types_is_none(tmp_path: Path, memory: dict[str, Any]) -> None:
    """What is compared with the last run's must be comparable."""
    store = Store(tmp_path)
    empty: dict[str, Any] = {"code": {}, "versions": {}, "parameters": {}, "inputs": {}}
    good = {"key": KEY, "names": {}, "seconds": 1.0, "ingredients": {"format": 1, **empty}}
    store.remember("tiny", "train", good)
    assert store.last("tiny", "train") == good | {"dataset": "tiny"}
    store.remember("tiny", "train", good | memory)
    assert store.last("tiny", "train") is None


def test_a_record_too_large_to_be_one_is_not_read(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte of which nothing lies on the disk; a stage that would write such is told."""
    path = chain.record("train", "train1")
    with open(path, "r+b") as file:
        file.truncate(10**9)
    with pytest.raises(DamagedError, match="bytes"):
        chain.store.get("train", key_of("train1"))
    monkeypatch.setattr(records, "_LARGEST", 1000)
    with pytest.raises(LadderError, match="tensors or bytes"):
        chain.store.put("train", OTHER, "x" * 1000, 1.0, {})


def arrow(**columns: pa.Array) -> bytes:
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def rows(kind: pa.DataType, count: int) -> pa.Array:
    flat = pa.array([1] * count, kind)
    return pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(kind, [1]), pa.FixedSizeListArray.from_arrays(flat, 1)
    )


@pytest.mark.parametrize(
    ("tree", "data"),
    [
        ({"$stack": ""}, b""), ({"$stack": ""}, b"ARROW1"), ({"$weights": ""}, b""),
        ({"$weights": ""}, b"\xff" * 64), ({"$stack": ""}, arrow(images=pa.array([1]))),
        ({"$stack": ""}, arrow(images=rows(pa.float32(), 1), names=pa.array([b"x"]),
                               digests=pa.array([b"x" * 32], pa.binary(32)))),
        ({"$stack": ""}, arrow(images=rows(pa.uint8(), 1), names=pa.array(["x"]),
                               digests=pa.array([1]))),
        *(({"$tensor": "", "dtype": "torch.float32", "shape": shape},
           arrow(values=rows(pa.float32(), 4)))
          for shape in ([5], [2**40, 2**40], [-1, -4], "4", None, [True, 4], [4.0], {})),
        ({"$tensor": "", "dtype": "torch.float64", "shape": [4]},
         arrow(values=rows(pa.float32(), 4))),
        ({"$tensor": "", "dtype": "os.system", "shape": [4]}, arrow(values=rows(pa.float32(), 4))),
        ({"$tensor": ""}, arrow(values=rows(pa.float32(), 4))),
    ],
)  # fmt: skip
def test_a_file_that_is_not_of_its_kind_is_damaged(
    tmp_path: Path, tree: dict[str, Any], data: bytes
) -> None:
    """Under its right name, in a record with a right checksum: never a crash, nor other memory."""
    store = Store(tmp_path)
    store.put("stage", KEY, b"", 1.0, {})
    kind = next(iter(tree))
    name = content_name(data, ".safetensors" if kind == "$weights" else ".arrow")
    (tmp_path / "files" / name).write_bytes(data)
    tree = {**tree, kind: name}
    files = {name: [len(data), 0, 0, 0]}
    plant(store.record_path("stage", KEY), of(value=tree, digest=digest_of(tree), files=files))
    record = store.get("stage", KEY)
    assert record is not None
    with pytest.raises(DamagedError):
        store.load(record.value)


def test_a_value_nested_too_deep_is_damaged(chain: Chain) -> None:
    for levels in (200, 400, 600, 900):
        tree = deep(levels)
        path = chain.record("train", "train1")
        with contextlib.suppress(RecursionError):
            plant(path, of(value=tree, digest=digest_of(tree), files={}))
        with contextlib.suppress(DamagedError):
            record = chain.store.get("train", key_of("train1"))
            assert record is not None
            chain.store.load(record.value)
    upkeep.clear(chain.store, max_size=10**9)


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name[:100])
        Path(path.name[:100]).rename(path)
    os.chdir(here)


def filled(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


@pytest.mark.parametrize("make", [fifo, endless, loop, listening, filled])
def test_what_is_no_file_is_never_waited_for(
    chain: Chain, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stored file, a record, a memory, a listing, an index, a lock, `latest`, a report."""
    root, store = chain.store.root, chain.store
    monkeypatch.setenv("STEPLADDER_DATA", str(root.parent))
    for name in ("last", "quick", "scans", "locks"):
        (root / name).mkdir(exist_ok=True)
    memory = quick.Memory(root.parent, root, {})
    listing = next((root / "listings").iterdir())
    named = next(iter(store.get("train", key_of("train1")).files))  # type: ignore[union-attr]
    report = chain.report(1)
    places = [root / "files" / named, chain.record("decode", "decode1"), memory._path, listing,
              store._last_path("tiny", "train"), root / "scans" / "x.arrow",
              root / "locks" / f"{KEY}.lock", report.parent / "latest",
              report / "results.json"]  # fmt: skip
    for path in places:
        path.unlink(missing_ok=True)
        make(path)
    for stage, name in (("train", "train1"), ("decode", "decode1")):
        with contextlib.suppress(DamagedError):
            assert store.get(stage, key_of(name)) is None  # a link that leads nowhere
    assert listings.read_listing(root, listing.stem) is None
    assert listings.read_index(root / "scans" / "x.arrow") == {}
    assert store.last("tiny", "train") is None
    assert list(store.memories()) == []
    assert memory.recall() is None
    assert pointed_at(report.parent / "latest") is None
    with contextlib.suppress(LadderError), store.lock(KEY):
        pass
    with contextlib.suppress(LadderError):
        find_report()
    upkeep.held(store)
    complaints = list(upkeep.verify(store))
    assert len(complaints) >= 2
    assert list(upkeep.verify(store)) == []
    upkeep.clear(store)
    assert Path("/dev/zero").is_char_device()
    store.put("train", key_of("train1"), b"weights 1", 1.0, {"inputs": {}})
    assert store.get("train", key_of("train1"), thorough=True) is not None


@pytest.mark.parametrize("target", ["victim", "gone"])
def test_links_lead_no_lock_and_no_checkpoint_out(
    chain: Chain, tmp_path: Path, target: str
) -> None:
    """Neither is written through a link that somebody has put there."""
    (tmp_path / "victim").mkdir()
    for name in (f"locks/{KEY}.lock", f"scratch/{KEY}"):
        path = chain.store.root / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(tmp_path / target)
    with pytest.raises(LadderError, match=r"\.lock"), chain.store.lock(KEY):
        pass
    assert not chain.store.scratch(KEY).is_symlink()
    assert list((tmp_path / "victim").iterdir()) == []
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "..", "", "gone", "a\0b", "x" * 9000])
def test_latest_leads_nowhere_but_to_a_report_beside_it(tmp_path: Path, name: str) -> None:
    """Whether it is a link or a file."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home").mkdir()
    latest = tmp_path / "home" / "latest"
    latest.write_text(name)
    assert pointed_at(latest) is None
    with contextlib.suppress(OSError, ValueError):
        latest.unlink()
        latest.symlink_to(name)
    assert pointed_at(latest) is None
    (tmp_path / "home" / "run").mkdir()
    point_to(latest, "run")
    assert pointed_at(latest) == "run"


def test_a_quick_memory_serves_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data" / "cache").mkdir(parents=True)
    for folder in (tmp_path, Path("/"), tmp_path / "data/reports/../../x"):
        memory = quick.Memory(tmp_path / "data", tmp_path, {})
        memory._path.parent.mkdir(exist_ok=True)
        text = {"folder": str(folder), "stages": {}, "read": "", "written": ""}
        memory._path.write_text(json.dumps(text))
        memory._before = ("", 0)
        memory._looked = 1
        assert memory.recall() is None


# Others at work


def churn(root: Path, stop: threading.Event) -> None:
    """What other runs do all the time: temporary files, new folders, and their end."""
    while not stop.is_set():
        for number in range(40):
            for folder in ("cache/files", "cache/records/train", "cache/scratch", "reports/tiny"):
                path = root / folder / f".x{number}.1-2345abcd.tmp"
                path.write_bytes(b"")
                path.unlink()
            for name in (f"cache/records/stage{number}", f"reports/d{number}/2026-1"):
                (root / name).mkdir(parents=True)
                file = root / name / "results.json"
                file.write_text("{}")
                (root / name / f"{OTHER}.json").write_text("{}")
                (root / name / f"{OTHER}.json").unlink(missing_ok=True)
                file.unlink()
                (root / name).rmdir()
            (root / f"reports/d{number}").rmdir()


def test_what_others_take_away_meanwhile_is_passed_over(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every walk over the cache and the reports, again and again."""
    data = tmp_path / "data"
    monkeypatch.setenv("STEPLADDER_DATA", str(data))
    (data / "cache" / "scratch").mkdir()
    point_to(data / "reports/tiny/latest", chain.report(1).name)
    memory = quick.Memory(data, data / "cache" / "files", {})
    memory.seen = quick.Seen({}, {}, {}, {})
    stop = threading.Event()
    others = [threading.Thread(target=churn, args=(data, stop))]
    others[0].start()
    try:
        for _ in range(30):
            memory._looked, memory._before = 2 * quick._YOUNG_NS, ("", 0)
            memory.keep(chain.report(1))
            list(quick._stats(data))
            chain.store.record_paths()
            upkeep.held(chain.store)
            list(upkeep.verify(chain.store))
            upkeep.clear(chain.store)
            with contextlib.suppress(LadderError):
                find_report()
    finally:
        stop.set()
        others[0].join()
    assert memory._path.is_file()
    assert chain.keys() >= {"report1"}


# The commands


def test_the_commands_bear_all_of_it_at_once(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`list`, `verify` and `gc`: no traceback, and a status that says whether there was damage."""
    monkeypatch.setenv("STEPLADDER_DATA", str(chain.reports.parent))
    folder = chain.store.root / "records" / "train"
    whole = chain.record("train", "train1").read_bytes()
    for number, edit in enumerate(BODIES):
        path = folder / f"{key_of(str(number))}.json"
        path.write_bytes(whole)
        plant(path, edit)
    for number, text in enumerate(TEXTS.values()):
        (folder / f"{key_of(f'text{number}')}.json").write_bytes(text)
    for number, make in enumerate((fifo, endless, loop, listening, filled)):
        make(folder / f"{key_of(f'made{number}')}.json")
        make(chain.store.root / "files" / f"{key_of(f'made{number}')}.arrow")
    plant(chain.record("decode", "decode1"), of(about={"name": "a\nb\x1b[31m\ud800"[:-1]}))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.app(["cache", *arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    status, printed = run("list")
    assert (status, "4 results" in printed, "\x1b" in printed) == (0, True, False)
    status, printed = run("verify")
    assert status == 1
    assert "4 results are whole" in printed
    assert run("verify") == (0, "4 results are whole\n")
    assert run("gc", "--keep-last", "1")[0] == 0
    assert run("gc", "--max-size", "1")[0] == 0
    assert unmoved(tmp_path)


# A lack is no damage


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES]
)
def test_what_cannot_be_read_now_is_not_called_damaged(
    chain: Chain, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what is lacking, and nothing is set aside or computed again."""

    def refuse(path: Any, *_flags: Any, **_more: Any) -> int:
        raise OSError(number, os.strerror(number), str(path))

    key = key_of("train1")
    value = chain.store.get("train", key).value  # type: ignore[union-attr]
    monkeypatch.setattr(os, "open", refuse)
    acts: list[Callable[[], Any]] = [
        lambda: chain.store.get("train", key),
        lambda: chain.store.load(value),
        lambda: chain.store.set_aside("train", key),
        lambda: list(upkeep.verify(chain.store)),
        lambda: listings.read_listing(chain.store.root, key_of("listing1")),
        lambda: read_regular(chain.record("train", "train1")),
    ]
    for act in acts:
        with pytest.raises(LadderError, match=f"{os.strerror(number)}; ") as told:
            act()
        assert type(told.value) is LadderError
    monkeypatch.undo()
    assert not (chain.store.root / "aside").exists()
    assert len(chain.keys()) == 4


def test_a_map_that_is_refused_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    stack = Stack(torch.zeros(1, 2, 2, dtype=torch.uint8), ["a"], np.zeros((1, 32), np.uint8))
    record = store.put("stage", KEY, stack, 1.0, {})

    def refuse(*_where: Any, **_how: Any) -> None:
        raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.raises(LadderError, match="Cannot allocate memory; free some memory") as told:
        store.load(record.value)
    assert type(told.value) is LadderError
