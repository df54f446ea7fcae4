"""All runs of a dataset in one page: what it tells, and from what."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from test_publish import FIRST_RUN, SECOND_RUN, Stored, ran, stored
from test_report import HOSTILE, Page, climb

from flows.history import history
from tasks.report.drift import MOST, share_of_new
from tasks.report.history import history_page, kept_runs, place_history
from tasks.report.publish import place

RUNG = "linear, cross_entropy, seed 1"


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two runs' reports, the second better, because its rate was changed."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    place(stored(FIRST_RUN, "a" * 64, rights=(0.5, 0.8)), {}, tmp_path / "cache")
    place(stored(SECOND_RUN, "b" * 64), ran(RUNG, "lr 1.0 -> 0.5"), tmp_path / "cache")
    return tmp_path / "reports" / "shelf"


def note(folder: Path, **judged: object) -> None:
    """Put into a report what became of its model."""
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"first_judged": judged}))


def test_each_run_is_a_point_that_leads_to_its_report(reports: Path) -> None:
    """Figures are those of results.json; every link finds a file; marks say what became of it."""
    first, second = kept_runs(reports)
    note(reports / first.run, promoted=True, regression=False)
    note(reports / second.run, promoted=False, regression=True)
    first, second = place_history(reports)
    results = json.loads((reports / second.run / "results.json").read_text())
    best = next(rung for rung in results["rungs"] if rung["label"] == second.rung)
    assert (second.accuracy, [*second.interval]) == (best["testing_accuracy"], best["interval"])
    assert second.images == results["dataset"]["images"]
    assert second.seconds == 0.5  # of the one stage that ran
    assert (first.promoted, first.regression) == (True, False)
    assert (second.promoted, second.regression) == (False, True)
    assert second.new == 0.0

    page = Page((reports / "history.html").read_bytes())
    links = {str(attributes["href"]) for tag, attributes in page.tags if tag == "a"}
    assert links == {first.link, second.link}
    assert all((reports / link).is_file() for link in links)
    tips = [attributes["data-tip"] for _, attributes in page.tags if "data-tip" in attributes]
    assert any("80.00" in tip and "promoted" in tip for tip in tips)
    assert any("90.00" in tip and "worse than the model in use" in tip for tip in tips)


def test_what_became_of_a_model_is_that_of_the_first_time(tmp_path: Path) -> None:
    """A run that comes back to its report, whose model is in use already, is not less promoted."""
    said = {"number": 1, "promoted": True, "regression": False, "said": "Model 1 is in use now."}
    for promoted in (True, False):
        judged = {**said, "promoted": promoted}
        folder = place(
            stored(FIRST_RUN, "a" * 64), {}, tmp_path / "cache", lambda *_, it=judged: {**it}
        )
        assert json.loads((folder / "results.json").read_text())["promotion"] == judged
        [run] = kept_runs(folder.parent)
        assert (run.promoted, run.regression) == (True, False)


def test_what_changed_is_told(reports: Path) -> None:
    """The causes alone, not what followed from them."""
    path = reports / "latest" / "results.json"
    results = json.loads(path.read_text())
    results["stages"] = [
        {"stage": "decode[training/a]", "state": "ran", "why": ["a: 1 added"], "seconds": 1.0},
        {"stage": "mean[a]", "state": "ran", "why": ["decode[training/a] changed"], "seconds": 1.0},
        {"stage": "train[x]", "state": "cached", "why": [], "seconds": 9.0},
    ]
    results["compared"]["differs"] = ["torch 2.13.0 -> 2.14.0"]
    path.write_text(json.dumps(results))
    assert kept_runs(reports)[1].changed == ("a: 1 added", "torch 2.13.0 -> 2.14.0")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"answer": null}', '{"rungs": [], "answer": {"best": 3}}']
)
def test_a_damaged_report_leaves_a_gap_and_a_deleted_one_nothing(reports: Path, text: str) -> None:
    """The page is made of the files that are there, whatever state they are in."""
    first, second = kept_runs(reports)
    (reports / first.run / "results.json").write_text(text)
    runs = place_history(reports)
    assert [(run.run, run.accuracy) for run in runs] == [(first.run, None), (second.run, 0.9)]
    page = Page((reports / "history.html").read_bytes()).text
    assert "1 report cannot be read and leaves a gap" in page
    (reports / first.run / "results.json").unlink()
    assert [run.accuracy for run in kept_runs(reports)] == [None, 0.9]


def test_nothing_in_a_report_breaks_out_of_the_page(tmp_path: Path) -> None:
    """Names of classes and datasets are texts, and pictures are nothing but PNGs in the page."""
    folder = place(Stored(climb(HOSTILE, name="<b>x"), "a" * 64), {}, tmp_path / "cache")
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["dataset"]["mean"] = 'https://example.org/x.png" onerror="alert(1)'
    path.write_text(json.dumps(results))
    [run] = kept_runs(folder.parent)
    assert run.mean == ""
    page = Page(history_page([run]).encode())
    assert {"b", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]


@pytest.mark.parametrize("count", [50, 60_000])
def test_the_share_of_new_images_is_right(count: int) -> None:
    """Exact for few images; for many, of which a sketch knows 1,024, within three points."""
    names = [hashlib.sha256(str(i).encode()).hexdigest()[:12] for i in range(count)]
    fifth = count // 5
    before, now = sorted(names[:-fifth])[:MOST], sorted(names[fifth:])[:MOST]
    assert share_of_new(before, now) == pytest.approx(0.25, abs=0.03 if count > MOST else 1e-9)
    assert share_of_new(before, before) == 0.0
    assert share_of_new([], now) == 1.0


def test_the_command_shows_runs_and_where_the_page_is(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history("shelf")
    printed = capsys.readouterr().out
    assert "80.00 %" in printed
    assert "90.00 %" in printed
    assert printed.splitlines()[-1] == f"history: {reports / 'history.html'}"
    history(json=True)
    told = json.loads(capsys.readouterr().out)
    assert [run["accuracy"] for run in told["runs"]] == [0.8, 0.9]


def test_a_history_is_told_where_its_page_cannot_be_written(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As to a second user, whom the folder does not belong to."""
    (reports / "history.html").unlink()
    (reports / "history.html").mkdir()
    history("shelf")
    printed = capsys.readouterr()
    assert all(share in printed.out for share in ("80.00 %", "90.00 %"))
    assert "cannot write" in printed.err
