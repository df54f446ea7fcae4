"""What runs have stored, loaded by the names that `plan` shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from climbing import climb, write_tiny

from flows.results import load, names
from tasks.caching.basics import LadderError
from tasks.caching.values import Stack
from tasks.rungs.baseline import mean

ROOT = Path(__file__).resolve().parents[1]
LINEAR = "train[linear, cross_entropy, seed 0]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root on which two recipes have been climbed."""
    data = tmp_path_factory.mktemp("data")
    write_tiny(data)
    climb(data, epochs=2, only="linear, *cross*")
    return data


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root with so small a dataset that its name is all it has of MNIST."""
    write_tiny(tmp_path)
    for split in ("training", "testing"):
        (tmp_path / "tiny" / split / "dog").rename(tmp_path / "tiny" / split / "7")
    (tmp_path / "tiny").rename(tmp_path / "mnist")
    climb(tmp_path, dataset="mnist", epochs=1, only="mlp*")
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))


def test_the_readmes_lines_load_what_they_name(
    mnist: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, from another folder than the project's."""
    monkeypatch.chdir(tmp_path)
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert found["mean"].shape == (8, 8)
    assert found["weights"]["1.weight"].shape == (64, 64)
    assert {"mean[7]", "train[mlp, cross_entropy, seed 0]"} <= {*found["names"]("mnist")}


@pytest.fixture(autouse=True)
def _root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_DATA", str(data))


def test_what_a_stage_gave_is_loaded_by_its_name(data: Path) -> None:
    stack = load("decode[training/cat]", "tiny")
    assert isinstance(stack, Stack)
    assert stack.images.shape == (12, 8, 8)
    for place in (data / "tiny", str(data / "tiny")):
        assert torch.equal(load("mean[cat]", place), mean.fn(stack))
    trained = load(LINEAR, "tiny")
    assert trained["weights"].tensors["1.weight"].shape == (2, 64)
    assert len(trained["history"]) == 2
    assert {"mean[dog]", "baseline[mae]", "report", LINEAR} <= {*names("tiny")}


@pytest.mark.parametrize(
    ("stage", "dataset", "said"),
    [
        ("mean[cow]", "tiny", r"did you mean 'mean\[\w+\]'\? `stepladder run tiny`"),
        ("train[mlp]", "tiny", r"did you mean 'train\[linear, cross_entropy, seed 0\]'\?"),
        ("", "tiny", "stage: '' is not a stage's name"),
        (None, "tiny", "stage: None is not a stage's name"),
        ("\ud800", "tiny", "is not a stage's name"),
        ("mean[cat]", "nobody", "no dataset 'nobody'"),
        ("mean[cat]", "tinny", "did you mean 'tiny'"),
        ("mean[cat]", "mnist", "`stepladder fetch mnist` brings it"),
        ("mean[cat]", "sample", "`stepladder fetch sample` brings it"),
        ("mean[cat]", "", "names no dataset"),
        ("mean[cat]", 7, "dataset: 7 is not a dataset's name or path"),
    ],
)
def test_what_is_not_there_says_what_to_do(stage: Any, dataset: Any, said: str) -> None:
    with pytest.raises(LadderError, match=said):
        load(stage, dataset)


def test_the_run_that_would_help_has_the_same_name(data: Path) -> None:
    """What is typed again goes on the history that was looked at."""
    with pytest.raises(LadderError, match="`stepladder run tiny --name 'two words'` stores"):
        load("mean[cat]", "tiny", name="two words")


def test_what_was_lost_or_damaged_is_never_given(data: Path) -> None:
    """A record without its file, or none at all, is one line; nothing is computed."""
    for path in (data / "cache/records/mean").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(LadderError, match="no longer stored whole; `stepladder run tiny`"):
        load("mean[cat]", "tiny")
    assert "mean[cat]" not in names("tiny")
    assert "mean[dog]" not in names("tiny")


def test_loading_imports_no_prefect() -> None:
    """So that a notebook is not kept waiting."""
    code = "import sys, flows.results; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
