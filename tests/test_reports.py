"""Finding, opening and comparing reports that are already there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_publish import FIRST_RUN, SECOND_RUN, stored

from flows.cli import _meant
from flows.listing import datasets
from flows.reports import (
    compare,
    dataset_of_latest,
    figures,
    find_report,
    has_screen,
    open_report,
    print_comparison,
)
from tasks.caching.basics import LadderError
from tasks.caching.places import find_place
from tasks.report.publish import place

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two runs of one dataset under a data root of their own, the second the latest."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    first = stored(FIRST_RUN, "a" * 64, rights=(0.5, 0.8))
    return [
        place(report, {}, tmp_path / "cache") for report in (first, stored(SECOND_RUN, "b" * 64))
    ]


def test_a_run_is_found_by_any_of_its_names(runs: list[Path]) -> None:
    first, second = runs
    for name in ("", "shelf", second.name, "shelf/20240102", str(second), f"{second}/report.html"):
        assert find_report(name) == second, name
    assert find_report("20240101") == first


def test_what_cannot_be_found_is_named_with_what_there_is(runs: list[Path]) -> None:
    with pytest.raises(LadderError, match="no report of a run 'shelv'; did you mean 'shelf'"):
        find_report("shelv")
    with pytest.raises(LadderError, match=r"begins 2 runs; .*shelf/20240102000000-bbbbbbbb"):
        find_report("2024")
    with pytest.raises(LadderError, match="there are: shelf, 20240101000000-aaaaaaaa"):
        find_report("?")


def test_each_dataset_has_reports_of_its_own(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one last name are never compared; each is found as it was given, or by a clear name.

    So is what an older version put under the last name alone.
    """
    monkeypatch.chdir(tmp_path)
    placed = {}
    for number, team in enumerate(("teamA", "teamB")):
        (tmp_path / team / "images").mkdir(parents=True)
        given = find_place(f"{team}/images")
        assert given
        report = stored(f"2025-01-0{number + 1}T00:00:00Z", f"{number}" * 64, name="images")
        results = json.loads(report.files["results.json"])
        results["dataset"]["home"] = given.home
        report.files["results.json"] = json.dumps(results).encode()
        placed[team] = place(report, {}, tmp_path / "cache")
        assert json.loads((placed[team] / "results.json").read_text())["compared"] is None
        assert placed[team].parent.name == given.home
    for team, folder in placed.items():
        assert find_report(f"{team}/images") == find_report(f"./{team}/images/") == folder
        monkeypatch.chdir(tmp_path / team)
        assert find_report("images") == folder
        assert find_report(folder.parent.name) == folder
        assert find_report(f"{folder.parent.name}/2025") == folder
        monkeypatch.chdir(tmp_path)
    with pytest.raises(LadderError, match=r"2 datasets have the name 'images'; say a run: images-"):
        find_report("images")
    (tmp_path / "elsewhere" / "shelf").mkdir(parents=True)
    for folder in runs:  # as an older version left them
        results = json.loads((folder / "results.json").read_text())
        del results["dataset"]["home"]
        (folder / "results.json").write_text(json.dumps(results))
    assert find_report("elsewhere/shelf") == find_report("shelf") == runs[1]


def test_what_names_no_run_is_one_line(runs: list[Path]) -> None:
    for run in ("a" * 300, "a\0b", "..", ".", "~nobody-of-this-name", "/", "\udce9"):
        with pytest.raises(LadderError, match=r"no report of a run") as caught:
            find_report(run)
        assert "\n" not in str(caught.value)


def test_without_any_report_the_way_to_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    with pytest.raises(LadderError, match="`stepladder run sample` makes one"):
        open_report()


def test_a_browser_opens_only_where_there_is_a_screen(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the path is all there is to give; it is given either way."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not has_screen()
    assert open_report("shelf") == runs[1] / "report.html"
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert open_report("shelf") == runs[1] / "report.html"
    assert opened == [(runs[1] / "report.html").as_uri()]


def test_two_runs_side_by_side(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    compared = compare("20240101", "20240102")
    assert (compared["from"], compared["to"]) == tuple(map(str, runs))
    print_comparison(compared)
    printed = capsys.readouterr().out
    assert "linear, cross_entropy, seed 1  80.00%  90.00%   12     0  up, beyond luck" in printed
    assert "linear, cross_entropy, seed 0  50.00%  50.00%    0     0  unchanged" in printed
    assert "the same testing images" in printed


def test_a_run_of_another_version_is_said_to_be_one(runs: list[Path]) -> None:
    path = runs[0] / "results.json"
    results = json.loads(path.read_text())
    del results["dataset"]["testing_digest"]
    path.write_text(json.dumps(results))
    with pytest.raises(LadderError, match="written by another version"):
        compare("20240101", "20240102")


# What the command line tells of them


def offered(*words: str) -> list[str]:
    """What the shell is told after these words, by the line that its script calls."""
    command = [sys.executable, "-m", "flows.cli", "__complete", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    found = [line.partition("\t")[0] for line in lines if not line.startswith("\x1f")]
    return sorted(filter(None, found))


def test_the_shell_completes_datasets_runs_stages_and_models(
    runs: list[Path], tmp_path: Path
) -> None:
    """By what is there now; a dataset of one's own, a run's name, a stage of the latest report."""
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    assert offered("run", "") == ["mnist", "pets", "sample"]
    assert {*offered("open", "")} == {"shelf", *(run.name for run in runs)}
    assert runs[0].name in offered("compare", "20240101")
    assert "decode[training/apple]" in offered("why", "")
    assert {"linear", "resnet18"} <= {*offered("run", "sample", "--models", "")}
    assert "cross_entropy" in offered("run", "sample", "--losses", "")
    assert offered("models", "rollback", "") == []


def test_datasets_are_listed_with_their_runs(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each dataset: how many runs, the latest and its accuracy; what is not fetched is said."""
    datasets(json=True)
    listed = {each["dataset"]: each for each in json.loads(capsys.readouterr().out)["datasets"]}
    assert listed["shelf"] == {
        "dataset": "shelf", "there": True, "runs": 2, "latest": runs[1].name,
        "rung": "linear, cross_entropy, seed 1", "accuracy": 0.9, "model": None,
    }  # fmt: skip
    assert not listed["mnist"]["there"]
    (runs[1] / "results.json").write_text("{")
    datasets()
    printed = capsys.readouterr().out
    assert re.search(r"shelf +2 +20240102000000-bbbbbbbb +- +-", printed)
    assert "not fetched yet" in printed


def test_a_runs_json_holds_its_figures(runs: list[Path]) -> None:
    told = figures(runs[1], reused=False)
    results = json.loads((runs[1] / "results.json").read_text())
    assert told["headline"] == results["headline"]
    assert told["best"] == "linear, cross_entropy, seed 1"
    assert [each["testing_accuracy"] for each in told["rungs"]] == [0.5, 0.9]
    assert [each["accuracy"] for each in told["baselines"]][:2] == [0.4, 0.4]
    json.dumps(told)


def test_the_dataset_of_the_latest_run_is_meant_where_none_is_given(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`why STAGE` says of which dataset it speaks."""
    path = runs[1] / "results.json"
    results = json.loads(path.read_text())
    results["environment"]["command"] = "stepladder run '/my pets' --epochs 2"
    path.write_text(json.dumps(results))
    assert dataset_of_latest() == "/my pets"
    assert _meant("") == "/my pets"
    assert "of /my pets; another dataset comes after the stage" in capsys.readouterr().err
    path.write_text("{")
    assert _meant("") == "sample"
    assert _meant("mnist") == "mnist"
