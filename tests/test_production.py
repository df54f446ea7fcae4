"""What takes minutes to prove: machines that die under a real server, worker and schedule."""

from __future__ import annotations

import datetime
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
from climbing import write_tiny
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer, leashed
from shell import Shell
from test_ladder import _let_a_schedule_fire

pytestmark = pytest.mark.skipif(
    os.environ.get("STEPLADDER_PRODUCTION") != "full", reason="minutes long: `make production`"
)
ROOT = Path(__file__).resolve().parents[1]


class Site:
    """A clone with its deployments on a server, and workers that can be killed."""

    def __init__(self, root: Path, server: PrefectServer, shell: Shell) -> None:
        self.root, self.server, self.shell = root, server, shell
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\0")
        for name in filter(None, tracked):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        self.data = root / "tried"
        write_tiny(self.data)
        self.environment = {
            **server.environment,
            "STEPLADDER_DATA": str(self.data),
            "PYTHONPATH": str(root),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        self.workers: list[subprocess.Popen[bytes]] = []

    def prefect(self, *words: str) -> str:
        """Run Prefect's command in the clone."""
        done = self.shell.run(["--no-prompt", *words], self.root, self.environment, "prefect")
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def work(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        log = (self.root / f"worker-{len(self.workers)}.log").open("w")
        self.workers.append(
            subprocess.Popen(
                leashed("worker", "start", "--pool", "stepladder"), stdin=subprocess.PIPE,
                cwd=self.root, env=self.environment, stdout=log, stderr=log,
            )
        )  # fmt: skip
        return self.workers[-1]

    def run(self, **parameters: Any) -> str:
        """Ask for a run of ladder/sample on tiny; gives its id."""
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("ladder/sample")
            made = client.create_flow_run_from_deployment(
                deployment.id, parameters={"dataset": "tiny", **parameters}
            )
        return str(made.id)

    def state(self, run: str) -> str:
        """What a run's state is called now."""
        with get_client(sync_client=True) as client:
            found = client.request("GET", "/flow_runs/{id}", path_params={"id": run}).json()
        return str(found["state"]["name"])

    def wait(self, run: str, *states: str, seconds: float = 240) -> str:
        """Until a run is in one of these states; gives which."""
        deadline = time.monotonic() + seconds
        while (state := self.state(run)) not in states:
            assert time.monotonic() < deadline, f"{run} is {state}, not one of {states}"
            time.sleep(1)
        return state

    def engines(self) -> list[int]:
        """The processes of runs on this site."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes()
                place = str((folder / "cwd").readlink())
            except OSError:
                continue
            if b"prefect" in line and b"engine" in line and place.startswith(str(self.root)):
                found.append(int(folder.name))
        return found


@pytest.fixture
def site(tmp_path: Path, prefect_server: PrefectServer, shell: Shell) -> Iterator[Site]:
    made = Site(tmp_path / "site", prefect_server, shell)
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        made.prefect("work-pool", "create", "stepladder", "--type", "process", "--overwrite")
        made.prefect("deploy", "--all")
        yield made
    for worker in made.workers:
        worker.kill()
        worker.wait()
    for engine in made.engines():
        os.kill(engine, signal.SIGKILL)


def slow(site: Site) -> str:
    """A run that trains for minutes, when it does."""
    recipe = {"model": "convnet", "loss": "cross_entropy", "epochs": 9000}
    run = site.run(recipes=[recipe])
    site.wait(run, "Running")
    deadline = time.monotonic() + 120
    while not site.engines() or not list((site.data / "cache").rglob("checkpoint.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return run


def test_a_dead_machine_blocks_no_later_night(site: Site) -> None:
    """Worker and engine are killed at once; the run crashes by itself, and the next one runs.

    Then it begins again where it was, for a run that crashed did nothing wrong.
    """
    site.prefect("automation", "create", "--from-file", "automations/dead-machine.yaml")
    site.work()
    run = slow(site)
    time.sleep(31)  # a sign of life
    site.workers[0].kill()
    for engine in site.engines():
        os.kill(engine, signal.SIGKILL)
    killed = time.monotonic()
    later = site.run(epochs=1, only="linear*")
    site.work()
    assert site.wait(run, "Crashed") == "Crashed"
    print(f"crashed {time.monotonic() - killed:.0f} s after it was killed", file=sys.stderr)
    assert site.wait(later, "Completed", "Failed", "Crashed") == "Completed"
    assert site.wait(run, "Running") == "Running"


def test_an_engine_ends_with_its_worker(site: Site) -> None:
    """The worker alone is killed: the training does not go on for nobody."""
    site.work()
    run = slow(site)
    site.workers[0].kill()
    deadline = time.monotonic() + 60
    while site.engines():
        assert time.monotonic() < deadline, "the engine trains on without its worker"
        time.sleep(0.5)
    assert site.wait(run, "Crashed", "Cancelled", "Failed", seconds=60) == "Crashed"


GIVE_UP = {  # an automation
    "name": "give up what is late",
    "trigger": {
        "type": "event", "posture": "Reactive", "expect": ["prefect.flow-run.Late"],
        "match": {"prefect.resource.id": "prefect.flow-run.*"}, "threshold": 1,
    },
    "actions": [{"type": "change-flow-run-state", "state": "CANCELLED", "name": "GivenUp"}],
}  # fmt: skip


def test_each_service_of_the_server_does_its_work(site: Site) -> None:
    """Late runs, events, automations, the scheduler, slots and cancellation, in one evening.

    The fixture's end holds that the server's log tells of no error.
    """
    now = datetime.datetime.now(datetime.UTC)
    with get_client(sync_client=True) as client:
        made = client.request("POST", "/automations/", json=GIVE_UP).json()["id"]
        deployment = client.read_deployment_by_name("ladder/sample").id
        time.sleep(3)  # it looks for new automations that often
        past = {
            "type": StateType.SCHEDULED,
            "state_details": {"scheduled_time": (now - datetime.timedelta(hours=1)).isoformat()},
        }
        late = client.request(
            "POST", "/deployments/{id}/create_flow_run", json={"state": past},
            path_params={"id": str(deployment)},
        ).json()["id"]  # fmt: skip
        site.wait(late, "GivenUp", seconds=60)
        client.request("DELETE", "/automations/{id}", path_params={"id": made})

    site.work()
    quick = {"dataset": "tiny", "epochs": 1, "only": "linear*"}
    _let_a_schedule_fire(site.server.url, quick)

    run = slow(site)
    later = site.run(epochs=1, only="linear*")
    site.wait(later, "AwaitingConcurrencySlot", seconds=60)
    site.prefect("flow-run", "cancel", run)
    site.wait(run, "Cancelled", seconds=90)
    assert site.wait(later, "Completed", "Failed", "Crashed") == "Completed"

    about = {"resource": {"id": [f"prefect.flow-run.{late}"]}}
    with get_client(sync_client=True) as client:
        told = client.request("POST", "/events/filter", json={"filter": about}).json()["events"]
    assert {each["event"] for each in told} >= {"prefect.flow-run.Late", "prefect.flow-run.GivenUp"}
