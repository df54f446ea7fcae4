"""Prediction: the report's answers to the image, whatever else lies among the files."""

from __future__ import annotations

import csv
import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from climbing import climb, write_tiny
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer

from flows import cli
from flows.predict import load_model
from flows.predictions import predict
from tasks.caching.basics import LadderError
from tasks.report.publish import place
from tasks.rungs.ladders import cross
from tasks.serving.candidate import consider

pytestmark = pytest.mark.usefixtures("one_thread")
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a model of tiny's cats and dogs."""
    data = tmp_path_factory.mktemp("data")
    write_tiny(data)
    recipes = cross(["linear"], ["cross_entropy"], epochs=2)
    refs = climb(data, recipes=recipes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPLADDER_DATA", str(data))
        judge = functools.partial(consider, rule="p<0.05")
        place(refs["report"], refs, data / "cache", judge)
    return data


@pytest.fixture
def data(climbed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPLADDER_DATA", str(climbed))
    return climbed


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    """Type `stepladder predict ...`: exit status, what was printed, what was told."""

    def do(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["stepladder", "predict", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capfd.readouterr()

    return do


def test_a_folder_gives_the_reports_answers(data: Path, typed: Typed) -> None:
    """Each testing image comes to the class and the probability that the report has."""
    report = pq.read_table(data / "reports/tiny/latest/predictions.parquet").to_pylist()
    status, printed, told = typed(data / "tiny/testing", "--json")
    assert (status, told) == (0, "")
    rows = {Path(row["file"]).parts[-2:]: row for row in map(json.loads, printed.splitlines())}
    assert len(rows) == len(report) == 24
    for each in report:
        row = rows[each["label"], each["file"]]
        assert row["class"] == each["predicted"]
        assert row["probability"] == pytest.approx(each["probability"], abs=1e-6)
        assert row["next"][0][1] == pytest.approx(1 - row["probability"], abs=1e-6)


def test_all_ways_to_say_it_agree(data: Path, typed: Typed, tmp_path: Path) -> None:
    """Table, CSV and Parquet of a glob, in the same order."""
    glob, out = data / "tiny/testing/*/1*.png", tmp_path / "said.parquet"
    table = typed(glob)[1].splitlines()
    rows = list(csv.DictReader(io.StringIO(typed(glob, "--csv")[1])))
    assert typed(glob, "--out", out)[1] == f"6 predictions: {out}\n"
    stored = pq.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [row["file"] for row in stored]
    assert [row["class"] for row in rows] == [line.split()[1] for line in table[1:]]
    assert [float(row["probability_2"]) for row in rows] == pytest.approx(
        [row["probability_2"] for row in stored]
    )


def test_what_is_no_image_stops_no_other(
    data: Path, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told with its reason, and the exit status is 1; sizes and kinds are made alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg")
    Image.fromarray(pixels[:8, :8, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "cut.png").write_bytes((data / "tiny/testing/cat/1.png").read_bytes()[:50])
    (tmp_path / "paper.png").write_bytes(b"%PDF-1.7")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "empty").mkdir()
    listed = f"{tmp_path}\n\n{tmp_path / 'gone.png'}\n{tmp_path / 'empty'}\n/nowhere/at.png\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(listed))
    status, printed, told = typed(
        "-", data / "tiny/testing/cat/2.png", tmp_path / "*.webp", "--json"
    )
    assert status == 1
    files = [Path(json.loads(line)["file"]).name for line in printed.splitlines()]
    assert files == ["deep.png", "large.jpg", "2.png"]
    for said in ("cut.png", "paper.png is a PDF file", "gone.png cannot be read",
                 "empty holds no image", "/nowhere", "*.webp' matches no file"):  # fmt: skip
        assert said in told
    assert len(told.splitlines()) == 6


def test_an_image_unlike_training_is_marked(data: Path, typed: Typed, tmp_path: Path) -> None:
    """Black among images of noise: as a mark in the table, and true in JSON."""
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    paths = tmp_path / "black.png", data / "tiny/training/cat/3.png"
    marks = [json.loads(line)["unlike"] for line in typed(*paths, "--json")[1].splitlines()]
    assert marks == [True, False]
    assert [line.endswith("unlike all that was trained on") for line in
            typed(*paths)[1].splitlines()[1:]] == marks  # fmt: skip


def test_in_python_pixels_files_and_pictures_agree(data: Path) -> None:
    paths = sorted((data / "tiny/testing/dog").iterdir())
    model = load_model("tiny")
    pictures = [Image.open(path) for path in paths]
    pixels = np.stack([np.array(each) for each in pictures])
    said = model(pixels)
    assert model.classes == ["cat", "dog"]
    assert said.shape == (12, 2)
    assert torch.equal(said, model(torch.from_numpy(pixels)))
    assert torch.equal(said, model(paths))
    assert torch.equal(said, model(pictures))
    assert torch.equal(said, load_model(model=data / "models/tiny/0001.safetensors")(pixels))
    assert model([]).shape == (0, 2)
    with pytest.raises(
        LadderError, match=r"float64 \[12, 8, 8\]; this model takes uint8 \[N, 8, 8\]"
    ):
        model(pixels / 255)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say of what"),
        (["x.png", "--jsn"], "unknown option '--jsn'"),
        (["x.png", "--dataset", "cows"], "no report of a run 'cows'"),
        (["x.png", "--json", "--csv"], "exclude each other"),
        (["x.png", "--model", "x.png"], "x.png is no model file"),
    ],
)
def test_mistakes_are_told_in_a_line(data: Path, typed: Typed, words: list[str], said: str) -> None:
    status, printed, told = typed(*words)
    assert status in (1, 2)
    assert printed == ""
    assert said in told
    assert len(told.splitlines()) == 1


def test_a_flow_writes_what_it_says_of_the_inbox(
    data: Path, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """Parquet of all that can be read; the state counts the rest, and an artifact names it."""
    inbox = data / "inbox" / "tiny"
    shutil.copytree(data / "tiny/testing/cat", inbox)
    (inbox / "cut.png").write_bytes(b"\x89PNG")
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        state = predict("tiny", return_state=True)
        nothing = predict("tiny", str(tmp_path), return_state=True)
        unknown = predict("cows", return_state=True)
        with get_client(sync_client=True) as client:
            there = client.request("POST", "/artifacts/filter", json={}).json()
    path = Path(state.message.partition(": ")[2])
    assert state.is_completed()
    assert state.message.startswith("12 images, ")
    assert "1 unreadable" in state.message
    assert path.parent == data / "predictions/tiny"
    assert pq.read_table(path).num_rows == 12
    [shown] = [each for each in there if each["key"] == "predictions-tiny"]
    assert "cut\\.png" in shown["data"] or "cut.png" in shown["data"]
    assert f"{tmp_path} holds no image" in nothing.message
    assert "no dataset 'cows'" in unknown.message
