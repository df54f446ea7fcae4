"""One stage, called in this process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from climbing import climb, write_tiny
from PIL import Image

from flows import cli
from flows.debug import brief, prepare
from flows.results import load
from tasks.caching.basics import LadderError

CAT = "decode[training/cat]"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small dataset."""
    write_tiny(tmp_path)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    return tmp_path


def files(data: Path) -> set[Path]:
    return {path for path in data.rglob("*") if path.is_file()}


def test_a_stage_is_called_here_on_what_is_stored(data: Path) -> None:
    """It gives what a run stored, and leaves nothing behind."""
    options: dict[str, Any] = {
        "dataset": "tiny",
        "which": "post",
        "epochs": 2,
        "only": "linear, cross*",
    }
    climb(data, **{name: item for name, item in options.items() if name != "dataset"})
    before = files(data)
    assert torch.equal(prepare("mean[cat]", options)(), load("mean[cat]", "tiny"))
    trained = prepare("train[linear, cross_entropy, seed 0]", options)()
    stored = load("train[linear, cross_entropy, seed 0]", "tiny")
    assert torch.equal(trained["held_out"]["logits"], stored["held_out"]["logits"])
    assert files(data) == before


def test_what_a_stage_raises_comes_as_it_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the command too, with its traceback, so that a debugger stops where it was raised."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["stepladder", "debug", CAT, "tiny"])
    path = data / "tiny/training/cat/3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LadderError, match=r"3\.png") as caught:
        cli.main()
    assert any(Path(entry.path).name == "decode.py" for entry in caught.traceback)
    assert caught.value.__cause__ is None
    Image.new("L", (8, 8)).save(path)
    assert brief(prepare(CAT, {"dataset": "tiny"})()).startswith(
        "{images: Tensor[12, 8, 8] torch.uint8"
    )


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("mean[cow]", r"no stage 'mean\[cow\]', did you mean 'mean"),
        ("mean[cat]", r"takes what decode\[training/cat\] must give first: `stepladder run`"),
    ],
)
def test_what_cannot_be_called_says_why(data: Path, stage: str, said: str) -> None:
    with pytest.raises(LadderError, match=said):
        prepare(stage, {"dataset": "tiny"})
