"""What a body asks for beside its arguments is held by its record, or refused."""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from test_fingerprint import CACHES

from tasks.caching import held, process
from tasks.caching.basics import LadderError
from tasks.caching.bodies import Runner
from tasks.caching.call import Settings
from tasks.caching.plan import Asleep
from tasks.caching.session import Session

CHAPTER = """
import functools, glob, importlib.util, io, multiprocessing, os, platform, random, socket
import sqlite3, subprocess, tempfile, urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
import numpy as np
import pyarrow, torch
import pyarrow.fs
from tasks.caching.stage import stage

HERE = Path(__file__).parent

@functools.lru_cache
def limits():
    return (HERE / "limits.json").read_text()

class Table:
    @functools.cached_property
    def rows(self):
        return np.loadtxt(HERE / "limits.json").tolist()

def loaded():
    spec = importlib.util.spec_from_file_location("tracedother", HERE / "other.txt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VALUE

def written():
    (HERE / "made").write_text("a")
    return (HERE / "made").read_text()

def caught():
    try:
        return subprocess.run(["true"]).returncode
    except Exception:
        return 0

@stage
def first() -> str:
    return limits()

@stage
def file() -> str:
    return limits()

@stage
def array() -> list:
    return Table().rows

@stage
def module() -> int:
    return loaded()

@stage
def maybe() -> str:
    path = HERE / "maybe"
    try:
        return path.read_text()
    except FileNotFoundError:
        return "none"

@stage
def listing() -> list:
    return sorted(os.path.basename(each) for each in glob.glob(f"{HERE}/*.csv"))

@stage
def variable() -> str:
    return os.getenv("TRACED_SCALE", "1.0")

@stage
def is_set() -> bool:
    return "TRACED_SCALE" in os.environ

@stage
def secret() -> str:
    return os.environ.get("TRACED_TOKEN", "")

@stage
def made() -> str:
    return written()

@stage
def drawn() -> float:
    return random.random() + float(np.random.rand())

LOOKS = {
    "exists": lambda: os.path.exists(HERE / "maybe"),
    "isfile": lambda: os.path.isfile(HERE / "maybe"),
    "is_dir": lambda: (HERE / "maybe").is_dir(),
    "lexists": lambda: os.path.lexists(HERE / "maybe"),
    "size": lambda: (HERE / "limits.json").stat().st_size,
    "getsize": lambda: os.path.getsize(HERE / "limits.json"),
    "size_of_link": lambda: os.stat(HERE / "link", follow_symlinks=False).st_size,
    "mtime": lambda: os.path.getmtime(HERE / "limits.json"),
    "time": lambda: os.stat(HERE / "limits.json").st_mtime_ns,
    "row": lambda: list(os.stat(HERE / "limits.json"))[6],
    "access": lambda: os.access(HERE / "limits.json", os.X_OK),
    "link": lambda: os.readlink(HERE / "link"),
    "followed": lambda: (HERE / "link").resolve().name,
    "opened": lambda: os.read(os.open("li" + "mits.json", os.O_RDONLY), 9).decode(),
    "inside": lambda: opened_in(HERE),
    "entries": lambda: sorted(each.stat().st_size for each in os.scandir(HERE)),
    "open_file": lambda: os.fstat(os.open(HERE / "limits.json", os.O_RDONLY)).st_mtime_ns,
    "open_folder": lambda: sorted(os.listdir(os.open(HERE, os.O_RDONLY))),
    "in_threads": lambda: [*ThreadPoolExecutor().map(Path.read_text, [HERE / "limits.json"])],
    "by_threads": lambda: ThreadPoolExecutor().submit(os.stat, "limits.json").result().st_size,
    "of_machine": lambda: Path("/proc/self/schedstat").read_text(),
}

def opened_in(folder):
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return os.read(os.open("li" + "mits.json", os.O_RDONLY, dir_fd=inside), 9).decode()

@stage
def looked(how: str) -> str:
    return str(LOOKS[how]())

DISK = pyarrow.fs.LocalFileSystem()

def computed(dot):
    return str(HERE / ("lim" + "its" + dot + "json"))

@stage
def table(how: str) -> str:
    return bytes(TABLES[how]()).decode()

TABLES = {
    "text": lambda: pyarrow.OSFile(str(HERE / "limits.json")).read(),
    "listed": lambda: b"".join(pyarrow.OSFile(str(each)).read() for each in Path(HERE).glob("l*")),
    "inner": lambda: pyarrow.memory_map(f"{HERE}/limits.json").read_buffer(),
    "computed": lambda: pyarrow.OSFile(computed(chr(46))).read(),
    "ending": lambda: DISK.open_input_file(computed("").removesuffix("json") + ".json").read(),
    "tensor": lambda: torch.from_file(computed(chr(46)), size=1, dtype=torch.uint8).numpy(),
}

RNG = np.random.default_rng
NOISE = {
    "alias": lambda: float(RNG().random()),
    "no_seed": lambda seed=None: random.Random(seed).random(),
    "no_state": lambda seed=None: float(np.random.RandomState(seed).rand()),
    "device": lambda: float(open("/dev/urandom", "rb").read(1)[0]),
}

@stage
def noisy(how: str) -> float:
    return NOISE[how]()

@stage
def elsewhere() -> str:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(limits).result()

@stage
def database(path: str) -> list:
    return sqlite3.connect(path).execute("select * from t").fetchall()[0][0]

@stage
def given(path: str) -> str:
    return pyarrow.OSFile(path).read().decode()

@stage
def written_silently() -> int:
    with pyarrow.OSFile(str(HERE / "limits.json"), "w") as file:
        return file.write(b"7")

@stage
def made_in_a_folder() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "a", "b")
        inner.mkdir(parents=True, exist_ok=True)
        inner.joinpath("c").write_text("1")
        (HERE / "out").mkdir(exist_ok=True)
        return inner.exists() and inner.parent.is_dir() and inner.joinpath("c").is_file()

@stage
def in_some_order() -> str:
    return " ".join({"a", "b", "c", "d", "e", "f"})

@stage
def folder() -> str:
    return Path.cwd().name

@stage
def machine() -> list:
    return [platform.node(), socket.gethostname(), os.uname().sysname, os.cpu_count()]

@stage
def program() -> int:
    return caught()

@stage
def network() -> str:
    return str(urllib.request.urlopen("http://127.0.0.1:9").read())
"""
FILES = {"limits.json": "1", "other.txt.py": "VALUE = 1"}


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Stages that ask for things; perform one, give what the plan said before, and the result."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "tracedchapter.py").write_text(CHAPTER)
    for name, text in FILES.items():
        (code / name).write_text(text)
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for cached in CACHES:
        cached.cache_clear()
    module = importlib.import_module("tracedchapter")
    settings = Settings(str(tmp_path / "cache"), "traced")

    def perform(name: str, runner: Runner | None = None, **given: str) -> list[str]:
        stage, planned = getattr(module, name), []
        Asleep(planned, settings).begin()
        stage(**given)
        session = Session(settings)
        session.runner = runner or session.runner
        ref = session.begin().call(stage, name, given)
        assert ref.outcome.why == planned[0].why
        return [*ref.outcome.why, ref.load(tmp_path / "cache")]

    yield perform
    del sys.modules["tracedchapter"]


