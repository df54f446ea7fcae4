"""Every prediction, image by image, in a file beside the report."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pandas
import pytest
from test_report import HOSTILE, Page, climb

from tasks.report.predictions import predictions
from tasks.report.words import readable

NAMES = ["split", "label", "file", "predicted", "correct", "probability", "model"]


def table_of(made: dict[str, bytes]) -> pandas.DataFrame:
    return pandas.read_parquet(io.BytesIO(made["predictions.parquet"]))


def test_the_best_rungs_mistakes_are_those_that_the_report_counts() -> None:
    """A row for each testing image, of the rung that the report calls best."""
    made = climb()
    table, results = table_of(made), json.loads(made["results.json"])
    assert [*table.columns] == [*NAMES, "probabilities"]
    assert {*table.model} == {results["answer"]["best"]}
    best = next(r for r in results["rungs"] if r["label"] == results["answer"]["best"])
    assert table.correct.mean() == best["testing_accuracy"]
    counts = pandas.crosstab(table.label, table.predicted)
    assert counts.to_numpy().tolist() == best["confusion"]
    assert table.file.tolist()[:2] == ["1000-0.png", "1000-1.png"]
    assert ((table.label == table.predicted) == table.correct).all()
    assert (np.stack(table.probabilities).max(1) == table.probability).all()


def test_the_page_links_it_and_says_how_to_read_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The line that it shows runs, in the report's folder, and gives the mistakes."""
    made = climb()
    page = Page(made["report.html"])
    assert ("a", {"href": "predictions.parquet"}) in page.tags
    [line] = re.findall(r"pandas\.read_parquet\(\S+\)\.query\(.*?\)", page.text)
    folder = tmp_path_factory.mktemp("report")
    (folder / "predictions.parquet").write_bytes(made["predictions.parquet"])
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        mistakes = eval(line, {"pandas": pandas})
    assert len(mistakes) == (~table_of(made).correct).sum() > 0


def test_hostile_names_are_readable_in_it() -> None:
    table = table_of(climb(HOSTILE))
    assert {*table.label} == {readable(name) for name in HOSTILE}


def test_several_splits_keep_their_order() -> None:
    """Each row's label is that of its own split's folder, where one is empty too."""
    files = {"validation": [["a"], ["b", "c"]], "testing": [[], ["d"]]}
    said = {
        "validation": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float32),
        "testing": np.array([[0.4, 0.6]], np.float32),
    }
    table = table_of({"predictions.parquet": predictions(["x", "y"], "mlp", files, said)})
    rows = [
        (*row,) for row in table[["split", "label", "file", "predicted"]].itertuples(index=False)
    ]
    assert rows == [
        ("validation", "x", "a", "x"), ("validation", "y", "b", "x"),
        ("validation", "y", "c", "y"), ("testing", "y", "d", "y"),
    ]  # fmt: skip
    assert table.correct.tolist() == [True, False, True, True]


def test_of_many_classes_only_the_predicted_ones_probability_is_kept() -> None:
    """Else a thousand classes would make a file of gigabytes."""
    said = np.random.default_rng(0).dirichlet(np.ones(101), 101).astype(np.float32)
    made = predictions(
        [*map(str, range(101))], "mlp", {"testing": [["a"]] * 101}, {"testing": said}
    )
    table = table_of({"predictions.parquet": made})
    assert [*table.columns] == NAMES
    assert table.probability.tolist() == said.max(1).tolist()


def test_a_climb_without_rungs_predicts_nothing() -> None:
    assert "predictions.parquet" not in climb(rights=())
