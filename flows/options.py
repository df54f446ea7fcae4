"""The options that `run`, `plan` and their like share, and the flow's parameters they come to."""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows import parameters
from flows.parameters import SIDE, Device
from tasks.caching.basics import LadderError, shown
from tasks.caching.places import Place, find_place, insist_on_name
from tasks.rungs.limits import EPOCHS, allowed

# Path is never made of it: it tells completion that files come here.
Given = str | Path
Dataset = Annotated[Given, Parameter(help="A folder's name under the data root, or its path: ./x")]


def whole(_kind: Any, tokens: Any) -> int:
    """A whole number as people write it: 3, and neither 3.5 (cyclopts would round it) nor 0x3."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"{shown(text)} is not a whole number.")
    if len(text) > 18:
        raise ValueError(f"{shown(text)} is far too large.")
    return int(text)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What `run` and `plan` have in common."""

    validation: Annotated[
        str, Parameter(help='Share of training held out, or "testing" for the post\'s shortcut')
    ] = "0.1"
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
        Path | None, Parameter(help="TOML file of recipes to climb instead of the default ladder")
    ] = None
    models: Annotated[
        str | None, Parameter(help="Cross these models, a,b,c, with --losses and --seeds")
    ] = None
    losses: Annotated[
        str | None, Parameter(help="Losses to cross with --models, a,b,c (cross_entropy)")
    ] = None
    seeds: Annotated[str | None, Parameter(help="Seeds to cross with --models, 0,1,2 (0)")] = None
    size: Annotated[
        str | None, Parameter(help="Resize every image: HEIGHTxWIDTH, such as 28x28")
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

    def parameters(self, dataset: Given) -> dict[str, Any]:
        """The parameters of the flow.  Raises LadderError for what cannot be meant."""
        return {
            "dataset": allowed("dataset", parameters.Dataset, str(dataset)),
            "recipes": self._recipes(),
            "validation": allowed("--validation", parameters.Validation, _number(self.validation)),
            "epochs": self.epochs,
            "only": allowed("--only", parameters.Only, self.only),
            "device": self.device,
            "refresh": allowed("--refresh", parameters.Refresh, list(self.refresh)),
            "size": None if self.size is None else _size(self.size),
            "name": self.name or "",
            "command": self._command(str(dataset)),
        }

    def _command(self, dataset: str) -> str:
        """The command line that starts the same run again, in whatever folder."""
        place = self.place(dataset)
        words = ["stepladder", "run", place.given if place else dataset]
        usual = Options()
        for name, value in asdict(self).items():
            if value != getattr(usual, name):
                values = value if isinstance(value, tuple) else [value]
                for each in values:
                    words += [f"--{name}", str(each.absolute() if name == "recipes" else each)]
        return shlex.join(words)

    def _recipes(self) -> list[Any] | None:
        from tasks.rungs.ladders import cross, read_recipes

        crossed = (self.models, self.losses, self.seeds) != (None, None, None)
        if self.recipes and crossed:
            raise LadderError(
                "--recipes says what to train; leave out --models, --losses and --seeds"
            )
        if self.recipes:
            return read_recipes(self.recipes)
        if not crossed:
            return None
        if self.models is None:
            raise LadderError("--losses and --seeds are crossed with --models, such as linear,mlp")
        losses = "cross_entropy" if self.losses is None else self.losses
        seeds = _listed("--seeds", "0" if self.seeds is None else self.seeds, "0,1,2")
        if not all(re.fullmatch("[0-9]{1,10}", seed) for seed in seeds):
            raise LadderError(f"--seeds {shown(self.seeds)} are not whole numbers, such as 0,1,2")
        return cross(
            _listed("--models", self.models, "linear,mlp"),
            _listed("--losses", losses, "softmax_mse,cross_entropy"),
            [*map(int, seeds)],
        )


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
        raise LadderError(f"{option} {shown(text)} leaves a name out; give it as in {example}")
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