EDITS = [
    ("file", "limits.json", "limits.json changed"),
    ("array", "limits.json", "limits.json changed"),
    ("module", "other.txt.py", "other.txt.py changed"),
    ("maybe", "maybe", "maybe is new"),
    ("listing", "2.csv", "code/ changed"),
    ("variable", "$TRACED_SCALE", "$TRACED_SCALE not set -> 2.0"),
    ("is_set", "$TRACED_SCALE", "$TRACED_SCALE not set -> 2.0"),
    ("secret", "$TRACED_TOKEN", "$TRACED_TOKEN not set -> "),
]


@pytest.mark.parametrize(("stage", "edited", "reason"), EDITS, ids=[each[0] for each in EDITS])
def test_what_a_body_asked_for_is_held(
    traced, tmp_path, monkeypatch, stage, edited, reason
) -> None:
    """Once, and again while it is as it was; changed, the plan and the run name it."""
    assert traced(stage)[0] == "has not run before"
    was = traced(stage)
    assert len(was) == 1
    if edited.startswith("$"):
        monkeypatch.setenv(edited[1:], "2.0")
    else:
        (tmp_path / "code" / edited).write_text(FILES.get(edited, "1").replace("1", "2"))
        sys.modules["tracedchapter"].limits.cache_clear()
    why, result = traced(stage)
    assert reason in why
    assert [result] != was
    assert traced(stage) == [result]


