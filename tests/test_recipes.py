"""Recipes: their names, defaults, bounds and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tasks.caching.basics import LadderError
from tasks.rungs.ladders import (
    cross,
    fitting_ladder,
    label,
    ladder_for,
    left_out,
    mirror_trial,
    passes,
    post_ladder,
    read_recipes,
    select,
)
from tasks.rungs.recipes import DEFAULTS, Recipe

LINEAR = "[[recipe]]\nmodel = 'linear'\nloss = 'cross_entropy'\n"


def quick(model: str = "linear", **fields: Any) -> Recipe:
    return Recipe(model=model, loss="cross_entropy", **({"epochs": 3, "batch_size": 16} | fields))


def test_the_posts_ladder_is_the_posts_climb() -> None:
    """Six rungs; linear and mlp as in the post, resnet18 with four one-cycle epochs."""
    ladder = post_ladder()
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
    whole = post_ladder()
    assert left_out(whole, whole) == left_out([*whole, quick("mlp", epochs=1)], whole) == []
    assert left_out(whole[2:], whole) == ["linear, sigmoid_mse", "linear, softmax_mse"]
    short = [recipe.model_copy(update={"epochs": 2}) for recipe in whole[3:]]
    assert left_out([*whole[:3], *short], whole) == [
        "mlp, cross_entropy (2 of 41 epochs)",
        "resnet18, cross_entropy (2 of 4 epochs)",
    ]
    assert len(left_out([Recipe(model="mlp", loss="softmax_mse")], whole)) == 6


@pytest.mark.parametrize(
    ("shape", "images", "like_mnist"),
    [
        ((28, 28), 60_000, True),
        ((32, 32), 10_000, True),
        (None, 9, True),  # no image can be decoded: whatever is climbed will say so
        ((28, 28), 9_999, False),
        ((8, 8), 1_617, False),  # the sample
        ((28, 33), 60_000, False),
        ((28, 28, 3), 60_000, False),
    ],
)
def test_a_ladder_fits_its_images(shape, images, like_mnist) -> None:
    """The post's where images are as MNIST's; any images climb the post's when asked to."""
    assert (ladder_for(shape, images) == post_ladder()) == like_mnist
    assert ladder_for(shape, images, "post") == post_ladder()


def test_a_ladder_that_fits_sees_few_images_more_often() -> None:
    """From 4 to 40 epochs; shifts grow with the images; whether to mirror is measured."""
    sizes = {10**6: 4, 100_000: 10, 60_000: 16, 10_000: 16, 3_000: 33, 1_600: 40, 1: 40}
    assert {images: passes(images) for images in sizes} == sizes
    small, large = fitting_ladder((8, 8), 1_600), fitting_ladder((32, 40, 3), 60_000)
    assert [r.model for r in small] == [r.model for r in large]
    assert [r.shift for r in small] == [0, 0, 1]
    assert [r.shift for r in large] == [0, 0, 2]
    assert fitting_ladder((4096, 4096), 9)[-1].shift == 16
    assert {(r.init, r.flip, r.normalize) for r in small + large} == {("default", "auto", True)}


def test_one_trial_tells_all_rungs_whether_to_mirror() -> None:
    """Briefly and without mirrors, whichever of them ask; none asks in the post's ladder."""
    ladder = fitting_ladder((32, 32, 3), 50_000)
    trial = mirror_trial(ladder, 50_000)
    assert trial
    assert (trial.model, trial.flip, trial.epochs) == ("deep_convnet", False, 2)
    assert mirror_trial(ladder[:1] + post_ladder(), 50_000) == trial
    assert mirror_trial(post_ladder(), 50_000) is None
    few = [mirror_trial(ladder, images) for images in (3_000, 30)]
    assert [each.epochs for each in few if each] == [12, 16]


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
            elif kind["type"] != "boolean":
                assert {"enum", "const", "pattern", "maxLength"} & kind.keys(), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "resnt18"}, "unknown model 'resnt18', did you mean 'resnet18'?"),
        (
            {"loss": "cross_entropie"},
            "unknown loss 'cross_entropie', did you mean 'cross_entropy'?",
        ),
        ({"epoch": 3}, "unknown field 'epoch', did you mean 'epochs'?"),
        (
            {"model": "zzz"},
            "unknown model 'zzz', choose from linear, mlp, convnet, deep_convnet, resnet18",
        ),
    ],
)
def test_unknown_names_suggest_the_nearest(fields, message) -> None:
    """A slip gives one line with what was probably meant."""
    with pytest.raises(LadderError) as error:
        Recipe(**({"model": "linear", "loss": "cross_entropy"} | fields))
    assert str(error.value) == message


def test_cross_spans_models_losses_and_seeds() -> None:
    """Every combination once, each model with its own defaults, fixed fields everywhere."""
    recipes = cross(["linear", "convnet"], ["softmax_mse", "cross_entropy"], [0, 1], epochs=2)
    assert len(set(recipes)) == 8
    assert {r.epochs for r in recipes} == {2}
    assert {r.optimizer for r in recipes} == {"sgd", "adamw"}
    with pytest.raises(LadderError, match="unknown field 'seed', did you mean 'seeds'"):
        cross(["linear"], ["cross_entropy"], seed=3)


