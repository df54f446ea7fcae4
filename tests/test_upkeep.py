"""The store looked after: told of, verified, audited, and cleared of nothing that is needed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from tasks.caching import upkeep
from tasks.caching.basics import LadderError
from tasks.caching.bodies import Cores, Here
from tasks.caching.call import Call, Settings
from tasks.caching.orchestration import Gauge
from tasks.caching.plan import look_up
from tasks.caching.refs import Ref
from tasks.caching.stage import Run, stage
from tasks.caching.store import Store

HOURS = 3600


def key_of(name: str) -> str:
    """A key of the kind that stages have, which begins with the name's own digest."""
    return hashlib.sha256(name.encode()).hexdigest()


class Chain:
    """A store in which a report was made of a training, made of two decodes, made of listings."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "cache")
        self.reports = root / "reports"
        self.names: dict[str, str] = {}  # key -> what the tests call it

    def put(self, stage: str, name: str, value: Any, *inputs: str) -> str:
        """Store a value; gives its content's digest."""
        ingredients = {"inputs": {"given": list(inputs)}}
        self.names[key_of(name)] = name
        return self.store.put(stage, key_of(name), value, 1.0, ingredients).digest

    def record(self, stage: str, name: str) -> Path:
        """Where a record lies."""
        return self.store.record_path(stage, key_of(name))

    def report(self, number: int, dataset: str = "tiny") -> Path:
        """The folder of a run's report."""
        key = key_of(f"report{number}")
        return self.reports / dataset / f"2026010100000{number}-{key[:8]}"

    def climb(self, number: int, dataset: str = "tiny") -> None:
        """A run of a dataset that shares one decode with all others."""
        listing = self.store.root / "listings" / f"{key_of(f'listing{number}')}.arrow"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_bytes(b"listing")
        shared = self.put("decode", "shared", b"shared pixels")
        own = self.put("decode", f"decode{number}", b"pixels %d" % number, listing.stem)
        trained = self.put("train", f"train{number}", b"weights %d" % number, shared, own)
        self.put("report", f"report{number}", b"page %d" % number, trained)
        self.report(number, dataset).mkdir(parents=True)

    def age(self, hours: float) -> None:
        """Make everything that old."""
        for path in self.store.root.rglob("*"):
            then = time.time() - hours * HOURS
            os.utime(path, (then, then))

    def keys(self) -> set[str]:
        """The keys that are stored, each with all its files."""
        paths = self.store.record_paths()
        assert all(self.store.get(path.parent.name, path.stem, thorough=True) for path in paths)
        return {self.names[path.stem] for path in paths}


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def of(number: int) -> set[str]:
    return {"shared", f"decode{number}", f"train{number}", f"report{number}"}


def test_what_a_kept_report_needs_is_never_cleared_away(chain: Chain) -> None:
    """Down to the listings, for the newest reports of each dataset and for the latest."""
    for number in range(5):
        chain.climb(number)
    chain.climb(7, "other")
    (chain.reports / "tiny" / "latest").symlink_to(chain.report(1).name)
    chain.age(hours=2)
    freed = upkeep.clear(chain.store, keep_last=2)
    assert chain.keys() == of(3) | of(4) | of(1) | of(7)
    assert freed.records == 6
    listings = {path.stem for path in (chain.store.root / "listings").iterdir()}
    assert listings == {key_of(f"listing{number}") for number in (1, 3, 4, 7)}
    assert upkeep.clear(chain.store, keep_last=2) == upkeep.Freed(0, 0, 0)


@pytest.mark.parametrize("away", [-20 * 365 * 24, -25, -2])
def test_a_clock_that_went_back_costs_nothing_that_is_needed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, away: float
) -> None:
    """Nor what is just being stored, whose time seems to be yet to come."""
    chain.climb(1)
    young = chain.store.root / "files" / f"{'1' * 64}.bin"
    young.write_bytes(b"being stored")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + away * HOURS)
    assert upkeep.clear(chain.store) == upkeep.Freed(0, 0, 0)
    assert chain.keys() == of(1)
    assert young.exists()


