"""What modules ask for when they are imported is noted, whichever way they ask."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_fingerprint import CACHES, ROOT, install

from flows.watch import Seen, Watch, _calls_what_changes
from tasks.caching import source as source_of


@pytest.fixture
def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Seen | None]]:
    """Import a module `fpown` with this source, and others, while all it asks for is noted."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(source_of, "FOLLOWED", set())
    monkeypatch.setenv("FP_SET", "1")
    monkeypatch.setenv("FP_UNSET", "")
    monkeypatch.delenv("FP_UNSET")
    (tmp_path / "some.txt").write_text("1")
    (tmp_path / "some.link").symlink_to("some.txt")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "one.txt").write_text("1")

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("fp")]:
            del sys.modules[name]
        for cached in CACHES:
            cached.cache_clear()

    def load(source: str, **others: str) -> Seen | None:
        forget()
        for name, text in {"fpown": source, **others}.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        watch = Watch()
        watch.begin()
        importlib.import_module("fpown")
        watch.end()
        for name in [name for name in sys.modules if name in ("fpown", "fpearly", "fpother")]:
            source_of.read(name)  # as a fingerprint does
        return watch.seen()

    yield load
    forget()


def edit(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_text("22")


def put(path: str) -> Callable[[], object]:
    return lambda: Path(path).write_text("new")


def swap() -> None:
    """Other bytes of the same size, at the same time as before."""
    before = Path("some.txt").stat()
    Path("some.txt").write_text("2")
    os.utime("some.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def relink() -> None:
    """A link to another file."""
    Path("some.link").unlink()
    Path("some.link").symlink_to("inner/one.txt")


def export(name: str, value: str = "2") -> Callable[[], object]:
    return lambda: os.environ.update({name: value})


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("K = open('some.txt').read()", edit("some.txt")),
        ("K = open('some.txt').read()", swap),
        ("import os\nK = os.read(os.open(os.path.abspath('some.txt'), 0), 9)", edit("some.txt")),
        ("from pathlib import Path\nK = Path(__file__).with_name('some.txt').read_bytes()", swap),
        ("import os\nK = os.read(os.open('so' + 'me.txt', os.O_RDONLY), 9)", edit("some.txt")),
        ("import os\nK = os.readlink('so' + 'me.link')", relink),
        ("import numpy\nK = numpy.loadtxt('some.txt')", edit("some.txt")),
        ("import numpy\nK = numpy.fromfile('some.txt')", edit("some.txt")),
        ("import linecache\nK = linecache.getline('some.txt', 1)", edit("some.txt")),
        ("import pyarrow\nK = pyarrow.OSFile('some.txt').read()", edit("some.txt")),
        ("import pyarrow\nP = 'so' + 'me.txt'\nK = pyarrow.OSFile(P).read()", edit("some.txt")),
        ("import pkgutil\nK = pkgutil.get_data(__name__, 'some.txt')", edit("some.txt")),
        ("try:\n    K = open('no.txt')\nexcept OSError:\n    K = 0", put("no.txt")),
        ("import os\nK = os.path.exists('no.txt')", put("no.txt")),
        ("from os.path import isfile\nK = isfile('no.txt')", put("no.txt")),
        ("from pathlib import Path\nK = Path('no.txt').is_file()", put("no.txt")),
        ("import os\nK = os.access('no.txt', 4)", put("no.txt")),
        ("import os\nK = os.stat('some.txt').st_size", edit("some.txt")),
        ("import os\nK = os.listdir('inner')", put("inner/two.txt")),
        ("import os\nK = os.listdir()", put("two.txt")),
        ("import glob\nK = glob.glob('inner/*.txt')", put("inner/two.txt")),
        ("from pathlib import Path\nK = [*Path('inner').rglob('*')]", put("inner/two.txt")),
        ("import os\nK = [*os.walk('inner')]", put("inner/two.txt")),
        ("import os\nK = os.environ['FP_SET']", export("FP_SET")),
        ("import os\nK = os.getenv('FP_UNSET', 'x')", export("FP_UNSET")),
        ("import os\nK = 'FP_UNSET' in os.environ", export("FP_UNSET")),
        ("from os import environ\nK = {**environ}", export("FP_UNSET")),
        ("import os\nK = sorted(os.environ)", export("FP_UNSET")),
        ("import os\nK = len(os.environ)", export("FP_UNSET")),
        ("import os\nK = str(os.environ)", export("FP_UNSET")),
        ("import os\nK = os.environb[b'FP_SET']", export("FP_SET")),
        ("import os\nK = os.path.expandvars('$FP_SET')", export("FP_SET")),
        ("import os\nos.environ.setdefault('FP_UNSET', '1')", export("FP_UNSET")),
        ("from fpother import K", edit("fpother.py")),
        ("from fpother import read\nK = read()", export("FP_SET")),
        ("import fpother\nfpother.K = 1", edit("fpown.py")),
        ("try:\n    import fppack.b\nexcept ImportError:\n    pass", put("fppack/b.py")),
        ("import fppack.a", edit("fppack/a.py")),
    ],
)
def test_what_a_constant_came_from_is_seen(watched, source: str, change) -> None:
    """Files, folders and variables, there or not, by whatever function."""
    others = {"fpother": "import os\nK = 1\ndef read(): return os.environ['FP_SET']"}
    environment = dict(os.environ)
    seen = watched(source, **others, fppack__a="K = 1", fppack____init__="")
    assert seen is not None
    assert seen.again(environment) == seen
    change()
    assert seen.again(os.environ) != seen


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nK = subprocess.check_output(['true'])",
        "import os\nK = os.system('true')",
        "import sqlite3\nK = sqlite3.connect(':memory:')",
        "import time\nK = time.time()",
        "from datetime import date\nK = str(date.today())",
        "from datetime import date\ndef today(): return str(date.today())\nK = today()",
        "from datetime import date\nclass C:\n def __init__(s): s.k = date.today()\nK = C()",
        "from datetime import date\ntoday = date.today\nK = today()",
        "from datetime import date\ntoday = lambda: date.today()\nK = [today()]",
        "from datetime import date\ndef f(day=str(date.today())): return day",
        "from fpclock import today\nK = today()",
        "import random as r\nclass C:\n    k = r.random()",
        "import uuid\nK = [uuid.uuid4().hex]",
        "K = open('some.txt').read()\nopen('some.txt', 'a').write('2')",
    ],
)
def test_what_no_glance_can_tell_bars_the_short_cut(watched, source: str) -> None:
    clock = "from datetime import date\ndef today(): return day()\ndef day(): return date.today()"
    assert watched(source, fpclock=clock) is None


