"""Where a report goes, and what it says of the run before."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from test_report import HOSTILE, Page, climb, shape_of

from tasks.caching.differences import FIRST
from tasks.caching.plan import Planned
from tasks.caching.refs import Outcome, Ref
from tasks.report.artifacts import ladder_table, plan_table, stages_table
from tasks.report.comparison import comparison, moved
from tasks.report.publish import place

FIRST_RUN = "2024-01-01T00:00:00Z"
SECOND_RUN = "2024-01-02T00:00:00Z"


class Stored(NamedTuple):
    """A report in the cache, as `place` is given it."""

    files: dict[str, bytes]
    key: str

    def load(self, _root: Path) -> dict[str, bytes]:  # noqa: D102
        return dict(self.files)


_climb = cache(climb)  # of equal parameters always the same bytes


def stored(started: str, key: str, **changes: object) -> Stored:
    """A small climb's report, of a run that began at `started`."""
    files = _climb(**changes)
    text = files["results.json"].decode().replace(FIRST_RUN, started)
    return Stored(files | {"results.json": text.encode()}, key)


def ran(label: str, *why: str) -> dict[str, Ref]:
    """That a training ran, as a session tells it."""
    name = f"train[{label}]"
    return {name: Ref(name, outcome=Outcome("ran", why, 1.0))}


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_first_run_is_compared_with_nothing(tmp_path: Path) -> None:
    folder = place(stored(FIRST_RUN, "a" * 64), {}, tmp_path / "cache")
    assert folder == tmp_path / "reports" / "shelf" / "20240101000000-aaaaaaaa"
    assert (tmp_path / "reports" / "shelf" / "latest").resolve() == folder
    assert read(folder)["compared"] is None
    assert "Compared with" not in Page((folder / "report.html").read_bytes()).text


def test_a_second_run_says_what_moved_beyond_luck_and_why(tmp_path: Path) -> None:
    """One rung better by far, one as before: the page, the Markdown and results.json say so."""
    first = place(stored(FIRST_RUN, "a" * 64, rights=(0.5, 0.8)), {}, tmp_path / "cache")
    second = place(
        stored(SECOND_RUN, "b" * 64),
        ran("linear, cross_entropy, seed 1", FIRST, "lr 1.0 -> 0.5"),
        tmp_path / "cache",
    )
    compared = read(second)["compared"]
    assert (compared["run"], compared["same_images"]) == (first.name, True)
    rows = {row["label"]: row for row in compared["rows"]}
    better = rows["linear, cross_entropy, seed 1"]
    assert (better["before"], better["now"], better["real"]) == (0.8, 0.9, True)
    assert (better["test"]["won"], better["test"]["lost"]) == (12, 0)
    assert better["why"] == ["lr 1.0 -> 0.5"]
    assert moved(better) == "up, beyond luck"
    assert moved(rows["linear, cross_entropy, seed 0"]) == "unchanged"
    page = Page((second / "report.html").read_bytes()).text
    assert (
        "80.00 % 90.00 % up, beyond luck (+12 \N{MINUS SIGN}0) lr 1.0 -> 0.5 4 others"
        in page.replace("\xa0", " ")
    )
    text = (second / "report.md").read_text()
    assert 0 < text.index(f"## Compared with {first.name}") < text.index("## What ran")


def test_coming_back_to_a_report_keeps_what_it_says(tmp_path: Path) -> None:
    """The same again changes no file; another run in between is what it is compared with then."""
    place(stored(FIRST_RUN, "a" * 64, rights=(0.5, 0.8)), {}, tmp_path / "cache")
    folder = place(stored(SECOND_RUN, "b" * 64), {}, tmp_path / "cache")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert place(stored(SECOND_RUN, "b" * 64), {}, tmp_path / "cache") == folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    back = place(stored(FIRST_RUN, "a" * 64, rights=(0.5, 0.8)), {}, tmp_path / "cache")
    assert read(back)["compared"]["run"] == folder.name


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"dataset": {}}'])
def test_a_foreign_file_in_latest_stops_nothing(tmp_path: Path, text: str) -> None:
    """Whatever stands in the results.json before, the report is placed, without a comparison."""
    folder = place(stored(FIRST_RUN, "a" * 64), {}, tmp_path / "cache")
    (folder / "results.json").write_text(text)
    second = place(stored(SECOND_RUN, "b" * 64), {}, tmp_path / "cache")
    assert read(second)["compared"] is None


