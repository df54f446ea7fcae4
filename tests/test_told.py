"""What Prefect is told of a run: a mistake once and plainly, and a quiet night in a few lines."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from climbing import write_tiny
from prefect_server import PrefectServer, post
from shell import Shell

from tasks.caching.basics import LadderError
from tasks.caching.orchestration import once, summary
from tasks.caching.refs import Outcome, Ref

RUN = ["run", "tiny", "--ladder", "post", "--epochs", "1", "--only", "linear*", "--quiet"]


def test_the_same_failure_of_many_stages_is_told_once() -> None:
    full = [f"decode[{number}]: cannot write /cache: disk full" for number in range(20)]
    assert once([*full, "mean[3]: it is odd"]) == [
        "decode[0]: cannot write /cache: disk full (and 19 more)", "mean[3]: it is odd",
    ]  # fmt: skip


def test_a_run_is_summed_up_by_kinds_of_stage() -> None:
    ran, cached = Outcome("ran", ("new",), 1.0), Outcome("cached", (), 1.0)
    refs = [Ref("mean[3]", "mean", outcome=ran), Ref("mean[7]", "mean", outcome=cached)]
    assert summary([*refs, Ref("report", "report", outcome=cached)]) == (
        "3 stages: mean 1 cached and 1 ran, report 1 cached"
    )


def test_a_refused_run_logs_no_traceback_of_ours() -> None:
    """Refused before its session begins, too; what is no mistake keeps its traceback."""
    log = logging.getLogger("prefect.flow_runs")
    for error, is_logged in ((LadderError("epochs: 0"), False), (KeyError("epochs"), True)):
        facts = (type(error), error, None)
        record = log.makeRecord(log.name, logging.ERROR, "", 1, "Encountered", (), facts)
        assert bool(log.filter(record)) is is_logged


# Runs that a schedule has yet to begin come first otherwise.
STARTED = {"flow_runs": {"start_time": {"is_null_": False}}}


def asked(server: PrefectServer, what: str, **filters: Any) -> list[dict[str, Any]]:
    """What a server has of something."""
    return post(f"{server.url}/{what}/filter", filters)


def last_tasks(server: PrefectServer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run that began last, and its tasks."""
    [run, *_] = asked(server, "flow_runs", sort="START_TIME_DESC", **STARTED)
    return run, asked(server, "task_runs", flow_runs={"id": {"any_": [run["id"]]}})


def last_run(server: PrefectServer) -> tuple[Counter[str], list[str]]:
    """How many of the stages ended in which state, and the lines of its log."""
    run, tasks_of_it = last_tasks(server)
    tasks = Counter(each["state"]["name"] for each in tasks_of_it)
    lines = asked(server, "logs", logs={"flow_run_id": {"any_": [run["id"]]}})
    return tasks, [each["message"] for each in lines]


def test_a_mistake_is_one_line_and_a_cached_night_a_few(
    prefect_server: PrefectServer, shell: Shell, tmp_path: Path
) -> None:
    """What waited for the stage that failed ends Cancelled: nothing waits for good."""
    write_tiny(tmp_path)
    environment = {**prefect_server.environment, "STEPLADDER_DATA": str(tmp_path)}
    damaged = tmp_path / "tiny" / "training" / "cat" / "0.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])

    done = shell.run(RUN, tmp_path, environment)
    assert done.returncode == 1
    tasks, log = last_run(prefect_server)
    assert tasks["Failed"] == 1
    assert tasks["Cancelled"] > 10
    assert {*tasks} == {"Failed", "Cancelled", "Completed"}
    assert len([line for line in log if "0.png" in line]) == 2, "the stage's, and the run's state"
    assert "Traceback" not in "\n".join(log)

    damaged.write_bytes(whole)
    assert shell.run(RUN, tmp_path, environment).returncode == 0
    tasks, log = last_run(prefect_server)
    assert {*tasks} == {"Completed", "Cached"}
    assert any("train[linear, cross_entropy, seed 0] runs: has not run before" in x for x in log)

    given = {"dataset": "tiny", "which": "post", "epochs": 1, "only": "linear*"}
    # The command line would take the short cut.
    (tmp_path / "again.py").write_text(f"from flows.ladder import ladder; ladder(**{given!r})")
    again = shell.run([], tmp_path, environment, "again")
    assert again.returncode == 0, again.stderr
    tasks, log = last_run(prefect_server)
    assert {*tasks} == {"Cached"}
    assert len(log) < 15, log
    assert any(f"{tasks.total()} stages: decode 4 cached, mean 2 cached" in line for line in log)