def test_what_was_imported_before_is_seen_too(watched) -> None:
    """By the command line, or by a `.pth` file: it is asked once more."""
    early = {"fpearly": "import os\nK = os.environ['FP_SET'], open('some.txt').read()"}
    assert watched("import fpearly", **early)
    module = sys.modules["fpearly"]
    watch = Watch()
    watch.begin()
    watch.end()
    seen = watch.seen()
    assert seen is not None
    assert "FP_SET" in seen.variables
    assert sys.modules["fpearly"] is module
    edit("some.txt")()
    assert seen.again(os.environ) != seen


def test_what_other_people_ask_for_is_not_seen(watched, tmp_path: Path) -> None:
    """Their version stands for them; nor is a module's use of the clock in a function."""
    vendor = install(tmp_path / "vendor", "fpvendor")
    asks = "import os\nwork = os.environ.get('FP_SET')\nos.listdir('inner')\nopen('some.txt')\n"
    (vendor / "fpvendor" / "__init__.py").write_text(asks)
    sys.path.insert(0, str(vendor))
    seen = watched("import fpvendor, time\ndef now(): return time.time()")
    assert seen is not None
    assert not seen.variables.keys() & {"FP_SET"}
    assert str(tmp_path / "inner") not in seen.folders
    assert str(tmp_path / "some.txt") not in seen.paths


def test_nothing_is_left_of_the_watch(watched) -> None:
    """The functions and the environment are what they were."""
    before = (os.stat, os.lstat, os.access, type(os.environ), type(os.environb))
    assert watched("import os\nK = os.environ['FP_SET'], os.path.exists('some.txt')")
    assert (os.stat, os.lstat, os.access, type(os.environ), type(os.environb)) == before


def test_a_watch_that_begins_first_leaves_what_the_engine_notes(tmp_path: Path) -> None:
    """As in a run from the command line: the engine is imported while it watches."""
    (tmp_path / "fpown.py").write_text(
        "import os, uuid\nfrom tasks.caching.stage import stage\n"
        "@stage\ndef go() -> bool: return os.path.exists('no.txt')\n"
    )
    code = (
        "from flows.watch import Watch\nwatch = Watch()\nwatch.begin()\nimport os, fpown\n"
        "there = os.path.exists('no.txt')\nwatch.end()\nfrom tasks.caching import traces\n"
        "with traces.Tracer([]) as tracer: fpown.go.fn()\n"
        "print(watch.seen() is not None, tracer.trace([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}, check=False,
    )  # fmt: skip
    assert done.stdout == "True {'?exists no.txt': ''}\n", done.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tasks").glob("[!c]*/*.py")), ids=lambda path: path.stem
)
def test_no_chapter_bars_the_short_cut(path: Path) -> None:
    """None calls the clock or the like when it is imported."""
    assert not _calls_what_changes(source_of.read(f"tasks.{path.parent.name}.{path.stem}"))
