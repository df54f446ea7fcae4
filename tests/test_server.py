"""The temporary Prefect server: it comes up, says why it does not, and never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import memory
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer, errors_in, errors_of, leashed

from flows.server import TemporaryServer, _is_here
from tasks.caching.basics import LadderError

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import time
from flows.server import TemporaryServer, _is_here
server = TemporaryServer()
server.begin()
with server.use():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        assert client.api_healthcheck() is None
        answer = client.request("POST", "/flows/filter", json={})
        facts = server._process.pid, client.server_type.name, answer.status_code, server._port
        print(*facts, flush=True)
    time.sleep(600)
"""
NOWHERE = "127.0.0.1:9"
PROXIES = [
    {"http_proxy": f"http://{NOWHERE}", "https_proxy": f"http://{NOWHERE}"},
    {"ALL_PROXY": f"socks5://{NOWHERE}", "NO_PROXY": "example.org"},
    {"HTTP_PROXY": f"http://me:secret@{NOWHERE}", "all_proxy": f"socks://{NOWHERE}/"},
]


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that names no server; gives Prefect's home in it."""
    home = tmp_path / "prefect"
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))
    return home


def asked_by_a_web_page(port: str) -> tuple[int, str | None]:
    """What a server answers to a page of somebody else's, and whom it lets read that."""
    headers = {"origin": "https://example.org", "content-type": "text/plain"}
    url = f"http://127.0.0.1:{port}/api/flows/filter"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, b"{}", headers))
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers.get("access-control-allow-origin")


def test_it_serves_a_run_and_ends_with_it_though_it_is_killed(no_server: Path) -> None:
    """Two at once, whose home has no database yet, each beside a proxy that leads nowhere.

    No web page can use them: a foreign origin that posts what needs no leave of a browser is
    refused; the run is not.
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN], cwd=ROOT, env={**os.environ, **proxies},
            stdout=subprocess.PIPE, text=True,
        )
        for proxies in PROXIES[1:]
    ]  # fmt: skip
    said = [run.stdout.readline().split() for run in runs if run.stdout]
    # SERVER: and not one that Prefect starts itself
    assert [answered for _, *answered, _ in said] == [["SERVER", "200"]] * 2
    assert [asked_by_a_web_page(port) for *_, port in said] == [(401, None)] * 2
    assert (no_server / "prefect.db").is_file()
    assert [errors_of(int(process)) for process, *_ in said] == [[], []]
    for run in runs:
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
    deadline = time.monotonic() + 20
    while [process for process, *_ in said if Path(f"/proc/{process}/cmdline").is_file()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_that_does_not_start_says_why(no_server: Path) -> None:
    no_server.touch()  # not a folder
    server = TemporaryServer()
    said = r"unable to open database file\): set PREFECT_HOME to a folder"
    with pytest.raises(LadderError, match=said), server.use():
        pass


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_run_is_told_when_its_server_ends_before_it(is_killed: bool) -> None:
    """Prefect would ask a server that is gone for minutes; the run's own end is no such case."""
    lost = Mock()
    server = TemporaryServer(lost)
    server._process = process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    process.kill() if is_killed else server._end(process)
    server._watch()
    assert lost.called == is_killed


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


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A function that names proxies in the environment, until the test's end."""

    def name(proxies: dict[str, str]) -> None:
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(variable, "")  # to be as they were
            monkeypatch.delenv(variable)
        for variable, proxy in proxies.items():
            monkeypatch.setenv(variable, proxy)

    return name


@pytest.mark.parametrize("proxies", PROXIES, ids=["http", "socks5", "socks"])
def test_ones_own_server_is_asked_past_a_proxy(
    prefect_server: PrefectServer,
    behind: Callable[[dict[str, str]], None],
    proxies: dict[str, str],
) -> None:
    """A proxy could not reach this machine's loopback, whether no_proxy says so or not."""
    behind(proxies)
    with temporary_settings({PREFECT_API_URL: prefect_server.url}), TemporaryServer().use():
        assert get_client(sync_client=True).api_healthcheck() is None


def test_the_loopback_is_known_by_all_its_names() -> None:
    here = ["localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0"]
    assert [name for name in [*here, "10.0.0.1", "local.example", ""] if _is_here(name)] == here


@pytest.mark.parametrize(
    ("url", "proxies", "words"),
    [
        (
            "http://far.example/api", PROXIES[0],
            "mend the proxy in http_proxy or https_proxy, or add far.example to no_proxy, or",
        ),
        (
            "http://far.example/api", PROXIES[1],
            "the proxy in ALL_PROXY cannot be used (Using SOCKS proxy, but the 'socksio' package "
            "is not installed): set one of http://, or add far.example to no_proxy",
        ),
        ("http://far.example/api", PROXIES[2], "cannot be used (Unknown scheme for proxy URL)"),
        ("http://a.example.org/api", PROXIES[1], "at http://a.example.org/api/): start it, or"),
        ("http://far.example/api", {}, "at http://far.example/api/): start it, or"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_reached_is_one_line(
    behind: Callable[[dict[str, str]], None], url: str, proxies: dict[str, str], words: str
) -> None:
    """It names the proxy where there is one between, without its password."""
    behind(proxies)
    settings = temporary_settings({PREFECT_API_URL: url})
    with settings, pytest.raises(LadderError) as caught, TemporaryServer().use():
        raise RuntimeError(f"Failed to reach API at {url}/")  # as Prefect's client does
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert "secret" not in said


def test_nothing_outlives_killed_tests(tmp_path: Path) -> None:
    """Their server and worker end with them, and the next tests clear away what lay in memory."""
    ended = subprocess.run(leashed("server", "start"), stdin=subprocess.DEVNULL, check=False)
    assert ended.returncode == -signal.SIGTERM

    left = tmp_path / "stepladder-tests-killed"
    left.mkdir()
    os.utime(left, (0, 0))
    with memory(tmp_path) as here:
        assert not left.exists()
        os.utime(here, (0, 0))
        with memory(tmp_path):
            assert here.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_servers_log_is_read_for_errors() -> None:
    """Prefect's lines, uvicorn's, and what stands below them; not what merely says so."""
    lines = [
        "12:00:00.123 | INFO    | prefect.server - ERRORS are no problem",
        "12:00:01.123 | ERROR   | prefect.server.services.scheduler - Unexpected error in: ...",
        "Traceback (most recent call last):",
        "sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement",
        "12:00:02.123 | ERROR   | prefect.server.utilities.worker_channel - Worker channel "
        "heartbeat persistence failed: work_pool=stepladder",
        "sqlite3.OperationalError: database is locked",
        "12:00:03.123 | INFO    | prefect.server - hello",
        "\x1b[31mERROR\x1b[0m:    Exception in ASGI application",
    ]
    assert errors_in("\n".join(lines)) == [*lines[1:4], "ERROR:    Exception in ASGI application"]
