"""A report in a notebook: the notebook page runs as it stands, and its tables hold the figures."""

from __future__ import annotations

import ast
import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from climbing import climb

from flows.notebook import Report
from tasks.caching.basics import LadderError
from tasks.images.fetch import fetch
from tasks.report.publish import place

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root in which linear rungs have climbed the sample."""
    data = tmp_path_factory.mktemp("data")
    fetch("sample", data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: a second thread only gets in the way
    stages = climb(data, dataset="sample", epochs=2, only="linear*")
    torch.set_num_threads(threads)
    place(stages["report"], stages, data / "cache")
    return data


@pytest.fixture(autouse=True)
def _root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPLADDER_DATA", str(data))


def test_the_notebook_runs_as_it_stands() -> None:
    """Every cell, from top to bottom; each shows something, and no output of old is kept in it."""
    page = json.loads((ROOT / "notebook.ipynb").read_text())
    cells = [each for each in page["cells"] if each["cell_type"] == "code"]
    assert len(cells) > 6
    found: dict[str, Any] = {}
    for cell in cells:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        *lines, last = ast.parse("".join(cell["source"])).body
        assert isinstance(last, ast.Expr)
        exec(compile(ast.Module(lines, []), "cell", "exec"), found)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), found)
        assert hasattr(value, "_repr_html_") or isinstance(value, tuple)
    assert found["seven"].shape == (8, 8)


def test_a_report_shows_itself() -> None:
    """The whole page, in a frame that may run its script and nothing else."""
    report = Report("sample")
    shown = report._repr_html_()
    page = (report.folder / "report.html").read_text()
    assert f'srcdoc="{html.escape(page)}"' in shown
    assert 'sandbox="allow-scripts"' in shown
    assert report.results["headline"] in repr(report)


def test_tables_hold_the_figures_of_results_json() -> None:
    report = Report("sample")
    rungs = {each["label"]: each for each in report.results["rungs"]}
    ladder = {row["label"]: row for row in report.ladder().to_pylist()}
    assert {*rungs} < {*ladder}
    for label, rung in rungs.items():
        assert ladder[label]["accuracy"] == rung["testing_accuracy"]
        confusion = report.confusion(label).to_pylist()
        assert (
            sum(row["images"] for row in confusion)
            == report.results["dataset"]["images"]["testing"]
        )
        recalls = [row["recall"] for row in report.classes().to_pylist() if row["rung"] == label]
        assert recalls == rung["per_class"]
    assert ladder["commonest class"]["seconds"] is None
    assert report.epochs().num_rows == 2 * len(rungs)
    [run] = report.history().to_pylist()
    assert run["accuracy"] == rungs[report.results["answer"]["best"]]["testing_accuracy"]
    with pytest.raises(LadderError, match="there is no rung 'lineer'; there are: "):
        report.confusion("lineer")
    with pytest.raises(LadderError, match="no report of a run 'nothing'"):
        Report("nothing")
    report.folder = report.folder.parent
    with pytest.raises(LadderError, match=r"predictions.parquet is gone; the same run again"):
        report.predictions()


def test_neither_torch_nor_prefect_is_imported() -> None:
    text = "import sys; from flows.notebook import Report; Report('sample').history()"
    run = [sys.executable, "-c", f"{text}; print({{'torch', 'prefect'}} & {{*sys.modules}})"]
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
