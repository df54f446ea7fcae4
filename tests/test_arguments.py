"""Arguments that differ have different keys, and arrive as they were given."""

from __future__ import annotations

import itertools
from collections import namedtuple
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from tasks.caching import fingerprint as fp
from tasks.caching.basics import LadderError
from tasks.caching.refs import inputs_of, loaded, plain
from tasks.caching.stage import stage


class One(BaseModel):
    """A model."""

    model_config = ConfigDict(extra="allow")
    x: Any = 1
    left_out: Any = Field(0, exclude=True)
    secret: SecretStr = SecretStr("a")
    _private: int = PrivateAttr(1)


class Other(BaseModel):
    """Another, with equal fields."""

    x: Any = 1
    left_out: Any = Field(0, exclude=True)
    secret: SecretStr = SecretStr("a")
    _private: int = PrivateAttr(1)


class More(One):
    """With a field more."""

    more: int = 1


class Outer(BaseModel):
    """Holds one, or what is more than that."""

    inner: One


class Kind(Enum):
    """A choice."""

    A = 1
    B = 2


class Pair(NamedTuple):
    """Two, by name."""

    a: Any
    b: Any


Same = namedtuple("Same", "a b")


class Stored:
    """A reference."""

    digest = "12" * 32
    label = "stored"

    def load(self, root: Path) -> str:
        """What it stands for."""
        return "content"


def private(value: int) -> One:
    """A model whose private attribute is another."""
    model = One()
    model._private = value
    return model


REF = Stored()
DIFFERENT = [
    *(1, 1.0, True, "1", None, "None", "nan", float("nan"), float("inf"), -0.0, 0.0, 0, False),
    b"1",
    *([], (), {}, [[]], [()], [{}], [1, 2], (1, 2), Pair(1, 2), Same(1, 2), {"a": 1}, [["a", 1]]),
    *([("a", 1)], (("a", 1),), [["a", 1], ["b", 2]], {"a": 1, "b": 2}, {"b": 2, "a": 1}, {1: 1}),
    *({"1": 1}, {"$type": "list", "items": []}, {"$input": True}),
    *([REF, None], [None, REF], [REF], (REF,), {"a": REF}, {"b": REF}, Pair(REF, None)),
    *(One(), Other(), More(), More(more=2), One(x=2), One(x="1"), One(left_out=1), One(new=1)),
    *(One(secret=SecretStr("b")), private(2), One(x=REF), One(x=None), One(x=[REF])),
    *(Outer(inner=One()), Outer(inner=More()), Outer(inner=More(more=2)), Outer(inner=private(2))),
    *(Kind.A, Kind.B, Path("a"), "a", Decimal("1.0"), Decimal("1.00")),
]  # fmt: skip


@stage
def given(x: Any) -> None:
    """Take anything."""


def test_no_two_arguments_share_a_key() -> None:
    """Types, places, order, and what a model leaves out when it is written."""
    keys = [given.look({"x": value}).key for value in DIFFERENT]
    for (a, one), (b, other) in itertools.combinations(zip(DIFFERENT, keys, strict=True), 2):
        assert one != other, f"{a!r} and {b!r}"
    assert keys == [given.look({"x": value}).key for value in DIFFERENT]


def test_no_secret_is_written_down() -> None:
    assert "hush" not in str(plain(One(secret=SecretStr("hush"))))


class Text(str):
    """A text that may do what it likes."""


@pytest.mark.parametrize("value", [1j, {1, 2}, object(), SimpleNamespace(a=1), Text("a"), len])
def test_what_cannot_be_told_from_its_like_is_refused(value: Any) -> None:
    with pytest.raises(LadderError, match=r"a stage's parameter cannot be a .*: give numbers"):
        given.look({"x": [value]})


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (REF, "content"),
        ((REF, 1), ("content", 1)),
        (Pair(REF, [REF]), Pair("content", ["content"])),
        ({"a": (REF,)}, {"a": ("content",)}),
        (One(x=REF), One(x="content")),
        (Outer(inner=One(x=[REF])), Outer(inner=One(x=["content"]))),
        ([None, One()], [None, One()]),
    ],
)
def test_references_arrive_as_what_they_stand_for(value, arrives, tmp_path: Path) -> None:
    """In tuples and models too, whose types stay."""
    assert loaded(value, tmp_path) == arrives
    assert type(loaded(value, tmp_path)) is type(arrives)
    assert not [*inputs_of(loaded(value, tmp_path))]


def added(kind: type) -> type:
    """Give a class a method."""

    def area(self: Any) -> int:
        return 1

    kind.area = area  # type: ignore[attr-defined] # for the test
    return kind


class Mixin:
    """Brings a method."""

    def area(self) -> int:
        """One."""
        return 1


class Mixed(Mixin, BaseModel):
    """By a mixin."""


class Named(NamedTuple):
    """By itself, though it is a tuple."""

    a: int

    def area(self) -> int:
        """One."""
        return 1


@added
class Decorated(BaseModel):
    """By a decorator."""


class Assigned(BaseModel):
    """By an assignment."""


def later(self: Any) -> int:
    """Become a method."""
    return 1


Assigned.area = later  # type: ignore[attr-defined] # for the test


@stage
def calls(x: Any) -> int:
    """Call a method of what is given."""
    found: int = x.area()
    return found


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (Named(1), "Named.area"),
        (Mixed(), "Mixin.area"),
        (Decorated(), "added"),
        (Assigned(), "later"),
    ],
    ids=str,
)
def test_a_method_is_followed_wherever_it_comes_from(value: Any, unit: str) -> None:
    assert f"{__name__}.{unit}" in fp.fingerprint(calls.fn, {"x": value}).code
