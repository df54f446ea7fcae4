"""Which recipes are climbed: the post's, those that fit the images, crossed names, a file's."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Strict

from tasks.caching.basics import LadderError, printable, shown
from tasks.caching.own import beside
from tasks.rungs.limits import Allowed, Seed, naming
from tasks.rungs.recipes import MOST_RECIPES, OPTIONAL, Recipe, each_validated, known, validated
from tasks.rungs.toml import read_small, read_toml


def ladder_for(shape: Sequence[int] | None, images: int, kind: str = "auto") -> list[Recipe]:
    """The ladder of a kind, "post" or "auto", for training images[N, H, W(, 3)].

    "auto" is the post's for images such as MNIST's: greyscale, at most 32 pixels a side, and
    10,000 or more of them, for which its numbers of epochs are meant.
    """
    if kind == "post" or shape is None:  # the shape of no image is known: none can be decoded
        return post_ladder()
    like_mnist = len(shape) == 2 and max(shape) <= 32 and images >= 10_000
    return post_ladder() if like_mnist else fitting_ladder(shape, images)


def fitting_ladder(shape: Sequence[int], images: int) -> list[Recipe]:
    """Three rungs whose recipes follow from training images[N, H, W(, 3)].

    Few images are seen more often, so that steps suffice.  All start as torch's layers do, from
    pixels scaled by the images' own mean and deviation, and mirror images where those are found to
    mean the same.  ResNet18 is left out: trained like the last rung it was no better on 8x8
    digits or 3,000 photographs of 32x32, and its steps take two to eight times as long.
    """
    shared: dict[str, Any] = {
        "loss": "cross_entropy",
        "batch_size": "auto",
        "schedule": "one_cycle",
        "optimizer": "adamw",
        "init": "default",
        "normalize": True,
        "flip": "auto",
    }
    epochs = passes(images)
    flat: dict[str, Any] = {"epochs": epochs, "weight_decay": 0.01}
    deep: dict[str, Any] = {"epochs": epochs, "shift": min(16, max(1, round(min(shape[:2]) / 16)))}
    return [
        # What all pixels add up to moves with the root of their number.
        Recipe(model="linear", lr=float(f"{0.05 / math.prod(shape) ** 0.5:.1g}"), **flat, **shared),
        Recipe(model="mlp", lr=0.003, **flat, **shared),
        Recipe(model="deep_convnet", **deep, **shared),
    ]


def passes(images: int) -> int:
    """Epochs over so many images: 16, up to 40 of fewer than 6,000, down to 4 of over 60,000.

    So that few are looked at 100,000 times in all, and many at most a million times.
    """
    most = max(4, round(1_000_000 / images))
    return min(most, 40, max(16, round(100_000 / images)))


def mirror_trial(recipes: Iterable[Recipe], images: int) -> Recipe | None:
    """What to train on so many images as they are, to find whether they may be mirrored.

    None where no recipe asks.  It is the same whichever do, so that one more trains no other anew,
    and takes some 400 steps.
    """
    if all(recipe.flip != "auto" for recipe in recipes):
        return None
    trial = validated({"model": "deep_convnet", "loss": "cross_entropy", "shift": 1})
    epochs = min(trial.epochs, max(2, 400 * trial.batch(images) // images))
    return trial.model_copy(update={"epochs": epochs})


def post_ladder() -> list[Recipe]:
    """The post's climb, and two rungs of convolutions above its network."""
    return [
        *cross(["linear"], ["sigmoid_mse", "softmax_mse", "cross_entropy"]),
        *cross(["mlp", "convnet", "resnet18"], ["cross_entropy"]),
    ]


def left_out(recipes: Iterable[Recipe], ladder: Iterable[Recipe]) -> list[str]:
    """What of a whole ladder these recipes leave out: rungs, and epochs of those they train.

    Nothing where all of it is climbed; a report of a part must not speak for the whole.
    """
    trained: dict[tuple[str, str], int] = {}
    for recipe in recipes:
        name = recipe.model, recipe.loss
        trained[name] = max(recipe.epochs, trained.get(name, 0))
    missing = []
    for rung in ladder:
        epochs = trained.get((rung.model, rung.loss), 0)
        if epochs < rung.epochs:
            part = f" ({epochs} of {rung.epochs} epochs)" if epochs else ""
            missing.append(f"{rung.model}, {rung.loss}{part}")
    return missing


def cross(
    models: Sequence[str], losses: Sequence[str], seeds: Sequence[int] = (0,), **fixed: Any
) -> list[Recipe]:
    """Every model with every loss and every seed; all share the `fixed` fields.

    Of a field that is a list, every recipe is there with each of its values.
    Raises LadderError that names the field.
    """
    _check_crossed(fixed)
    return spanned([{}], {"model": models, "loss": losses, "seed": seeds, **fixed})


