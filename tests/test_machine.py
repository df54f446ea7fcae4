"""Machines as they are: few open files, odd file systems, long paths.  It works, or says why."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_upkeep import Chain, key_of

from flows import cli
from flows.reports import find_report
from tasks.caching import locks, machine, process, upkeep
from tasks.caching.basics import LadderError, StoppedError, point_to, pointed_at, write_atomic
from tasks.caching.bodies import Body
from tasks.caching.call import Settings
from tasks.caching.orchestration import Orchestrated
from tasks.caching.store import Store
from tasks.caching.values import Stack, Weights

KEY = key_of("key")

# Open files


@pytest.fixture
def limits() -> Iterator[None]:
    """Put this process's limit on open files back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_tensors_are_mapped_and_no_file_stays_open(
    tmp_path: Path, limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eighty stacks where a dozen files may be open; each goes when its last tensor does."""
    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _file: None)
    for number in range(80):
        stack = Stack(
            torch.full((2, 3, 4), number, dtype=torch.uint8), ["a", "b"], np.zeros((2, 32), "u1")
        )
        value = [stack, torch.full((3,), number), Weights({"w": torch.ones(number + 1)}, {})]
        store.put("stage", key_of(str(number)), value, 1.0, {})
    names = {path.name for path in store.files.paths()}
    taken = fill(200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for _ in range(12):
        os.close(taken.pop())
    loaded = [store.load(store.get("stage", key_of(str(n))).value) for n in range(80)]
    for each in taken:
        os.close(each)
    for number, (stack, tensor, weights) in enumerate(loaded):
        assert (stack.images == number).all()
        assert (tensor == number).all()
        assert len(weights.tensors["w"]) == number + 1
        stack.images.add_(1)  # a stray write, which ends nothing here and reaches no file
    images = loaded[7][0].images[1:]
    del loaded, stack, tensor, weights
    gc.collect()
    if Path("/proc/self/maps").exists():
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines()
                  if line.rpartition("/")[2] in names]  # fmt: skip
        assert len(mapped) == 1, "the slice alone holds its file"
    assert (images == 8).all()
    again = store.get("stage", key_of("7"), thorough=True)
    assert (store.load(again.value)[0].images == 7).all()


def fill(limit: int, hard: int) -> list[int]:
    """Open all the files that may be open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    return taken


def test_as_many_files_may_be_open_as_the_machine_lets(limits: None) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    assert machine.raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 4096)
    assert machine.raise_limit() <= 65_536


