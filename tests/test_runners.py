"""Stages performed elsewhere: the same bits, and nothing by a worker that is not of one mind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from climbing import climb, stored, write_tiny
from prefect_server import PrefectServer
from shell import Shell

from flows import runners
from tasks.caching.abroad import Contact, Visit
from tasks.caching.basics import CommonError, LadderError, StoppedError
from tasks.caching.bodies import Body
from tasks.caching.process import Processes
from tasks.rungs.baseline import mean

ROOT = Path(__file__).resolve().parents[1]
PRODUCTION = pytest.mark.skipif(
    os.environ.get("STEPLADDER_PRODUCTION") != "full", reason="minutes long: `make production`"
)
LONG = ["run", "tiny", "--ladder", "post", "--epochs", "1000", "--only", "mlp*", "--quiet"]
RUN = ["run", "tiny", "--ladder", "post", "--epochs", "2", "--only", "linear*", "--quiet"]


class Dask:
    """A scheduler and two workers, started elsewhere, each with a checkout to run."""

    def __init__(self, home: Path, server: PrefectServer) -> None:
        self.home, self._server = home, server
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--port", "0", "--scheduler-file", "cluster.json")
        wait_for((home / "cluster.json").exists)
        self.address = json.loads((home / "cluster.json").read_text())["address"]

    def work(self, checkout: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start a worker that runs a checkout's code."""
        resources = ["--resources", "cores=2", "--nthreads", "4", "--no-nanny"]
        return self._start(
            "worker", self.address, *resources, "--preload", "flows.worker", checkout=checkout
        )

    def _start(self, what: str, *words: str, checkout: Path = ROOT) -> subprocess.Popen[bytes]:
        log = (self.home / f"{what}-{len(self.processes)}.log").open("w")
        command = [sys.executable, "-m", "distributed.cli.dask_" + what, *words, "--no-dashboard"]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"],
            cwd=self.home, env={**self._server.environment, "PYTHONPATH": str(checkout)},
            stdout=log, stderr=log,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End all."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path: Path, prefect_server: PrefectServer) -> Iterator[Dask]:
    home = tmp_path / "elsewhere"
    home.mkdir()
    cluster = Dask(home, prefect_server)
    yield cluster
    cluster.close()


