"""A run's report in a notebook: it shows itself, and gives its numbers as tables.

    from flows.notebook import Report

    Report("mnist")                         as a cell's last line, the page
    Report("mnist").ladder().to_pandas()    a table; every one is a pyarrow.Table

Nothing is run, and neither torch nor Prefect is imported.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.reports import find_report, results_of
from tasks.caching.basics import LadderError, read_regular, shown
from tasks.report.history import kept_runs
from tasks.report.measures import by_class


class Report:
    """The report of a run."""

    def __init__(self, run: str | Path = "") -> None:
        """Find it.

        run: a dataset, a run's name or its beginning, or a path, as for `stepladder open`; that of
        the latest run if left out.  Raises LadderError where there is none.
        """
        self.folder = find_report(str(run))
        self.results: dict[str, Any] = results_of(self.folder)  # as data/README.md describes it

    def __repr__(self) -> str:
        return f"<Report {self.folder.parent.name}/{self.folder.name}: {self.results['headline']}>"

    def _repr_html_(self) -> str:
        page = html.escape(self._file("report.html").decode())
        return (
            f'<iframe title="{html.escape(repr(self))}" sandbox="allow-scripts" srcdoc="{page}" '
            'style="width: 100%; height: 45rem; border: 1px solid #8884"></iframe>'
        )

    def _file(self, name: str) -> bytes:
        data = read_regular(self.folder / name)
        if data is None:
            raise LadderError(f"{self.folder / name} is gone; the same run again restores it")
        return data

    def ladder(self) -> pa.Table:
        """A row for each baseline and rung.

        "accuracy" on testing images, "low" and "high" of its 95 % interval, "balanced_accuracy",
        "macro_f1", "validation_accuracy", all 0 to 1, "seconds" and "parameters"; null is what a
        baseline does not have.
        """
        names = ("balanced_accuracy", "macro_f1", "validation_accuracy", "seconds", "parameters")
        rows = [
            {
                "label": each["label"],
                "accuracy": each.get("testing_accuracy", each.get("accuracy")),
                "low": each["interval"][0],
                "high": each["interval"][1],
                **{name: each.get(name) for name in names},
            }
            for each in (*self.results["baselines"], *self.results["rungs"])
        ]
        return pa.Table.from_pylist(rows)

    def classes(self) -> pa.Table:
        """A row for each rung and class: "images", "precision", "recall" and "f1"."""
        names = self.results["dataset"]["classes"]
        return pa.Table.from_pylist([
            {"rung": rung["label"], "class": name, **scores}
            for rung in self.results["rungs"]
            for name, scores in zip(names, by_class(rung["confusion"]), strict=True)
        ])  # fmt: skip

    def confusion(self, rung: str = "") -> pa.Table:
        """A row for each "true" and "predicted" class, with the number of "images".

        rung: its label; the best one if left out.  Raises LadderError for one that is not there.
        """
        rungs = {each["label"]: each for each in self.results["rungs"]}
        label = rung or (self.results["answer"] or {}).get("best", "")
        if label not in rungs:
            raise LadderError(f"there is no rung {shown(label)}; there are: {'; '.join(rungs)}")
        names = self.results["dataset"]["classes"]
        return pa.Table.from_pylist([
            {"true": true, "predicted": predicted, "images": images}
            for true, row in zip(names, rungs[label]["confusion"], strict=True)
            for predicted, images in zip(names, row, strict=True)
        ])  # fmt: skip

    def epochs(self) -> pa.Table:
        """A row for each rung and epoch: losses and the accuracy on validation images."""
        return pa.Table.from_pylist([
            {"rung": rung["label"], **point}
            for rung in self.results["rungs"] for point in rung["history"]
        ])  # fmt: skip

    def predictions(self) -> pa.Table:
        """What the best rung predicts of every testing image; see data/README.md.

        Raises LadderError where the report's folder does not hold it.
        """
        return pq.read_table(io.BytesIO(self._file("predictions.parquet")))

    def history(self) -> pa.Table:
        """A row for each kept run of the dataset, the oldest first."""
        return pa.Table.from_pylist([
            {
                "run": each.run, "started": each.started, "rung": each.rung,
                "accuracy": each.accuracy, "low": each.interval[0], "high": each.interval[1],
                "training_images": each.images.get("training"), "new": each.new,
                "seconds": each.seconds, "promoted": each.promoted, "regression": each.regression,
                "changed": [*each.changed],
            }
            for each in kept_runs(self.folder.parent)
        ])  # fmt: skip
