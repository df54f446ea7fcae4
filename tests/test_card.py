"""A model's card: its report's figures, its limits, and names that cannot break out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_report import HOSTILE, TAME, climb

from tasks.report.words import escaped
from tasks.rungs.measure import describe
from tasks.rungs.recipes import Recipe
from tasks.serving.card import card

BETTER = Recipe(model="linear", loss="cross_entropy", epochs=2, seed=1, lr=0.5)


def results_of(classes: list[str] = TAME, **changes: Any) -> dict[str, Any]:
    return json.loads(climb(classes, **changes)["results.json"])


def metadata_of(classes: list[str] = TAME, recipe: Recipe = BETTER) -> dict[str, str]:
    """As of a file that has been promoted."""
    file = {"dataset": "shelf", "run": "20240101-a", "weights": "ab" * 32, "temperature": "1.25"}
    return describe(recipe, classes, [6, 5], 0.1) | file


def cells(text: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = [line for line in text.replace("\xa0", " ").splitlines() if line.startswith("| ")]
    return [row[2:-2].split(" | ") for row in rows]


def test_it_holds_the_figures_of_the_rung_that_it_is_about() -> None:
    """By recipe: its own accuracy with interval, each class's, and the baseline's to beat."""
    text = card(metadata_of(), results_of())
    assert text.startswith("# Model card: shelf linear\n")
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["testing accuracy"] == ["90.00 %", "83.33 to 94.19 %"]
    assert rows["to beat: mean image, mae"][0] == "40.00 %"
    assert rows["brick"][:4] == ["12", "40", "100.00 %", "91.24 to 100.00 %"]
    assert rows["weights"] == ["ab" * 32]
    assert rows["seed"] == ["1"]
    assert rows["command"] == ["run 'shelf'"]
    assert "6 pixels high and 5 wide" in rows["takes"][0]
    assert "a temperature of 1.25, fitted" in text
    assert "expected calibration error is 0.0300, and was 0.0600 before" in text


def test_what_the_report_warns_of_is_a_limit() -> None:
    """The shortcut of validating on the testing images, where it was taken; else not a word."""
    assert "may flatter" not in card(metadata_of(), results_of())
    text = card(metadata_of(), results_of(validation="testing"))
    limits = text.partition("## Limits\n")[2].partition("\n## ")[0]
    assert "- Validated on the testing images" in limits
    assert "chose nothing" not in text


@pytest.mark.parametrize("results", [None, results_of()])
def test_without_its_report_it_says_so(results: dict[str, Any] | None) -> None:
    """A report that is gone, or another run's: no figures rather than a stranger's."""
    text = card(metadata_of(recipe=BETTER.model_copy(update={"seed": 7})), results)
    assert "has no more of its figures" in text
    assert "testing accuracy" not in text
    assert "| seed | 7 |" in text


def test_the_files_own_figures_outlive_the_report() -> None:
    """They are in its metadata since it was made."""
    figures = {"testing_accuracy": 0.9, "interval": [0.8333, 0.9419], "balanced_accuracy": 0.9,
               "macro_f1": 0.9, "validation_accuracy": 0.91}  # fmt: skip
    text = card(metadata_of() | {"figures": json.dumps(figures)}, None)
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["testing accuracy"] == ["90.00 %", "83.33 to 94.19 %"]
    assert rows["validation accuracy"] == ["91.00 %", "-"]


def test_hostile_names_stay_in_their_cells() -> None:
    text = card(metadata_of(HOSTILE), results_of(HOSTILE))
    rows = {row[0]: row for row in cells(text)}
    for name in HOSTILE:
        assert len(rows[escaped(name)]) == 6
    assert "<script" not in text
    text.encode()  # what cannot be decoded is escaped


def test_unfitted_probabilities_are_said_to_be_so() -> None:
    metadata = metadata_of()
    del metadata["temperature"]
    assert "nothing was fitted" in card(metadata, None)
