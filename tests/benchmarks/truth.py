"""Truth beside other caching libraries: the same edits given to each, in fresh processes.

A small project with one cached function is run, edited and run again.  What it gives then is held
against a build without a cache.  The edits are in edits.toml, the result in truth.md.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# What makes `cached` of each library, as its own page tells; in its strictest setting
LIBRARIES = {
    "Stepladder": "from tasks.caching.stage import stage as cached",
    "charmonium.cache": (
        "from charmonium.cache import DirObjStore, FileRWLock, MemoizedGroup, memoize\n"
        "from charmonium.cache.memoize import DEFAULT_FREEZE_CONFIG as config\n"
        "config.assume_purity = False\n"
        "cached = memoize(group=MemoizedGroup(freeze_config=config,\n"
        "    obj_store=DirObjStore('../store'), lock=FileRWLock('../lock')))"
    ),
    "checkpointer": (
        "from checkpointer import checkpoint\n"
        "cached = checkpoint(directory='../store', capture=True, verbosity=0)"
    ),
    "astrocache": (
        "import astrocache\nastrocache.CACHE_DIR = '../store'\ncached = astrocache.cache()"
    ),
    "joblib": "import joblib\ncached = joblib.Memory('../store', verbose=0).cache",
}
CLEAN = "def cached(function):\n    return function"
FLOW = "from stage import answer\n\ndef flow():\n    return answer(3)\n"
VERDICTS = ("right", "refused", "needless", "stale")
NO_EFFECT = "no effect"  # the kind of those that must not be computed again

Run = dict[str, Any]  # what with_caches.py says of one


@dataclass(frozen=True)
class Edit:
    """One edit of a small project."""

    kind: str
    what: str
    project: str  # the text of all its files
    old: str = ""
    new: str = ""
    more: str = ""  # a file that comes with the edit
    either: bool = False  # whether a library may compute again or not

    def write(self, folder: Path, head: str, *, edited: bool) -> None:
        """Write the project into an empty folder, or over what is there."""
        text = self.project.replace(self.old, self.new) if edited and self.old else self.project
        parts = re.split(r"^# ([\w./-]+)\n", f"# stage.py\n{text}", flags=re.MULTILINE)[1:]
        files = dict(zip(parts[::2], parts[1::2], strict=True))
        if "# environment" not in text:
            files["environment"] = ""
        if edited and self.more:
            files[self.more] = ""
        for name, content in {"flow.py": FLOW, **files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            first = f"{head}\n" if "@cached" in content else ""
            path.write_text(first + content, encoding="utf-8")


def edits() -> list[Edit]:
    """All of them."""
    table = tomllib.loads((HERE / "edits.toml").read_text(encoding="utf-8"))
    return [Edit(kind, **each) for kind, group in table.items() for each in group]


# Running them


class Library:
    """A library that projects are run with; or none of them, for clean builds.

    Each run is a fork of a process that has imported torch, which takes seconds, and of Stepladder
    its engine.  Only astrocache starts a process for each: by Python's hashes it tells arguments
    apart, and forks of one process may have equal ones.
    """

    def __init__(self, name: str, place: Path, installed: Path | None = None) -> None:
        """place: where its projects lie, made by this; installed: where it is to be found."""
        self.name = name
        self._place = place
        self._head = LIBRARIES.get(name, CLEAN)
        paths = [str(each) for each in (ROOT, installed) if each]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._command = [sys.executable, "-P", str(HERE / "with_caches.py"), name]
        self._forks: subprocess.Popen[str] | None = None
        if name != "astrocache":
            self._forks = subprocess.Popen(
                [*self._command, "--forks"], env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def runs(self, edit: Edit) -> list[Run]:
        """What it gives before an edit and after it, each in a process of its own."""
        project = self._place / "project"
        runs = []
        for edited in (False, True):
            edit.write(project, self._head, edited=edited)
            if status := self._run(project):
                raise RuntimeError(f"{self.name} ended with {status} in {edit.kind}, {edit.what}")
            runs.append(json.loads((self._place / "run.json").read_text()))
        shutil.rmtree(self._place)
        return runs

    def _run(self, project: Path) -> int:
        """The exit status of one run."""
        if self._forks is None:
            return subprocess.run(
                self._command, cwd=project, env=self._environment, capture_output=True, check=False
            ).returncode
        assert self._forks.stdin
        assert self._forks.stdout
        self._forks.stdin.write(f"{project}\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline() or 1)

    def close(self) -> None:
        """End its process."""
        if self._forks:
            self._forks.communicate(timeout=60)


def verdict(edit: Edit, clean: list[Run], runs: list[Run]) -> str:
    """Of a library's two runs: right, refused, needless or stale."""
    if any("refused" in run for run in runs):
        return "refused"
    if [run["result"] for run in runs] != [run["result"] for run in clean]:
        return "stale"
    return "needless" if runs[1]["ran"] and edit.kind == NO_EFFECT and not edit.either else "right"


