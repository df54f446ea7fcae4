"""What each parameter may be, said once for the command line, recipe files and the flow's form.

An annotation from here both bounds a value and says in words what is allowed, so that whatever
else comes is refused with one line.  Pydantic is imported only where a value is looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from tasks.caching.basics import DamagedError, LadderError, open_regular, shortened, shown

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_RECIPES = 1_000  # at once: a stage each
MOST_BYTES = 1_000_000  # of a recipe file


class Allowed:
    """Marks a type for pydantic: the bounds of its values, and in words what is said of others.

    Numbers are taken as they are: no text, no True for 1, no 1.5 for 2.
    """

    def __init__(self, words: str, **bounds: Any) -> None:
        self.words = words
        self._bounds = bounds  # as pydantic's Field takes them

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field
        from pydantic_core.core_schema import no_info_wrap_validator_function

        inner = handler.generate_schema(Annotated[source, Field(**self._bounds)])
        return no_info_wrap_validator_function(self._or_words, inner)

    def _or_words(self, value: Any, inner: Any) -> Any:
        try:
            return inner(value)
        except ValueError:
            raise ValueError(f"{shown(value)} is {self.words}") from None


def whole(least: int, most: int) -> Allowed:
    """Whole numbers, both ends included."""
    return Allowed(f"not a whole number from {least:,} to {most:,}", strict=True, ge=least, le=most)


def number(words: str, **bounds: float) -> Allowed:
    """Numbers within bounds, never infinite and never NaN."""
    return Allowed(words, strict=True, allow_inf_nan=False, **bounds)


class Text(Allowed):
    """Text that can be passed on to files, to Prefect and to a page."""

    def __init__(self, words: str, most: int, least: int = 1) -> None:
        words = f"not {words}, {least or 'at most'}{' to' * bool(least)} {most:,} characters"
        super().__init__(words, strict=True, min_length=least, max_length=most)

    def _or_words(self, value: Any, inner: Any) -> Any:
        text = super()._or_words(value, inner)
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{shown(text)} is no text: NUL and half characters cannot be used")
        return text


def one_of(*names: str) -> Allowed:
    """One of a few words."""
    return Allowed(f"not one of {', '.join(names)}")


EPOCHS = range(1, 10_001)
SIDE = range(1, 4_097)  # pixels

Epochs = Annotated[int, whole(EPOCHS[0], EPOCHS[-1])]
Seed = Annotated[int, whole(0, 2**31 - 1)]
Validation = Annotated[
    Annotated[float, number("", gt=0, lt=1)] | Literal["testing"],
    Allowed('neither a fraction between 0 and 1 nor "testing"'),
]
Side = Annotated[int, whole(SIDE[0], SIDE[-1])]
Size = Annotated[
    tuple[Side, Side],
    Allowed(
        f"not [height, width] in pixels, whole numbers from {SIDE[0]} to {SIDE[-1]:,}, as [28, 28]"
    ),
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
Command = Annotated[str, Text("a command line", 100_000, least=0)]


def within_limits(function: Any, values: Mapping[str, Any]) -> list[Any]:
    """The values of a function's parameters, each as its annotation takes it, in their order.

    Raises LadderError that names the first parameter that is out of its limits.
    """
    kinds = get_type_hints(function, include_extras=True)
    return [
        allowed(name, kinds[name], values[name]) for name in inspect.signature(function).parameters
    ]


def allowed(name: str, kind: Any, value: Any) -> Any:
    """A value as an annotated type takes it.  Raises LadderError that begins with `name`."""
    from pydantic import TypeAdapter

    with naming(name):
        return TypeAdapter(kind).validate_python(value)


@contextmanager
def naming(place: str = "") -> Iterator[None]:
    """Turn what is wrong with a value into one line that begins with `place`."""
    from pydantic import ValidationError

    before = place and f"{place}{'' if place.startswith('--') else ':'} "
    try:
        yield
    except LadderError as error:
        raise LadderError(f"{before}{error}") from None
    except ValidationError as error:
        raise LadderError(f"{before}{_in_words(error)}") from None


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = "".join(f"{part}: " for part in first["loc"])
    if first["type"] == "missing":
        return f"{field}this must be given"
    reason = first.get("ctx", {}).get("error") or f"{shown(first['input'])}: {first['msg']}"
    return f"{field}{reason}"


def read_small(path: Path) -> bytes:
    """A recipe file's bytes.  Raises LadderError for what is no file, too large or unreadable."""
    place = f"--recipes {shortened(path)}"
    try:
        with open_regular(path) as (file, status):
            if status.st_size > MOST_BYTES:
                raise LadderError(
                    f"{place} has {status.st_size:,} bytes; a recipe file at most {MOST_BYTES:,}"
                )
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        raise LadderError(f"{place}: there is no such file") from None
    except DamagedError:
        raise LadderError(f"{place} is no file: give the path of a TOML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LadderError(f"{place} cannot be read: {reason}") from None
