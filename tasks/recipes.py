"""Recipes: one model, one loss and how to train them; the default ladder, crossing, TOML files."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.caching.basics import LadderError
from tasks.losses import LOSSES
from tasks.models import MODELS

# Where a model's defaults differ from the post's, which are those of Recipe's fields.  All models
# but the post's start as they were built: a builder may have loaded weights.
BUILT = {"init": "default"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"init": "randn"},
    "mlp": {"init": "randn"},
    "convnet": {
        "epochs": 2,
        "batch_size": "auto",
        "lr": 0.03,
        "schedule": "triangular",
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "shift": 1,
        "precision": "auto",
    },
    "resnet18": {
        "epochs": 4,
        "batch_size": "auto",
        "lr": 0.005,
        "schedule": "one_cycle",
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "shift": 1,
        "precision": "auto",
    },
}


class Recipe(BaseModel):
    """One model, one loss and the hyperparameters to train them with.

    What is left out is the post's for linear and mlp, and DEFAULTS's for the other models.
    Raises LadderError for an unknown name, pydantic's ValidationError for a value out of bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Which rung", json_schema_extra={"enum": [*MODELS]})
    loss: str = Field(description="What training minimises", json_schema_extra={"enum": [*LOSSES]})
    epochs: int = Field(41, ge=1, le=10_000, description="How often training sees each image")
    batch_size: Annotated[int, Field(ge=2, le=65_536)] | Literal["auto"] = Field(
        256, description="Images per step; auto is 256, fewer where that makes too few steps"
    )
    lr: float = Field(1.0, gt=0, le=100, description="Learning rate, at its peak")
    schedule: Literal["constant", "one_cycle", "triangular"] = Field(
        "constant", description="How the learning rate moves from the first step to the last"
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="sgd is written out by hand, adamw is torch's"
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="Each step shrinks the parameters by lr times this"
    )
    init: Literal["randn", "default"] = Field(
        "randn",
        description="Initial weights: randn draws linear layers as the post does, default leaves "
        "all as the model's builder made it, and is what models but linear and mlp start from",
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=0.9, description="Share of each label that is spread over all classes"
    )
    shift: int = Field(
        0, ge=0, le=16, description="Move training images by up to this many pixels, at random"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of the layers; auto is bfloat16 on a GPU, else float32"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of every random draw")

    def batch(self, images: int) -> int:
        """How many of so many images to train on make a step.

        "auto" takes at least 32 steps an epoch, as long as they are of 8 images or more: with 256
        images a step, a few epochs over a thousand would be over before batch norm has settled.
        """
        if self.batch_size == "auto":
            return max(8, min(256, images // 32))
        return self.batch_size

    def remark(self, before: Mapping[str, Any]) -> list[str]:
        """What going from a recipe's fields to this one's means for a plan, in words."""
        if self.model_dump(mode="json") | {"epochs": before.get("epochs")} != dict(before):
            return []
        if self.schedule != "constant":
            return [f"starts anew, because {self.schedule} spreads over all epochs"]
        longer = self.epochs > before["epochs"]
        return [f"goes on from epoch {before['epochs']}"] if longer else []

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        for field in given:
            known("field", field, cls.model_fields)
        return BUILT | DEFAULTS.get(str(given.get("model")), {}) | dict(given)

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return known("model", name, MODELS)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        return known("loss", name, LOSSES)


def known(kind: str, name: str, names: Collection[str]) -> str:
    """`name`, when it is one of `names`; otherwise LadderError with the nearest of them."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names)}"
    raise LadderError(f"unknown {kind} '{name}', {hint}")


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
    models: Iterable[str], losses: Iterable[str], seeds: Iterable[int] = (0,), **fixed: Any
) -> list[Recipe]:
    """Every model with every loss and every seed; all share the `fixed` fields."""
    free = [field for field in Recipe.model_fields if field not in ("model", "loss", "seed")]
    for field in fixed:
        known("field", field, ["models", "losses", "seeds", *free])
    return [
        Recipe(model=model, loss=loss, seed=seed, **fixed)
        for model, loss, seed in itertools.product(models, losses, seeds)
    ]


class Cross(BaseModel, extra="allow"):
    """A recipe file's [cross] table; its further fields are the same in all its recipes."""

    models: list[str]
    losses: list[str] = ["cross_entropy"]
    seeds: list[int] = [0]


def read_recipes(path: Path) -> list[Recipe]:
    """Recipes of a TOML file: its `[[recipe]]` tables, then those that its `[cross]` spans.

    `[cross]` has models, losses (["cross_entropy"]), seeds ([0]) and fields that all share.
    Raises LadderError that names the file, the table and the field.
    """
    recipes = []
    with naming(path.name):
        tables = read_toml(path)
        for name in tables:
            known("table", name, ["recipe", "cross"])
        if not isinstance(tables.get("recipe", []), list):
            raise LadderError("a recipe's table is written [[recipe]], in double brackets")
    for number, table in enumerate(tables.get("recipe", []), 1):
        with naming(f"{path.name}: recipe {number}"):
            recipes.append(Recipe.model_validate(table))
    if "cross" in tables:
        with naming(f"{path.name}: cross"):
            table = Cross.model_validate(tables["cross"])
            recipes += cross(table.models, table.losses, table.seeds, **(table.model_extra or {}))
    if not recipes:
        raise LadderError(f"{path.name}: no recipes: add a [[recipe]] or a [cross] table")
    return recipes


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables.  Raises LadderError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LadderError(f"not readable as TOML: {error}") from error


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Turn what is wrong with a recipe into one line that begins with `place`."""
    try:
        yield
    except LadderError as error:
        raise LadderError(f"{place}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LadderError(f"{place}: {field}: {first['msg']}") from error


def label(recipes: Sequence[Recipe]) -> dict[str, Recipe]:
    """Name each recipe: "linear, cross_entropy, seed 0" and what tells it from its like.

    Recipes of one model, loss and seed carry the further fields in which they differ.
    Raises LadderError when a recipe is listed twice.
    """
    labels: dict[str, Recipe] = {}
    for recipe in recipes:
        own = recipe.model_dump()
        core = (recipe.model, recipe.loss, recipe.seed)
        like = [o.model_dump() for o in recipes if (o.model, o.loss, o.seed) == core]
        differing = [field for field in own if any(other[field] != own[field] for other in like)]
        parts = [recipe.model, recipe.loss, f"seed {recipe.seed}"]
        name = ", ".join([*parts, *(f"{field} {own[field]}" for field in differing)])
        if name in labels:
            raise LadderError(f"recipe '{name}' is listed twice: drop one of them")
        labels[name] = recipe
    return labels