def wait_for(is_so: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_no_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_RUNNER", "local")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for given in ("spark", "dask=", "dask:8786", "local=1", ""):
        with pytest.raises(LadderError, match=r"--runner .* is none; give local, dask, dask=ADD"):
            runners.choose(given)
    runners.choose("dask=tcp://10.0.0.7:8786")
    with pytest.raises(LadderError, match="cannot reach a server that this run has to itself; set"):
        runners.task_runner()
    runners.choose("ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "flows.on_ray", raising=False)
    with pytest.raises(LadderError, match=r"needs the package ray: pip install 'stepladder\[ray\]"):
        runners.task_runner()


@pytest.mark.parametrize(("kind", "start"), [("dask", "dask scheduler"), ("ray", "ray start")])
def test_where_nothing_listens_is_told_at_once(kind: str, start: str) -> None:
    for address in ("127.0.0.1:9", "tcp://127.0.0.1:9", "tcp://[::1]:9"):
        with pytest.raises(LadderError, match=rf"nothing answers there .*; start it with `{start}"):
            runners.insist_on_answer(kind, address)


@pytest.mark.parametrize(
    ("address", "here"),
    [("tcp://127.0.0.1:8786", True), ("tcp://[::1]:8786", True), ("localhost:6379", True),
     ("auto", True), ("tcp://10.0.0.7:8786", False), ("ray://head:10001", False)],
)  # fmt: skip
def test_an_address_is_of_this_machine_or_another(address: str, here: bool) -> None:
    assert runners.is_here(address) is here


def test_a_worker_agrees_with_the_run_or_refuses(tmp_path: Path) -> None:
    contact = Contact(tmp_path, lambda *_: None)
    arguments = {"stack": "stack"}
    papers = contact.papers(mean, arguments, 1)
    visit = Visit(papers, tmp_path)
    look = mean.look(arguments)
    visit.insist_on_same_code(look, papers)

    code = {**papers.code, "tasks.rungs.baseline.mean": "other", "tasks.rungs.gone": "code"}
    said = r"runs other code: tasks.rungs.baseline.mean, tasks.rungs.gone differ; bring"
    with pytest.raises(CommonError, match=said):
        visit.insist_on_same_code(look, papers._replace(code=code))
    older = {**papers.versions, "torch": "2.11.0"}
    with pytest.raises(CommonError, match=r"has torch 2\S+, not 2.11.0: install the same there"):
        visit.insist_on_same_code(look, papers._replace(versions=older))
    with pytest.raises(CommonError, match=r"does not see this run in .*elsewhere: have it share"):
        Visit(papers, tmp_path / "elsewhere")
    assert not visit.is_over()
    contact.end()
    assert visit.is_over()
    assert not [*tmp_path.glob("sessions/*")]


def test_what_workers_tell_is_heard(tmp_path: Path) -> None:
    heard: list[Any] = []
    contact = Contact(tmp_path, lambda event, name, **facts: heard.append((event, name, facts)))
    visit = Visit(contact.papers(mean, {"stack": 0}, 1), tmp_path)
    visit.tell("runs", "mean[7]", why=("has not run before",))
    wait_for(lambda: heard)
    visit.tell("progress", "mean[7]", at=(1, 2, "of all"))
    contact.end()
    assert heard == [
        ("runs", "mean[7]", {"why": ["has not run before"]}),
        ("progress", "mean[7]", {"at": [1, 2, "of all"]}),
    ]
    visit.tell("ran", "mean[7]")  # nobody is there any more, which ends no training


def sleep(*, progress: Any, cores: int) -> None:
    """A body that goes on and on."""
    progress()
    time.sleep(600)


def test_a_body_ends_with_a_run_elsewhere() -> None:
    over: list[bool] = []
    runner = Processes(lambda: bool(over))
    body = Body("test_runners", "sleep", ())
    with pytest.raises(StoppedError, match="its run was stopped"):
        runner.run(body, lambda *_: over.append(True))


def body_process(**_given: Any) -> tuple[int, int]:
    """A body that tells which process it runs in, and in which that was started."""
    return os.getpid(), os.getppid()


def _in_daemon(sender: Any) -> None:
    sender.send((os.getpid(), Processes().run(Body("test_runners", "body_process", ()), print)))


def test_bodies_have_processes_of_their_own_in_a_daemonic_worker() -> None:
    """As the workers of Dask's nannies are, which Python lets have no children."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_in_daemon, args=(sender,), daemon=True)
    worker.start()
    assert receiver.poll(120)
    mine, (body, _server) = receiver.recv()
    worker.join()
    assert body not in (mine, os.getpid())


def test_two_workers_of_dask_give_the_same_bits(
    dask: Dask, shell: Shell, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """And for a run of other code they say what differs, compute nothing and store nothing."""
    for data in ("here", "there", "wrong"):
        write_tiny(tmp_path / data)

    def run(data: str, checkout: Path) -> subprocess.CompletedProcess[str]:
        environment = {**prefect_server.environment, "STEPLADDER_DATA": str(tmp_path / data)}
        return shell.run([*RUN, "--runner", f"dask={dask.address}"], checkout, environment)

    dask.work(), dask.work()
    climb(tmp_path / "here", epochs=2, only="linear*")
    done = run("there", ROOT)
    assert done.returncode == 0, done.stderr
    here, there = stored(tmp_path / "here", "report"), stored(tmp_path / "there", "report")
    assert len(here) > 15
    assert here == there

    other = tmp_path / "checkout"
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, other / name)
    chapter = other / "tasks" / "rungs" / "baseline.py"
    text = chapter.read_text()
    chapter.write_text(text.replace("total / (255", "total / (254"))
    assert chapter.read_text() != text
    done = run("wrong", other)
    assert done.returncode == 1
    assert "runs other code: tasks.rungs.baseline." in done.stderr, done.stderr
    assert "bring its checkout up to date" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*(tmp_path / "wrong" / "cache" / "records").glob("mean/*")]


def begin(data: Path, runner: str, server: PrefectServer) -> subprocess.Popen[str]:
    """Begin a run that trains for some seconds."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *LONG, "--runner", runner],
        cwd=ROOT, env={**server.environment, "STEPLADDER_DATA": str(data)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def trainer(data: Path) -> int:
    """The process of the worker that begins to train."""
    found: list[Path] = []

    def trains() -> bool:
        told = (data / "cache" / "sessions").glob("*/*.jsonl")
        found[:] = [each for each in told if '["runs", "train[' in each.read_text()]
        return bool(found)

    wait_for(trains, 120)
    return int(found[0].stem.split("-")[-2])


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    _printed, errors = run.communicate(timeout=240)
    assert "Traceback" not in errors, errors
    return run.returncode, errors


@PRODUCTION
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_worker_killed_in_the_middle_costs_no_bit(
    kind: str, dask: Dask, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """The stage is begun again by another, and goes on from where it was."""
    here, there = tmp_path / "here", tmp_path / "there"
    for data in (here, there):
        write_tiny(data)
    dask.work(), dask.work()
    run = begin(there, f"dask={dask.address}" if kind == "dask" else "ray", prefect_server)
    os.kill(trainer(there), signal.SIGKILL)
    assert ended(run) == (0, "")
    assert ended(begin(here, "local", prefect_server)) == (0, "")
    assert stored(here, "report") == stored(there, "report")


@PRODUCTION
def test_a_lost_cluster_ends_the_run_with_one_line(
    dask: Dask, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """And the same command goes on from it."""
    write_tiny(tmp_path)
    dask.work()
    run = begin(tmp_path, f"dask={dask.address}", prefect_server)
    os.kill(trainer(tmp_path), signal.SIGKILL)
    status, errors = ended(run)
    assert status == 1
    assert "all of its workers are lost; what had finished is kept, the same command" in errors
    assert errors.count("\n") == 1
    dask.work()
    assert ended(begin(tmp_path, f"dask={dask.address}", prefect_server)) == (0, "")
