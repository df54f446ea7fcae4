"""Dockerfile and compose.yaml name what is there, and leave no door open."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SECRETS = {"STEPLADDER_SECRET": "me:secret", "POSTGRES_PASSWORD": "word"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_the_image_is_made_of_what_is_there() -> None:
    """And of all that the package is made of: it is installed by its pins."""
    text = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall("^COPY (.*)", text, re.M) for name in line.split()[:-1]}
    ignored = {*(ROOT / ".dockerignore").read_text().split()}
    assert copied >= {"pyproject.toml", "constraints.txt", "prefect.yaml", "flows", "tasks"}
    assert all((ROOT / name).exists() for name in copied)
    assert not copied & ignored
    assert "--constraint constraints.txt" in text
    assert re.search("^USER (?!root)", text, re.M)


def test_the_server_answers_this_machine_alone_and_only_with_the_secret(
    services: dict[str, Any],
) -> None:
    server = services["server"]
    assert [port.rpartition(":")[0] for port in server["ports"]] == ["127.0.0.1:4200"]
    assert [name for name in services if "ports" in services[name]] == ["server"]
    settings = server["environment"]
    assert settings["PREFECT_SERVER_API_AUTH_STRING"] == "${STEPLADDER_SECRET}"
    assert settings["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert "/api/health" in server["healthcheck"]["test"]


def test_the_worker_takes_from_the_pool_of_the_deployments(services: dict[str, Any]) -> None:
    """After they are deployed, on a server that answers."""
    pools = re.findall("name: (stepladder)$", (ROOT / "prefect.yaml").read_text(), re.M)
    assert services["worker"]["command"] == f"prefect worker start --pool {pools[-1]}"
    assert services["worker"]["depends_on"] == {
        "deploy": {"condition": "service_completed_successfully"}
    }
    assert services["deploy"]["depends_on"] == {"server": {"condition": "service_healthy"}}
    deploy = services["deploy"]["command"]
    assert f"work-pool create {pools[-1]} --type process" in deploy
    [automation] = re.findall(r"--from-file (\S+?)\)", deploy)
    named = [
        each["name"] for each in yaml.safe_load((ROOT / automation).read_text())["automations"]
    ]
    assert f"'{named[0]}'" in deploy, "made once, however often it is brought up"


def test_docker_compose_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses to start without the secrets."""
    asked = ["docker", "compose", "version"]
    if not shutil.which("docker") or subprocess.run(asked, check=False).returncode:
        pytest.skip("docker compose is not there")
    line = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"]
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    refused = subprocess.run(line, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "set it as the first lines say" in refused.stderr
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    subprocess.run(line, check=True)
