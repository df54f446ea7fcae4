"""What runs have stored, loaded by the names that `plan` shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


@pytest.fixture(autouse=True)
def _root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_DATA", str(data))


def test_what_a_stage_gave_is_loaded_by_its_name(data: Path) -> None:
    stack = load("decode[training/cat]", "tiny")
    assert isinstance(stack, Stack)
    assert stack.images.shape == (12, 8, 8)
    assert torch.equal(load("mean[cat]", str(data / "tiny")), mean.fn(stack))
    trained = load(LINEAR, "tiny")
    assert trained["weights"].tensors["1.weight"].shape == (2, 64)
    assert len(trained["history"]) == 2
    assert {"mean[dog]", "baseline[mae]", "report", LINEAR} <= {*names("tiny")}


@pytest.mark.parametrize(
    ("stage", "dataset", "said"),
    [
        ("mean[cow]", "tiny", r"did you mean 'mean\[\w+\]'\? `stepladder run tiny`"),
        ("", "tiny", "nothing is stored for ''"),
        ("mean[cat]", "nobody", "no dataset 'nobody'"),
        ("mean[cat]", "", "names no dataset"),
    ],
)
def test_what_is_not_there_says_what_to_do(stage: str, dataset: str, said: str) -> None:
    with pytest.raises(LadderError, match=said):
        load(stage, dataset)


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
