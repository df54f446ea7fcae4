"""The model in use: chosen by validation, kept against luck, and back where its user put it."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from climbing import climb, write_tiny
from PIL import Image

from flows import models
from tasks.caching.basics import LadderError
from tasks.report.measures import unpacked
from tasks.report.publish import place
from tasks.rungs.ladders import cross
from tasks.serving.candidate import asked, consider
from tasks.serving.modelfile import read_model
from tasks.serving.registry import Registry

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny(tmp_path)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    return tmp_path


def night(data: Path, seed: int = 0, rule: str = "p<0.05", **options: Any) -> dict[str, Any]:
    """results.json of a run of one linear rung, and what became of the model."""
    recipes = cross(["linear"], ["cross_entropy"], [seed], epochs=2)
    refs = climb(data, recipes=recipes, **options)
    judge = functools.partial(consider, rule=rule)
    folder = place(refs["report"], refs, data / "cache", judge)
    assert refs.keys() >= {"decode[testing/cat]"}
    return dict(json.loads((folder / "results.json").read_text()))


def said(results: dict[str, Any]) -> str:
    return str(results["promotion"]["said"])


def test_a_night_without_change_writes_nothing(data: Path) -> None:
    """The first model is promoted; the same run again leaves every byte of the models as it is."""
    assert said(night(data)).startswith("Model 1 is in use now: linear, cross_entropy, seed 0;")
    before = {path: path.read_bytes() for path in (data / "models").rglob("*") if path.is_file()}
    again = night(data)
    assert said(again) == "Model 1 is in use: it is this run's best rung."
    assert not again["promotion"]["promoted"]
    assert before == {p: p.read_bytes() for p in (data / "models").rglob("*") if p.is_file()}


def test_another_seed_is_no_new_model(data: Path) -> None:
    """Luck is told once, and only --promote-if always makes a model of it."""
    night(data)
    kept = night(data, seed=1)
    assert said(kept).startswith("Model 1 stays in use: ")
    lines = (data / "models/tiny/history.jsonl").read_text().count("\n")
    assert said(night(data, seed=1)) == said(kept)
    assert (data / "models/tiny/history.jsonl").read_text().count("\n") == lines
    assert night(data, seed=1, rule="always")["promotion"]["number"] == 2


def test_changed_testing_images_measure_the_model_again(data: Path) -> None:
    """Both are compared on the new images, and predictions.parquet has what either says of them."""
    night(data)
    path = data / "tiny/testing/cat/3.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    recipes = cross(["linear"], ["cross_entropy"], [0, 1], epochs=2)
    refs = climb(data, recipes=recipes)
    cache = data / "cache"
    model = read_model(Registry("tiny").path(1))
    stacks = [refs[f"decode[testing/{name}]"].load(cache) for name in ("cat", "dog")]
    figures = refs["measure[linear, cross_entropy, seed 0]"].load(cache)
    probabilities = asked(model, stacks, ["cat", "dog"])
    sheet = probabilities.argmax(1) == np.repeat([0, 1], 12)
    assert np.allclose(probabilities, figures["probabilities"].numpy(), atol=1e-6)
    assert sheet.mean() == figures["testing_accuracy"]
    second = night(data, seed=1)
    decision = Registry("tiny").history()[-1]["decision"]
    mine = unpacked(second["rungs"][0]["right"], 24)
    assert (decision["won"], decision["lost"]) == ((mine & ~sheet).sum(), (sheet & ~mine).sum())
    for _ in range(2):  # a night without change leaves it as it is
        table = pandas.read_parquet(data / "reports/tiny/latest/predictions.parquet")
        right = table.groupby("model").correct.apply(list)
        assert right["model 1"] == sheet.tolist()
        assert right[second["answer"]["best"]] == mine.tolist()
        night(data, seed=1)
    other = asked(model, stacks[::-1], ["dog", "cow"])
    assert other.shape == (24, 2)
    assert not other[:, 1].any(), "a class that it does not know it never names"


def test_a_model_that_was_rolled_back_stays_so(data: Path, capsys: Any) -> None:
    """Until it is asked for by hand; its file comes back to the byte."""
    night(data)
    night(data, seed=1, rule="always")
    whole = Registry("tiny").path(1).read_bytes()
    models.rollback("tiny")
    assert Registry("tiny").current()["number"] == 1  # type: ignore[index]
    assert Registry("tiny").path(1).read_bytes() == whole
    stays = "Model 1 stays in use: this run's best rung is model 2, which was rolled back."
    assert said(night(data, seed=1, rule="always")) == stays
    models.promote("tiny", "linear, cross_entropy, seed 1")
    models.models()
    models.show("tiny")
    out = capsys.readouterr().out
    assert "in use: " in out
    assert "asked for by hand" in out
    assert Registry("tiny").current()["number"] == 3  # type: ignore[index]
    assert said(night(data, seed=1)) == "Model 3 is in use: it is this run's best rung."


def test_a_model_outlives_what_the_cache_holds(data: Path) -> None:
    """Each model file is a whole copy, so that nothing that is removed there is missed here."""
    night(data)
    night(data, seed=1, rule="always")
    shutil.rmtree(data / "cache")
    models.rollback("tiny", 1)
    assert read_model(Registry("tiny").path(1)).metadata["rung"].endswith("seed 0")


def test_images_of_another_size_replace_no_model(data: Path) -> None:
    night(data)
    other = night(data, size=(4, 4))
    assert "it takes images of shape [8, 8], and these are of [4, 4]" in said(other)
    assert other["promotion"]["number"] == 1


def test_a_damaged_history_is_told_when_the_report_is_there(data: Path) -> None:
    """The report is placed, the run fails in one line that names the file."""
    night(data)
    (data / "models/tiny/history.jsonl").write_text("{\n")
    with pytest.raises(LadderError, match=r"history\.jsonl has a line that is not JSON"):
        night(data, seed=1)
    reports = {*(data / "reports/tiny").glob("2*")}
    assert len(reports) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: models.rollback("tiny"), "has no earlier model to go back to"),
        (lambda: models.rollback("tiny", 7), "there is no model 7"),
        (lambda: models.show("nothing"), "'nothing' has no models; there are models of tiny"),
        (lambda: models.promote("tiny", "mlp"), "no rung 'mlp' in run .*; there are: linear"),
    ],
)
def test_what_cannot_be_done_is_said(data: Path, asked: Any, message: str) -> None:
    night(data)
    with pytest.raises(LadderError, match=message):
        asked()