def test_other_testing_images_are_compared_by_intervals() -> None:
    """Without the same images no paired test is made; what differs around the rungs is named."""
    old = json.loads(climb(rights=(0.5, 0.9))["results.json"])
    new = json.loads(climb(rights=(0.52, 0.2), validation="testing")["results.json"])
    new["dataset"]["testing_digest"] = "another"
    new["rungs"][0]["recipe"]["lr"] = 0.5
    new["rungs"].append(new["rungs"][0] | {"label": "added"})
    old["rungs"].append(old["rungs"][0] | {"label": "dropped"})
    found = comparison(old, new)
    assert found["differs"] == ["validation 0.1 -> testing"]
    assert [moved(row) for row in found["rows"]] == [
        "could be luck",
        "could be luck",
        "could be luck",
        "could be luck",
        "down, beyond luck",
        "new",
        "not climbed this time",
    ]
    assert found["rows"][3]["why"] == ["lr 1.0 -> 0.5"]
    assert all(row["test"] is None for row in found["rows"])


def test_hostile_names_make_no_tag_in_a_comparison(tmp_path: Path) -> None:
    """Labels, reasons and commands of both runs stay text."""
    shapes = []
    for folder, names in (("tame", ["x"] * 3), ("hostile", HOSTILE[:3])):
        label, why, command = names
        cache = tmp_path / folder / "cache"
        first = stored(FIRST_RUN, "a" * 64)
        old = json.loads(first.files["results.json"])
        old["environment"]["command"] = command
        old["rungs"][0]["label"] = label
        place(
            Stored(first.files | {"results.json": json.dumps(old).encode()}, first.key), {}, cache
        )
        stages = ran("linear, cross_entropy, seed 0", why)
        second = place(stored(SECOND_RUN, "b" * 64), stages, cache)
        page = Page((second / "report.html").read_bytes())
        assert all(name in page.text for name in names)
        shapes.append(shape_of(page))
    assert shapes[0] == shapes[1]


def test_tables_for_prefect() -> None:
    """The ladder from the top down, and each stage with its reasons, before and after the run."""
    results = json.loads(climb()["results.json"])
    rows = ladder_table(results)
    assert [row["rung"] for row in rows][:2] == [
        "linear, cross_entropy, seed 1",
        "linear, cross_entropy, seed 0",
    ]
    assert rows[0]["testing accuracy"].replace("\xa0", " ") == "90.00 %"
    assert [row["note"] for row in rows] == ["best", "", "to beat", "", "", ""]
    planned = [
        Planned("mean[7]", "cached", (), 0.25),
        Planned("train[mlp]", "will run", ("lr 1.0 -> 0.5",), 12.0),
        Planned("report", "may run", ("waits for train[mlp]",), None),
    ]
    assert plan_table(planned) == [
        {"stage": "train[mlp]", "state": "will run", "last time": "12.0 s", "why": "lr 1.0 -> 0.5"},
        {"stage": "report", "state": "may run", "last time": "-", "why": "waits for train[mlp]"},
        {"stage": "mean[7]", "state": "cached", "last time": "0.25 s", "why": ""},
    ]
    assert stages_table({"report": Outcome("ran", ("lr 1.0 -> 0.5", "a\nb"), 2.0)}) == [
        {"stage": "report", "state": "ran", "time": "2.0 s", "why": "lr 1.0 -> 0.5; a\\u000ab"}
    ]
