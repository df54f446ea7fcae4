"""A run, and each of its stages, ends when it has taken the time that it was given."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
from climbing import write_tiny
from prefect_server import PrefectServer
from shell import Shell
from test_told import STARTED, asked, last_run

from flows.parameters import Timeout, seconds
from tasks.caching.basics import LadderError, StoppedError, spelled
from tasks.caching.bodies import Body
from tasks.caching.locks import hold
from tasks.caching.process import Processes
from tasks.rungs.limits import allowed


@pytest.mark.parametrize(
    ("given", "expected"),
    [("90s", 90), ("30m", 1800), ("8h", 28_800), ("2d", 172_800), (45, 45), (None, 0)],
)
def test_a_time_is_given_as_people_write_it(given: str | int | None, expected: int) -> None:
    assert seconds(allowed("timeout", Timeout | None, given)) == expected


@pytest.mark.parametrize("given", ["", "0s", "-1s", "1.5h", "8 h", "8", "1w", "8h\n", 0, True, 1.5])
def test_what_is_no_time_is_refused(given: object) -> None:
    with pytest.raises(LadderError, match=r"^timeout: .* is no time such as \"90s\", "):
        allowed("timeout", Timeout | None, given)


def test_a_message_says_the_time_as_it_was_given() -> None:
    assert [*map(spelled, (90, 1800, 28_800, 3601))] == ["90s", "30m", "8h", "3601s"]


def wait(_seconds: float, *, progress: object, cores: int) -> str:
    time.sleep(_seconds)
    return "done"


def test_a_body_ends_when_its_time_is_over() -> None:
    """Its process too, at once; one that is quicker gives its result."""
    runner = Processes()
    assert runner.run(Body(__name__, "wait", (0.0,), timeout=60), lambda *_: None) == "done"
    begun = time.monotonic()
    with pytest.raises(LadderError, match=r"longer than 1s: give stages more time \(stage_timeout"):
        runner.run(Body(__name__, "wait", (600.0,), timeout=1), lambda *_: None)
    assert time.monotonic() - begun < 60
    assert not runner._running


def test_a_stopped_run_waits_for_no_key_that_another_computes(tmp_path: Path) -> None:
    """And one that goes on gets the key when the other gives it back."""
    path = tmp_path / "store" / "locks" / "key.lock"
    stopped, got = threading.Event(), []

    def want() -> None:
        with contextlib.suppress(StoppedError), hold(path, stopped.is_set):
            got.append(stopped.is_set())

    with hold(path):
        first = threading.Thread(target=want)
        first.start()
        first.join(0.3)
        assert first.is_alive()
        stopped.set()
        first.join(10)
        assert not first.is_alive()
        assert got == []
        stopped.clear()
        second = threading.Thread(target=want)
        second.start()
    second.join(10)
    assert got == [False]


def test_a_run_ends_late_in_one_line_and_goes_on_from_there(
    prefect_server: PrefectServer, shell: Shell, tmp_path: Path
) -> None:
    """It is TimedOut, its training Cancelled, its checkpoint kept; the report needs none of it."""
    write_tiny(tmp_path)
    environment = {**prefect_server.environment, "STEPLADDER_DATA": str(tmp_path)}
    run = ["run", "tiny", "--models", "convnet", "--quiet", "--epochs"]
    kept: list[Path] = []
    for limit in ("6s", "20s", "60s"):  # whichever lets this machine train an epoch
        done = shell.run([*run, "9000", "--timeout", limit], tmp_path, environment)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        start = f"stepladder: the run took longer than {limit}: give it more time (timeout)"
        assert line.startswith(start.replace("60s", "1m"))
        kept = [*(tmp_path / "cache" / "scratch").rglob("checkpoint.safetensors")]
        if kept:
            break
    assert len(kept) == 1
    [found, *_] = asked(prefect_server, "flow_runs", sort="START_TIME_DESC", **STARTED)
    assert (found["state"]["type"], found["state"]["name"]) == ("FAILED", "TimedOut")
    tasks, log = last_run(prefect_server)
    assert {*tasks} <= {"Completed", "Cancelled"}
    assert tasks["Cancelled"] > 2
    assert len([line for line in log if "took longer" in line]) == 2, "its end, and its state"
    assert not any(words in line for line in log for words in ("Traceback", "was stopped"))

    done = shell.run([*run, "9000", "--stage-timeout", "2s"], tmp_path, environment)
    assert done.returncode == 3
    assert "failed: it took longer than 2s" in done.stderr
