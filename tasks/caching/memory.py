"""What a unit is in memory, which tells what its source may not.

The text of a constant that was read from a file, the functions that a decorator has put into a
dict.  It is held against the source too, so that an edit made after the import can never give a new
key to what old code computed.
"""

from __future__ import annotations

import ast
import collections
import functools
import hashlib
import importlib
import io
import operator
import pickle
import re
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
from torch import Tensor

from tasks.caching import source
from tasks.caching.basics import LadderError
from tasks.caching.origins import is_followed, is_ours
from tasks.caching.reach import Unit
from tasks.caching.syntax import DEFINITION, refuse

# What holds nothing that a result could depend on
_EMPTY = (type(threading.Lock()), type(threading.RLock()), ContextVar)
_ATOM = bool | int | float | complex | str | bytes | None


def in_memory(unit: Unit) -> Any:
    """What a unit is in memory; of a stage, its function.  Ellipsis where nothing can be found."""
    name, _, key = unit.name.partition("[")
    try:
        found = operator.attrgetter(name)(importlib.import_module(unit.module))
        found = found[ast.literal_eval(key[:-1])] if key else found
    except (ImportError, AttributeError, LookupError):
        return ...
    return found.fn if type(found).__module__ == "tasks.caching.stage" else found


class Memory:
    """What a unit holds in memory: data, more code, and words that may name methods.

    Raises LadderError for code that is not what the source says.
    """

    def __init__(self, unit: Unit) -> None:
        self.units: set[Unit] = set()
        self.words: set[str] = set()
        self._unit = unit
        # Each object by its id, and kept: the id of one that is gone is given to another.
        self._seen: dict[int, tuple[Any, Any]] = {}
        value = in_memory(unit)
        nodes = source.statements(*unit)
        if len(nodes) == 1 and isinstance(nodes[0], DEFINITION):
            _insist_on_definition(nodes[0], value, unit)
        # A wrapper by others holds what nobody's code looks at.
        self._is_mere_constant = not isinstance(value, type | FunctionType) and not any(
            isinstance(each, DEFINITION) and f".{unit.name}".endswith(f".{each.name}")
            for each in nodes
        )
        data = self._plain(value)
        mere_code = data in (..., [str(unit)])
        self.digest = "" if mere_code else f"+{_short(data)}"

    def _data(self, value: Any) -> Any:
        """A value as plain data, a digest of what lies in it, an Ellipsis for what is opaque.

        Whether it was met before makes no difference: two equal lists may be one object or two.
        """
        if isinstance(value, _ATOM):
            return self._plain(value)
        known = self._seen.get(id(value))
        if known is None:
            self._seen[id(value)] = value, ...  # what leads back to itself
            data = self._plain(value)
            known = self._seen[id(value)] = value, data if data is ... else (_short(data),)
        return known[1]

    def _plain(self, value: Any) -> Any:  # noqa: PLR0911, PLR0912 - one return for each kind of value
        """A value as lists of plain data and names of code, an Ellipsis for what is opaque."""
        match value:
            case None | bool() | int() | float() | complex() | bytes() | bytearray() | range():
                return value
            case str():
                self.words |= {*re.findall(r"\w+", value)}
                return value
            case np.ndarray() if value.dtype.hasobject:
                return self._data(value.tolist())
            case np.ndarray() | np.generic() | Tensor():
                laid = value.stride() if isinstance(value, Tensor) else value.strides
                more = [*value.shape, *laid, getattr(value, "requires_grad", None)]
                return [type(value).__name__, str(value.dtype), *more, value.tolist()]
            case ModuleType():
                return value.__name__
            case re.Pattern():
                return [value.pattern, value.flags]
            case list() | tuple() | collections.deque():
                return [*self._kind(value), *map(self._data, value)]
            case set() | frozenset():
                return [*self._kind(value), *sorted(repr(self._data(item)) for item in value)]
            case Mapping():
                pairs = ([self._data(key), self._data(item)] for key, item in [*value.items()])
                return [*self._kind(value), *pairs]
            case functools.partial():
                return [self._data(each) for each in (value.func, *value.args, value.keywords)]
            case MethodType():
                return [self._data(value.__func__), self._data(value.__self__)]
            case staticmethod() | classmethod():
                return self._data(value.__func__)
            case functools._lru_cache_wrapper():
                return self._data(value.__wrapped__)
            case FunctionType() if is_ours(value.__globals__["__name__"]):
                return self._function(value)
            case type() if is_followed(value.__module__, value.__qualname__):
                return self._class(value)
            case _ if is_followed(type(value).__module__, type(value).__qualname__):
                return [self._data(type(value)), self._data(_state(value))]
            case FunctionType():  # a wrapper by others: what it holds is followed, its state not
                self._data([cell.cell_contents for cell in value.__closure__ or ()])
            case type() | BuiltinFunctionType():
                return f"{value.__module__}.{value.__qualname__}"
            case _:
                return self._pickled(value)
        return ...

    def _kind(self, value: Any) -> list[Any]:
        """What tells a container from another of the same items; nothing of the plainest."""
        more = [getattr(value, name, None) for name in ("maxlen", "default_factory")]
        return (
            []
            if type(value) in (list, dict, set)
            else [type(value).__name__, *map(self._data, more)]
        )

    def _pickled(self, value: Any) -> Any:
        """What others' objects hold: their pickle, which nobody reads; Ellipsis without one."""
        written = io.BytesIO()
        try:
            _Pickler(written, self._inside).dump(value)
        except Exception:  # whatever its class raises
            self._insist_on_nothing(value)
            return ...
        return written.getvalue()

    def _insist_on_nothing(self, value: Any) -> None:
        """Refuse what cannot be written down, such as an open file, unless it can hold nothing."""
        nodes = source.statements(*self._unit)
        if self._is_mere_constant and nodes and not isinstance(value, _EMPTY):
            what = f"the {type(value).__name__} in {self._unit.name}"
            refuse(what, source.read(self._unit.module).path, nodes[0].lineno)

    def _inside(self, value: Any) -> Any:
        """What of others' objects is told by this class and not by a pickle: code, and no order."""
        if isinstance(
            value, FunctionType | MethodType | type | set | frozenset | np.ndarray | Tensor
        ):
            data = self._data(value)
            return None if data is ... else repr(data)
        return None

    def _function(self, function: FunctionType) -> list[Any]:
        module = source.read(function.__globals__["__name__"])
        code = function.__code__
        # What a function made at run time is stands in the source of the one that made it.
        name = code.co_qualname.partition(".<locals>")[0].removesuffix(".<lambda>")
        if name != "<lambda>":
            self.units |= {Unit(module.name, name)} - {self._unit}
        elif not self._holds_line(code.co_firstlineno):  # and it has no name to follow
            refuse("a lambda that is put elsewhere", module.path, code.co_firstlineno)
        # Which one, where an `if` chose among several of a name
        several = len(source.codes(module.name).get(code.co_qualname, ())) > 1
        which = [_written(code)] if several else []
        return [f"{module.name}.{name}", *which, *self._parts(function, module)]

    def _parts(self, function: FunctionType, module: source.Module) -> list[Any]:
        """The data that a function holds, which is held against its source."""
        code = function.__code__
        if source.essence(code) not in source.codes(module.name).get(code.co_qualname, ()):
            raise LadderError(f"{module.path} changed after it was imported ({code.co_qualname}); "
                              "start again")  # fmt: skip
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        given = {name: each for name, each in [*vars(function).items()] if name != "__wrapped__"}
        held = [function.__defaults__, function.__kwdefaults__, given or None, *cells]
        return [self._data(each) for each in held if each is not None]

    def _class(self, kind: type) -> list[Any]:
        module = source.read(kind.__module__)
        name = re.split(r"\.<locals>|\[", kind.__qualname__)[0]  # `Box[int]` is made of `Box`
        self.units |= {Unit(module.name, name)} - {self._unit}
        found = [f"{module.name}.{name}"]
        for attribute, member in [*vars(kind).items()]:
            bare = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(bare, FunctionType):
                found += self._method(bare, module)
            elif not attribute.startswith("__") and (data := self._member(member)) is not ...:
                found += [attribute, data]
        return found

    def _method(self, method: FunctionType, module: source.Module) -> list[Any]:
        """What a method is and what it wraps; another module may have given it to the class."""
        wrapped = getattr(method, "__wrapped__", None)
        inner = self._method(wrapped, module) if isinstance(wrapped, FunctionType) else []
        if method.__code__.co_filename == module.path:
            return self._parts(method, module) + inner
        is_written = not method.__code__.co_filename.startswith("<")  # and not by @dataclass
        named = is_written and is_ours(method.__globals__["__name__"])
        return ([self._data(method)] if named else []) + inner

    def _member(self, value: Any) -> Any:
        """What a class's attribute is; its bases may have put there what nothing tells apart."""
        before, self._is_mere_constant = self._is_mere_constant, False
        try:
            return self._data(value)
        finally:
            self._is_mere_constant = before

    def _holds_line(self, number: int) -> bool:
        nodes = source.statements(*self._unit)
        return any(node.lineno <= number <= (node.end_lineno or number) for node in nodes)


