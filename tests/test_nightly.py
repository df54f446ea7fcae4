"""NIGHTLY.md: its commands, in their order, come to a run that is done; the server logs no error.

Minutes long, as it starts a server with everything on: behind `make production`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from prefect_server import errors_in
from test_ladder import write_digits

ROOT = Path(__file__).resolve().parents[1]
OWN_TERMINAL = "# in a terminal of its own"
# What the page leaves to whoever types, and what a test must not wait for
WAIT = """
for _ in $(seq 600); do curl --silent --fail $URL/health >/dev/null && break; sleep 0.2; done
"""


def commands() -> list[str]:
    """Those of the page's set-up, without that for one process, which tests/test_serve.py runs."""
    page = (ROOT / "NIGHTLY.md").read_text().partition("\n## ")[0]
    lines = [line[2:] for line in page.splitlines() if line.startswith("$ ")]
    return [line for line in lines if not line.startswith("source ")]


def script(lines: list[str], port: int) -> str:
    """For bash: the terminals of their own are in its background, and end with it."""
    said = [f"set -euo pipefail\nURL=http://127.0.0.1:{port}/api"]
    for number, line in enumerate(lines):
        if OWN_TERMINAL in line:
            command = line.partition("#")[0].strip()
            said.append(f"{command} > terminal-{number}.log 2>&1 &")
            said += [WAIT] if "server start" in command else []
        else:
            said.append(line)
    said.append("stepladder status --json > status.json")
    return "\n".join(said).replace(":4200", f":{port}")


def test_the_page_counts_all_it_needs() -> None:
    """In order: a password before the server, a pool before what is deployed to it."""
    words = "\n".join(commands())
    order = [
        "AUTH_STRING=", "server start", "work-pool create", "deploy --all", "automation create",
        "alarms", "worker start", "run ladder/sample", "status",
    ]  # fmt: skip
    places = [words.index(each) for each in order]
    assert places == sorted(places)
    for file in re.findall(r"--from-file (\S+)", words):
        assert (ROOT / file).is_file()


@pytest.mark.skipif(
    os.environ.get("STEPLADDER_PRODUCTION") != "full", reason="minutes long: `make production`"
)
def test_its_commands_come_to_a_run(tmp_path: Path) -> None:
    """On a server with a password and all its services; a run by hand ends Completed."""
    for name in ("flows", "tasks", "automations"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    write_digits(tmp_path / "data" / "sample", classes=3, per_class=24)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    } | {
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path),
        "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "home"),
        "STEPLADDER_DATA": str(tmp_path / "data"), "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }  # fmt: skip
    bash = subprocess.Popen(
        ["bash", "-c", script(commands(), port)], cwd=tmp_path, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        # Its background holds no pipe of its own: the output ends when it does.
        said, _ = bash.communicate(timeout=400)
    finally:
        os.killpg(bash.pid, signal.SIGTERM)
        time.sleep(5)
        with contextlib.suppress(ProcessLookupError):  # a worker whose server went before it
            os.killpg(bash.pid, signal.SIGKILL)
    logs = {each.name: each.read_text() for each in tmp_path.glob("terminal-*.log")}
    assert bash.returncode == 0, said
    status = json.loads((tmp_path / "status.json").read_text())
    [sample] = [each for each in status["deployments"] if each["name"] == "ladder/sample"]
    assert [run["state"] for run in sample["last"]] == ["Completed"]
    [nightly] = [each for each in status["deployments"] if each["schedules"]]
    assert nightly["name"] == "ladder/mnist"
    [server] = [log for log in logs.values() if "Check out the dashboard" in log]
    assert errors_in(server) == []
