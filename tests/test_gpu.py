"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import fitted, pictures, quick
from torch import nn

from tasks.caching.basics import LadderError
from tasks.caching.call import Call, Settings
from tasks.caching.process import Processes
from tasks.caching.stage import Run, stage
from tasks.rungs import recording
from tasks.rungs.losses import LOSSES
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


def on_gpu(recipe: Recipe, **arguments: Any) -> dict[str, Any]:
    return fitted(recipe, run=Run("cuda"), **arguments)


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on steps are taken by Python one by one, and none is recorded."""
    usual = recording.repeated
    monkeypatch.setattr(recording, "repeated", lambda work, _device: usual(work, "cpu"))


def differences(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of any weight, as a share of the largest weight of its tensor."""
    return max(
        float((x.float() - b["weights"].tensors[name].float()).abs().max() / x.abs().max())
        for name, x in a["weights"].tensors.items()
        if x.is_floating_point()
    )


@pytest.fixture
def exact() -> Iterator[None]:
    """Sums in a fixed order, and none of rounded factors."""
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        yield


# Gradient descent: adamw makes steps as long as any of gradients that are nothing but rounding.
STEADY = {"optimizer": "sgd", "lr": 0.05, "schedule": "constant", "precision": "float32"}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("model", MODELS)
def test_a_graph_takes_the_steps_that_python_takes(model, monkeypatch) -> None:
    """One by one or recorded: the same batches, moves, rates and sums."""
    monkeypatch.setattr(recording, "LEG", 2)
    recipe = quick(model, batch_size=32, epochs=4, **STEADY)
    recorded = on_gpu(recipe)
    plainly(monkeypatch)
    assert differences(recorded, on_gpu(recipe)) < 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_can_be_recorded(loss, monkeypatch) -> None:
    recipe = Recipe(model="mlp", loss=loss, batch_size=32, epochs=4, label_smoothing=0.1)
    recorded = on_gpu(recipe)
    plainly(monkeypatch)
    assert differences(recorded, on_gpu(recipe)) < 1e-3


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("model", ["linear", "mlp", "convnet"])  # deeper ones magnify rounding
def test_a_gpu_trains_as_a_cpu_does(model) -> None:
    """In float32 they differ by rounding, which few steps leave small."""
    recipe = quick(model, batch_size=32, epochs=2, **STEADY)
    assert differences(on_gpu(recipe), fitted(recipe)) < 1e-2


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "mlp", "class_weights": "balanced", "augment": "cutout"},
        {"model": "convnet", "shift": 1, "flip": True},
        {"model": "mlp", "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01},
        {"model": "mlp", "normalize": True, "keep": "best"},
        {"model": "deep_convnet", "precision": "bfloat16"},
    ],
    ids=str,
)
def test_whatever_a_recipe_asks_for_can_be_recorded(fields) -> None:
    """Pictures this easy are told apart afterwards."""
    recipe = Recipe(loss="cross_entropy", batch_size=16, epochs=20, **fields)
    assert on_gpu(recipe)["testing_accuracy"] > 0.9


def test_dropout_draws_anew_at_each_replay(monkeypatch) -> None:
    """Else the same units would be left out all through the training."""
    seen = []

    class Noted(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            if self.training:
                self.drawn[: len(out)] = (out == 0).float()
            return out

    def dropping(shape, classes) -> nn.Module:
        dropout = Noted(0.5)
        dropout.register_buffer("drawn", torch.zeros(16, 64))
        seen.append(dropout)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), dropout, nn.Linear(64, classes))

    monkeypatch.setitem(MODELS, "dropping", dropping)
    monkeypatch.setattr(recording, "LEG", 1)
    drawn = []
    usual = recording.repeated

    def noting(work, device):
        for _ in usual(work, device):
            drawn.append(seen[0].drawn.cpu().clone())
            yield

    monkeypatch.setattr(recording, "repeated", noting)
    on_gpu(quick("dropping", batch_size=8, epochs=2, init="default", normalize=False))
    assert len(drawn) > 8
    assert len({bytes(each.numpy()) for each in drawn}) == len(drawn)


def test_a_training_that_was_killed_goes_on(tmp_path) -> None:
    """From its last checkpoint, with the optimizer's moments: near where it would have come to."""
    recipe = quick("mlp", epochs=6, optimizer="adamw", schedule="constant", lr=0.01)
    whole = on_gpu(recipe)

    def killed(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 3 of 6:"):
            raise KeyboardInterrupt

    data, classes = pictures(), ["a", "b", "c"]
    with pytest.raises(KeyboardInterrupt):
        train.fn(data, [], classes, recipe, run=Run("cuda", killed, tmp_path))
    told: list[str] = []
    went_on = train.fn(
        data, [], classes, recipe,
        run=Run("cuda", lambda _done, _total, note: told.append(note), tmp_path),
    )  # fmt: skip
    assert not any(note.startswith(("epoch 1 ", "epoch 2 ", "epoch 3 ")) for note in told)
    assert differences(whole, went_on) < 1e-3


@stage
def filling(size: int, *, run: Run = Run()) -> torch.Tensor:
    """So many bytes of where it runs."""
    return torch.zeros(size, dtype=torch.uint8, device=run.device).cpu()


def test_a_gpu_that_is_full_is_told_without_a_traceback(tmp_path) -> None:
    """What a user can mend is said in a line."""
    call = Call(filling, "filling", {"size": 2**45}, Settings(str(tmp_path), "tiny", "cuda"),
                Processes())  # fmt: skip
    with pytest.raises(LadderError, match="the memory of the GPU does not suffice"):
        call.perform()


def test_a_run_trains_on_the_gpu_and_then_finds_all_of_it(tmp_path) -> None:
    """`--device auto` takes it, the report says so, and the next run computes nothing anew."""
    (tmp_path / "data").mkdir()
    environment = {
        **os.environ,
        "STEPLADDER_DATA": str(tmp_path / "data"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }

    def stepladder(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments], cwd=ROOT, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    sample = ("sample", "--epochs", "2")
    facts = json.loads(stepladder("run", *sample, "--json"))
    results = json.loads(Path(facts["results"]).read_text())
    assert {rung["device"] for rung in results["rungs"]} == {"cuda"}
    assert not json.loads(stepladder("run", *sample, "--json"))["ran"]
    assert "all came out the same" in stepladder("run", *sample, "--audit", "40")
    assert "device cuda -> cpu" in stepladder("plan", *sample, "--device", "cpu")