def grow(code: Path) -> None:
    (code / "limits.json").write_text("22")


def put(code: Path) -> None:
    (code / "maybe").write_text("1")


def touch(code: Path) -> None:
    os.utime(code / "limits.json", (1, 1))


def allow(code: Path) -> None:
    (code / "limits.json").chmod(0o755)


def relink(code: Path) -> None:
    (code / "link").unlink()
    (code / "link").symlink_to("tracedchapter.py")


LOOKS = [
    ("exists", put, "maybe is new"),
    ("isfile", put, "maybe is new"),
    ("is_dir", put, "maybe is new"),
    ("lexists", put, "maybe is new"),
    ("size", grow, "st_size of limits.json 1 -> 2"),
    ("getsize", grow, "st_size of limits.json 1 -> 2"),
    ("size_of_link", relink, "st_size of link 11 -> 16"),
    ("mtime", touch, "st_mtime of limits.json "),
    ("time", touch, "st_mtime_ns of limits.json "),
    ("row", grow, "st_size of limits.json 1 -> 2"),
    ("access", allow, "access1 of limits.json False -> True"),
    ("link", relink, "target of link limits.json -> tracedchapter.py"),
    ("followed", relink, "target of link limits.json -> tracedchapter.py"),
    ("opened", grow, "limits.json changed"),
    ("inside", grow, "limits.json changed"),
    ("entries", grow, "entries of "),
    ("open_file", touch, "st_mtime_ns of limits.json "),
    ("open_folder", put, "/"),
    ("in_threads", grow, "limits.json changed"),
    ("by_threads", grow, "st_size of limits.json 1 -> 2"),
]


@pytest.mark.parametrize(("how", "edit", "reason"), LOOKS, ids=[each[0] for each in LOOKS])
def test_what_a_look_at_a_path_gave_is_held(
    traced, tmp_path: Path, monkeypatch, how, edit, reason
) -> None:
    """As much of it as was asked for: a file may change whose size alone counts."""
    code = tmp_path / "code"
    monkeypatch.chdir(code)
    (code / "link").symlink_to("limits.json")
    traced("looked", how=how)
    was = traced("looked", how=how)
    assert len(was) == 1
    if how in ("exists", "size", "getsize", "access", "link"):
        (code / "limits.json").write_text("3")
        assert traced("looked", how=how) == was
    edit(code)
    *why, result = traced("looked", how=how)
    assert any(each.startswith(reason) for each in why)
    assert [result] != was or how == "is_dir"
    assert traced("looked", how=how) == [result]


@pytest.mark.parametrize(
    "how", ["text", "inner", "listed", "given", "computed", "ending", "tensor"]
)
def test_a_file_that_compiled_code_reads_without_a_word_is_held(
    traced, tmp_path: Path, how: str
) -> None:
    """Where a text of the code names it, or an argument, or a folder was listed."""
    file = tmp_path / "code/limits.json"
    call = ("given", {"path": str(file)}) if how == "given" else ("table", {"how": how})
    traced(call[0], **call[1])
    assert traced(call[0], **call[1]) == ["1"]
    file.write_text("2")
    assert traced(call[0], **call[1]) == ["limits.json changed", "2"]


def test_a_file_that_a_body_writes_without_a_word_is_made_again_if_it_is_lost(
    traced, tmp_path: Path
) -> None:
    traced("written_silently")
    assert traced("written_silently") == [1]
    (tmp_path / "code/limits.json").write_text("lost")
    assert traced("written_silently")[0] == "limits.json changed"


def test_what_a_body_made_in_a_folder_is_nothing_it_asked_for(traced, tmp_path: Path) -> None:
    traced("made_in_a_folder")
    assert traced("made_in_a_folder") == [True]
    (tmp_path / "code/out").rmdir()
    assert traced("made_in_a_folder") == [True]


def test_what_a_helper_remembers_counts_for_every_stage_that_calls_it(traced, tmp_path) -> None:
    """The second in a process opens nothing: it is given what the first has read."""
    traced("first")
    traced("file")
    (tmp_path / "code/limits.json").write_text("2")
    assert traced("file")[0] == "limits.json changed"


