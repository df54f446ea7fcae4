"""What would run, and why: a key's ingredients held against those of the last time.

A plan is the flow itself with its stages asleep: the same body, each stage looked up instead of
run, so a plan cannot drift from the flow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
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

    state: str  # "ran" or "cached"
    why: tuple[str, ...]  # the reasons it ran; empty when cached
    seconds: float  # what computing it took, this time or when it was first stored


@dataclass(frozen=True)
class Ref:
    """A stored result: what flows pass between stages instead of tensors."""

    label: str  # the stage's name, such as decode[training/7]
    stage: str
    key: str
    digest: str  # of the content
    outcome: Outcome

    def load(self, root: Path) -> Any:
        """The stored value, tensors mapped copy-on-write.  Raises DamagedError."""
        store = Store(root)
        record = store.get(self.stage, self.key)
        if record is None or record.digest != self.digest:
            what = "is gone" if record is None else "was replaced by another run"
            raise DamagedError(f"the record of {self.label} {what}; run again")
        return store.load(record.value)


@dataclass(frozen=True)
class Pending:
    """A result that a plan cannot know before its stage has run."""

    label: str
    digest: str = ""


class Look(BaseModel):
    """A stage's key with what went into it."""

    key: str
    ingredients: dict[str, Any]
    names: dict[str, list[str]]  # parameter -> what its inputs are called


@dataclass(frozen=True)
class Planned:
    """What a plan says of one stage."""

    stage: str
    state: str  # "cached", "will run" or "may run"
    why: tuple[str, ...]
    seconds: float | None  # what it took the last time, where that is known
    ref: Ref | None = None  # its result, where it is cached
    look: Look | None = None
    last: dict[str, Any] | None = None  # what the look was the last time
    changes: tuple[str, ...] = ()  # what differs from then, whether it must run or not
    comparable: bool = True  # whether its result would be the same in any run


FIRST = "has not run before"
PLAN: ContextVar[list[Planned] | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def asleep() -> Iterator[list[Planned]]:
    """Stages called inside are looked up instead of run, and listed here."""
    planned: list[Planned] = []
    token = PLAN.set(planned)
    try:
        yield planned
    finally:
        PLAN.reset(token)


# Arguments


def is_input(value: Any) -> bool:
    """Whether an argument is a reference, to be loaded before the stage runs."""
    return isinstance(value, Pending) or (hasattr(value, "digest") and hasattr(value, "load"))


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


# Reasons


def waits_for(labels: list[str]) -> str:
    """In words, which stages must run before more can be said."""
    return f"waits for {_some(labels)}"


def _some(names: list[str]) -> str:
    """The first three of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _told(names: list[str], verb: str) -> list[str]:
    """Nothing, or one reason for all names."""
    return [f"{_some(names)} {verb}"] if names else []


def differences(
    look: Look, last: dict[str, Any] | None, arguments: Mapping[str, Any], root: Path
) -> tuple[str, ...]:
    """In words, what in a key's ingredients differs from the last time."""
    if last is None:
        return ()
    old, new = last["ingredients"], look.ingredients
    return (
        *_changed_code(old["code"], new["code"]),
        *_changed_items(old["versions"], new["versions"]),
        *(
            words
            for name, item in new["parameters"].items()
            for words in _changed_parameter(
                name, old["parameters"].get(name), item, arguments[name]
            )
        ),
        *(
            words
            for name in new["inputs"]
            for words in _changed_inputs(name, last, list(inputs_of(arguments[name])), root)
        ),
        *(["the cache's format changed"] if old["format"] != new["format"] else []),
    )


def _changed_code(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        *_told([name for name in new if name in old and old[name] != new[name]], "changed"),
        *_told([name for name in new if name not in old], "new here"),
        *_told([name for name in old if name not in new], "no longer used"),
    ]


def _changed_items(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name, "none") != new.get(name, "none"):
            yield f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}"


def _changed_parameter(name: str, old: Any, new: Any, value: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _changed_items(old, new)
        if hasattr(value, "remark"):  # a parameter that knows what its change means
            yield from value.remark(old)
        return
    words = f"{name} {old} -> {new}"
    yield words if len(words) <= 100 else f"{name} changed"


def _changed_inputs(name: str, last: dict[str, Any], inputs: list[Any], root: Path) -> list[str]:
    labels = last["names"].get(name, [])
    before = dict(zip(labels, last["ingredients"]["inputs"].get(name, []), strict=True))
    now = {each.label: each for each in inputs if not isinstance(each, Pending)}
    differing = [
        each for label, each in now.items() if before.get(label, each.digest) != each.digest
    ]
    return [
        *(each.explain(before[each.label], root) for each in differing if _explains(each)),
        *_told([each.label for each in differing if not _explains(each)], "changed"),
        *_told([label for label in now if label not in before], "new here"),
        *_told([label for label in before if label not in {each.label for each in inputs}],
               "no longer used"),
    ]  # fmt: skip


def _explains(each: Any) -> bool:
    """Whether an input can say more than that it changed."""
    return hasattr(each, "explain")
