"""What flows pass between stages: references to stored results, instead of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from tasks.caching.basics import DamagedError, LadderError
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
    if is_input(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from inputs_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from inputs_of(item)


def plain(value: Any) -> Any:
    """An argument as plain data for the key, a `null` where a reference stands."""
    match value:
        case _ if is_input(value):
            return None
        case BaseModel():
            return value.model_dump(mode="json")
        case Mapping():
            # Pairs, not an object: the order of rungs or classes is part of what was asked.
            return [[key, plain(item)] for key, item in value.items()]
        case list() | tuple():
            return [plain(item) for item in value]
        case bool() | int() | float() | str() | None:
            return value
    raise LadderError(f"a stage's parameter cannot be a {type(value).__name__}")
