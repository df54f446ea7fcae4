"""A recipe: one model, one loss and how to train them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks.caching.basics import LadderError, shown
from tasks.caching.own import Registry, is_own, located, settle
from tasks.caching.places import insist_on_reach
from tasks.rungs.augmentations import AUGMENTATIONS
from tasks.rungs.fields import FIELDS
from tasks.rungs.limits import EPOCHS, Allowed, Epochs, Seed, Text, naming, number, one_of, whole
from tasks.rungs.losses import LOSSES
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import OPTIMIZERS, SCHEDULES
from tasks.rungs.start import content

MOST_RECIPES = 1_000  # at once: a stage each
LONGEST = 4_096  # characters of a name, which may be a path and a function in that file

# What is chosen by name, ours or the user's own, and what it is called with.
CHOICES: dict[str, tuple[Registry[Any], str]] = {
    "model": (MODELS, "shape, classes"),
    "loss": (LOSSES, "logits, labels, smoothing"),
    "optimizer": (OPTIMIZERS, "parameters, weight_decay"),
    "schedule": (SCHEDULES, "done"),
    "augment": (AUGMENTATIONS, "images"),
}
OPTIONAL = ("weights", "class_weights", "patience", "augment")  # left out of a key unless given

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
    "deep_convnet": {
        "epochs": 16,
        "batch_size": "auto",
        "lr": 0.01,
        "schedule": "one_cycle",
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "shift": 2,
        "normalize": True,
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


def _field(name: str, default: Any) -> Any:
    """A field and what a form says of it: of a choice, ours or a function in a user's file."""
    forms: dict[str, Any] | None = None
    if name in CHOICES:
        own = {"type": "string", "pattern": "^.+:.+$", "title": "my_file.py:name"}
        forms = {"anyOf": [{"type": "string", "enum": [*CHOICES[name][0]]}, own]}
    return Field(default, description=FIELDS[name], json_schema_extra=forms)


class Recipe(BaseModel):
    """One model, one loss and the hyperparameters to train them with.

    What is left out is the post's for linear and mlp, and DEFAULTS's for the other models.
    Raises LadderError for an unknown name, pydantic's ValidationError for a value out of bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always")

    model: Annotated[str, Text("a model's name", LONGEST)] = _field("model", ...)
    loss: Annotated[str, Text("a loss's name", LONGEST)] = _field("loss", ...)
    epochs: Epochs = _field("epochs", 41)
    batch_size: Annotated[
        Annotated[int, whole(2, 65_536)] | Literal["auto"],
        Allowed('not a whole number from 2 to 65,536, or "auto"'),
    ] = _field("batch_size", 256)
    lr: Annotated[float, number("not a number above 0, up to 100", gt=0, le=100)] = _field(
        "lr", 1.0
    )
    schedule: Annotated[str, Text("a schedule's name", LONGEST)] = _field("schedule", "constant")
    optimizer: Annotated[str, Text("an optimizer's name", LONGEST)] = _field("optimizer", "sgd")
    weight_decay: Annotated[float, number("not a number from 0 to 1", ge=0, le=1)] = _field(
        "weight_decay", 0.0
    )
    init: Annotated[Literal["randn", "default"], one_of("randn", "default")] = _field(
        "init", "randn"
    )
    weights: Annotated[str, Text("a file of weights", LONGEST)] = _field("weights", "none")
    label_smoothing: Annotated[float, number("not a number from 0 to 0.9", ge=0, le=0.9)] = _field(
        "label_smoothing", 0.0
    )
    class_weights: Annotated[Literal["none", "balanced"], one_of("none", "balanced")] = _field(
        "class_weights", "none"
    )
    shift: Annotated[int, whole(0, 16)] = _field("shift", 0)
    keep: Annotated[Literal["last", "best"], one_of("last", "best")] = _field("keep", "last")
    patience: Annotated[int, whole(0, EPOCHS[-1])] = _field("patience", 0)
    flip: Annotated[
        Annotated[bool, Strict()] | Literal["auto"], Allowed('not true, false or "auto"')
    ] = _field("flip", False)
    augment: Annotated[str, Text("an augmentation's name", LONGEST)] = _field("augment", "none")
    normalize: Annotated[bool, Allowed("not true or false", strict=True)] = _field(
        "normalize", False
    )
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], one_of("auto", "float32", "bfloat16")
    ] = _field("precision", "float32")
    seed: Seed = _field("seed", 0)

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
        was = {name: value for name, value in before.items() if name in type(self).model_fields}
        if self.model_dump(mode="json") | {"epochs": was.get("epochs")} != was:
            return []
        if self.schedule != "constant":
            return [f"starts anew, because {self.schedule} spreads over all epochs"]
        if self.keep == "best":
            return ["starts anew, because not the last epoch's weights are kept"]
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

    @field_validator("weights")
    @classmethod
    def _there(cls, path: str) -> str:
        if path != "none":
            path = str(located(path))
            insist_on_reach(Path(path), "weights")
            content(path)
        return path

    @model_serializer(mode="wrap")
    def _dumped(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it goes into a key: of a file its content, and nothing of what is not asked for."""
        dumped: dict[str, Any] = usual(self)
        for field in OPTIONAL:
            if dumped[field] == type(self).model_fields[field].default:
                del dumped[field]
        if "weights" in dumped:
            dumped["weights"] = f"sha256:{content(self.weights)}"
        return dumped

    @field_validator(*CHOICES)
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        registry, takes = CHOICES[str(info.field_name)]
        if is_own(name):
            return settle(name, takes)
        if "." in name:
            raise LadderError(f"unknown {info.field_name} {shown(name)}; a function of your own is "
                              "named FILE.py:NAME or MODULE:NAME")  # fmt: skip
        return known(str(info.field_name), name, registry)


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