def test_a_list_of_values_spans_a_sweep() -> None:
    """In [cross], and in fields set for all recipes of a ladder; labels tell them apart."""
    recipes = cross(["linear", "mlp"], ["cross_entropy"], lr=[0.1, 0.01], batch_size=[64, "auto"])
    assert [(each.model, each.lr, each.batch_size) for each in recipes][:5] == [
        ("linear", 0.1, 64), ("linear", 0.1, "auto"), ("linear", 0.01, 64),
        ("linear", 0.01, "auto"), ("mlp", 0.1, 64),
    ]  # fmt: skip
    assert [*label(recipes)][1] == "linear, cross_entropy, seed 0, batch_size auto, lr 0.1"
    ladder = post_ladder()
    kept = select(ladder, 2, "*mlp*", {"seed": [0, 1], "lr": 0.5})
    assert kept == [quick("mlp", batch_size=256, epochs=2, lr=0.5, seed=seed) for seed in (0, 1)]
    assert select(ladder, None, "*", {}) == ladder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lrr": 1}, "unknown field 'lrr', did you mean 'lr'?"),
        ({"lr": []}, "lr: an empty list leaves nothing to train; give a value"),
        ({"lr": [0.1, "x"]}, "lr: 'x' is not a number above 0"),
        ({"lr": [[0.1]]}, r"lr: \[0.1\] is not a number above 0"),
        ({"seed": [*range(1001)]}, "these cross to 6,006 recipes; at most 1,000"),
    ],
)
def test_what_spans_no_sweep_is_one_line(fields, message) -> None:
    with pytest.raises(LadderError, match=message):
        select(post_ladder(), None, "*", fields)


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
        ("[cross]\nmodel = 'mlp'", "r.toml: cross: unknown field 'model', did you mean 'models'?"),
        ("[cross]\nmodels = ['mlp']\nlosses = []", "r.toml: cross: losses: [] is not a list of"),
        (
            "[cross]\nmodels = ['mlp']\nseeds = [1.5]",
            "r.toml: cross: seeds: [1.5] is not a ",
        ),
        ("[cross]\nmodels = ['mlp']\nlr = true", "r.toml: cross: lr: True is not a number"),
        (
            f"[cross]\nmodels = ['mlp']\nseeds = {[*range(1001)]}",
            "r.toml: cross: these cross",
        ),
        ("[[cross]]\nmodels = ['mlp']", "r.toml: the table to cross is written [cross]"),
        ("cross = 3", "r.toml: the table to cross is written [cross]"),
        ("recipe = 3", "r.toml: a recipe's table is written [[recipe]]"),
        ("recipe = [3]", "r.toml: recipe 1: 3 is not a recipe's fields"),
        ("", "r.toml: no recipes"),
        ("= 3", "r.toml: not readable as TOML: "),
        (
            f"{LINEAR}epochs = {'1' * 5000}",
            "r.toml: not readable as TOML: a number is far",
        ),
        (f"{LINEAR}epochs = 1.5", "r.toml: recipe 1: epochs: 1.5 is not a whole number from 1 to"),
        ("a = " + "[" * 5000, "r.toml: not readable as TOML: brackets lie too deep"),
        (".".join("a" * 50_000) + " = 1", "r.toml: not readable as TOML: line 1 has more than 100"),
        (LINEAR.encode("utf-16"), "r.toml: not readable as TOML: it is UTF-16"),
        (LINEAR.encode("utf-16-be"), "r.toml: not readable as TOML: it is UTF-16"),
        (b"a = 1\n# caf\xe9", "r.toml: not readable as TOML: line 2 is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "r.toml: not readable as TOML: it is UTF-16 or no text"),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_bad_recipe_file_names_its_place(tmp_path, text, message) -> None:
    """One line: the file, the table, the field."""
    file = tmp_path / "r.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LadderError) as error:
        read_recipes(file)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + LINEAR.encode(), LINEAR.encode()])
def test_windows_recipe_files_are_read(tmp_path, data) -> None:
    """With the mark that editors put before UTF-8, and with their ends of lines."""
    file = tmp_path / "r.toml"
    file.write_bytes(data.replace(b"\n", b"\r\n"))
    assert read_recipes(file) == [Recipe(model="linear", loss="cross_entropy")]


def test_what_is_no_small_file_is_not_read(tmp_path) -> None:
    """A folder, a pipe that nobody writes to, a gigabyte, a name longer than any, nothing there."""
    file = tmp_path / "huge.toml"
    with file.open("wb") as huge:
        huge.truncate(1 << 30)
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        file: "has 1,073,741,824 bytes; a recipe file at most 1,000,000",
        tmp_path / "pipe": "is no file",
        tmp_path: "is no file",
        Path("/dev/zero"): "is no file",
        Path("x" * 5000): "cannot be read: File name too long",
        tmp_path / "none": "there is no such file",
    }.items():
        with pytest.raises(LadderError, match=words) as error:
            read_recipes(path)
        assert str(error.value).startswith("--recipes ")
        assert len(str(error.value)) < 400


def test_a_thousand_recipes_have_their_names_at_once() -> None:
    """In time that grows with their number, not with its square."""
    recipes = cross(["linear"], ["cross_entropy"], [*range(999)])
    assert len(label([*recipes, Recipe(model="linear", loss="cross_entropy", lr=0.5)])) == 1000


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