class _Pickler(pickle.Pickler):
    """Writes what tells two values apart; equal ones are written alike, whichever objects hold."""

    def __init__(self, file: io.BytesIO, inside: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=4)
        self.fast = True
        self._inside = inside

    def persistent_id(self, value: Any) -> Any:
        """What stands for a value instead of its pickle, if anything."""
        return self._inside(value)


def _written(code: CodeType) -> list[Any]:
    """What a function's code does, as plain data."""
    constants = [_written(each) if isinstance(each, CodeType) else
                 sorted(map(repr, each)) if isinstance(each, frozenset) else each
                 for each in code.co_consts]  # fmt: skip
    return [code.co_code, code.co_names, code.co_varnames, constants]


def _short(data: Any) -> str:
    return hashlib.sha256(repr(data).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    members = [item for kind in type(value).__mro__ for item in [*vars(kind).items()]]
    slots = [name for name, each in members if isinstance(each, MemberDescriptorType)]
    return {name: getattr(value, name, ...) for name in slots} | getattr(value, "__dict__", {})


def _insist_on_definition(node: ast.stmt, value: Any, unit: Unit) -> None:
    """What a definition made must still be there, and in a class each of its methods."""
    match node:
        case ast.FunctionDef(decorator_list=[]) | ast.ClassDef(decorator_list=[]):
            names = (getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
            if value is not ... and names != unit:
                code = getattr(value, "__code__", None)
                by = f" by {code.co_filename}:{code.co_firstlineno}" if code else ""
                raise LadderError(f"{unit} was replaced at run time{by}, which cannot be followed")
    if isinstance(node, ast.ClassDef) and isinstance(value, type):
        for inner in node.body:
            member = vars(value).get(getattr(inner, "name", ""), ...)
            if isinstance(member, FunctionType) and is_ours(member.__module__):
                _insist_on_definition(inner, member, Unit(unit.module, f"{unit.name}.{inner.name}"))  # type: ignore[attr-defined] # just looked
