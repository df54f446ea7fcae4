"""Recipes: one model, one loss and how to train them; the default ladder, crossing, TOML files."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    field_validator,
    model_validator,
)

from tasks.caching.basics import LadderError, printable, shown
from tasks.rungs.limits import (
    MOST_RECIPES,
    Allowed,
    Epochs,
    Seed,
    Text,
    naming,
    number,
    one_of,
    read_small,
    whole,
)
from tasks.rungs.losses import LOSSES
from tasks.rungs.models import MODELS

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

    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always")

    model: Annotated[str, Text("a model's name", 200)] = Field(
        description="Which rung", json_schema_extra={"enum": [*MODELS]}
    )
    loss: Annotated[str, Text("a loss's name", 200)] = Field(
        description="What training minimises", json_schema_extra={"enum": [*LOSSES]}
    )
    epochs: Epochs = Field(41, description="How often training sees each image")
    batch_size: Annotated[
        Annotated[int, whole(2, 65_536)] | Literal["auto"],
        Allowed('not a whole number from 2 to 65,536, or "auto"'),
    ] = Field(256, description="Images per step; auto is 256, fewer where that makes too few steps")
    lr: Annotated[float, number("not a number above 0, up to 100", gt=0, le=100)] = Field(
        1.0, description="Learning rate, at its peak"
    )
    schedule: Annotated[
        Literal["constant", "one_cycle", "triangular"],
        one_of("constant", "one_cycle", "triangular"),
    ] = Field("constant", description="How the learning rate moves from the first step to the last")
    optimizer: Annotated[Literal["sgd", "adamw"], one_of("sgd", "adamw")] = Field(
        "sgd", description="sgd is written out by hand, adamw is torch's"
    )
    weight_decay: Annotated[float, number("not a number from 0 to 1", ge=0, le=1)] = Field(
        0.0, description="Each step shrinks the parameters by lr times this"
    )
    init: Annotated[Literal["randn", "default"], one_of("randn", "default")] = Field(
        "randn",
        description="Initial weights: randn draws linear layers as the post does, default leaves "
        "all as the model's builder made it, and is what models but linear and mlp start from",
    )
    label_smoothing: Annotated[float, number("not a number from 0 to 0.9", ge=0, le=0.9)] = Field(
        0.0, description="Share of each label that is spread over all classes"
    )
    shift: Annotated[int, whole(0, 16)] = Field(
        0, description="Move training images by up to this many pixels, at random"
    )
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], one_of("auto", "float32", "bfloat16")
    ] = Field(
        "float32", description="Arithmetic of the layers; auto is bfloat16 on a GPU, else float32"
    )
    seed: Seed = Field(0, description="Seed of every random draw")

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


def known(kind: str, name: Any, names: Collection[str]) -> str:
    """`name`, when it is one of `names`; otherwise LadderError with the nearest of them."""
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name)[:100], names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names)}"
    raise LadderError(f"unknown {kind} {shown(name)}, {hint}")


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


def validated(fields: Any) -> Recipe:
    """A recipe from its fields.  Raises LadderError that begins with the field out of bounds."""
    if not isinstance(fields, Mapping | Recipe):
        raise LadderError(f"{shown(fields)} is not a recipe's fields, such as model and loss")
    with naming():
        return Recipe.model_validate(fields)


def each_validated(given: Any) -> list[Recipe]:
    """Recipes from a list of recipes or of their fields.  Raises LadderError that counts to it."""
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= MOST_RECIPES:
        raise LadderError(
            f"{shown(given)} is not a list of 1 to {MOST_RECIPES:,} recipes; "
            "leave it out for the whole ladder"
        )
    recipes = []
    for position, fields in enumerate(given, 1):
        with naming(f"recipe {position}"):
            recipes.append(validated(fields))
    return recipes


Recipes = Annotated[list[Recipe], BeforeValidator(each_validated)]  # for a flow's parameter


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


def read_toml(data: bytes) -> dict[str, Any]:
    """A TOML file's tables.  Raises LadderError when it cannot be read."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise LadderError("not readable as TOML: it is UTF-16 or no text; save it as UTF-8")
    for place, line in enumerate(data.split(b"\n"), 1):
        if line.partition(b"#")[0].count(b".") > 100:  # tomllib takes hours over a long dotted key
            raise LadderError(f"not readable as TOML: line {place} has more than 100 dots")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # Windows' editors begin it with a mark
    except UnicodeDecodeError as error:
        place = data[: error.start].count(b"\n") + 1
        raise LadderError(
            f"not readable as TOML: line {place} is not UTF-8 text; save it as UTF-8"
        ) from None
    except RecursionError:
        raise LadderError("not readable as TOML: brackets lie too deep in each other") from None
    except ValueError as error:
        reason = "a number is far too long" if "digits" in str(error) else error
        raise LadderError(f"not readable as TOML: {reason}") from None


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
