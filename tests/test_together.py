"""Many short bodies in forks of one process, and many calls in one task of Prefect."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from climbing import stored
from PIL import Image
from prefect_server import PrefectServer
from shell import Shell
from test_faults import descendants, running
from test_told import last_run, last_tasks

from tasks.caching.basics import LadderError, StageError, StoppedError
from tasks.caching.bodies import Body
from tasks.caching.process import Processes

CONTEXT = multiprocessing.get_context("spawn")
LEFT: list[int] = []  # what a body has left behind
RUN = ["run", "many", "--models", "linear", "--ladder", "post", "--epochs", "1", "--quiet"]


def leave(number: int, **_more: Any) -> tuple[int, int]:
    """How much others have left here, and the process that forks."""
    LEFT.append(number)
    return len(LEFT), os.getppid()


def fail(how: str, **_more: Any) -> None:
    """End in some way."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "mistake":
        raise LadderError("mend it")
    if how == "slow":
        time.sleep(60)
    sys.exit(3)


def body(function: str, *arguments: Any, timeout: int = 0) -> Body:
    return Body("test_together", function, arguments, timeout=timeout)


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that forks import this module."""
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)


def test_each_body_is_alone_in_a_fork_of_the_same_process() -> None:
    with Processes().together() as runner:
        found = [runner.run(body("leave", number), lambda *_: None) for number in range(5)]
    assert [left for left, _parent in found] == [1] * 5
    assert len({parent for _left, parent in found}) == 1


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("killed", StageError, "its process ended with SIGKILL"),
        ("mistake", LadderError, "mend it"),
        ("slow", LadderError, "it took longer than 1s"),
        ("exit", StageError, "its process ended with exit code"),
    ],
)
def test_what_ends_one_does_not_end_the_next(how: str, kind: Any, words: str) -> None:
    with Processes().together() as runner:
        with pytest.raises(kind, match=words):
            runner.run(body("fail", how, timeout=int(how == "slow")), lambda *_: None)
        assert runner.run(body("leave", 1), lambda *_: None)[0] == 1


def test_a_stopped_run_begins_none() -> None:
    processes = Processes()
    with processes.together() as runner:
        runner.run(body("leave", 1), lambda *_: None)
        processes.stop()
        with pytest.raises(StoppedError):
            runner.run(body("leave", 2), lambda *_: None)


def linger(path: str, **_more: Any) -> None:
    """Say who this is, and go on for a minute."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def linger_in_a_fork(path: str) -> None:
    with Processes().together() as runner:
        runner.run(body("linger", path), lambda *_: None)


def test_forks_end_with_who_asked_for_them(tmp_path: Path) -> None:
    parent = CONTEXT.Process(target=linger_in_a_fork, args=(str(tmp_path / "pid"),))
    parent.start()
    assert parent.pid
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = descendants(parent.pid)
    assert int((tmp_path / "pid").read_text()) in children
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    while alive := [child for child in children if running(child)]:
        assert time.monotonic() < deadline, f"{alive} of {children} go on"
        time.sleep(0.05)


def write_many(root: Path, classes: int) -> None:
    """Classes of two images a side, whose shade is their own."""
    for side in ("training", "testing"):
        for label in range(classes):
            folder = root / side / f"c{label:02}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = np.full((4, 4), 3 * label + number, np.uint8)
                pixels[0, 0] = side == "testing"
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_many_calls_in_a_row_share_tasks(
    prefect_server: PrefectServer, shell: Shell, tmp_path: Path
) -> None:
    """Seventy classes: each result has a record of its own, and fails and is found alone."""
    write_many(tmp_path / "many", 70)
    bad = tmp_path / "many" / "training" / "c11" / "0.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:-20])
    environment = {**prefect_server.environment, "STEPLADDER_DATA": str(tmp_path)}
    done = shell.run(RUN, tmp_path, environment)
    assert done.returncode == 1
    assert "c11/0.png" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    decoded = [*(tmp_path / "cache" / "records" / "decode").glob("*.json")]
    assert len(decoded) == 139, "all but one"

    bad.write_bytes(good)
    done = shell.run(RUN, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    names = Counter(each["name"].partition(" ")[0] for each in last_tasks(prefect_server)[1])
    assert names["decode"] == 5
    assert names["mean"] == 3
    assert len(stored(tmp_path)) > 215
    states, _log = last_run(prefect_server)
    assert states["Cached"] == 4 + 2, "the decodes and means that the bad file did not reach"
    assert {each["name"] for each in last_tasks(prefect_server)[1]} >= {
        "decode training/c00 to training/c31", "mean c64 to c69",
    }  # fmt: skip
