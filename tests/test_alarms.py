"""Alarms: a real server calls a real webhook when a night fails, is late or finds a worse model."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled
from prefect_server import PrefectServer

from flows.alarms import ALARMS, alarms, set_up
from flows.ladder import ladder
from flows.status import status
from tasks.caching.basics import LadderError
from tasks.report.artifacts import ended


@pytest.fixture
def called() -> Iterator[tuple[str, list[str]]]:
    """A webhook on loopback: its URL, and the texts that it was called with."""
    texts: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", texts
        server.shutdown()


def wait_for(texts: list[str], said: str) -> None:
    deadline = time.monotonic() + 60
    while not any(said in text for text in texts):
        assert time.monotonic() < deadline, f"no call says {said!r}: {texts}"
        time.sleep(0.2)


def test_each_alarm_calls_the_webhook(
    called: tuple[str, list[str]], prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """Set up twice, each is still told once; what a name holds breaks no JSON."""
    url, texts = called
    said = 'Model 1 stays in use, and this run\'s best rung is worse: 3 "images" won, 90 lost.'
    promotion = {"number": 1, "promoted": False, "regression": True, "said": said}
    results = {"dataset": {"home": "tiny", "name": "tiny"}, "promotion": promotion}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        set_up(url)
        assert set_up(url) == [f"stepladder-alarms: {kind}" for kind in ALARMS]
        with get_client(sync_client=True) as client:
            there = client.request("POST", "/automations/filter", json={}).json()
            past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
            client.create_flow_run(ladder, name="last night", state=Scheduled(scheduled_time=past))
        assert sum(each["name"].startswith("stepladder-alarms") for each in there) == 3
        time.sleep(3)  # the server looks for new automations that often
        state = ended(str(tmp_path))
        assert (state.message, state.data) == (said, str(tmp_path))
        ladder(dataset="", return_state=True)
        wait_for(texts, f"tiny: {said}")
        wait_for(texts, "'' names no dataset")
        wait_for(texts, "last night")
    time.sleep(1)
    assert len(texts) == 3
    assert prefect_server.new_errors() == []


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(LadderError, match="'hooks' is no URL; give one such as"):
        alarms("hooks")


def test_what_needs_a_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_settings({PREFECT_API_URL: None}):
        for command in (status, lambda: alarms("http://127.0.0.1:9/hook")):
            with pytest.raises(LadderError, match="no Prefect server is set; `prefect config set"):
                command()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(
            LadderError, match=r"Prefect's server does not answer .*; start it: `prefect"
        ),
    ):
        status()