def insist_on_effect(edit: Edit, clean: list[Run]) -> None:
    """Raise ValueError where an edit does not do what the table says of it."""
    results = [run.get("result") for run in clean]
    if None in results or (results[0] == results[1]) != (edit.kind == NO_EFFECT):
        raise ValueError(f"{edit.kind}, {edit.what}: the clean builds give {clean}")


# The result


def bench_truth(place: Path) -> None:
    """Edits given to Stepladder and to other caching libraries; writes truth.md."""
    others = [name for name in LIBRARIES if name != "Stepladder"]
    installed = place / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", installed, *others],
        check=True,
    )
    table = edits()
    with ThreadPoolExecutor(2) as pool:

        def given(name: str) -> list[list[Run]]:
            library = Library(name, place / name, installed)
            try:
                return [library.runs(edit) for edit in table]
            finally:
                print(f"  {name} is done", flush=True)
                library.close()

        clean, *runs = pool.map(given, ["no library", *LIBRARIES])
    for edit, each in zip(table, clean, strict=True):
        insist_on_effect(edit, each)
    verdicts = {
        name: [verdict(*each) for each in zip(table, clean, found, strict=True)]
        for name, found in zip(LIBRARIES, runs, strict=True)
    }
    text = written(table, verdicts, [f"{name} {_version(name, installed)}" for name in others])
    print(text)
    (HERE / "truth.md").write_text(text, encoding="utf-8")


def _version(name: str, folder: Path) -> str:
    [found] = importlib.metadata.distributions(name=name, path=[str(folder)])
    return found.version


def written(table: list[Edit], verdicts: dict[str, list[str]], versions: list[str]) -> str:
    """The result as Markdown."""
    kinds = Counter(edit.kind for edit in table)
    counts = [
        [name, *(str(Counter(found)[each]) for each in VERDICTS)]
        for name, found in verdicts.items()
    ]
    by_kind = [
        [kind, str(count), *(_of_kind(kind, table, found) for found in verdicts.values())]
        for kind, count in kinds.items()
    ]
    wrong = [
        [edit.kind, edit.what, *("" if each == "right" else each for each in found)]
        for edit, *found in zip(table, *verdicts.values(), strict=True)
        if {*found} != {"right"}
    ]
    about = f"Python {platform.python_version()}, {', '.join(versions)}"
    return "\n".join(
        [
            "# Truth beside other caching libraries",
            "",
            f"{len(table)} edits of small projects, given to each library by `python -m "
            "tests.benchmarks truth`. A project with one cached function is run, edited and run "
            "again, each time in a fresh process (most of them forks of one that has imported "
            "torch and nothing of the project, ours also its engine), and what it gives is held "
            "against a build without a cache. "
            "[edits.toml](edits.toml) has projects and edits, [truth.py](truth.py) how each "
            "library was asked: as its own page tells, in its strictest setting where it has one "
            "(`capture=True` for checkpointer, `assume_purity = False` for charmonium.cache).",
            "",
            "- right: what the clean build gives, and not computed again after an edit that cannot "
            "matter",
            "- refused: an error instead of a result; Stepladder's names the line that cannot be "
            "followed",
            "- needless: computed again after an edit that cannot matter",
            "- stale: a result that the clean build does not give",
            "",
            f"{about}; {datetime.datetime.now(datetime.UTC).date().isoformat()}",
            "",
            *_lines(["", *VERDICTS], counts),
            "",
            "## By what is edited",
            "",
            "Right, or refused, among all of a kind.",
            "",
            *_lines(["edited", "edits", *verdicts], by_kind),
            "",
            "## Edits that some library was not right about",
            "",
            *_lines(["edited", "", *verdicts], wrong),
            "",
        ]
    )


def _of_kind(kind: str, table: list[Edit], found: list[str]) -> str:
    given = Counter(each for edit, each in zip(table, found, strict=True) if edit.kind == kind)
    refused = f" + {given['refused']} refused" if given["refused"] else ""
    return f"{given['right']}{refused}"


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
