"""What each parameter of a run may be, said once for the command line and the flow's form."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_type_hints

from tasks.caching.basics import LadderError, shown
from tasks.rungs.limits import Allowed, Text, allowed, number, one_of, whole

SIDE = range(1, 4_097)  # pixels
Side = Annotated[int, whole(SIDE[0], SIDE[-1])]
Validation = Annotated[
    Annotated[float, number("", gt=0, lt=1)] | Literal["testing"],
    Allowed('neither a fraction between 0 and 1 nor "testing"'),
]
Testing = Annotated[float, number("not a fraction between 0 and 1", gt=0, lt=1)]
Size = Annotated[
    tuple[Side, Side],
    Allowed(
        f"not [height, width] in pixels, whole numbers from {SIDE[0]} to {SIDE[-1]:,}, as [28, 28]"
    ),
]
Fit = Annotated[Literal["crop", "pad", "stretch"], one_of("crop", "pad", "stretch")]
Flag = Annotated[bool, Allowed("neither true nor false", strict=True)]
Which = Annotated[Literal["auto", "post"], one_of("auto", "post")]
PromoteIf = Annotated[
    Literal["p<0.05", "better", "never", "always"], one_of("p<0.05", "better", "never", "always")
]
Fields = Annotated[
    dict[str, Any], Allowed('not a table of recipe fields such as {"lr": [0.1, 0.01]}')
]
Device = Annotated[Literal["auto", "cpu", "cuda"], one_of("auto", "cpu", "cuda")]
Dataset = Annotated[str, Text("a dataset's name or path", 4_096, least=0)]
Name = Annotated[str, Text("a dataset's name", 100, least=0)]
Only = Annotated[str, Text('a glob over recipe names such as "linear*"', 200)]
Refresh = Annotated[
    list[Annotated[str, Text("", 200)]],
    Allowed(
        'not a list of at most 100 globs of 1 to 200 characters over stage names, such as "train*"',
        max_length=100,
    ),
]
Stage = Annotated[str, Text("a stage's name as `stepladder plan` shows it", 1_000)]
Path = Annotated[str, Text("a file's path", 4_096, least=0)]
Columns = Annotated[
    dict[str, str],
    Allowed('not a table of path, label and split to names of columns, such as {"path": "file"}'),
]
Pattern = Annotated[str, Text("a regular expression", 1_000, least=0)]
Timeout = Annotated[
    Annotated[str, Allowed("", pattern="^[1-9][0-9]{0,8}[smhd]$", strict=True)]
    | Annotated[int, whole(1, 10**9)],
    Allowed('no time such as "90s", "30m", "8h", or a whole number of seconds'),
]
Command = Annotated[str, Text("a command line", 100_000, least=0)]


def seconds(timeout: str | int | None) -> int:
    """The seconds of a Timeout; 0 where there is none."""
    if not isinstance(timeout, str):
        return timeout or 0
    return int(timeout[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[timeout[-1]]


def meant(stage: str, known: Collection[str]) -> str:
    """In words, which stage may be meant by a name that none has; "" where none is near."""
    alike = [name for name in known if name.partition("[")[0] == stage.partition("[")[0]]
    near = difflib.get_close_matches(stage, alike or known, n=1, cutoff=0.3)
    return f"did you mean '{near[0]}'?" if near else ""


def no_stage(stage: str, known: Collection[str]) -> LadderError:
    """The error for a stage that a plan does not have."""
    hint = meant(stage, known) or "`stepladder plan` shows all"
    return LadderError(f"no stage {shown(stage)}, {hint}")


def within_limits(function: Any, values: Mapping[str, Any]) -> list[Any]:
    """The values of a function's parameters, each as its annotation takes it, in their order.

    Raises LadderError that names the first parameter that is out of its limits.
    """
    kinds = get_type_hints(function, include_extras=True)
    return [
        allowed(name, kinds[name], values[name]) for name in inspect.signature(function).parameters
    ]