@pytest.mark.parametrize(
    ("limit", "threads"), [(64, 16), (128, 16), (256, 48), (1024, 240), (4096, 256)]
)
def test_a_run_takes_no_more_threads_than_it_can_open_files_for(
    limit: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of Prefect's threads that is refused a file ends, and the run would wait for it."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    assert machine.threads() == threads
    if limit < 128:
        with pytest.raises(LadderError, match="ulimit -n 1024"):
            machine.insist_on_open_files()
    else:
        machine.insist_on_open_files()


def test_a_limit_that_may_not_be_raised_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where the kernel has one below the hard one."""

    def refuse(_which: int, limits: tuple[int, int]) -> None:
        asked.append(limits[0])
        if limits[0] > allowed:
            raise ValueError("not allowed to raise maximum limit")

    asked: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allowed = 10_240
    assert machine.raise_limit() == 10_240
    allowed = 0
    assert machine.raise_limit() == 256
    assert asked == [65_536, 10_240] * 2


# Processes


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), EOFError("unexpected EOF"),
     BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
     ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")],
)  # fmt: skip
def test_where_no_process_can_be_started_the_run_ends_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages wait for one; the first that is refused says so, and none after it."""

    def refuse(_self: Any) -> None:
        raise error

    monkeypatch.setattr(process, "warm_up", lambda: None)
    monkeypatch.setattr(process._FORK_SERVER.Process, "start", refuse)
    processes, futures = process.Processes(), []
    open_files = len(os.listdir("/dev/fd"))
    for number in range(5):
        with pytest.raises((LadderError, StoppedError)) as told:
            processes.run(Body("x", "y", ()), print)
        futures.append(future(type(told.value)(f"decode[{number}]: {told.value}")))
    assert len(os.listdir("/dev/fd")) == open_files
    session = Orchestrated(Settings("", ""))
    session.futures = futures
    with pytest.raises(LadderError) as ended:
        session.finish(None)
    assert str(ended.value).startswith("decode[0]: no process can be started (")
    assert len(str(ended.value).splitlines()) == 1


def future(error: Exception) -> Any:
    """A Prefect future of a task that failed."""
    stopped = isinstance(error, StoppedError)  # which ends a task Cancelled
    state = SimpleNamespace(
        is_failed=lambda: not stopped,
        is_crashed=lambda: False,
        is_pending=lambda: False,
        result=lambda **_how: error,
    )
    return SimpleNamespace(wait=lambda: None, state=state)


def test_a_process_is_only_begun_where_it_can_be_begun_whole(limits: None) -> None:
    """Halfway without a descriptor, the fork server would die and leave others waiting."""
    taken = fill(200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for _ in range(8):
        os.close(taken.pop())
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="Too many open files"):
        process.insist_on_descriptors()
    assert len(os.listdir("/dev/fd")) == before
    for each in taken:
        os.close(each)
    process.insist_on_descriptors()


def test_a_long_temporary_folder_holds_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path has 104 letters at most; the fork server's is made in a shorter folder."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with process.short_temporary_folder(), tempfile.TemporaryDirectory(prefix="pymp-") as folder:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(tempfile.mktemp(prefix="listener-", dir=folder))
        assert not folder.startswith(str(long))
    assert tempfile.gettempdir() == str(long)


@pytest.mark.parametrize(
    "error",
    [OSError("AF_UNIX path too long"), FileNotFoundError(errno.ENOENT, "No usable folder"),
     OSError(errno.ENAMETOOLONG, "File name too long")],
)  # fmt: skip
def test_a_machine_without_a_temporary_folder_is_told(error: Exception) -> None:
    with pytest.raises(LadderError, match="TMPDIR"), process.short_temporary_folder():
        raise error


# File systems


def test_where_there_are_no_links_latest_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on exFAT: written, moved on, found by `open`, and kept by `cache gc`."""
    for number in (errno.EPERM, errno.ENOTSUP):
        chain = Chain(tmp_path / str(number))
        for run in (1, 2):
            chain.climb(run)
            (chain.report(run) / "results.json").write_text("{}")

        def refuse(*_where: Any, number: int = number, **_how: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "symlink", refuse)
        monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / str(number)))
        latest = chain.report(1).parent / "latest"
        for run in (2, 1):
            point_to(latest, chain.report(run).name)
            assert pointed_at(latest) == chain.report(run).name
            assert not latest.is_symlink()
        assert find_report("tiny") == chain.report(1)
        chain.age(hours=2)
        upkeep.clear(chain.store, keep_last=1)
        assert chain.keys() >= {"report1", "report2"}
        assert [path.name for path in latest.parent.glob(".*")] == []
        monkeypatch.undo()
        point_to(latest, chain.report(2).name)
        assert latest.is_symlink(), "where there are links, it is one again"


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF], ids=errno.errorcode.get
)
def test_where_there_are_no_locks_a_run_goes_on(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on some NFS and Lustre: said once; two that compute the same share no checkpoints."""

    def refuse(_file: int, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    shared = Store(tmp_path).scratch(KEY)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_warned", set())
    chain = Chain(tmp_path / "data")
    chain.climb(1)
    with caplog.at_level(logging.WARNING, "stepladder"):
        for _ in range(3):
            with chain.store.lock(KEY), chain.store.lock(KEY):
                pass
            os.close(chain.store.share())
            assert upkeep.clear(chain.store).records == 0
    assert len(caplog.messages) == 1
    assert "has no file locks" in caplog.messages[0]
    assert list((chain.store.root / "locks").iterdir()) == []
    own = Store(tmp_path).scratch(KEY)
    assert own != shared
    assert own.is_dir()
    Store(tmp_path).drop_scratch(KEY)
    assert (own.exists(), shared.exists()) == (False, True)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"),
     (errno.EROFS, "one of your own"), (errno.EACCES, "let its group"),
     (errno.ENAMETOOLONG, "shorter path"), (errno.EMFILE, "ulimit"), (errno.EIO, "set STEP")],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line_with_what_to_do(
    tmp_path: Path, number: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LadderError, match=f"cannot write .*file: .*{advice}"):
        write_atomic(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse that for folders; the file is written all the same."""
    sync = os.fsync

    def refuse(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["with spaces", "ünïcödé 图", "line\nbreak", "'\"$(x);*?[a]#%"])
def test_a_root_may_have_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    chain = Chain(tmp_path / name)
    chain.climb(1)
    stack = Stack(torch.ones(1, 2, 2, dtype=torch.uint8), ["a"], np.zeros((1, 32), "u1"))
    chain.store.put("stage", KEY, stack, 1.0, {})
    chain.names[KEY] = "stack"
    assert chain.store.load(chain.store.get("stage", KEY).value).images.sum() == 4
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / name))
    with pytest.raises(SystemExit) as ended:
        cli.app(["cache", "verify"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "5 results are whole\n")
    upkeep.clear(chain.store)
    assert chain.keys() >= {"report1"}


def test_a_root_too_long_for_any_path_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path.joinpath(*["x" * 200] * 25))
    with pytest.raises(LadderError, match="shorter path"):
        store.put("stage", KEY, b"", 1.0, {})
    with pytest.raises(LadderError, match="shorter path"):
        store.share()
    with pytest.raises(LadderError, match="File name too long"):
        store.get("stage", KEY)
