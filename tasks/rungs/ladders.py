"""Which recipes are climbed: the default ladder, crossed names, a recipe file; and their names."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Strict

from tasks.caching.basics import LadderError, printable, shown
from tasks.rungs.limits import Allowed, Seed, naming
from tasks.rungs.recipes import MOST_RECIPES, Recipe, each_validated, known, validated
from tasks.rungs.toml import read_small, read_toml


def default_ladder() -> list[Recipe]:
    """The post's climb, and two rungs of convolutions above its network."""
    return [
        *cross(["linear"], ["sigmoid_mse", "softmax_mse", "cross_entropy"]),
        *cross(["mlp", "convnet", "resnet18"], ["cross_entropy"]),
    ]


def left_out(recipes: Iterable[Recipe]) -> list[str]:
    """What of the default ladder these recipes leave out: rungs, and epochs of those they train.

    Nothing where all of it is climbed; a report of a part must not speak for the whole.
    """
    trained: dict[tuple[str, str], int] = {}
    for recipe in recipes:
        name = recipe.model, recipe.loss
        trained[name] = max(recipe.epochs, trained.get(name, 0))
    missing = []
    for rung in default_ladder():
        epochs = trained.get((rung.model, rung.loss), 0)
        if epochs < rung.epochs:
            part = f" ({epochs} of {rung.epochs} epochs)" if epochs else ""
            missing.append(f"{rung.model}, {rung.loss}{part}")
    return missing


def cross(
    models: Sequence[str], losses: Sequence[str], seeds: Sequence[int] = (0,), **fixed: Any
) -> list[Recipe]:
    """Every model with every loss and every seed; all share the `fixed` fields.

    Raises LadderError that names the field.
    """
    _check_crossed(fixed)
    if (count := len(models) * len(losses) * len(seeds)) > MOST_RECIPES:
        raise LadderError(f"these cross to {count:,} recipes; at most {MOST_RECIPES:,} are climbed")
    return [
        validated({"model": model, "loss": loss, "seed": seed, **fixed})
        for model, loss, seed in itertools.product(models, losses, seeds)
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

    `[cross]` has models, losses (["cross_entropy"]), seeds ([0]) and fields that all share.
    Raises LadderError that names the file, the table and the field.
    """
    data = read_small(path)
    with naming(printable(path.name)):
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
    fields = [recipe.model_dump() for recipe in recipes]
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


def select(recipes: list[Recipe], epochs: int | None, only: str) -> list[Recipe]:
    """The recipes whose name matches the glob, with their epochs replaced where asked.

    Raises LadderError when none matches.
    """
    named: dict[str, Any] = label(recipes)
    kept = [recipe for name, recipe in named.items() if fnmatch.fnmatchcase(name, only)]
    if not kept:
        there = "; ".join([*named][:12]) + ("; ..." if len(named) > 12 else "")
        raise LadderError(f"--only {shown(only)} matches no recipe; there are: {there}")
    return [recipe.model_copy(update={"epochs": epochs}) if epochs else recipe for recipe in kept]
