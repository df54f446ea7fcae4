"""How the bounds of a value are said, so that whatever else comes is refused with one line.

An annotation with an `Allowed` both bounds a value and says in words what is allowed.  Pydantic is
imported only where a value is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from tasks.caching.basics import LadderError, shown

if TYPE_CHECKING:
    from pydantic import ValidationError


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
Epochs = Annotated[int, whole(EPOCHS[0], EPOCHS[-1])]
Seed = Annotated[int, whole(0, 2**31 - 1)]


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
