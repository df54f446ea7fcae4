"""A rung that fails is told as one, everywhere, and the others are reported as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prefect_server import PrefectServer
from shell import Shell
from test_ladder import Project, write_digits
from test_report import Page, climb
from test_verdict import climbed, everything, mostly
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.call import Call, Settings
from tasks.caching.process import Processes
from tasks.caching.stage import stage
from tasks.report.artifacts import ladder_table
from tasks.report.comparison import comparison, moved
from tasks.rungs.recipes import Recipe

LINEAR = {"model": "linear", "loss": "cross_entropy"}
BAD = """
def bad(logits, labels, smoothing):
    return (logits * float("nan")).mean()
"""


@stage
def huge(how: str) -> Tensor:
    """What asks for more memory than any machine has."""
    if how == "torch":
        return torch.empty(2**45)
    if how == "numpy":
        return torch.from_numpy(np.empty(2**45))
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def some_failed(stood: dict[str, tuple[float, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """results.json of rungs that stand and rungs that failed: name, or "name, seed 1" -> why."""
    recipes = {}
    for label in [*stood, *failed]:
        name, _, seed = label.partition(", seed ")
        recipes[label] = Recipe(**LINEAR, seed=int(seed or 0), lr=0.1 + sum(map(ord, name)) / 1e4)
    return climbed(stood, [200, 200], [100, 100], recipes=recipes, failed=failed)


def test_others_are_judged_as_if_it_had_not_been_asked_for() -> None:
    """Verdict, choice and comparisons are those of the rungs that stand; the failed one is told."""
    stood = {"a": (0.8, mostly(0.7)), "c": (0.9, mostly(0.9))}
    alone = some_failed(stood, {})
    beside = some_failed(stood, {"b": "diverged"})
    assert beside["answer"] == alone["answer"]
    assert beside["rungs"] == alone["rungs"]
    assert beside["headline"] == alone["headline"]
    [failed] = beside["failed"]
    assert (failed["label"], failed["rung"], failed["failed"]) == ("b", "b", "diverged")
    assert beside["warnings"] == ["b failed: diverged", *alone["warnings"]]
    rows = {row["rung"]: row for row in ladder_table(beside)}
    assert (rows["b"]["testing accuracy"], rows["b"]["note"]) == ("-", "failed")
    assert [*rows][:3] == ["c", "a", "b"]


def test_where_all_fail_nothing_is_said_of_machine_learning() -> None:
    """The baselines are there, and the reason."""
    results = some_failed({}, {"a": "diverged", "b": "out of memory"})
    assert (results["answer"], results["rungs"]) == (None, [])
    assert results["headline"] == "Every rung failed."
    text = everything(results)
    assert "machine learning" not in text
    assert "warning: a failed: diverged\nwarning: b failed: out of memory" in text
    notes = {row["rung"]: row["note"] for row in ladder_table(results)}
    assert (notes["a"], notes["b"]) == ("failed", "failed")


def test_a_seed_that_failed_leaves_its_rung() -> None:
    """Under the same name, so that runs compare; which seeds stand, and which do not, is said."""
    stood = {"m, seed 0": (0.9, mostly(0.9)), "m, seed 2": (0.8, mostly(0.8))}
    results = some_failed(stood, {"m, seed 1": "diverged"})
    [rung] = results["rungs"]
    assert (rung["label"], rung["seeds"]) == ("m, seeds 0 to 2", [0, 2])
    assert results["warnings"] == ["m, seed 1 failed: diverged"]
    assert ladder_table(results)[0]["note"] == "1 seed failed"
    all_of_it = some_failed({"c": (0.9, mostly(0.9))}, {f"m, seed {i}": "no" for i in range(3)})
    assert all_of_it["warnings"] == ["m, seeds 0 to 2 failed: no"]
    assert everything(all_of_it).startswith("# shelf: ")
    assert "The one rung that did not fail, c, is correct" in everything(all_of_it)


def test_two_runs_say_what_failed_in_which() -> None:
    """Neither "new" nor "not climbed this time"."""
    good = some_failed({"a": (0.9, mostly(0.9)), "b": (0.9, mostly(0.8))}, {})
    bad = some_failed({"b": (0.9, mostly(0.8))}, {"a": "diverged"})
    words = [
        {row["label"]: moved(row) for row in comparison(old, new)["rows"]}["a"]
        for old, new in ((good, bad), (bad, good))
    ]
    assert words == ["failed this time", "failed before"]


def test_the_page_shows_a_failed_rung_among_the_others() -> None:
    made = climb(
        rungs={}, failed={"linear, cross_entropy, seed 0": "diverged in epoch 1: lower lr"}
    )
    page = Page(made["report.html"]).text
    assert "Every rung failed." in page
    assert "linear, cross_entropy, seed 0 failed: diverged in epoch 1: lower lr" in page
    label = "linear, cross_entropy, seed 1"
    both = climb(failed={label: "diverged"}, rungs={"linear, cross_entropy, seed 0": [one()]})
    assert f"{label} failed - - - - - -" in Page(both["report.html"]).text


def one() -> dict[str, Any]:
    from test_report import rung, stack

    return rung(3, [stack(40, 1000 + i) for i in range(3)], 0.9, (6, 5))


def test_a_climb_with_a_failing_rung_ends_so(
    tmp_path: Path, prefect_server: PrefectServer, shell: Shell
) -> None:
    """Exit status 3, the report in its place with the reason, and the model of the other."""
    project = Project(tmp_path / "project", prefect_server.environment, shell)
    write_digits(project.images, classes=3, per_class=24)
    (project.root / "bad.py").write_text(BAD)
    options = ["--models", "linear", "--losses", "cross_entropy,bad.py:bad", "--seeds", "0,1"]
    done = project.stepladder("run", "tiny", *options, "--epochs", "2", ok=False)
    assert done.returncode == 3, done.stderr
    assert "linear, bad:bad, seed 1 failed: diverged in epoch 1 (loss nan): lower lr" in done.stderr
    results = json.loads((project.data / "reports/tiny/latest/results.json").read_text())
    [rung] = results["rungs"]
    assert rung["label"] == "linear, cross_entropy, seeds 0 and 1"
    assert {each["rung"] for each in results["failed"]} == {"linear, bad:bad, seeds 0 and 1"}
    shown = np.array([line.split()[-1] == "failed" for line in done.stdout.splitlines() if line])
    assert shown.sum() == 1
    assert results["promotion"]["number"] == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_warnings_name_each_reason_once(seeds: int) -> None:
    failed = {f"m, seed {i}": "a" if i else "b" for i in range(seeds)}
    results = some_failed({"c": (0.9, mostly(0.9))}, failed)
    name = "m, seed 0" if seeds == 1 else "m, seeds 0 to 2"
    assert results["warnings"] == [
        f"{name} failed: {why}" for why in dict.fromkeys(failed.values())
    ]


@pytest.mark.parametrize(
    ("how", "device", "said"),
    [
        ("torch", "cpu", r"of this machine does not suffice: lower batch_size, .* uses it$"),
        ("numpy", "cpu", "of this machine does not suffice"),
        ("gpu", "cuda", r"of the GPU does not suffice: .*, or take --device cpu$"),
    ],
)
def test_too_little_memory_is_told_without_a_traceback(how, device, said, tmp_path) -> None:
    """A body's own process says it, as any mistake that the user can mend."""
    call = Call(huge, "huge", {"how": how}, Settings(str(tmp_path), "tiny", device), Processes())
    with pytest.raises(LadderError, match=said):
        call.perform()
