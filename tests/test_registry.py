"""A dataset's models: kept whole through kills, in one order, rolled back to the byte."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.caching.basics import DamagedError, LadderError
from tasks.serving.registry import Registry

KILLS = 200 if os.environ.get("STEPLADDER_FAULTS") == "full" else 5
PROMOTING = """
import os
from tasks.serving.registry import Registry
models = Registry("d")
print("ready", flush=True)
for _ in range({times}):
    with models.turn():
        models.promote(os.urandom(300_000), {{"who": os.getpid()}})
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    return Registry("d")


def start(times: int) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", PROMOTING.format(times=times)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])


def test_kill_at_any_moment_leaves_a_whole_model(models: Registry) -> None:
    """The model in use is whole and in the history, whenever the one who promotes is killed."""
    chance = random.Random(0)
    for _ in range(KILLS):
        running = start(100_000)
        assert running.stdout
        assert running.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.06))
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
        if used := models.current():
            assert models.read(**used)
            assert used in [{k: e[k] for k in used} for e in models.history()]
    assert models.current()


def test_two_at_once_promote_in_one_order(models: Registry) -> None:
    """No number is given twice, no event lost, and the last event is the model in use."""
    both = [start(10), start(10)]
    assert [each.wait() for each in both] == [0, 0]
    for each in both:
        assert each.stdout
        each.stdout.close()
    history = models.history()
    assert [event["number"] for event in history] == list(range(1, 21))
    assert models.current() == {k: history[-1][k] for k in ("number", "digest")}


def test_rollback_is_exact(models: Registry) -> None:
    """A rollback uses the same bytes again, is an event itself, and refuses other bytes."""
    with models.turn():
        for model in (b"one", b"two"):
            models.promote(model, {})
        models.rollback(1, {"why": "asked"})
    used = models.current()
    assert used == {"number": 1, "digest": hashlib.sha256(b"one").hexdigest()}
    assert models.read(**used) == b"one"
    assert [event["kind"] for event in models.history()][-1] == "rolled back"
    models.path(2).write_bytes(b"tow")
    with models.turn(), pytest.raises(DamagedError, match="0002"):
        models.rollback(2, {})
    with models.turn(), pytest.raises(LadderError, match="no model 3"):
        models.rollback(3, {})
    assert models.current() == used


def test_a_torn_last_line_is_no_event(models: Registry) -> None:
    """What a kill left of a line is not read, and the next event takes its place."""
    with models.turn():
        models.promote(b"one", {})
    path = models.folder / "history.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "pro')
    assert len(models.history()) == 1
    with models.turn():
        models.keep({"why": "no gain"})
    assert [event["kind"] for event in models.history()] == ["promoted", "kept"]


@pytest.mark.parametrize("left", [b'{"number": 1, "digest": "x"}', b"", None])
def test_what_a_kill_left_undone_is_done_by_the_next(models: Registry, left: bytes | None) -> None:
    """The history has the event and the pointer does not: then the history is right."""
    with models.turn():
        for model in (b"one", b"two"):
            models.promote(model, {})
    used = models.current()
    pointer = models.folder / "current"
    pointer.unlink() if left is None else pointer.write_bytes(left)
    with models.turn():
        assert models.current() == used
