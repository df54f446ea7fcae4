"""The house itself: what may import what, and what must be nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from flows import climb

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {  # the wings and their chapters, in reading order
    "images": [
        "plain",
        "kinds",
        "form",
        "pillow",
        "folders",
        "sides",
        "labelled",
        "manifest",
        "layout",
        "listings",
        "headers",
        "png",
        "jpeg",
        "others",
        "canvas",
        "likeness",
        "own",
        "drawing",
        "scan",
        "decode",
        "packed",
        "tar",
        "archives",
        "download",
        "placing",
        "fetch",
    ],
    "rungs": [
        "baseline",
        "convolution",
        "by_hand",
        "models",
        "rows",
        "building",
        "start",
        "losses",
        "optimizers",
        "augmentations",
        "limits",
        "fields",
        "recipes",
        "toml",
        "ladders",
        "split",
        "course",
        "recording",
        "familiar",
        "calibrate",
        "measure",
        "mirror",
        "checkpoint",
        "train",
    ],
    "report": [
        "measures",
        "seeds",
        "verdict",
        "health",
        "twins",
        "drift",
        "words",
        "beware",
        "findings",
        "predictions",
        "markdown",
        "cases",
        "tiles",
        "plots",
        "templates",
        "graph",
        "page",
        "comparison",
        "history",
        "artifacts",
        "publish",
    ],
    "serving": ["modelfile", "registry", "promotion", "candidate", "classifier", "export", "card"],
}
ORDER = [f"{wing}.{chapter}" for wing, chapters in CHAPTERS.items() for chapter in chapters]
ENGINE = [
    "basics",
    "machine",
    "yielding",
    "places",
    "locks",
    "cores",
    "records",
    "columns",
    "values",
    "files",
    "store",
    "remote",
    "refs",
    "origins",
    "own",
    "syntax",
    "effects",
    "source",
    "reach",
    "memory",
    "fingerprint",
    "differences",
    "held",
    "cues",
    "traces",
    "bodies",
    "stage",
    "call",
    "compute",
    "session",
    "plan",
    "served",
    "process",
    "abroad",
    "orchestration",
    "upkeep",
]


def imports(path: Path) -> set[str]:
    """The project modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name and name.startswith(("tasks", "flows"))}


@pytest.mark.parametrize(("position", "chapter"), enumerate(ORDER))
def test_reading_order_is_import_order(position: int, chapter: str) -> None:
    """Each chapter imports only earlier chapters and the engine, and nothing from flows."""
    allowed = {"tasks.caching", *(f"tasks.{name}" for name in ORDER[:position])}
    wings = {f"tasks.{wing}" for wing in CHAPTERS}
    for name in imports(ROOT / "tasks" / f"{chapter.replace('.', '/')}.py") - wings:
        assert any(f"{name}.".startswith(f"{each}.") for each in allowed), name


@pytest.mark.parametrize(("position", "module"), enumerate(ENGINE))
def test_the_engine_knows_no_chapter(position: int, module: str) -> None:
    allowed = {f"tasks.caching.{name}" for name in ENGINE[:position]}
    for name in imports(ROOT / "tasks" / "caching" / f"{module}.py") - {"tasks.caching"}:
        assert any(f"{name}.".startswith(f"{each}.") for each in allowed), name


def test_every_chapter_is_in_the_reading_order() -> None:
    assert [path.stem for path in (ROOT / "tasks").glob("*.py")] == ["__init__"]
    for wing, chapters in CHAPTERS.items():
        assert {path.stem for path in (ROOT / "tasks" / wing).glob("*.py")} == {
            *chapters,
            "__init__",
        }
    assert {path.stem for path in (ROOT / "tasks/caching").glob("*.py")} == {*ENGINE, "__init__"}


@pytest.mark.parametrize("wing", [*CHAPTERS, "caching"])
def test_a_wing_says_in_which_order_to_read_it(wing: str) -> None:
    """Its `__init__` is a docstring that names every chapter, in the order of imports."""
    module = ast.parse((ROOT / "tasks" / wing / "__init__.py").read_text())
    [docstring] = module.body
    text = ast.literal_eval(docstring.value).partition("Read in this order")[2]
    assert re.findall(r"`(\w+)`", text) == (CHAPTERS | {"caching": ENGINE})[wing]


def test_flows_say_in_which_order_to_read_them() -> None:
    """The docstring of `flows` names each of its files."""
    text = ast.get_docstring(ast.parse((ROOT / "flows/__init__.py").read_text())) or ""
    there = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert {*re.findall(r"`(\w+)`", text.partition("Read in this order")[2])} - {
        "run",
        "plan",
    } == there


def test_chapters_with_stages_are_imported_before_a_stage_begins() -> None:
    """Else the process of each stage would import its chapter, for longer than most take."""
    having = {
        f"tasks.{each}" for each in ORDER
        if "\n@stage" in (ROOT / f"tasks/{each.replace('.', '/')}.py").read_text()
    }  # fmt: skip
    assert {*climb.CHAPTERS} == having


def test_constraints_pin_every_dependency_exactly() -> None:
    pins = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"]}.union(*project["optional-dependencies"].values())
    assert {re.match(r"[\w-]+", each)[0].lower() for each in wanted} - {"stepladder"} <= pinned
    assert "torch==2.13.0" in pins


def test_the_tests_of_a_file_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Else each of `make test`'s processes would start a server, and climb, of its own.

    pytest-xdist learns from the end of a test's name which ones stay together.
    """
    assert request.node.get_closest_marker("xdist_group").args == ("test_house",)
    ending = "@test_house" if request.config.getoption("loadgroup", default=False) else ""
    assert request.node.nodeid.endswith(f"{request.node.name}{ending}")


def test_data_holds_two_tracked_files_and_ignores_the_rest() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout.split() == ["data/.gitignore", "data/README.md"]
