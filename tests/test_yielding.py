"""Torch's threads sleep instead of spin while others want their cores, with the same bits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from tasks.caching import process, yielding
from tasks.caching.bodies import Body


def test_every_bodys_process_looks_after_its_threads(monkeypatch) -> None:
    """With the number of cores that it was handed, before anything else happens in it."""
    for name in ("threading", "signal", "gc", "keep_freed_memory", "yield_to_others"):
        monkeypatch.setattr(process, name, Mock())
    process._child(Mock(), "elsewhere", Body("tasks.rungs.train", "train", ()), 2, {**os.environ})
    process.yield_to_others.assert_called_once_with(2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chosen", [None, *yielding.OWN_CHOICE])
def test_a_users_own_choice_and_a_single_thread_are_left_alone(
    monkeypatch, chosen, threads
) -> None:
    for name in yielding.OWN_CHOICE:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "passive")
    started = Mock()
    monkeypatch.setattr(threading, "Thread", started)
    yielding.yield_to_others(threads)
    assert started.called == (threads == 2 and not chosen)


def test_it_yields_while_it_is_crowded_and_looks_again_ever_more_seldom(monkeypatch) -> None:
    """A calm look begins anew; without waiting nothing is done."""
    slept: list[float] = []
    teams: list[int] = []

    @contextlib.contextmanager
    def crowd(threads: int) -> Iterator[None]:
        teams.append(threads)
        yield

    monkeypatch.setattr(yielding, "crowd", crowd)
    monkeypatch.setattr(yielding, "waiting", lambda: iter([0, 0.1, *[0.9] * 7, 0.2, 0.5]))
    monkeypatch.setattr(time, "sleep", slept.append)
    yielding.look_after(2)
    assert slept == [0.5, 1, 2, 4, 8, 8, 8, 0.5]
    assert teams == [2] * 8


def test_the_unluckiest_threads_wait_is_what_counts(monkeypatch) -> None:
    """Threads may come and go between two looks; elsewhere than on Linux none waits."""
    looks = iter([{"1": 1.0, "2": 5.0, "3": 0.0}, {"1": 1.01, "2": 5.04, "4": 9.0}, {}, {}])
    monkeypatch.setattr(yielding, "waited", lambda: next(looks))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(time, "monotonic", iter([10, 10.05, 10.05, 10.1]).__next__)
    shares = yielding.waiting()
    assert next(shares) == pytest.approx(0.8)
    assert next(shares) == 0


def test_linux_tells_what_each_thread_waited() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel does not count it")
    before = yielding.waited()
    assert str(threading.get_native_id()) in before
    assert all(now >= before.get(each, 0) for each, now in yielding.waited().items())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_crowd_is_there_and_gone_and_changes_no_bit() -> None:
    """More threads than cores inside, as many as before after it, and the same results."""
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        pytest.skip("torch is not built with OpenMP here")

    def results() -> list[torch.Tensor]:
        x = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0))
        maps = x.view(16, 12, 25, 40)
        wide = torch.nn.functional.conv2d(maps, maps[:, :, :3, :3])
        return [x @ x.T, x.sum(0), x.exp().softmax(1), wide, wide.var((0, 2, 3))]

    results()  # which starts torch's second thread, and MKL, whose first calls may race
    alone = results()
    before = len(os.listdir("/proc/self/task"))
    with yielding.crowd(2):
        beside = results()
        deadline = time.monotonic() + 20
        cores = len(os.sched_getaffinity(0))
        while len(os.listdir("/proc/self/task")) < before + max(2, cores):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while len(os.listdir("/proc/self/task")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [*map(torch.equal, alone, beside)] == [True] * 5
