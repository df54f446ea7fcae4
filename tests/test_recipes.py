"""Recipes: their names, defaults, bounds and files."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.caching.basics import LadderError
from tasks.recipes import DEFAULTS, Recipe, cross, default_ladder, label, left_out, read_recipes


def quick(model: str = "linear", **fields: Any) -> Recipe:
    return Recipe(model=model, loss="cross_entropy", **({"epochs": 3, "batch_size": 16} | fields))


def test_the_default_ladder_is_the_posts_climb() -> None:
    """Six rungs; linear and mlp as in the post, resnet18 with four one-cycle epochs."""
    ladder = default_ladder()
    assert [(r.model, r.loss) for r in ladder] == [
        ("linear", "sigmoid_mse"),
        ("linear", "softmax_mse"),
        ("linear", "cross_entropy"),
        ("mlp", "cross_entropy"),
        ("convnet", "cross_entropy"),
        ("resnet18", "cross_entropy"),
    ]
    for r in ladder[:4]:
        assert (r.epochs, r.batch_size, r.lr) == (41, 256, 1.0)
        assert (r.schedule, r.optimizer, r.init) == ("constant", "sgd", "randn")
    assert (ladder[5].epochs, ladder[5].schedule) == (4, "one_cycle")


def test_what_a_part_of_the_ladder_leaves_out() -> None:
    """Rungs that are not there, and epochs that are fewer; more rungs leave nothing out."""
    whole = default_ladder()
    assert left_out(whole) == left_out([*whole, quick("mlp", epochs=1)]) == []
    assert left_out(whole[2:]) == ["linear, sigmoid_mse", "linear, softmax_mse"]
    short = [recipe.model_copy(update={"epochs": 2}) for recipe in whole[3:]]
    assert left_out([*whole[:3], *short]) == [
        "mlp, cross_entropy (2 of 41 epochs)",
        "resnet18, cross_entropy (2 of 4 epochs)",
    ]
    assert len(left_out([Recipe(model="mlp", loss="softmax_mse")])) == 6


def test_what_is_given_beats_a_models_defaults() -> None:
    """Defaults depend on the model; each can be overridden; JSON brings the same recipe back."""
    recipe = Recipe(model="resnet18", loss="cross_entropy", lr=0.5)
    assert recipe.lr == 0.5
    assert recipe.optimizer == DEFAULTS["resnet18"]["optimizer"]
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_small_training_set_takes_small_batches() -> None:
    """`batch_size = "auto"` is 256 where that makes 32 steps, and at least 8; a number stays."""
    recipe = Recipe(model="convnet", loss="cross_entropy")
    assert recipe.batch_size == "auto"
    sizes = {60_000: 256, 8192: 256, 8191: 255, 1294: 40, 256: 8, 10: 8}
    assert {images: recipe.batch(images) for images in sizes} == sizes
    assert recipe.model_copy(update={"batch_size": 500}).batch(10) == 500


def test_every_field_explains_itself() -> None:
    """The form Prefect makes of a Recipe has descriptions everywhere and bounds on numbers."""
    for name, field in Recipe.model_json_schema()["properties"].items():
        assert field["description"], name
        for kind in field.get("anyOf", [field]):
            if kind["type"] in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & kind.keys(), name
                assert {"maximum", "exclusiveMaximum"} & kind.keys(), name
            else:
                assert kind.get("enum") or kind["const"], name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "resnt18"}, "unknown model 'resnt18', did you mean 'resnet18'?"),
        (
            {"loss": "cross_entropie"},
            "unknown loss 'cross_entropie', did you mean 'cross_entropy'?",
        ),
        ({"epoch": 3}, "unknown field 'epoch', did you mean 'epochs'?"),
        ({"model": "zzz"}, "unknown model 'zzz', choose from linear, mlp, convnet, resnet18"),
    ],
)
def test_unknown_names_suggest_the_nearest(fields, message) -> None:
    """A slip gives one line with what was probably meant."""
    with pytest.raises(LadderError) as error:
        Recipe(**({"model": "linear", "loss": "cross_entropy"} | fields))
    assert str(error.value) == message


@pytest.mark.parametrize("field", [{"lr": 0}, {"lr": float("nan")}, {"epochs": 0}, {"seed": -1}])
def test_values_out_of_bounds_are_refused(field) -> None:
    """Bounds hold, and NaN is inside none."""
    with pytest.raises(ValidationError):
        Recipe(model="linear", loss="cross_entropy", **field)


def test_cross_spans_models_losses_and_seeds() -> None:
    """Every combination once, each model with its own defaults, fixed fields everywhere."""
    recipes = cross(["linear", "convnet"], ["softmax_mse", "cross_entropy"], [0, 1], epochs=2)
    assert len(set(recipes)) == 8
    assert {r.epochs for r in recipes} == {2}
    assert {r.optimizer for r in recipes} == {"sgd", "adamw"}
    with pytest.raises(LadderError, match="unknown field 'seed', did you mean 'seeds'"):
        cross(["linear"], ["cross_entropy"], seed=3)


def test_recipes_come_from_toml(tmp_path) -> None:
    """[[recipe]] tables in their order, then what [cross] spans."""
    file = tmp_path / "recipes.toml"
    file.write_text(
        """
        [[recipe]]
        model = "mlp"
        loss = "cross_entropy"
        lr = 0.5

        [cross]
        models = ["linear"]
        losses = ["sigmoid_mse", "cross_entropy"]
        seeds = [1, 2]
        init = "default"
        """
    )
    assert read_recipes(file) == [
        Recipe(model="mlp", loss="cross_entropy", lr=0.5),
        *cross(["linear"], ["sigmoid_mse", "cross_entropy"], [1, 2], init="default"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[recipe]]\nmodel = 'linear'\n", "r.toml: recipe 1: loss: this must be given"),
        ("[[recipe]]\nmodel = 'mpl'\nloss = 'x'", "r.toml: recipe 1: unknown model 'mpl'"),
        ("[[recipe]]\nmodel = 'mlp'\nloss = 'cross_entropy'\nlr = 'x'", "r.toml: recipe 1: lr: "),
        ("[recipe]\nmodel = 'mlp'", "r.toml: a recipe's table is written [[recipe]]"),
        ("[recipes]\nmodel = 'mlp'", "r.toml: unknown table 'recipes', did you mean 'recipe'?"),
        ("[cross]\nlosses = ['cross_entropy']", "r.toml: cross: models: this must be given"),
        ("[cross]\nmodels = 'mlp'", "r.toml: cross: models: "),
        ("[cross]\nmodels = ['mlp']\nepoch = 3", "r.toml: cross: unknown field 'epoch'"),
        ("[cross]\nmodels = []", "r.toml: cross: models: [] is not a list of models such as"),
        ("", "r.toml: no recipes"),
        ("= 3", "r.toml: not readable as TOML: "),
    ],
)
def test_a_bad_recipe_file_names_its_place(tmp_path, text, message) -> None:
    """One line: the file, the table, the field."""
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(LadderError) as error:
        read_recipes(file)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_labels_name_only_what_differs() -> None:
    """Model, loss, seed; a further field only between recipes that agree in those three."""
    recipes = [quick(), quick(lr=0.5), quick(seed=1, lr=0.5)]
    assert list(label(recipes)) == [
        "linear, cross_entropy, seed 0, lr 1.0",
        "linear, cross_entropy, seed 0, lr 0.5",
        "linear, cross_entropy, seed 1",
    ]
    assert list(label(recipes).values()) == recipes
    with pytest.raises(LadderError, match="listed twice"):
        label([quick(), quick()])
