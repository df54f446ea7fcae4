"""What flows pass between stages: references to stored results, instead of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

from tasks.caching.basics import DamagedError, LadderError
from tasks.caching.records import digest_of
from tasks.caching.store import Store


class Input(Protocol):
    """A reference a stage can be given: loaded on the way in, keyed by its content alone.

    One that can say how it differs has `explain(before: str, root: Path) -> str` too, where
    `before` is the digest it had.
    """

    @property
    def digest(self) -> str:
        """What stands for the content in a key."""

    @property
    def label(self) -> str:
        """What a person calls it."""

    def load(self, root: Path) -> Any:
        """The content itself, from the store's folder."""


@dataclass(frozen=True)
class Outcome:
    """What became of one stage in this run."""

    state: str  # "ran" or "cached"; "may run" where a plan cannot know
    why: tuple[str, ...]  # the reasons it ran; empty when cached
    seconds: float  # what computing it took, this time or when it was first stored


NOT_YET = Outcome("may run", (), 0.0)


@dataclass(frozen=True)
class Ref:
    """A stored result; in a plan, also one that cannot be known before its stage has run."""

    label: str  # the stage's name, such as decode[training/7]
    stage: str = ""
    key: str = ""
    digest: str = ""  # of the content; empty while that is not known
    outcome: Outcome = NOT_YET

    def load(self, root: Path) -> Any:
        """The stored value, tensors mapped copy-on-write.  Raises DamagedError."""
        store = Store(root)
        record = store.get(self.stage, self.key)
        if record is None or record.digest != self.digest:
            what = "is gone" if record is None else "was replaced by another run"
            raise DamagedError(f"the record of {self.label} {what}; run again")
        return store.load(record.value)


# Among a stage's arguments


def is_input(value: Any) -> bool:
    """Whether an argument is a reference, to be loaded before the stage runs."""
    return hasattr(value, "digest") and hasattr(value, "load")


def inputs_of(value: Any) -> Iterator[Any]:
    """The references inside an argument, in order."""
    return within(value, is_input)


def loaded(value: Any, root: Path) -> Any:
    """An argument with what its references stand for, from the store's folder."""
    return replaced(value, is_input, lambda each: each.load(root))


def within(value: Any, is_one: Callable[[Any], bool]) -> Iterator[Any]:
    """The parts of an argument that are one, in order, wherever they stand."""
    if is_one(value):
        yield value
    for _name, item in _parts(value):
        yield from within(item, is_one)


def replaced(value: Any, is_one: Callable[[Any], bool], instead: Callable[[Any], Any]) -> Any:
    """An argument with something instead of each one inside it, wherever it stands."""
    if is_one(value):
        return instead(value)
    if not any(True for _ in within(value, is_one)):
        return dict(value) if isinstance(value, Mapping) else value
    parts = {name: replaced(item, is_one, instead) for name, item in _parts(value)}
    if isinstance(value, BaseModel):
        return value.model_copy(update=parts)
    if isinstance(value, Mapping):
        return parts
    make = getattr(value, "_make", type(value))
    return make(parts.values())


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What lies in a model, a mapping, a list or a tuple: its name or place, and itself."""
    if is_input(value):
        return
    if isinstance(value, BaseModel):
        yield from vars(value).items()
        yield from (value.__pydantic_extra__ or {}).items()
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def plain(value: Any) -> Any:
    """An argument as plain data for the key: of another type, or in another place, it is another.

    An object of it is never a mapping, whose items are pairs: it says what plain data cannot.
    Raises LadderError for what cannot be told from its like.
    """
    return None if is_input(value) else _plain(value)


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one return for each kind of value
    match value:
        case _ if is_input(value):
            return {"$input": True}
        case BaseModel() if type(value).__pydantic_decorators__.model_serializers:
            # It says itself what of it counts: of a file of weights the content, not the path.
            dumped = value.model_dump(mode="json")
            return {"$type": _named(value), **{name: _plain(item) for name, item in dumped.items()}}
        case BaseModel():
            private = (value.__pydantic_private__ or {}).items()
            fields = {name: _plain(item) for name, item in (*_parts(value), *private)}
            return {"$type": _named(value), **fields}
        case SecretStr() | SecretBytes():
            return {"$type": _named(value), "sha256": digest_of(repr(value.get_secret_value()))}
        case Enum():
            return {"$type": _named(value), "name": value.name}
        case Mapping() if value:
            # Pairs, not an object: the order of rungs or classes is part of what was asked.
            return [[_plain(key), _plain(item)] for key, item in value.items()]
        case Mapping() | tuple():
            return {"$type": _named(value), "items": [_plain(item) for item in value]}
        case list():
            items = [_plain(item) for item in value]
            pairs = items and all(isinstance(each, list) and len(each) == 2 for each in items)
            return {"$type": "list", "items": items} if pairs else items
        case float() if not math.isfinite(value):
            return {"$type": "float", "value": repr(value)}
        case bool() | int() | float() | str() | None if type(value) in _PLAIN:
            return value
        case Path() | Decimal() | date() | UUID() | bytes():
            return {"$type": _named(value), "value": repr(value)}
    raise LadderError(
        f"a stage's parameter cannot be a {type(value).__name__}: give numbers, texts, lists, "
        "tuples, dicts or pydantic models of them"
    )


def _named(value: Any) -> str:
    """The full name of a value's type."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


_PLAIN = (bool, int, float, str, type(None))
