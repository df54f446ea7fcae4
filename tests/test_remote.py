"""A store that machines share: what one has computed, the others find; nothing wrong, ever."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from climbing import FIGURES, climb, stored, write_tiny

from tasks.caching import remote
from tasks.caching.basics import LadderError
from tasks.caching.remote import Remote
from tasks.caching.store import Store

ROUNDS = 500 if os.environ.get("STEPLADDER_FAULTS") == "full" else 10
OPTIONS: dict[str, Any] = {"epochs": 1, "only": "linear*"}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A machine's data root, and the shared store that it has filled."""
    home = tmp_path_factory.mktemp("computed")
    write_tiny(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPLADDER_REMOTE", str(home / "shared"))
        patch.setenv("STEPLADDER_REMOTE_KEY", "secret")
        remote._remote.cache_clear()
        ran = ran_in(home / "data")
    assert len(ran) > 15
    return home / "data", home / "shared"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test's processes are new ones."""
    remote._remote.cache_clear()
    yield
    remote._remote.cache_clear()


def ran_in(data: Path) -> list[str]:
    """The stages that run in a climb there; the others are found."""
    ran: list[str] = []
    climb(data, tell=lambda event: ran.append(event[1]) if event[0] == "runs" else None, **OPTIONS)
    return ran


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The data root of another machine, its copy of the dataset elsewhere and with other times."""
    write_tiny(tmp_path / "elsewhere" / "data")
    return tmp_path / "elsewhere" / "data"


def test_what_one_machine_has_computed_another_finds(
    computed: tuple[Path, Path], machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, shared = computed
    monkeypatch.setenv("STEPLADDER_REMOTE", str(shared))
    monkeypatch.setenv("STEPLADDER_REMOTE_KEY", "secret")
    before = {path for path in shared.rglob("*") if path.is_file()}
    assert ran_in(machine) == []
    assert stored(machine) == stored(first)
    assert {path for path in shared.rglob("*") if path.is_file()} == before
    monkeypatch.delenv("STEPLADDER_REMOTE")
    assert ran_in(machine) == [], "its own store has all now"
    listings = {path.name for path in (first / "cache" / "listings").iterdir()}
    assert {path.name for path in (machine / "cache" / "listings").iterdir()} == listings


@pytest.mark.parametrize("key", ["", "another"])
def test_what_is_not_signed_by_the_key_is_not_believed(
    key: str, computed: tuple[Path, Path], machine: Path, tmp_path: Path
) -> None:
    """Nor is a signature believed for another record."""
    _first, shared = computed
    copy = shutil.copytree(shared, tmp_path / "shared")
    if not key:
        for path in copy.glob("records/*/*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": ""}))
    told: list[str] = []
    theirs = Remote(str(copy), b"secret" if not key else key.encode())
    store = Store(machine / "cache")
    paths = [*copy.glob("records/*/*.json")]
    for path in paths:
        theirs.fetch(store, path.parent.name, path.stem, told.append)
    assert len(told) == len(paths)
    assert all("has no signature of your key; not used" in text for text in told)
    assert not store.record_paths()


def test_reading_alone_writes_nothing(machine: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("STEPLADDER_REMOTE", str(tmp_path / "shared"))
    monkeypatch.setenv("STEPLADDER_REMOTE_MODE", "read")
    assert len(ran_in(machine)) > 15
    assert not (tmp_path / "shared").exists()
    monkeypatch.setenv("STEPLADDER_REMOTE_MODE", "write")
    with pytest.raises(
        LadderError, match="STEPLADDER_REMOTE_MODE 'write': give read-write or read"
    ):
        remote.shared()
    monkeypatch.setenv("STEPLADDER_REMOTE", "ftp://host/cache")
    monkeypatch.setenv("STEPLADDER_REMOTE_MODE", "read")
    with pytest.raises(LadderError, match="give s3://bucket/prefix"):
        remote.shared()


def test_one_that_does_not_answer_costs_seconds_and_one_warning(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STEPLADDER_REMOTE", "s3://bucket/prefix")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        monkeypatch.setattr(remote, "_ANSWER", 1.0)
        assert len(ran_in(machine)) > 15
    errors = capsys.readouterr().err
    assert errors.count("the shared store s3://bucket/prefix cannot be read") <= 1


class S3:
    """A real S3 server on loopback, with a bucket."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.server.start()
        self.host, self.port = self.server.get_host_and_port()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from pyarrow import fs

    scheme = {"scheme": "http", "endpoint_override": f"127.0.0.1:{server.port}"}
    fs.S3FileSystem(allow_bucket_creation=True, **scheme).create_dir("bucket")
    yield server
    server.server.stop()


def test_two_machines_share_by_s3(
    s3: S3, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second computes nothing; push, pull and gc do the same by hand."""
    monkeypatch.setenv("STEPLADDER_REMOTE", "s3://bucket/prefix")
    first = tmp_path / "first"
    write_tiny(first)
    assert len(ran_in(first)) > 15
    remote._remote.cache_clear()
    assert ran_in(machine) == []
    assert stored(machine) == stored(first)

    theirs = remote.insist_on_shared()
    assert theirs.push(Store(first / "cache")) == 0
    count = len(stored(first))
    third = Store(tmp_path / "third" / "cache")
    assert theirs.pull(third, pytest.fail) == count
    assert len(third.record_paths()) == count
    assert theirs.clear(days=1) == (0, 0)
    gone, _files = theirs.clear(days=0)
    assert gone == count
    assert theirs.push(Store(first / "cache")) == count


def spoil(shared: Path, chance: random.Random) -> None:
    """One thing that networks, disks, old versions and others do to a shared store."""
    files = sorted((shared / "files").iterdir())
    paths = sorted(shared.glob("records/*/*.json"))
    path = chance.choice([*files, *paths, *paths])
    data = path.read_bytes()
    match chance.randrange(7):
        case 0:  # half a file
            path.write_bytes(data[: chance.randrange(len(data))])
        case 1:  # a flipped bit
            at = chance.randrange(len(data))
            path.write_bytes(
                data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            )
        case 2:
            path.unlink()
        case 3:  # another's record under this key
            path = chance.choice(paths)
            path.write_bytes(chance.choice(paths).read_bytes())
        case 4:  # an old version's
            path = chance.choice(paths)
            whole = json.loads(path.read_bytes())
            whole["body"]["format"] -= 1
            path.write_text(json.dumps(whole))
        case 5:  # a planted value, its digest made to fit
            path = chance.choice(paths)
            whole = json.loads(path.read_bytes())
            value = json.loads(chance.choice(paths).read_bytes())["body"]
            whole["body"] |= {key: value[key] for key in ("value", "digest", "files")}
            path.write_text(json.dumps(whole))
        case 6:  # names that lead elsewhere
            path = chance.choice(paths)
            whole = json.loads(path.read_bytes())
            whole["body"]["files"]["../../planted.json"] = 3
            path.write_text(json.dumps(whole))


def test_nothing_wrong_comes_from_a_spoilt_store(
    computed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each record is the true one or is not there, and no file is of another name's content."""
    first, shared = computed
    truth = stored(first)
    counts = FIGURES["shared store spoilt"]
    for number in range(ROUNDS):
        chance = random.Random(number)
        copy = shutil.copytree(shared, tmp_path / "shared")
        for _ in range(chance.randrange(1, 6)):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # it is no JSON any more
                spoil(copy, chance)
        store = Store(tmp_path / "machine" / "cache")
        theirs = Remote(str(copy), b"secret")
        for path in sorted(shared.glob("records/*/*.json")):
            theirs.fetch(store, path.parent.name, path.stem, lambda _text: None)
        found = stored(tmp_path / "machine")
        counts["rounds"] += 1
        counts["found"] += len(found)
        counts["wrong"] += found != {key: truth[key] for key in found}
        assert found == {key: truth[key] for key in found}, f"round {number}"
        assert [*store.files.verify_all()] == [], f"round {number}"
        assert len(found) < len(truth) or number
        assert not (tmp_path / "planted.json").exists()
        shutil.rmtree(copy)
        shutil.rmtree(tmp_path / "machine", ignore_errors=True)


def test_a_cut_connection_leaves_nothing_half(
    computed: tuple[Path, Path], machine: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes end anywhere; what came whole is used, the rest computed, all as ever."""
    first, _shared = computed
    monkeypatch.setenv("STEPLADDER_REMOTE_KEY", "secret")
    remote.Remote("s3://bucket/cut", b"secret").push(Store(first / "cache"))
    chance = random.Random(0)
    with Cutting(s3.port, chance) as port:
        monkeypatch.setenv("STEPLADDER_REMOTE", "s3://bucket/cut")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(remote, "_ANSWER", 1.0)
        ran_in(machine)
    assert stored(machine).keys() == stored(first).keys()
    # A report tells when and why it was made.
    assert stored(machine, "report") == stored(first, "report")
    assert [*Store(machine / "cache").files.verify_all()] == []


class Cutting:
    """A way to a server on which connections end after some bytes."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port, self._chance = port, chance
        self._socket = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            left = self._chance.choice([10**9, 10**9, 10**9, 20_000, 2_000, 100])
            threading.Thread(target=self._pass, args=(client, server, 10**9), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, left), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, left: int) -> None:
        while left > 0:
            try:
                data = source.recv(min(65_536, left))
                target.sendall(data)
            except OSError:
                data = b""
            if not data:
                break
            left -= len(data)
        for each in (source, target):
            each.close()
