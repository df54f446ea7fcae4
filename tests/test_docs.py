"""The pages show code that is there, commands that work and figures that come out."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import reference
from PIL import Image
from prefect_server import PrefectServer
from shell import Shell
from test_baseline import POST
from test_ladder import Project, write_digits

from tasks.report.words import percent

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """A page's fenced blocks: language, what stands after it, text."""
    return FENCE.findall((ROOT / page).read_text())


def test_the_readmes_pictures_are_there_light_and_described() -> None:
    """Each picture is a small PNG in the repository, with a text that stands for it."""
    shown = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(shown) >= 2
    for words, file in shown:
        assert len(words) > 30
        with Image.open(ROOT / file) as picture:
            assert picture.format == "PNG"
        assert (ROOT / file).stat().st_size < 60_000


def body_of(path: Path, name: str) -> list[str]:
    """The lines of a function or method, named as `Class.method`, below its docstring."""
    text = path.read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(
            each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part
        )
    assert isinstance(node, ast.FunctionDef)
    first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    return plain(text.splitlines()[first : node.end_lineno])


def plain(lines: list[str]) -> list[str]:
    """Lines without their indentation and the linter's comments."""
    return [re.sub(r"  # (noqa|type:).*", "", line).strip() for line in lines]


def names_in(path: Path) -> set[str]:
    """What a file defines: `function`, `Class`, `Class.method`, `CONSTANT`."""
    found: set[str] = set()

    def gather(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                gather(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + each.id for each in targets if isinstance(each, ast.Name))

    gather(ast.parse(path.read_text()).body, "")
    return found


def test_the_walks_through_the_house_lead_through_rooms_that_are_there() -> None:
    """Every file and function that CONTRIBUTING.md names exists."""
    named = re.findall(
        r"`((?:flows|tasks)/[\w/]+\.py):([\w.]+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(named) > 30
    for file, name in named:
        assert name in names_in(ROOT / file), f"{file}:{name}"


SNIPPETS = [block for block in blocks("POST.md") if block[0] == "python"]


@pytest.mark.parametrize(("_", "where", "text"), SNIPPETS, ids=[each[1] for each in SNIPPETS])
def test_a_snippet_is_what_stands_in_the_source(_: str, where: str, text: str) -> None:
    """Its lines follow each other in the function that it names, in this order, unchanged."""
    file, _, name = where.partition("::")
    body, shown = body_of(ROOT / file, name), plain(text.splitlines())
    starts = [i for i, line in enumerate(body) if line == shown[0]]
    assert any(body[i : i + len(shown)] == shown for i in starts), "\n".join(body)


def test_the_baselines_figures_are_those_that_come_out() -> None:
    """The table's rows are what a test computes from MNIST itself."""
    assert len(SNIPPETS) > 10
    for distance, expected in POST.items():
        row = re.search(
            rf"^\| {distance} \| (.*) \|$", (ROOT / "POST.md").read_text(), re.MULTILINE
        )
        *digits, mean = map(float, row[1].split(" | "))
        assert digits == expected
        assert mean == pytest.approx(sum(expected) / 10, abs=6e-5)


def test_the_reference_of_recipes_is_what_the_code_says() -> None:
    """Every field with its values, its default and its meaning; `make reference` writes it."""
    assert (ROOT / "RECIPES.md").read_text() == reference.page()


@pytest.fixture
def project(tmp_path: Path, prefect_server: PrefectServer, shell: Shell) -> Project:
    """A copy of the project with a dataset so small that a run is all about what runs."""
    project = Project(tmp_path, prefect_server.environment, shell)
    write_digits(project.data / "sample", classes=3, per_class=24)
    return project


def patch(root: Path, file: str, diff: str) -> None:
    """Do what a diff block shows: its old lines stand in the file once, and become its new ones."""
    old = "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] != "+")
    new = "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] != "-")
    text = (root / file).read_text()
    assert text.count(old) == 1, f"{file} has {text.count(old)} times\n{old}"
    (root / file).write_text(text.replace(old, new))


def follow(project: Project, text: str) -> dict[str, str]:
    """Type a console line of the page; gives the states of the stages when it is a plan.

    Each line that the page shows of a plan must be in it: state, stage and one of its reasons.
    """
    line, *shown = text.splitlines()
    command = shlex.split(line.removeprefix("$ stepladder "))
    if command[0] != "plan":
        project.stepladder(*command)
        return {}
    plan = json.loads(project.stepladder(*command, "--json").stdout)["stages"]
    stages = {each["stage"]: each for each in plan}
    for each in shown:
        state, stage, reason = re.split(r"  +", each)
        assert stages[stage]["state"] == state
        assert reason in stages[stage]["why"]
    return {stage: each["state"] for stage, each in stages.items()}


TIMM = """
from torch import nn

def create_model(name, in_chans, num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))
"""


def test_adding_a_model_a_loss_and_a_stage(project: Project) -> None:
    """Followed from top to bottom, each addition runs itself and the report, and nothing else.

    What the last one adds stands in results.json and on the page.
    """
    (project.root / "timm.py").write_text(TIMM)  # stands in for the package
    sections = (ROOT / "EXTENDING.md").read_text().split("\n## ")
    assert [section.partition("\n")[0] for section in sections[1:]] == [
        *EXPECTED,
        "Into the report",
    ]
    for section in sections:
        expected = iter(EXPECTED.get(section.partition("\n")[0], []))
        for language, file, text in FENCE.findall(section):
            if language == "diff":
                patch(project.root, file, text)
            elif file:
                (project.root / file).write_text(text)
            elif language == "python":
                run_python(project, text)
            elif states := follow(project, text):
                assert {name for name, state in states.items() if state != "cached"} == next(
                    expected
                )
        assert not [*expected]
    latest = project.data / "reports" / "sample" / "latest"
    results = json.loads((latest / "results.json").read_text())
    assert [rung["label"] for rung in results["rungs"]] == [MINE]
    assert results["ink"].keys() == {"0", "1", "2"}
    page = (latest / "report.html").read_text()
    assert f"{percent(results['ink']['2'])} ink" in page


def stages(rung: str) -> set[str]:
    """Of one rung."""
    return {f"{stage}[{rung}]" for stage in ("train", "calibrate", "measure")}


def run_python(project: Project, text: str) -> None:
    """Run a script in the copy."""
    subprocess.run(
        [sys.executable, "-c", text], cwd=project.root, env=project.environment, check=True
    )


MINE = "my_models:wide, my_training:hinge, seed 0"
EXPECTED = {  # section -> what each of its plans runs
    "A model": [
        {*stages("my_models:wide, cross_entropy, seed 0"), "report"},
        {*stages("zoo:small, cross_entropy, seed 0"), "report"},
    ],
    "A loss, an optimizer, a schedule, an augmentation": [{*stages(MINE), "report"}],
    "Weights to start from, sweeps and the rest": [
        {
            *stages("my_models:wide, cross_entropy, seed 0, lr 0.1"),
            *stages("my_models:wide, cross_entropy, seed 0, lr 0.01"),
            "report",
        },
        {*stages("linear, cross_entropy, seed 0, lr 0.3"), "report"},
    ],
    "A stage": [{"ink[0]", "ink[1]", "ink[2]"}],
}
