"""The temporary Prefect server: it comes up, says why it does not, and never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.server import TemporaryServer
from tasks.caching.basics import LadderError

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import time
from flows.server import TemporaryServer
server = TemporaryServer()
server.begin()
with server.use():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
        print(server._process.pid, client.server_type.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that names no server; gives Prefect's home in it."""
    home = tmp_path / "prefect"
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))
    return home


def test_it_serves_a_run_and_ends_with_it_though_it_is_killed(no_server: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout
    process, kind = run.stdout.readline().split()
    assert kind == "SERVER"  # and not one that Prefect has started for itself
    assert (no_server / "prefect.db").is_file()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process}/cmdline").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_that_does_not_start_says_why(no_server: Path) -> None:
    no_server.touch()  # not a folder
    server = TemporaryServer()
    said = r"unable to open database file\): make PREFECT_HOME a folder"
    with pytest.raises(LadderError, match=said), server.use():
        pass


def test_it_leaves_the_field_to_another(no_server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that the environment or a profile names is used, and none is started."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    server = TemporaryServer()
    server.begin()
    assert server._process is None

    monkeypatch.delenv("PREFECT_API_URL")
    no_server.mkdir()
    profile = 'active = "far"\n[profiles.far]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (no_server / "profiles.toml").write_text(profile)
    server.begin()
    assert server._process
    assert server._process.wait(30) == 0
