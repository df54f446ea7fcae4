"""Cues: each looks at one thing that a result depends on, and decides and explains at once.

A cue of the key is what goes into it, and knows in which words that differs from the last time: a
key is what the cues have looked at (`Look`), so nothing can change it without a reason.  The cues
of the record say whether what was stored under the key serves, or why not (`find`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tasks.caching.basics import DamagedError
from tasks.caching.differences import (
    FIRST,
    bare,
    changed_fields,
    changed_value,
    differ,
    new_and_gone,
    some,
    told,
)
from tasks.caching.fingerprint import Fingerprint, storing
from tasks.caching.held import changed
from tasks.caching.records import Record, digest_of
from tasks.caching.refs import inputs_of, plain
from tasks.caching.store import FORMAT, Store

Last = dict[str, Any]  # what a look left to remember: its key, ingredients and names


class Before(NamedTuple):
    """What a stage's cues saw the last time."""

    ingredients: dict[str, Any]
    names: dict[str, list[str]]  # parameter -> what its inputs were called
    root: Path  # the store's folder, where more may lie about them


class Cue(Protocol):
    """One ingredient of a key."""

    @property
    def name(self) -> str:
        """What it is called in a key."""

    @property
    def now(self) -> Any:
        """What it is, as plain data."""

    def said(self, before: Before) -> Iterable[str]:
        """In words, how it differs from the last time."""


@dataclass(frozen=True)
class Code:
    """Each piece of the project's code that the stage reaches, with its digest."""

    now: dict[str, str]
    name = "code"

    def said(self, before: Before) -> Iterable[str]:
        """Which pieces changed, came or went."""
        was = before.ingredients[self.name]
        changed = [piece for piece in self.now if differ(piece, was, self.now)]
        return [*told(changed, "changed"), *new_and_gone(was, self.now)]


@dataclass(frozen=True)
class Versions:
    """The version of each distribution that this code imports, and Python's."""

    now: dict[str, str]
    name = "versions"

    def said(self, before: Before) -> Iterable[str]:
        """Which are others."""
        return changed_fields(before.ingredients[self.name], self.now)


@dataclass(frozen=True)
class Machine:
    """What of the machine changes the last bits; nothing for a stage whose results are exact."""

    now: dict[str, Any]
    name = "machine"

    def said(self, before: Before) -> Iterable[str]:
        """What is another, in full however long: processor, threads, device."""
        was = before.ingredients.get(self.name, {})
        changed = [name for name in self.now if differ(name, was, self.now)]
        told = [f"{name} {was[name]} -> {self.now[name]}" for name in changed]
        return [*told, *new_and_gone(was, self.now)]


class Parameters:
    """The arguments as plain data, without what is in their inputs."""

    name = "parameters"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.now = {name: plain(item) for name, item in arguments.items()}
        self._arguments = arguments

    def said(self, before: Before) -> Iterator[str]:
        """Which have other values, and what a parameter itself says of that."""
        was = before.ingredients[self.name]
        for name in (name for name in self.now if differ(name, was, self.now)):
            old, new, item = was[name], self.now[name], self._arguments[name]
            if [each.label for each in inputs_of(item)] != before.names.get(name, []):
                continue  # which inputs are new and which are gone is said of themselves
            if isinstance(bare(old), dict) and isinstance(bare(new), dict):
                yield from changed_fields(old, new)
                if hasattr(item, "remark"):  # a parameter that knows what its change means
                    yield from item.remark(old)
            else:
                said = [*changed_value(name, old, new)]
                unsaid = any("$input" in words for words in said)
                yield from [f"{name}: its inputs stand in other places"] if unsaid else said
        yield from new_and_gone(was, self.now)


class Inputs:
    """The digests of the results among the arguments; what they are called is remembered too."""

    name = "inputs"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._refs = {name: list(inputs_of(item)) for name, item in arguments.items()}
        self.now = {name: [each.digest for each in refs] for name, refs in self._refs.items()}
        self.names = {name: [each.label for each in refs] for name, refs in self._refs.items()}

    def said(self, before: Before) -> Iterator[str]:
        """Which have other content, came, went or stand in another order."""
        for name, refs in self._refs.items():
            labels = before.names.get(name, [])
            was = dict(zip(labels, before.ingredients[self.name].get(name, []), strict=True))
            again = [each.label for each in refs]
            yield from _changed(refs, was, before.root)
            yield from new_and_gone(was, dict.fromkeys(again))
            if labels != again and Counter(labels) == Counter(again):
                yield f"{name}: in another order"


def _changed(refs: list[Any], was: dict[str, str], root: Path) -> Iterator[str]:
    """In words, which inputs have other content; those that can say how do so."""
    known = {each.label: each for each in refs if each.digest}
    changed = [each for label, each in known.items() if was.get(label, each.digest) != each.digest]
    silent = [each.label for each in changed if not hasattr(each, "explain")]
    for each in changed:
        if hasattr(each, "explain"):
            yield each.explain(was[each.label], root)
    yield from told(silent, "changed")


@dataclass(frozen=True)
class Only:
    """What has no parts: another one is another, in fixed words."""

    name: str
    now: Any
    words: str

    def said(self, before: Before) -> Iterable[str]:
        """The words, when it is another."""
        return [self.words] if before.ingredients.get(self.name) != self.now else []


class Look:
    """What the cues have looked at: a key, and what differs from the last time."""

    def __init__(self, cues: list[Cue], names: dict[str, list[str]]) -> None:
        self._cues = cues
        self.ingredients = {cue.name: cue.now for cue in cues}
        self.key = digest_of(self.ingredients)
        self.names = names  # parameter -> what its inputs are called

    def differences(self, last: Last | None, root: Path) -> tuple[str, ...]:
        """In words, what is not as it was; nothing where there is no last time."""
        if last is None:
            return ()
        before = Before(last["ingredients"], last["names"], root)
        return tuple(words for cue in self._cues for words in cue.said(before))

    def to_remember(self) -> Last:
        """What to remember for the next time."""
        return {"key": self.key, "ingredients": self.ingredients, "names": self.names}


def look(
    name: str,
    followed: Fingerprint,
    arguments: Mapping[str, Any],
    machine: dict[str, Any],
) -> Look:
    """Look at all that the result of a stage's call depends on, of whose code the fingerprint is.

    machine: what of it changes the last bits.
    """
    code, versions = followed
    inputs = Inputs(arguments)
    cues: list[Cue] = [
        Only("stage", name, "it was another stage"),
        Code(code),
        Versions(versions),
        *([Machine(machine)] if machine else ()),
        Parameters(arguments),
        inputs,
        Only("format", f"{FORMAT} ({storing()})", "how results are stored changed"),
    ]
    return Look(cues, inputs.names)


# Of the record


def find(
    store: Store, stage: str, look: Look, last: Last | None, *, refresh: bool
) -> tuple[Record | None, tuple[str, ...]]:
    """The verified record of a key; or none, and in words why the stage must run."""
    if refresh:
        return None, ("asked for by --refresh",)
    try:
        record = store.get(stage, look.key)
    except DamagedError as error:
        return None, (str(error),)
    if record is not None and (why := changed(record.about.get("asked", {}))):
        return None, why
    if record is not None:
        return record, ()
    if last is None:
        return None, (FIRST,)
    otherwise = "its record is missing" if last["key"] == look.key else "its key changed"
    if last["key"] == look.key and "failed" in last:
        otherwise = f"failed the last time: {last['failed']}"
    return None, look.differences(last, store.root) or (otherwise,)


def waits_for(labels: list[str]) -> str:
    """In words, which stages must run before more can be said."""
    return f"waits for {some(labels)}"
