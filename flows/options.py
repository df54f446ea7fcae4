"""The options that `run`, `plan` and their like share, and the flow's parameters they come to."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import parameters
from flows.parameters import SIDE, Device, Fit, PromoteIf, Which
from tasks.caching.basics import LadderError, UsageError, shown
from tasks.caching.places import Place, find_place, insist_on_name
from tasks.rungs.fields import FIELDS
from tasks.rungs.limits import EPOCHS, allowed


def offers(what: str) -> Callable[[Any], list[str]]:
    """What the shell offers after Tab, by a function of `flows.completions`, imported only then."""

    def complete(context: Any) -> list[str]:
        from flows import completions

        return completions.OFFERED[what](context)

    return complete


# Path is never made of it: it tells completion that files come here.
Given = str | Path
Dataset = Annotated[
    Given,
    Parameter(
        help="A folder's name under the data root, or its path: ./x",
        completer=offers("datasets"),
    ),
]


def whole(_kind: Any, tokens: Any) -> int:
    """A whole number as people write it: 3, and neither 3.5 (cyclopts would round it) nor 0x3."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"{shown(text)} is not a whole number.")
    if len(text) > 18:
        raise ValueError(f"{shown(text)} is far too large.")
    return int(text)


# A recipe's fields, each for all recipes at once; others than these have options of their own.
CHANGES = [field for field in FIELDS if field not in ("model", "loss", "epochs", "seed")]
_Changes: Any = make_dataclass(
    "_Changes",
    [
        (name, Annotated[str | None, Parameter(help=FIELDS[name], group="Recipe")], None)
        for name in CHANGES
    ],
    frozen=True,
)


@Parameter(name="*")
@dataclass(frozen=True)
class Options(_Changes):
    """What `run` and `plan` have in common."""

    validation: Annotated[
        str, Parameter(help='Share of training held out, or "testing" for the post\'s shortcut')
    ] = "0.1"
    testing: Annotated[
        str, Parameter(help="Share drawn for testing where no folder says which images are")
    ] = "0.2"
    labels: Annotated[
        Path | None,
        Parameter(help="Manifest of the images: CSV, Parquet or JSON lines with path and label"),
    ] = None
    columns: Annotated[
        str | None, Parameter(help="Its columns, if not as usual: path=file,label=kind,split=set")
    ] = None
    class_from: Annotated[
        str | None,
        Parameter(help="Regular expression that finds the class in a path: '([a-z]+)_[0-9]+'"),
    ] = None
    keep_together: Annotated[
        bool, Parameter(help="Draw near duplicates for one side, not some for training")
    ] = False
    epochs: Annotated[
        int | None,
        Parameter(
            help="Train every recipe this long instead of its own number",
            converter=whole,
            validator=Number(gte=EPOCHS[0], lte=EPOCHS[-1]),
        ),
    ] = None
    only: Annotated[str, Parameter(help='Glob over recipe names, such as "linear*"')] = "*"
    device: Annotated[Device, Parameter(help="auto takes a GPU where there is one")] = "auto"
    refresh: Annotated[
        tuple[str, ...],
        Parameter(help='Glob over stage names to run even when cached, such as "train*"'),
    ] = ()
    recipes: Annotated[
        Path | None, Parameter(help="TOML file of recipes to climb instead of a ladder of ours")
    ] = None
    ladder: Annotated[
        Which, Parameter(help="auto fits the images, post is the post's; for MNIST both are that")
    ] = "auto"
    models: Annotated[
        str | None,
        Parameter(
            help="Cross these models, linear,my_models.py:wide, with --losses",
            completer=offers("models"),
        ),
    ] = None
    losses: Annotated[
        str | None,
        Parameter(
            help="Losses to cross with --models, cross_entropy,my_losses.py:hinge",
            completer=offers("losses"),
        ),
    ] = None
    seeds: Annotated[
        str | None,
        Parameter(help="Train every recipe from each of these seeds, 0,1,2: a rung, with its luck"),
    ] = None
    size: Annotated[
        str | None,
        Parameter(help="Resize every image: HEIGHTxWIDTH; left out, chosen where they differ"),
    ] = None
    fit: Annotated[
        Fit,
        Parameter(help="What resizing does to an image of another aspect: crop, pad or stretch"),
    ] = "crop"
    strict: Annotated[
        bool, Parameter(help="Take images as they are; refuse what differs or would be converted")
    ] = False
    skip_bad: Annotated[
        bool, Parameter(help="Leave damaged files out, and list them in the report")
    ] = False
    promote_if: Annotated[
        PromoteIf,
        Parameter(
            help="When the best rung becomes the model in use: beyond luck, whenever it is better, "
            "never or always"
        ),
    ] = "p<0.05"
    timeout: Annotated[
        str | None, Parameter(help="End the run when it takes longer, as 90s, 30m or 8h")
    ] = None
    stage_timeout: Annotated[
        str | None, Parameter(help="End a stage when it takes longer, and leave its rung out")
    ] = None
    name: Annotated[
        str | None,
        Parameter(help="What to call the dataset; folders of one name share reports and history"),
    ] = None

    def place(self, dataset: str) -> Place | None:
        """The dataset that is meant, where it is there.  Raises LadderError."""
        if self.name is not None:
            insist_on_name(self.name, "--name")
        return find_place(dataset, self.name or "")

    def times(self) -> dict[str, str | int | None]:
        """What the run and each stage are given.  Raises LadderError for what is no time."""
        given = {name: getattr(self, name) for name in ("timeout", "stage_timeout")}
        return {
            name: None if text is None else _time(f"--{name.replace('_', '-')}", text)
            for name, text in given.items()
        }

    def parameters(self, dataset: Given) -> dict[str, Any]:
        """The parameters of the flow.  Raises UsageError for what cannot be meant."""
        try:
            return self._parameters(dataset)
        except LadderError as error:
            raise UsageError(str(error)) from None

    def _parameters(self, dataset: Given) -> dict[str, Any]:
        return {
            "dataset": allowed("dataset", parameters.Dataset, str(dataset)),
            "recipes": self._recipes(),
            "which": self.ladder,
            "validation": allowed("--validation", parameters.Validation, _number(self.validation)),
            "testing": allowed("--testing", parameters.Testing, _number(self.testing)),
            "labels": str(self.labels.expanduser().absolute()) if self.labels else "",
            "columns": self._columns(),
            "class_from": allowed("--class-from", parameters.Pattern, self.class_from or ""),
            "keep_together": self.keep_together,
            "epochs": self.epochs,
            "only": allowed("--only", parameters.Only, self.only),
            "device": self.device,
            "refresh": allowed("--refresh", parameters.Refresh, list(self.refresh)),
            "size": None if self.size is None else _size(self.size),
            "fit": allowed("--fit", parameters.Fit, self.fit),
            "strict": self.strict,
            "skip_bad": self.skip_bad,
            "promote_if": self.promote_if,
            **self.times(),
            "name": self.name or "",
            "fields": self._fields(),
            "command": self.command(str(dataset)),
        }

    def command(self, dataset: str) -> str:
        """The command line that starts the same run again, in whatever folder."""
        place = self.place(dataset)
        words = ["stepladder", "run", place.given if place else dataset]
        usual = Options()
        for name, value in asdict(self).items():
            if value is True:
                words.append(f"--{name.replace('_', '-')}")
            elif value != getattr(usual, name):
                values = value if isinstance(value, tuple) else [value]
                for each in values:
                    words += [f"--{name.replace('_', '-')}", _anywhere(name, each)]
        return shlex.join(words)

    def _fields(self) -> dict[str, Any]:
        given = {name: value for name, value in asdict(self).items() if name in CHANGES and value}
        values = {
            name: [_value(each) for each in _listed(f"--{name.replace('_', '-')}", text, "a,b,c")]
            for name, text in given.items()
        }
        if self.seeds is not None:
            seeds = _listed("--seeds", self.seeds, "0,1,2")
            if not all(re.fullmatch("[0-9]{1,10}", seed) for seed in seeds):
                said = f"--seeds {shown(self.seeds)} are not whole numbers, such as 0,1,2"
                raise LadderError(said)
            values["seed"] = [*map(int, seeds)]
        return {name: each if len(each) > 1 else each[0] for name, each in values.items()}

    def _columns(self) -> dict[str, str]:
        if self.columns is None:
            return {}
        if not self.labels:
            raise LadderError("--columns says what the columns of --labels FILE are called")
        example = "path=file,label=kind"
        pairs = [each.partition("=") for each in _listed("--columns", self.columns, example)]
        if not all(what in ("path", "label", "split") and name for what, _, name in pairs):
            raise LadderError(
                f"--columns {shown(self.columns)}: give the names of path, label or split, as in "
                f"{example}"
            )
        return {what: name for what, _, name in pairs}

    def _recipes(self) -> list[Any] | None:
        from tasks.rungs.ladders import cross, read_recipes

        crossed = (self.models, self.losses) != (None, None)
        if self.recipes and crossed:
            raise LadderError("--recipes says what to train; leave out --models and --losses")
        if self.recipes:
            return read_recipes(self.recipes)
        if not crossed:
            return None
        if self.models is None:
            raise LadderError("--losses are crossed with --models, such as linear,mlp")
        losses = "cross_entropy" if self.losses is None else self.losses
        return cross(
            _listed("--models", self.models, "linear,mlp"),
            _listed("--losses", losses, "softmax_mse,cross_entropy"),
        )


