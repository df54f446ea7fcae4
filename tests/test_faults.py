"""What may happen to a machine in the middle of a run, made to happen: nothing stored is wrong.

`make test` plays a few rounds of each, `make faults` hundreds, with a table of figures at the end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from climbing import FIGURES, climb, write_tiny
from prefect_server import errors_of

from flows.climb import _run as act_on
from flows.climb import planned_by
from flows.console import Display
from flows.options import Options
from flows.reports import figures
from tasks.caching.basics import DamagedError, LadderError, StageError
from tasks.caching.bodies import Here
from tasks.caching.call import Call, Settings
from tasks.caching.process import Processes
from tasks.caching.records import checked, digest_of
from tasks.caching.stage import stage
from tasks.caching.store import Store
from tasks.caching.values import Stack, Weights
from tasks.report.publish import place

ROOT = Path(__file__).resolve().parents[1]
FULL = os.environ.get("STEPLADDER_FAULTS") == "full"
KILLS = 200 if FULL else 3
DAMAGES = 1000 if FULL else 60
TRAIN = "train[linear, cross_entropy, seed 0]"
random.seed(int(os.environ.get("STEPLADDER_SEED", "0")))

# Daemonic children of a fork server that has climbed once: the engine runs stage bodies in them
# directly, and what they are killed in is the stage itself, not an import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["warmed"])


@pytest.fixture(scope="module", autouse=True)
def warm_forks() -> None:
    """Start the fork server where it finds what it is to import."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with mock.patch.dict(os.environ, PYTHONPATH=paths):
        forkserver.ensure_running()


# A run without Prefect


def climb_and_tell(data: Path, stop: str, report: Connection) -> None:
    """Climb in a process of its own; the last message is ("end", error or "", when)."""
    error = ""
    try:
        climb(data, stop, report.send, epochs=6, only="linear, cross*")
    except (LadderError, StageError) as mistake:
        error = str(mistake)
    report.send(("end", error, time.monotonic()))