def test_a_process_of_its_own_is_watched_and_has_the_run_s_environment(traced, monkeypatch) -> None:
    runner = process.Processes()
    monkeypatch.setenv("TRACED_SCALE", "3.0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert traced("variable", runner)[1] == "3.0"
    monkeypatch.setenv("TRACED_SCALE", "4.0")
    assert traced("variable", runner) == ["$TRACED_SCALE 3.0 -> 4.0", "4.0"]


def test_the_order_of_a_set_of_texts_is_the_same_in_every_process(traced, monkeypatch) -> None:
    """Its results are kept, and Python's hashes of texts are others in each."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    forkserver._forkserver._stop()  # another test may have had Python start it
    found = traced("in_some_order", process.Processes())[-1]
    code = "print(*{'a', 'b', 'c', 'd', 'e', 'f'})"
    again = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, text=True,
                           capture_output=True, check=True)  # fmt: skip
    assert found == again.stdout.strip()


def test_where_a_body_runs_is_held_if_it_asks(traced, tmp_path: Path, monkeypatch) -> None:
    for name in ("folder", "machine"):
        traced(name)
        assert len(traced(name)) == 1
    monkeypatch.chdir(tmp_path)
    assert traced("folder")[0].startswith("os.getcwd ")
    monkeypatch.setitem(held.PLAIN, "socket.gethostname", lambda: "another")
    [why, result] = traced("machine")
    assert why.startswith("socket.gethostname ")
    assert why.endswith("-> 'another'")
    assert "another" in result


def test_what_a_body_made_itself_is_nothing_it_asked_for(traced, tmp_path: Path) -> None:
    traced("made")
    (tmp_path / "code/made").write_text("b")
    assert traced("made") == ["a"]


def test_a_secret_is_not_written_down(traced, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACED_TOKEN", "hush")
    traced("variable")
    traced("is_set")
    monkeypatch.setenv("TRACED_TOKEN", "whisper")
    traced("secret")
    record = next((tmp_path / "cache/records/secret").iterdir()).read_text()
    about = record.partition('"about":')[2].partition("}")[0]
    assert "$TRACED_TOKEN" in about
    assert "whisper" not in about


def test_shared_generators_begin_the_same_every_time(traced, tmp_path: Path) -> None:
    first = traced("drawn")[-1]
    next((tmp_path / "cache/records/drawn").iterdir()).unlink()
    assert traced("drawn")[-1] == first


def test_a_database_is_held_by_its_content(traced, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for number in (1, 2):
        with contextlib.closing(sqlite3.connect(path)) as rows:
            rows.executescript(f"drop table if exists t; create table t as select {number}")
        traced("database", path=str(path))
        assert traced("database", path=str(path)) == [number]


def test_what_the_machine_says_of_itself_is_held_where_a_stage_asks(traced) -> None:
    assert traced("looked", how="of_machine")[0] == "has not run before"
    assert traced("looked", how="of_machine")[0] == "/proc/self/schedstat changed"


@pytest.mark.parametrize("how", ["alias", "no_seed", "no_state", "device"])
def test_numbers_without_a_seed_are_refused_by_whatever_name(traced, how: str) -> None:
    with pytest.raises(LadderError, match=r"tracedchapter.py:\d+: a stage cannot draw numbers"):
        traced("noisy", how=how)


def test_a_process_that_a_stage_starts_reads_nothing_unseen(traced) -> None:
    with pytest.raises(LadderError, match=r"has started asks for limits.json"):
        traced("elsewhere")


@pytest.mark.skipif(not sys.flags.hash_randomization, reason="sets have one order here")
def test_a_result_of_sets_in_another_order_serves_nobody_else(traced, monkeypatch) -> None:
    """As of a stage in the calling process, which was not started with PYTHONHASHSEED=0."""
    traced("in_some_order")
    assert len(traced("in_some_order")) == 1
    traced("made")
    monkeypatch.setattr(held, "hash", lambda _text: 1, raising=False)
    assert traced("in_some_order")[0].startswith("hash ('the order of sets',) ")
    assert len(traced("made")) == 1


@pytest.mark.parametrize("stage", ["program", "network"])
def test_what_nobody_can_hold_is_refused_with_its_line(traced, stage: str) -> None:
    """Though the code catches it."""
    with pytest.raises(LadderError, match=r"tracedchapter.py:\d+: a stage cannot "):
        traced(stage)
