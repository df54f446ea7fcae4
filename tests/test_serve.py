"""`stepladder serve`: server, schedule and runs in one, and nothing of them left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from climbing import write_tiny
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer, errors_of
from shell import Shell

from flows.serve import _insist_on_answer
from tasks.caching.basics import LadderError

ROOT = Path(__file__).resolve().parents[1]
EVERY_FIVE_SECONDS = ["--schedule", "* * * * * */5"]  # its sixth field is seconds


@contextmanager
def serving(
    environment: dict[str, str], *words: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`stepladder serve` as a terminal's foreground, and its lines up to the last of its start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve", *words], cwd=ROOT, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    lines: list[str] = []
    try:
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], f"it ended: {lines}"
        yield process, lines
    finally:
        process.kill()
        process.communicate()


def those_of(home: Path) -> dict[int, str]:
    """The command lines of processes that have this home of Prefect's in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFECT_HOME={home}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
        except OSError:
            continue
    return found


def wait(ready: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_its_schedule_fires_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """The server knows the scheduler, answers only who knows its secret, and logs no error."""
    home = tmp_path / "home"
    write_tiny(tmp_path)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")
    } | {
        "HOME": str(tmp_path), "PREFECT_HOME": str(home), "STEPLADDER_DATA": str(tmp_path),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }  # fmt: skip
    with serving(environment, "tiny", "--port", "0", *EVERY_FIVE_SECONDS) as (process, lines):
        assert lines[0] == "ladder/tiny  * * * * * */5 UTC\n"
        url = lines[-2].split()[1].removeprefix("PREFECT_API_URL=")
        headers = {"origin": "https://example.org", "content-type": "text/plain"}
        foreign = urllib.request.Request(f"{url}/flows/filter", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(foreign)
        latest = tmp_path / "reports" / "tiny" / "latest" / "results.json"
        wait(latest.is_file, "the schedule fires no run")
        assert json.loads(latest.read_text())["answer"]
        wait(lambda: any("prefect.engine" in line for line in those_of(home).values()), "no second")

        [server] = [each for each, line in those_of(home).items() if "server.py" in line]
        assert errors_of(server) == []
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(90) == 0
        assert those_of(home) == {}
        assert not Path(f"/proc/{server}/cmdline").exists()


def test_it_uses_a_server_that_is_set_and_pauses_there_at_its_end(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    write_tiny(tmp_path)
    environment = {**prefect_server.environment, "STEPLADDER_DATA": str(tmp_path)}
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.url}),
        get_client(sync_client=True) as client,
        serving(environment, "tiny") as (process, lines),
    ):
        assert lines == ["ladder/tiny  0 2 * * * UTC\n", "Ctrl-C ends it\n"]
        assert not client.read_deployment_by_name("ladder/tiny").paused
        process.terminate()
        assert process.wait(60) == 0
        assert client.read_deployment_by_name("ladder/tiny").paused


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["nowhere"], 1, "no dataset 'nowhere' under"),
        (["{}/other"], 1, "the dataset {}/other lies outside the data root"),
        (["tiny", "--schedule", "at two"], 2, "--schedule 'at two' is no cron line such as"),
        (["tiny", "--port", "99999"], 2, "Must be <= 65535"),
    ],
)
def test_what_it_cannot_serve_is_one_line(
    shell: Shell, tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    write_tiny(tmp_path / "data")
    (tmp_path / "other").mkdir()
    given = [word.format(tmp_path) for word in words]
    done = shell.run(["serve", *given], ROOT, {"STEPLADDER_DATA": str(tmp_path / "data")})
    assert done.returncode == status, done.stderr
    assert said.format(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_told_before_anything_is_served() -> None:
    nowhere = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: nowhere}), pytest.raises(LadderError) as caught:
        _insist_on_answer()
    assert f"Prefect's server at {nowhere} does not take what it is told" in str(caught.value)