class Runner:
    """Starts runs, and kills them."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.cache = data / "cache"

    def start(self, stop: str = "") -> tuple[Any, Connection]:
        """Begin a run in a process of its own."""
        receiver, sender = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=climb_and_tell, args=(self.data, stop, sender), daemon=True)
        child.start()
        sender.close()
        return child, receiver

    def finish(self, stop: str = "") -> list[tuple[str, str, float]]:
        """Run to the end; gives what happened, to which stage, and when."""
        child, receiver = self.start(stop)
        events = [receiver.recv()]
        while events[-1][0] != "end":
            events.append(receiver.recv())
        child.join()
        assert events[-1][:2] == ("end", ""), events[-1]
        return events

    def kill_in(self, name: str, seconds: float, stop: str = "") -> bool:
        """Run, and kill -9 within `seconds` of a stage's start; whether it was still running."""
        child, receiver = self.start(stop)
        while receiver.recv()[:2] != ("runs", name):
            pass
        time.sleep(random.uniform(0, seconds))
        was_running = child.is_alive()
        child.kill()
        child.join()
        return was_running

    def digests(self) -> dict[str, str]:
        """What each record stands for, all files read and compared with their names."""
        store = Store(self.cache)
        return {
            f"{path.parent.name}/{path.stem}": store.get(
                path.parent.name, path.stem, thorough=True
            ).digest
            for path in store.record_paths()
        }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Two classes of a dozen small images, never run."""
    data = tmp_path_factory.mktemp("data")
    write_tiny(data)
    return Runner(data)


@pytest.mark.parametrize(
    ("victim", "stop"),
    [("decode[training/cat]", TRAIN), (TRAIN, "report"), ("report", "")],
    ids=["decode", "train", "report"],
)
def test_a_run_killed_anywhere_leaves_nothing_wrong(tiny: Runner, victim: str, stop: str) -> None:
    """Killed at a random moment; the next run's records equal a clean run's byte for byte."""
    shutil.rmtree(tiny.cache, ignore_errors=True)
    if victim == "decode[training/cat]":
        tiny.cache.mkdir()
    else:
        tiny.finish(stop=victim)
    before = tiny.data / "before"
    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(tiny.cache, before)

    def restore() -> None:
        shutil.rmtree(tiny.cache)
        shutil.copytree(before, tiny.cache)

    kind = victim.partition("[")[0]
    times = [when for _event, name, when in tiny.finish(stop) if name.startswith(kind)]
    seconds = 1.1 * (max(times) - min(times))
    clean = tiny.digests()
    counts = FIGURES[f"kill -9 in {kind}"]
    for _ in range(KILLS):
        restore()
        counts["hit while it ran"] += tiny.kill_in(victim, seconds, stop)
        counts["rounds"] += 1
        start = time.monotonic()
        try:
            tiny.finish(stop)
        except (AssertionError, EOFError):
            counts["crashes"] += 1
        slowest(counts, time.monotonic() - start)
        counts["wrong"] += tiny.digests() != clean
    assert (counts["crashes"], counts["wrong"]) == (0, 0)


def slowest(counts: Counter[str], seconds: float) -> None:
    """Note how long the next one was kept waiting, at worst."""
    counts["slowest ms"] = max(counts["slowest ms"], round(seconds * 1000))


def put_forever(root: Path, ready: Connection) -> None:
    for number in range(10_000):
        ready.send(number)
        Store(root).put("stage", f"{number:04}", big_value(number), 1.0, {})


def big_value(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    return {
        "stack": Stack(
            torch.randint(256, (300, 28, 28), dtype=torch.uint8, generator=generator),
            [f"{name}.png" for name in range(300)],
            np.zeros((300, 32), np.uint8),
        ),
        "weights": Weights({"w": torch.randn(1000, 10, generator=generator)}, {"a": "b"}),
        "tensor": torch.randn(1000, generator=generator),
    }


def test_a_write_killed_anywhere_stores_all_or_nothing(tmp_path: Path) -> None:
    counts = FIGURES["kill -9 in cache writes"]
    store = Store(tmp_path)
    for _ in range(KILLS):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=put_forever, args=(tmp_path, sender), daemon=True)
        child.start()
        for _ in range(random.randint(1, 4)):
            receiver.recv()
        time.sleep(random.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for path in store.record_paths():
            try:
                record = store.get("stage", path.stem, thorough=True)
            except DamagedError:  # a record that dangles, or is half there
                counts["crashes"] += 1
            else:
                counts["wrong"] += not same(store.load(record.value), big_value(int(path.stem)))
        counts["rounds"] += 1
        counts["whole records"] += len(store.record_paths())
        counts["half-written files, never looked at"] += len(list(tmp_path.rglob(".*.tmp")))
        shutil.rmtree(tmp_path, ignore_errors=True)  # it may have died before it began
    assert (counts["crashes"], counts["wrong"]) == (0, 0)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (
        torch.equal(a["stack"].images, b["stack"].images)
        and torch.equal(a["weights"].tensors["w"], b["weights"].tensors["w"])
        and torch.equal(a["tensor"], b["tensor"])
        and a["weights"].metadata == b["weights"].metadata
        and a["stack"].names == b["stack"].names
    )


# Damage


@pytest.mark.parametrize(
    "pattern", ["records/stage/*.json", "files/*.arrow", "files/*.safetensors"]
)
def test_damage_is_never_a_result_nor_a_crash(tmp_path: Path, pattern: str) -> None:
    """Flipped bits, cut ends, other content: told as damage, or the very same value."""
    store = Store(tmp_path)
    value = big_value(0)
    store.put("stage", "key", value, 1.0, {"inputs": {}})
    path = max(tmp_path.glob(pattern), key=lambda each: each.stat().st_size)
    whole = path.read_bytes()
    counts = FIGURES[f"damage to {pattern}"]
    for number in range(DAMAGES):
        data = bytearray(whole)
        if number % 3:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        else:
            del data[random.randrange(len(data)) :]
        stat = path.stat()
        path.write_bytes(data)
        if number % 2:  # and nothing but ctime tells of it
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        counts["rounds"] += 1
        try:
            record = store.get("stage", "key")
            loaded = store.load(record.value)
        except DamagedError:
            counts["found"] += 1
        except Exception:
            counts["crashes"] += 1
        else:
            counts["the very same value"] += same(loaded, value)
            counts["wrong"] += not same(loaded, value)
        path.write_bytes(whole)
        assert store.get("stage", "key") is not None
    assert (counts["crashes"], counts["wrong"]) == (0, 0)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def planted(marker: Path, record: bytes) -> Iterator[bytes]:
    """Things that are no record of ours, or of another call."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(Bomb(marker), protocol)
    yield b""
    yield b"null"
    yield b"[" * 100_000
    yield b'{"checksum": 1}'
    yield json.dumps({"serializer": {"type": "pickle"}, "data": "gASVAAAA"}).encode()
    body = json.loads(record)["body"]
    secret = {"$bytes": "../../outside.bin"}
    for edit in (
        {"value": secret},
        {"value": secret, "files": {secret["$bytes"]: [6, 0, 0, 0]}},
        {"value": secret, "digest": digest_of(secret)},
        {
            "value": secret,
            "digest": digest_of(secret),
            "files": {secret["$bytes"]: [6, 0, 0, 0]},
        },
        {"files": {}},
        {"files": None},
        {"value": None},
        {"checked": "x"},
        {"key": "other"},
        {"format": 0},
        {"stage": "other"},
    ):
        yield checked({**body, **edit})
    for missing in ("value", "digest", "files", "seconds", "ingredients", "checked"):
        yield checked({name: item for name, item in body.items() if name != missing})