def test_what_has_gone_from_the_reports_may_go(chain: Chain) -> None:
    chain.climb(1)
    chain.report(1).rmdir()
    before = sum(each.total for each in upkeep.held(chain.store))
    assert upkeep.clear(chain.store).size == before, "what is freed is told to the byte"
    assert chain.keys() == set()


def test_a_size_keeps_what_was_of_use_last(chain: Chain) -> None:
    """The least recently used go first, shared files counted once; what is needed stays."""
    chain.climb(1)
    for number in range(10):
        chain.put("decode", f"loose{number}", b"same" * 25_000)
        chain.put("decode", f"own{number}", b"%d" % number * 10_000)
    for number in range(10):
        for name in ("loose", "own"):
            path = chain.record("decode", f"{name}{number}")
            os.utime(path, (0, 1_000_000 + number))
    chain.store.used("decode", key_of("own0"))
    upkeep.clear(chain.store, max_size=150_000)
    left = chain.keys()
    assert of(1) < left
    assert "own0" in left, "it was used just now"
    assert {"own9", "own8", "loose9"} < left
    assert "own1" not in left
    assert 120_000 < sum(path.stat().st_size for path in files(chain.store)) <= 150_000


def files(store: Store) -> list[Path]:
    return [
        path
        for name in ("files", "records")
        for path in (store.root / name).rglob("*")
        if path.is_file()
    ]


def test_what_dead_runs_left_is_cleared_and_what_is_being_stored_is_not(chain: Chain) -> None:
    chain.climb(1)
    root = chain.store.root
    old = [root / "files" / ".a.1-2345abcd.tmp", root / "files" / f"{'0' * 64}.bin"]
    young = [root / "files" / ".b.1-2345abcd.tmp", root / "files" / f"{'1' * 64}.bin"]
    for path in old + young:
        path.write_bytes(b"left over")
    for path in old:
        os.utime(path, (0, time.time() - 1.1 * HOURS))
    for name, hours in ((key_of("old"), 25), (key_of("young"), 23)):
        (root / "scratch" / name).mkdir(parents=True)
        (root / "scratch" / name / "checkpoint").write_bytes(b"weights")
        then = time.time() - hours * HOURS
        os.utime(root / "scratch" / name, (then, then))
    chain.put("decode", "damaged", b"pixels")
    chain.record("decode", "damaged").write_bytes(b"")
    chain.store.set_aside("decode", key_of("damaged"))
    freed = upkeep.clear(chain.store)
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert [path.name for path in (root / "scratch").iterdir()] == [key_of("young")]
    assert list((root / "aside").iterdir()) == []
    assert freed.files == 4
    assert chain.keys() == of(1)


def test_nothing_is_cleared_under_a_run(chain: Chain) -> None:
    chain.climb(1)
    folder = chain.store.share()
    with pytest.raises(LadderError, match="a run is using"):
        upkeep.clear(chain.store)
    os.close(folder)
    upkeep.clear(chain.store)


def test_verify_tells_each_damage_and_sets_it_aside(chain: Chain) -> None:
    """A file hit in its middle under its old times, a record cut short, a file gone."""
    for number in range(4):
        chain.climb(number)
    assert list(upkeep.verify(chain.store)) == []
    named = {
        chain.names[each.record.key]: next(iter(each.record.files))
        for each in upkeep.held(chain.store)
    }
    flipped = chain.store.root / "files" / named["decode1"]
    stat = flipped.stat()
    flipped.write_bytes(b"pixels X")
    os.utime(flipped, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (chain.store.root / "files" / named["train2"]).unlink()
    cut = chain.record("report", "report3")
    cut.write_bytes(cut.read_bytes()[:-1])
    complaints = list(upkeep.verify(chain.store))
    assert len(complaints) == 4, complaints
    for name in (flipped.name, named["train2"], cut.name):
        assert any(name in complaint for complaint in complaints)
    whole = of(0) | of(1) | of(2) | of(3)
    assert chain.keys() == whole - {"decode1", "train2", "report3"}
    assert list(upkeep.verify(chain.store)) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 5e8), ("1.5 GB", 1.5e9), ("2GiB", 2**31), ("12", 12), ("8k", 8000), ("1tb", 1e12)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: float) -> None:
    assert upkeep.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "-1GB", "1e9", "1..2GB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(LadderError, match="no size"):
        upkeep.parse_size(text)


