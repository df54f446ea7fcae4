"""What code a stage reaches: every function, class and constant of this project that it names.

`fingerprint` goes from the stage's function to every unit that it reaches: by its source
(`reach`), by what it is in memory (`memory`), and by what arrives as an argument.  A unit counts as
its cleaned text and what memory holds of it, a package of others as its version (`origins`).

Helpers of the engine that a stage's code names are followed as anybody's are.  Its machinery, which
calls a stage, loads what it is given and stores what it gives, counts as a whole for all of them
(`storing`); what else the engine does is no part of a result.

What cannot be followed is refused with its line, where the stage is defined.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from pydantic import BaseModel

from tasks.caching import source, syntax
from tasks.caching.basics import LadderError, entries
from tasks.caching.memory import Memory, in_memory
from tasks.caching.origins import is_followed, is_ours, versions
from tasks.caching.own import is_own
from tasks.caching.reach import TEXTS, Choice, Unit, defined, reach
from tasks.caching.refs import is_input

# How a stage is called, and its tensors are loaded and stored; with all these name in their modules
_STORING = (
    *(("tasks.caching.values", name) for name in ("encode", "load")),
    *(("tasks.caching.refs", name) for name in ("loaded", "Ref.load")),
    *(("tasks.caching.store", name) for name in ("Store.put", "Store.load")),
    ("tasks.caching.files", "Files.save"),
    ("tasks.caching.compute", "run_body"),
)
# Those that a run knows: where its bodies run elsewhere, no value in memory changes meanwhile
KNOWN: ContextVar[dict[Any, Fingerprint] | None] = ContextVar("known", default=None)
_TELLING = {"python", "numpy"}  # which open no file without an event of Python's
_TURN = threading.RLock()  # Python 3.11 counts the depth of syntax trees across threads


class Fingerprint(NamedTuple):
    """The code and the distributions that a stage reaches with its arguments."""

    code: dict[str, str]
    versions: dict[str, str]


def fingerprint(
    fn: Callable[..., Any],
    arguments: Mapping[str, Any],
    apart: frozenset[Unit] = frozenset(),
) -> Fingerprint:
    """Follow a stage's function as called with these arguments (by parameter name).

    apart: what is not followed, for it cannot change the result.
    Raises LadderError for code that cannot be followed or changed since it was imported.
    """
    with _TURN:
        known = KNOWN.get()
        if known is None:
            return _followed(fn, arguments, apart)
        asked = _asked(fn, arguments, apart)
        if asked not in known:
            known[asked] = _followed(fn, arguments, apart)
        return known[asked]


def _asked(
    fn: Callable[..., Any], arguments: Mapping[str, Any], apart: frozenset[Unit]
) -> tuple[Any, ...]:
    """All of a call that its fingerprint depends on: the types that arrive, and what is chosen."""
    choices = reach(Unit(fn.__module__, fn.__qualname__), tuple(arguments)).choices
    chosen = ((each, target) for each in choices for target in _chosen(each, arguments))
    return fn, apart, frozenset(_kinds(arguments)), frozenset(chosen)


def _followed(
    fn: Callable[..., Any],
    arguments: Mapping[str, Any],
    apart: frozenset[Unit],
    *whole: bool,
) -> Fingerprint:
    start = Unit(fn.__module__, fn.__qualname__)
    found: dict[Unit, str] = {}
    packages: set[str] = set()
    words: set[str] = set()
    waiting = [start]
    while waiting:
        unit = waiting.pop()
        if unit not in found and unit not in apart:
            named = reach(unit, tuple(arguments) if unit == start else (), *whole)
            if named.reads and not whole:
                return _followed(fn, arguments, apart, True)
            memory = Memory(unit)
            found[unit] = named.digest + memory.digest
            packages |= named.packages
            words |= named.words | memory.words
            waiting += named.units | memory.units
            for target in (each for one in named.choices for each in _chosen(one, arguments)):
                if isinstance(target, Unit):
                    waiting.append(target)
                else:
                    packages.add(target)
        if not waiting:
            done = found.keys() | apart
            waiting += (each for each in _brought(arguments, words) if each not in done)
    return Fingerprint({str(unit): found[unit] for unit in sorted(found)}, versions(packages))


def check(fn: Callable[..., Any], apart: Any = None) -> None:
    """Refuse, when a stage is defined, what cannot be followed from it.  Raises LadderError.

    apart: the function that will give what is not followed; of what it names, some is yet to come.
    """
    if "<locals>" in fn.__qualname__:
        raise LadderError(f"{fn.__module__}: the stage {fn.__name__} is defined in a function, "
                          "where its process cannot find it; move it to module level")  # fmt: skip
    parameters = tuple(inspect.signature(fn).parameters)
    start = Unit(fn.__module__, fn.__qualname__)
    named_apart = apart.__code__.co_names if hasattr(apart, "__code__") else ()
    left = (each for name in named_apart for each in defined(start.module, name))
    waiting, seen = [start], {start, *left}
    with _TURN:
        for unit in waiting:
            named = reach(unit, parameters if unit == start else ())
            new = (named.units | {choice.registry for choice in named.choices}) - seen
            waiting += new
            seen |= new
            # Looked up now, so that processes forked from this one know these already.
            versions(named.packages)
            source.codes(unit.module)
        storing()


@functools.cache
def storing() -> str:
    """A digest of how the engine computes, stores and loads results."""
    texts: dict[tuple[str, str], str] = {}
    waiting = [*_STORING]
    for place, name in waiting:
        if (place, name) not in texts:
            module = source.read(place)
            text = "\n".join(map(ast.unparse, source.statements(place, name)))
            texts[place, name] = text
            used = syntax.global_names(text, {*module.bindings}) & module.bindings.keys()
            waiting += ((place, each) for each in sorted(used))
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]


def _chosen(choice: Choice, arguments: Mapping[str, Any]) -> Iterable[Unit | str]:
    """What a registry's entry leads to: the entry, or a user's own function."""
    value = arguments[choice.parameter]
    if choice.attribute and not getattr(type(value), "model_config", {}).get("frozen"):
        return [choice.registry]  # what is not frozen may have changed before it is used
    key = getattr(value, choice.attribute) if choice.attribute else value
    if is_own(key):
        return defined(*key.split(":"))
    module, name = choice.registry
    written = source.entries(source.read(module), name)
    if len(in_memory(choice.registry)) != len(written):
        raise LadderError(f"{choice.registry} was changed at run time, which cannot be followed; "
                          f"add the entry in {source.read(module).path}")  # fmt: skip
    if key not in written:
        raise LadderError(f"unknown {choice.attribute or choice.parameter} {key!r}; "
                          f"{choice.registry} has {', '.join(map(str, written))}")  # fmt: skip
    return [Unit(module, f"{name}[{key!r}]")]


def _brought(arguments: Mapping[str, Any], words: set[str]) -> Iterator[Unit]:
    """Members of project classes that arrive as arguments, where they are mentioned.

    And what is called without a mention: `load` of an input, special methods of anything else.
    """
    for kind, loaded in _kinds(arguments):
        for owner in kind.__mro__:
            if is_followed(owner.__module__, owner.__qualname__) and "[" not in owner.__qualname__:
                for name in [*vars(owner)]:  # which another thread may add to
                    wanted = name == "load" if loaded else name.startswith("__")
                    unit = Unit(owner.__module__, f"{owner.__qualname__}.{name}")
                    if wanted or name in words:
                        # What @dataclass wrote, say, stands in no source.
                        yield from [unit] if source.statements(*unit) else _put_there(owner, name)


def _kinds(arguments: Mapping[str, Any]) -> dict[tuple[type, bool], None]:
    """The types of all that arrives, and whether it is a reference, in order."""
    return {(type(value), is_input(value)): None for value in _flat(arguments)}


def _put_there(owner: type, name: str) -> Iterator[Unit]:
    """Where a method is defined that a decorator, or an assignment, has given to a class."""
    member = vars(owner)[name]
    member = getattr(member, "fget", None) or getattr(member, "__func__", member)
    while isinstance(member, FunctionType):
        if is_ours(member.__module__) and not member.__code__.co_filename.startswith("<"):
            unit = Unit(member.__module__, member.__qualname__.partition(".<locals>")[0])
            if source.statements(*unit):
                yield unit
        member = getattr(member, "__wrapped__", None)


def named_files(followed: Mapping[str, Any], arguments: Mapping[str, Any]) -> set[str] | None:
    """The files that texts in the code, or in arguments, name: their whole paths.

    None where no compiled code of others is reached, which opens one without telling Python.  A
    relative path counts from the working directory, and from the folders that the code lies in; of
    a name that is computed, a text such as `.csv` is the end.
    """
    if followed["versions"].keys() <= _TELLING:
        return None
    here = str(Path.cwd())
    found = {(here, str(each)) for each in _flat(arguments) if isinstance(each, str | Path)}
    for file, texts in (TEXTS.get(piece, ("", ())) for piece in followed["code"]):
        places = [str(each) for each in Path(file).parents[:3]]
        # Of `f"{HERE}/rows.csv"` the text begins with a slash.
        found |= {(place, text) for text in texts for place in (here, *places)}
        found |= {(place, text.lstrip("/")) for text in texts for place in places}
        ends = tuple(text for text in texts if re.fullmatch(r"[\w-]*\.(?!py)\w{1,9}", text))
        beside = entries(Path(places[0])) if ends else []  # of few units: a look for every body
        found |= {(places[0], each.name) for each in beside if each.name.endswith(ends)}
    paths = {
        os.path.normpath(os.path.join(place, text)) for place, text in found
        if 3 <= len(text) <= 255 and "." in text[1:] and not {"\n", "\0"} & {*text}
    }  # fmt: skip
    return {each for each in paths if Path(each).is_file()}


def _flat(value: Any) -> Iterator[Any]:
    """A value and all that lies in it."""
    if isinstance(value, BaseModel):
        yield value
        value = dict(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            yield value
        for item in value:
            yield from _flat(item)
    else:
        yield value