def _anywhere(option: str, value: Any) -> str:
    """An option's value, the files that it names by their absolute paths."""
    if option in ("recipes", "labels"):
        return str(value.expanduser().absolute())
    if option not in (*CHANGES, "models", "losses"):
        return str(value)
    names = [each.strip() for each in value.split(",")]
    is_path = [".py:" in each or (option == "weights" and each != "none") for each in names]
    return ",".join(
        str(Path(each).expanduser().absolute()) if path else each
        for each, path in zip(names, is_path, strict=True)
    )


def _time(option: str, text: str) -> str | int:
    given = int(text) if re.fullmatch("[0-9]{1,10}", text) else text
    time: str | int = allowed(option, parameters.Timeout, given)
    return time


def _value(text: str) -> Any:
    """A recipe field's value, as TOML would have it."""
    return {"true": True, "false": False}.get(text, _number(text))


def _number(text: str) -> float | str:
    """The number that a text is, or the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _listed(option: str, text: str, example: str) -> list[str]:
    """What stands between commas.  Raises LadderError where that is nothing."""
    names = [each.strip() for each in text.split(",")]
    if not all(names):
        raise LadderError(f"{option} {shown(text)} leaves a value out; give it as in {example}")
    return names


def _size(text: str) -> tuple[int, int]:
    """[height, width] in pixels, of a text such as 28x28.  Raises LadderError."""
    found = re.fullmatch("([0-9]{1,9})[xX]([0-9]{1,9})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if size[0] not in SIDE or size[1] not in SIDE:
        raise LadderError(
            f"--size {text if text.isalnum() and len(text) < 40 else shown(text)} is no size; "
            f"give HEIGHTxWIDTH, such as 28x28, each from {SIDE[0]} to {SIDE[-1]:,}"
        )
    return size