def test_planted_records_are_never_loaded(tmp_path: Path) -> None:
    """Pickles do not run, and records of other makers or other calls count as damage."""
    store = Store(tmp_path / "data" / "cache")
    (tmp_path / "outside.bin").write_bytes(b"secret")
    marker = tmp_path / "marker"
    store.put("stage", "key", big_value(0), 1.0, {"inputs": {}})
    path = store.record_path("stage", "key")
    whole = path.read_bytes()
    counts = FIGURES["planted records"]
    for data in planted(marker, whole):
        path.write_bytes(data)
        with pytest.raises(DamagedError):
            store.get("stage", "key")
        counts["rounds"] += 1
    path.write_bytes(whole)
    for file in (tmp_path / "data" / "cache" / "files").iterdir():
        content = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb(marker)))
        with pytest.raises(DamagedError):
            store.get("stage", "key")
        file.write_bytes(content)
        counts["rounds"] += 1
    assert not marker.exists()


# Several processes


@stage
def slow(number: int) -> dict[str, Any]:
    """Half a second's work."""
    time.sleep(0.5)
    return {"number": number, "stack": torch.arange(1000) * number}


def perform_slow(root: Path, number: int, start: float, report: Connection) -> None:
    time.sleep(max(0, start - time.time()))
    ref = Call(slow, "slow", {"number": number}, Settings(str(root), "tiny"), Processes()).perform()
    report.send((ref.outcome.state, ref.digest))


@pytest.mark.parametrize("count", [2, 8] if FULL else [8])
def test_processes_with_the_same_key_compute_it_once(tmp_path: Path, count: int) -> None:
    for number in range(10 if FULL else 2):
        start, pipes, children = time.time() + 0.4, [], []
        for _ in range(count):
            receiver, sender = CONTEXT.Pipe(duplex=False)
            arguments = (tmp_path, number, start, sender)
            children.append(CONTEXT.Process(target=perform_slow, args=arguments, daemon=True))
            children[-1].start()
            pipes.append(receiver)
        results = [receiver.recv() for receiver in pipes]
        for child in children:
            child.join()
        states = Counter(state for state, _digest in results)
        assert states == {"ran": 1, "cached": count - 1}
        assert len({digest for _state, digest in results}) == 1
        FIGURES[f"{count} processes, same key"].update({"rounds": 1, **states})


