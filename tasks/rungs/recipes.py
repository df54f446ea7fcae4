"""A recipe: one model, one loss and how to train them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tasks.caching.basics import LadderError, shown
from tasks.rungs.limits import Allowed, Epochs, Seed, Text, naming, number, one_of, whole
from tasks.rungs.losses import LOSSES
from tasks.rungs.models import MODELS

MOST_RECIPES = 1_000  # at once: a stage each

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
