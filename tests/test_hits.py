"""What a hit takes for granted: the machine, the content of files, bytecode, mounts, packages."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.caching import call, machine
from tasks.caching import stage as stages
from tasks.caching.basics import DamagedError, LadderError
from tasks.caching.bodies import Cores
from tasks.caching.call import Call, Settings
from tasks.caching.plan import look_up
from tasks.caching.records import checked, read_body
from tasks.caching.refs import Ref
from tasks.caching.stage import stage
from tasks.caching.store import Store


@stage(exact=True)
def pixels(number: int) -> Tensor:
    """What any machine gives alike."""
    return torch.full((100, 100), number, dtype=torch.uint8)


@stage
def brightness(images: Tensor) -> float:
    """A sum whose order is the processor's."""
    return images.float().mean().item()


@stage(cores=lambda _given, _device: 2)
def fitted(images: Tensor) -> Tensor:
    """A sum whose order is that of threads, too."""
    return images.float().mean(0)


def given(name: str, root: Path, **arguments: Any) -> Call:
    """A call of one of these stages."""
    device = arguments.pop("device", "cpu")
    return Call(globals()[name], name, arguments, Settings(str(root), "tiny", device))


def why(name: str, root: Path, **arguments: Any) -> tuple[str, ...]:
    """Why a call would run; nothing where it is cached.  The plan says the same."""
    asked = given(name, root, **arguments)
    reasons = asked.find()[1]
    assert look_up(asked)[1].why == reasons
    return reasons


def test_what_changes_the_last_bits_is_in_the_key_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another processor, fewer cores, a GPU: each runs what it may change, and nothing else."""
    monkeypatch.setattr(call, "CORES", Cores(2))
    ref = given("pixels", tmp_path, number=7).perform()
    for name in ("brightness", "fitted"):
        given(name, tmp_path, images=ref).perform()

    def all_why(**more: Any) -> list[tuple[str, ...]]:
        reasons = [why(name, tmp_path, images=ref, **more) for name in ("brightness", "fitted")]
        return [why("pixels", tmp_path, number=7, **more), *reasons]

    assert all_why() == [(), (), ()]
    assert all_why(device="cuda") == [(), (), ("device cpu -> cuda",)]
    with monkeypatch.context() as patch:
        patch.setattr(call, "CORES", Cores(1))
        assert all_why() == [(), (), ("threads 2 -> 1",)]
    with monkeypatch.context() as patch:
        usual = machine.arithmetic()
        forced = f"AuthenticAMD avx2 ATEN_CPU_CAPABILITY={'x' * 60} (torch: AVX2)"
        patch.setattr(stages, "arithmetic", lambda: forced)
        other = (f"processor {usual} -> {forced}",)
        assert all_why() == [(), other, other]
    assert all_why() == [(), (), ()]


def test_a_processor_is_named_by_vendor_and_what_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch, so that a run sees at a glance that it is on another one."""
    (tmp_path / "proc").mkdir()
    lines = "processor: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx avx2\n\nvendor_id: other\n"
    (tmp_path / "proc/cpuinfo").write_text(lines)
    for name in machine._FORCING:
        monkeypatch.delenv(name, raising=False)
    assert machine.processor(tmp_path) == "AuthenticAMD avx2"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert machine.processor(tmp_path) == "AuthenticAMD avx2 ATEN_CPU_CAPABILITY=default"
    assert machine.processor(tmp_path / "nowhere").startswith(os.uname().machine)


def flip(root: Path, ref: Ref) -> Path:
    """Change 20 pixels of a stored tensor so that no stat shows it."""
    store = Store(root)
    path = store.record_path(ref.stage, ref.key)
    body = read_body(path)
    assert body
    name = next(iter(body["files"]))
    file = root / "files" / name
    data = bytearray(file.read_bytes())
    at = data.index(b"\7" * 30)
    data[at : at + 20] = b"\1" * 20
    file.write_bytes(data)
    body["files"][name] = store.files.signature(name)
    body["checked"] += 10**12
    path.write_bytes(checked(body))
    return file


def test_nothing_is_computed_of_a_damaged_input(tmp_path: Path) -> None:
    """Nor stored: its content is held against its name when it is loaded, whatever its stat."""
    ref = given("pixels", tmp_path, number=7).perform()
    file = flip(tmp_path, ref)
    assert why("pixels", tmp_path, number=7) == ()  # as far as its stat tells
    with pytest.raises(DamagedError, match=rf"{file} is damaged.*; the next run makes it again"):
        given("brightness", tmp_path, images=ref).perform()
    assert not [*tmp_path.glob("records/brightness/*")]
    again = given("pixels", tmp_path, number=7).perform()
    assert again.outcome.state == "ran"
    assert given("brightness", tmp_path, images=again).perform().load(tmp_path) == 7


def import_stale(folder: Path) -> tuple[int, int] | str:
    """In a fork: how long its stage's key is, and its constant; or why there is none."""
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = False
    try:
        stale = importlib.import_module("stale")
    except LadderError as error:
        return str(error)
    return len(stale.two.look({}).key), stale.K


def test_bytecode_of_an_older_source_is_refused(tmp_path: Path) -> None:
    """Of the same size and seconds, so that Python itself takes it for the new one's."""
    (tmp_path / "stale.py").write_text(
        "from tasks.caching.stage import stage\n"
        "K = 1\n"
        "@stage\ndef two() -> int:\n    return K + 1\n"
    )

    def look() -> tuple[int, int] | str:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fork:
            return fork.submit(import_stale, tmp_path).result()

    assert look() == (64, 1)
    assert look() == (64, 1)  # of its bytecode
    before = (tmp_path / "stale.py").stat()
    text = (tmp_path / "stale.py").read_text()
    (tmp_path / "stale.py").write_text(text.replace("K = 1", "K = 2"))
    os.utime(tmp_path / "stale.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    refused = look()
    [cached] = tmp_path.glob("__pycache__/stale.*")
    assert f"{cached} is not what {tmp_path / 'stale.py'} says now" in refused
    cached.unlink()
    assert look() == (64, 2)


MOUNTS = (
    "36 35 7:0 / /images ro,relatime shared:1 - squashfs /dev/loop0 ro,errors=continue\n"
    "37 35 8:1 / /volume ro,relatime - ext4 /dev/sda1 rw,discard\n"
    "38 35 0:50 / /far ro - nfs4 server:/x ro,vers=4\n"
)


@pytest.mark.parametrize(
    ("device", "flag", "tells"),
    [
        ((8, 1), 0, True),  # anybody may write there
        ((8, 1), os.ST_RDONLY, True),  # others may
        ((0, 50), os.ST_RDONLY, True),  # on another machine
        ((7, 0), os.ST_RDONLY, False),  # nobody may, but another image may come in its place
        ((9, 9), os.ST_RDONLY, False),  # nobody knows
    ],
)
def test_stat_is_trusted_only_where_it_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[int, int], flag: int, tells: bool
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(os, "statvfs", lambda _folder: SimpleNamespace(f_flag=flag))
    folder: Any = SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=os.makedev(*device)))
    assert machine.stat_tells(folder, tmp_path) is tells