# The command line


@pytest.fixture
def shell(chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the chain's store; gives its exit status and what it printed."""
    monkeypatch.setenv("STEPLADDER_DATA", str(chain.reports.parent))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.app(list(arguments))
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_the_commands_tell_what_is_there_and_what_they_did(chain: Chain, shell: Any) -> None:
    chain.climb(1)
    chain.climb(2)
    chain.age(hours=2)
    status, printed = shell("cache", "list")
    assert status == 0
    assert len(printed.splitlines()) == 8
    assert "decode" in printed
    assert "7 results, 0.0 MB" in printed
    assert shell("cache", "verify") == (0, "7 results are whole\n")
    chain.record("train", "train1").write_bytes(b"{}")
    status, printed = shell("cache", "verify")
    assert status == 1
    assert f"{key_of('train1')}.json is damaged" in printed
    assert "6 results are whole" in printed
    assert shell("cache", "gc", "--keep-last", "1")[0] == 0
    assert chain.keys() == of(2)


def test_clearing_without_a_measure_is_refused(chain: Chain, shell: Any) -> None:
    chain.climb(1)
    with pytest.raises(LadderError, match="--keep-last"):
        shell("cache", "gc")
    with pytest.raises(LadderError, match="from 1"):
        shell("cache", "gc", "--keep-last", "0")


# Audit


@stage
def steady(number: int) -> dict[str, int]:
    """The same each time."""
    return {"number": number}


@stage
def moody(number: int) -> dict[str, float]:
    """Another number each time, by what nobody is told of."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return {"number": loop.time()}


@stage
def telling(number: int, *, run: Run = Run()) -> dict[str, str]:
    """Tells of its run."""
    return {"started": run.started}


@stage
def placed(number: int, *, run: Run = Run()) -> dict[str, str]:
    """Depends on the device, as a training does."""
    return {"trained on": run.device}


@stage
def lazy(number: int, *, run: Run = Run()) -> dict[str, Any]:
    """Copies an earlier result where there is one."""
    for _was, value in run.earlier("parameters", "number"):
        return {"copied": value}
    return {"copied": run.scratch is None}


@pytest.fixture
def perform(tmp_path: Path) -> Any:
    """Perform a stage in this process; gives its reference and the events it told."""

    def perform(stage: Any, **given: Any) -> tuple[Ref, list[str]]:
        events: list[str] = []
        settings = Settings(str(tmp_path), "tiny", **given)
        call = Call(
            stage, stage.name, {"number": 1}, settings, Here(),
            lambda event, name, **facts: events.append(event),
        )  # fmt: skip
        return call.perform(), events

    return perform


def test_a_bar_in_prefect_moves_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second at most, and no more than a hundredth of the time, whatever a move costs."""
    now, moves = [0.0], []

    def move(*_where: Any, **_what: Any) -> str:
        moves.append(now[0])
        now[0] += 0.05
        return "the artifact"

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", move)
    monkeypatch.setattr("prefect.artifacts.update_progress_artifact", move)
    monkeypatch.setattr("prefect.context.TaskRunContext.get", lambda: "a task run")
    monkeypatch.setattr("tasks.caching.orchestration.time.monotonic", lambda: now[0])
    gauge = Gauge("train mlp")
    gauge(1, 1000, "it only waits yet")
    gauge.begin()
    for done in range(1000):
        now[0] += 0.1
        gauge(done, 1000, f"step {done}")
    gauge.end()
    assert 15 < len(moves) <= 1 + now[0] / 5
    assert min(b - a for a, b in itertools.pairwise(moves[:-1])) >= 5


def test_a_bar_that_cannot_be_shown_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server that is gone nor a stage outside Prefect stops a training."""
    asked = []

    def refuse(*_where: Any, **_what: Any) -> None:
        asked.append("once")
        raise ConnectionError("nobody there")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", refuse)
    gauge = Gauge("train mlp")
    gauge._next = 0
    gauge(1, 2)
    assert asked == []
    monkeypatch.setattr("prefect.context.TaskRunContext.get", lambda: "a task run")
    gauge._next = 0
    gauge(1, 2)
    gauge.end()
    assert asked == ["once"]


def test_an_audit_passes_what_comes_out_the_same(perform: Any, tmp_path: Path) -> None:
    first, _ = perform(steady)
    again, events = perform(steady, audit=("steady",))
    assert "audited" in events
    assert (again.digest, again.outcome.state) == (first.digest, "cached")
    assert "audited" not in perform(steady, audit=("other",))[1]


def test_an_audit_fails_and_names_what_comes_out_differently(perform: Any) -> None:
    perform(moody)
    with pytest.raises(LadderError, match="moody: audit: computed again it came out differently"):
        perform(moody, audit=("moody",))


def test_an_audit_does_not_take_its_result_from_earlier_ones(perform: Any) -> None:
    perform(lazy)
    with pytest.raises(LadderError, match="differently"):
        perform(lazy, audit=("lazy",))


def test_what_tells_of_its_run_is_not_held_against_another(perform: Any, tmp_path: Path) -> None:
    """It needs no mark: what a stage looks at in its Run is noted with its result."""
    perform(telling, started="then")
    _ref, events = perform(telling, started="now", audit=("telling",))
    assert "audited" in events
    record = json.loads(next((tmp_path / "records" / "telling").iterdir()).read_bytes())["body"]
    assert record["about"]["seen"] == ["started"]
    call = Call(telling, "telling", {"number": 1}, Settings(str(tmp_path), "tiny"))
    assert look_up(call)[1].comparable is False
    call = Call(lazy, "lazy", {"number": 1}, Settings(str(tmp_path), "tiny"))
    perform(lazy)
    assert look_up(call)[1].comparable is True


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ("cpu", "cpu", True),
        ("cpu", "cuda", False),
        ("cuda", "cpu", False),
        ("cuda", "cuda", False),
    ],
)
def test_only_what_a_cpu_trains_twice_is_compared(
    perform: Any, tmp_path: Path, then: str, now: str, same: bool
) -> None:
    """A GPU's sums have no fixed order.  What does not look at the device is always compared."""
    for each, expected in ((placed, same), (steady, True)):
        perform(each, device=then)
        call = Call(each, each.name, {"number": 1}, Settings(str(tmp_path), "tiny", now))
        assert look_up(call)[1].comparable is expected


def test_a_refreshed_stage_takes_nothing_from_earlier_results(perform: Any, tmp_path: Path) -> None:
    perform(lazy)
    ref, _events = perform(lazy, refresh=("lazy",))
    assert ref.load(tmp_path) == {"copied": True}


def test_a_result_replaced_under_a_run_is_not_taken_for_the_old_one(
    perform: Any, tmp_path: Path
) -> None:
    old, _ = perform(moody)
    perform(moody, refresh=("moody",))
    with pytest.raises(LadderError, match="replaced by another run"):
        old.load(tmp_path)


# Cores


@pytest.mark.parametrize(
    ("total", "expected"),
    [(1, "wide 1, short 1, new 1, newer 1"), (2, "short 1, wide 2, new 2, newer 2")],
)
def test_waiting_work_gets_cores_in_a_good_order(total: int, expected: str) -> None:
    """What takes few cores first, of that the longest, and what nobody knows in order of asking."""
    cores, order = Cores(total), []

    def work(name: str, wanted: int, seconds: float) -> None:
        with cores.hold(wanted, seconds) as held:
            order.append(f"{name} {held}")

    asked = [("new", 2, 0), ("short", 1, 8), ("wide", 9, 50), ("newer", 2, 0)]
    with ThreadPoolExecutor(8) as pool, cores.hold(total, 0):
        for count, each in enumerate(asked, 1):
            pool.submit(work, *each)
            while len(cores._queue) < count:
                time.sleep(0.001)
    assert order == expected.split(", ")