def test_a_killed_holder_of_a_lock_delays_nobody(tmp_path: Path) -> None:
    counts = FIGURES["lock of a killed holder"]
    for number in range(20 if FULL else 2):
        _receiver, sender = CONTEXT.Pipe(duplex=False)
        holder = CONTEXT.Process(
            target=perform_slow, args=(tmp_path, number, 0, sender), daemon=True
        )
        holder.start()
        while not list((tmp_path / "locks").glob("*")):
            time.sleep(0.005)
        os.kill(holder.pid, signal.SIGKILL)
        killed = time.monotonic()
        [lock] = (tmp_path / "locks").glob("*")
        with Store(tmp_path).lock(lock.stem):
            delay = time.monotonic() - killed
        holder.join()
        assert delay < 10
        counts["rounds"] += 1
        slowest(counts, delay)


def test_bodies_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    """Also the fork server, so that nothing of a dead run holds memory or a GPU."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    # Not daemonic, so it starts a fork server and a body process, as a real run does.
    parent = CONTEXT.Process(target=perform_sleep, args=(tmp_path, sender))
    parent.start()
    receiver.recv()
    children = descendants(parent.pid)
    assert len(children) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 10
    while alive := [child for child in children if running(child)]:
        assert time.monotonic() < deadline, f"{alive} of {children} go on"
        time.sleep(0.05)


def perform_sleep(root: Path, report: Connection) -> None:
    def tell(event: str, _name: str, **_facts: Any) -> None:
        if event == "runs":
            report.send(event)

    Call(endless, "endless", {}, Settings(str(root), "tiny"), Processes(), tell).perform()


@stage
def endless() -> int:
    """Goes on for a minute."""
    time.sleep(60)
    return 0


def descendants(pid: int) -> list[int]:
    """The processes under one, by /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# Storage that gives out


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do work in a process of its own, which ends with it."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_send, args=(sender, work, *arguments), daemon=True)
    child.start()
    sender.close()
    result = receiver.recv()
    child.join()
    return result