def spanned(recipes: Sequence[Mapping[str, Any]], spans: Mapping[str, Any]) -> list[Recipe]:
    """Each recipe with these fields set; of a field's list of values, once with each of them.

    recipes: the fields that each has already.  Raises LadderError that names the field.
    """
    each = [
        [(field, one) for one in (values if isinstance(values, list | tuple) else [values])]
        for field, values in spans.items()
    ]
    if (count := len(recipes) * math.prod(map(len, each))) > MOST_RECIPES:
        raise LadderError(f"these cross to {count:,} recipes; at most {MOST_RECIPES:,} are climbed")
    for field, values in spans.items():
        if values in ([], ()):
            raise LadderError(f"{field}: an empty list leaves nothing to train; give a value")
    return [
        validated({**recipe, **dict(chosen)})
        for recipe in recipes
        for chosen in itertools.product(*each)
    ]


def _check_crossed(fields: Iterable[Any]) -> None:
    own = ("model", "loss", "seed")
    free = [field for field in Recipe.model_fields if field not in own]
    for field in fields:
        known("field", field, ["models", "losses", "seeds", *free])


class Cross(BaseModel, extra="allow"):
    """A recipe file's [cross] table; its further fields are the same in all its recipes."""

    models: Annotated[
        list[Annotated[str, Strict()]],
        Allowed('not a list of models such as ["linear", "mlp"]', min_length=1),
    ]
    losses: Annotated[
        list[Annotated[str, Strict()]],
        Allowed('not a list of losses such as ["cross_entropy"]', min_length=1),
    ] = ["cross_entropy"]
    seeds: Annotated[
        list[Seed],
        Allowed("not a list of whole numbers from 0, such as [0, 1, 2]", min_length=1),
    ] = [0]


def read_recipes(path: Path) -> list[Recipe]:
    """Recipes of a TOML file: its `[[recipe]]` tables, then those that its `[cross]` spans.

    `[cross]` has models, losses (["cross_entropy"]), seeds ([0]) and fields that all share, a
    list of values spanning a sweep.  Files of the user's that it names lie beside it.
    Raises LadderError that names the file, the table and the field.
    """
    data = read_small(path)
    with naming(printable(path.name)), beside(path):
        return _recipes_of(read_toml(data))


def _recipes_of(tables: dict[str, Any]) -> list[Recipe]:
    for name in tables:
        known("table", name, ["recipe", "cross"])
    given = tables.get("recipe", [])
    if not isinstance(given, list):
        raise LadderError("a recipe's table is written [[recipe]], in double brackets")
    recipes = each_validated(given) if given else []
    if "cross" in tables:
        if not isinstance(tables["cross"], dict):
            raise LadderError("the table to cross is written [cross], in single brackets, once")
        with naming("cross"):
            _check_crossed(tables["cross"])
            table = Cross.model_validate(tables["cross"])
            recipes += cross(table.models, table.losses, table.seeds, **(table.model_extra or {}))
    if not recipes:
        raise LadderError("no recipes: add a [[recipe]] or a [cross] table")
    return recipes


def label(recipes: Sequence[Recipe]) -> dict[str, Recipe]:
    """Name each recipe: "linear, cross_entropy, seed 0" and what tells it from its like.

    Recipes of one model, loss and seed carry the further fields in which they differ.
    Raises LadderError when a recipe is listed twice.
    """
    usual = {field: Recipe.model_fields[field].default for field in OPTIONAL}
    fields = [usual | recipe.model_dump() for recipe in recipes]
    alike: dict[Any, list[dict[str, Any]]] = {}
    for own in fields:
        alike.setdefault((own["model"], own["loss"], own["seed"]), []).append(own)
    differing = {
        core: [field for field in like[0] if len({each[field] for each in like}) > 1]
        for core, like in alike.items()
    }
    labels: dict[str, Recipe] = {}
    for recipe, own in zip(recipes, fields, strict=True):
        core = (recipe.model, recipe.loss, recipe.seed)
        parts = [recipe.model, recipe.loss, f"seed {recipe.seed}"]
        name = ", ".join([*parts, *(f"{field} {own[field]}" for field in differing[core])])
        if name in labels:
            raise LadderError(f"recipe '{name}' is listed twice: drop one of them")
        labels[name] = recipe
    return labels


def select(
    recipes: list[Recipe], epochs: int | None, only: str, fields: Mapping[str, Any] = {}
) -> list[Recipe]:
    """The recipes whose name matches the glob, with their epochs and fields replaced where asked.

    A field that is a list of values makes a recipe of each.
    Raises LadderError when none matches, and for a field that is out of its bounds.
    """
    named: dict[str, Any] = label(recipes)
    kept = [recipe for name, recipe in named.items() if fnmatch.fnmatchcase(name, only)]
    if not kept:
        there = "; ".join([*named][:12]) + ("; ..." if len(named) > 12 else "")
        raise LadderError(f"--only {shown(only)} matches no recipe; there are: {there}")
    for field in fields:
        known("field", field, Recipe.model_fields)
    changes = dict(fields) | ({"epochs": epochs} if epochs else {})
    return spanned([dict(recipe) for recipe in kept], changes) if changes else kept
