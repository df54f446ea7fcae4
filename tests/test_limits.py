"""What parameters may be: the same by every door."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_type_hints

import pytest

from flows.ladder import ladder, run_name
from tasks.caching.basics import LadderError, shown
from tasks.rungs.limits import allowed
from tasks.rungs.recipes import Recipe, each_validated

NAN, INF = float("nan"), float("inf")
RECIPE = {"model": "mlp", "loss": "cross_entropy"}
BAD: dict[str, list[Any]] = {
    "dataset": [None, 3, "x" * 5000, "a\0b", "\ud800", ["sample"]],
    "recipes": [
        [], {}, "mlp", 3, [3], [{}], [[]], RECIPE, [RECIPE] * 1001, [{**RECIPE, "epoch": 3}],
        [{"model": 3, "loss": "x"}], [{**RECIPE, 1: 2}], [{**RECIPE, "epochs": 10**9}],
        [{**RECIPE, "model": "x" * 10**6}],
        [Recipe(**RECIPE).model_copy(update={"epochs": 10**9})],
    ],
    "validation": [0, 1, -1, 2, True, "0.5", "TESTING", "", NAN, INF, 10**400, None, [0.1]],
    "epochs": [0, -1, 10_001, 10**9, 1e9, 3.0, 1.5, True, "3", 10**5000, NAN, [3], {}],
    "only": ["", "x" * 10_000, 3, None, "a\0", ["*"]],
    "device": ["gpu", "CUDA", "", 3, "x" * 10**6, ["cpu"], {}],
    "refresh": ["train*", None, [""], [3], ["*"] * 1000, ["x" * 300], {"train*": 1}],
    "size": [
        [0, 0], [-1, 28], [100_000, 100_000], [4097, 1], [28], [28, 28, 28], "28x28", 28,
        [28.5, 28], [True, 28], ["28", 28], [10**5000, 1], {}, [[28], 28],
    ],
    "fit": ["squash", "", None, 3],
    "strict": ["yes", 1, None],
    "skip_bad": ["yes", 0, None],
    "name": [None, 3, "x" * 300, "a\0b"],
    "which": ["", "both", None, 3],
    "testing": [0, 1, -0.1, NAN, True, "0.2", None],
    "labels": [None, 3, "x" * 5_000],
    "columns": [None, 3, "path", {"path": 3}],
    "class_from": [None, 3, "x" * 2_000],
    "keep_together": [None, 1, "yes"],
    "promote_if": ["p<0.5", "", None, 3],
    "timeout": ["", "0s", "soon", 0, -1, True, 1.5, INF],
    "stage_timeout": ["", "8", 10**10],
    "fields": [None, 3, "lr", [], ["lr"], {3: 4}],
    "command": [None, 3, "x" * 10**6, "\ud800"],
}  # fmt: skip
FIELDS: dict[str, list[Any]] = {
    "epochs": [0, 1.5, 2.0, True, "3", 10_001, 10**5000, None],
    "batch_size": [1, 65_537, 2.0, True, "Auto", "256", None],
    "lr": [0, -1, 101, True, "0.1", NAN, INF, 10**400, [1], {"a": 1}],
    "schedule": ["cosine", "", None, 3, ["constant"]],
    "optimizer": ["SGD", None],
    "weight_decay": [-0.1, 1.1, NAN, "0", False],
    "init": ["zeros", "\0"],
    "weights": [3, None, ""],
    "class_weights": ["even", None, True],
    "patience": [-1, 1.5, None, "3", 10_001],
    "keep": ["first", None],
    "augment": ["", None, 3, "blur"],
    "label_smoothing": [1.0, -1, NAN, True],
    "shift": [-1, 17, 0.5, True],
    "flip": ["yes", 1, None],
    "normalize": ["yes", 1, None],
    "precision": ["float64", 32],
    "seed": [-1, 2**31, True, 0.0, "0"],
}


@pytest.mark.parametrize("name", BAD)
def test_the_flow_takes_no_parameter_out_of_its_limits(name: str) -> None:
    """One short line that names the parameter, what came and what is allowed, whoever calls."""
    for value in BAD[name]:
        with pytest.raises(LadderError) as error:
            ladder.fn(**{name: value})
        said = str(error.value)
        assert said.startswith(f"{name}: ")
        assert "\n" not in said
        assert len(said) < 300, said


@pytest.mark.parametrize("field", FIELDS)
def test_a_recipe_takes_no_field_out_of_its_limits(field: str) -> None:
    """Strictly: no text for a number, no True for 1, no 1.5 for 2, nothing infinite."""
    for value in FIELDS[field]:
        with pytest.raises(LadderError) as error:
            each_validated([RECIPE, {**RECIPE, field: value}])
        assert re.match(f"recipe 2: ({field}: .* is not .|unknown {field} )", str(error.value))
        assert len(str(error.value)) < 300


def test_what_is_within_limits_is_taken_as_it_is_meant() -> None:
    """A whole number for a fraction is that number, a list of two a size, fields a recipe."""
    kinds = get_type_hints(ladder.fn, include_extras=True)
    assert set(BAD) == set(inspect.signature(ladder.fn).parameters)
    [recipe] = allowed("recipes", kinds["recipes"], [{**RECIPE, "lr": 1, "batch_size": "auto"}])
    assert recipe == Recipe(model="mlp", loss="cross_entropy", lr=1.0, batch_size="auto")
    assert isinstance(recipe.lr, float)
    assert allowed("size", kinds["size"], [28, 20]) == (28, 20)
    for name, values in {"epochs": [None, 1, 10_000], "validation": [0.5, "testing"]}.items():
        for value in values:
            assert allowed(name, kinds[name], value) == value


def test_the_form_has_the_same_limits() -> None:
    """So Prefect's server refuses them before a run begins."""
    form = ladder.parameters.model_dump()
    assert form["properties"]["epochs"]["anyOf"][0] == {
        "maximum": 10_000, "minimum": 1, "type": "integer",
    }  # fmt: skip
    side = {"maximum": 4096, "minimum": 1, "type": "integer"}
    assert form["properties"]["size"]["anyOf"][0]["prefixItems"] == [side, side]
    assert form["properties"]["refresh"]["maxItems"] == 100
    assert form["definitions"]["Recipe"]["properties"]["lr"]["maximum"] == 100


def test_a_run_has_a_short_name_whatever_its_parameters_are() -> None:
    """Prefect asks for the name before anything is looked at."""
    for dataset in BAD["dataset"]:
        assert len(run_name({"dataset": dataset, "name": 3})) <= 110
        assert run_name({"dataset": dataset}).isprintable()


def test_what_is_shown_is_one_short_line() -> None:
    """Whatever the type and the size of what came, in time that does not grow with it."""
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**7, "a\nb", b"\0" * 10**6, 10**5000, [10**5000] * 9, deep, {1: deep}):
        assert len(shown(value)) <= 120
        assert shown(value).isprintable()
    assert shown("3") == "'3'"
    assert shown(True) == "True"