def _send(report: Connection, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        report.send(work(*arguments))
    except LadderError as error:
        report.send(error)


def perform(root: Path, number: int, limit: int | None = None) -> str:
    """Perform a stage as nobody in particular, so that read-only folders are read-only."""
    if os.geteuid() == 0:
        os.setuid(65534)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    settings = Settings(str(root), "tiny")
    return Call(slow, "slow", {"number": number}, settings, Here()).perform().outcome.state


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_read_only_cache_serves_and_names_the_path_when_it_cannot(shared: Path) -> None:
    """A hit works without writing anything; a miss is one line that names what is not writable."""
    cache = shared / "cache"
    assert apart(perform, cache, 1) == "ran"
    for each in [cache, *cache.rglob("*")]:
        each.chmod(0o555 if each.is_dir() else 0o444)
    before = snapshot(cache)
    assert apart(perform, cache, 1) == "cached"
    next((cache / "files").iterdir()).touch()  # a stat that differs is not remembered, but served
    shutil.rmtree(cache / "last")
    before = snapshot(cache)
    assert apart(perform, cache, 1) == "cached"
    error = apart(perform, cache, 2)
    assert isinstance(error, LadderError)
    assert "cannot write" in str(error)
    assert str(cache) in str(error)
    assert snapshot(cache) == before


def serve(data: Path) -> dict[str, Any]:
    """What `run --json` tells of a run that has nothing to do, as nobody in particular."""
    options = Options(only="linear, cross*", epochs=2, ladder="post")
    with mock.patch.dict(os.environ, STEPLADDER_DATA=str(data)):
        if os.geteuid() == 0:
            os.setuid(65534)
        parameters = options.parameters("tiny")
        display = Display(quiet=True)
        folder = act_on(planned_by(parameters), parameters, display, 0, None)
        return {**display.states, **figures(folder, reused="ran" not in display.states.values())}


def test_a_read_only_data_root_serves_a_second_user(shared: Path) -> None:
    """After a file was touched and after all of it was moved, though nothing can be noted."""
    data = shared / "data"
    write_tiny(data)
    done = climb(data, epochs=2, only="linear, cross*")
    place(done["report"], done, data / "cache")
    (data / "tiny/training/cat/3.png").touch()
    for each in [data, *data.rglob("*")]:
        each.chmod(0o555 if each.is_dir() else 0o444)
    before = snapshot(data)
    told = apart(serve, data)
    assert {told.pop(name) for name in done} == {"cached"}
    assert [rung["cached"] for rung in told["rungs"]] == [True]
    assert snapshot(data) == before
    data.rename(shared / "moved")
    assert apart(serve, shared / "moved")["rungs"] == told["rungs"]


def test_a_full_disk_names_the_path_and_leaves_no_partial_file(shared: Path) -> None:
    """The limit on file sizes fails the write half-way, as a full disk does."""
    cache = shared / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    error = apart(perform, cache, 1, 4000)
    assert isinstance(error, LadderError)
    assert f"cannot write {cache / 'files'}" in str(error)
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []
    assert apart(perform, cache, 1) == "ran", "and with room again it goes on"


def test_a_full_file_system_does_the_same(shared: Path) -> None:
    """A tmpfs of a few pages, where one may be mounted."""
    cache = shared / "cache"
    cache.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", cache], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        cache.chmod(0o777)
        error = apart(perform, cache, 1)
        assert isinstance(error, LadderError)
        assert f"cannot write {cache}" in str(error)
        assert "No space left" in str(error)
        left = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
        assert left == []
    finally:
        subprocess.run(["umount", cache], check=True)


def snapshot(folder: Path) -> dict[str, Any]:
    """Names, sizes and times of all that lies in a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# Prefect


@pytest.mark.skipif(not FULL, reason="takes a minute: make faults")
def test_a_killed_prefect_server_costs_no_finished_stage(tiny: Runner, tmp_path: Path) -> None:
    """The temporary server dies mid-run: what was stored by then is there for the next run."""
    shutil.rmtree(tiny.cache, ignore_errors=True)
    run = stepladder(tiny, tmp_path, epochs=3000)
    wait_for_baselines(tiny, run)
    os.kill(server_of(run), signal.SIGKILL)
    _printed, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "server has ended" in errors.strip().splitlines()[-1]
    finished = tiny.digests()
    assert len(finished) >= 7
    again, _errors = stepladder(tiny, tmp_path, epochs=3000).communicate()
    assert json.loads(again)["stages"]["cached"] >= len(finished)
    assert tiny.digests().items() >= finished.items()
    FIGURES["temporary server killed"].update({"rounds": 1, "stages kept": len(finished)})


@pytest.mark.skipif(not FULL, reason="takes a minute: make faults")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_at_once_and_whole(tiny: Runner, tmp_path: Path, number: int) -> None:
    """Ctrl-C and a supervisor's request: one line, and no process stays behind."""
    shutil.rmtree(tiny.cache, ignore_errors=True)
    run = stepladder(tiny, tmp_path, epochs=9000)
    wait_for_baselines(tiny, run)
    children = descendants(run.pid)
    server_of(run)
    os.kill(run.pid, number) if number == signal.SIGTERM else os.killpg(run.pid, number)
    start = time.monotonic()
    printed, errors = run.communicate(timeout=20)
    FIGURES["stopped run"]["rounds"] += 1
    slowest(FIGURES["stopped run"], time.monotonic() - start)
    assert (printed, run.returncode) == ("", 128 + number)
    assert errors.strip().splitlines()[-1].startswith("stepladder: stopped; what had finished")
    while [pid for pid in children if running(pid)]:
        assert time.monotonic() < start + 20
        time.sleep(0.1)


def stepladder(tiny: Runner, home: Path, epochs: int) -> subprocess.Popen[str]:
    """A real run, with a temporary Prefect server, in a process group of its own."""
    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--json", "--only", "lin*"]
    command += ["--ladder", "post"]
    environment = {
        **os.environ,
        "STEPLADDER_DATA": str(tiny.data),
        "PREFECT_HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [*command, "--epochs", str(epochs)], env=environment, cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def server_of(run: subprocess.Popen[str]) -> int:
    """The process of a run's temporary server, which has logged no error by now."""
    [server] = [
        pid
        for pid in descendants(run.pid)
        if b"flows/server.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert errors_of(server) == []
    return server


def wait_for_baselines(tiny: Runner, run: subprocess.Popen[str]) -> None:
    """Until all that comes before training is stored."""
    while not list((tiny.cache / "records" / "baseline").glob("[!.]*")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
