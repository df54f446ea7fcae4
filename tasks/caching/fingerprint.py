"""What code a stage reaches: every function, class and constant of this project that it names.

1. `fingerprint` goes from the stage's function to every *unit*, a name of a project module, that
   it reaches by its source, by what it is in memory, and by what arrives as an argument.
2. A unit's source counts as its cleaned text.  The names it takes from its module lead to further
   units, through imports, aliases and attributes of modules, or to packages of others, which
   count by their distribution's version (`_reach`).
3. A registry, a dict or tuple written out at module level and subscripted by a parameter
   (`LOSSES[recipe.loss]`), leads to the chosen entry alone (`_choices`).
4. Memory tells what source may not: the text of a constant that was read from a file, the
   functions that a decorator has put into a dict (`_Memory`).  It is held against the source too,
   so that an edit made after the import can never give a new key to what old code computed.

What cannot be followed is refused with its line, where the stage is defined.  The engine itself
(`tasks.caching`) is not followed: `store.FORMAT` stands for it.
"""

from __future__ import annotations

import ast
import builtins
import collections
import functools
import hashlib
import importlib
import inspect
import operator
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from tasks.caching import source
from tasks.caching.basics import LadderError
from tasks.caching.refs import is_input

ENGINE = "tasks.caching"
_TURN = threading.RLock()  # Python 3.11 counts the depth of syntax trees across threads
_ATOM = bool | int | float | complex | str | bytes | None


class Unit(NamedTuple):
    """A name of a project module; an entry of a registry is written `LOSSES['cross_entropy']`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Choice(NamedTuple):
    """A registry subscripted by a stage's parameter, or by an attribute of one."""

    registry: Unit
    parameter: str
    attribute: str


class Reach(NamedTuple):
    """What one unit's source is and what it names."""

    digest: str
    units: frozenset[Unit]
    packages: frozenset[str]  # top-level names of other people's packages
    choices: frozenset[Choice]
    words: frozenset[str]  # its attributes and the words of its texts: what may name a method


class Fingerprint(NamedTuple):
    """The code and the distributions that a stage reaches with its arguments."""

    code: dict[str, str]
    versions: dict[str, str]


def fingerprint(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Fingerprint:
    """Follow a stage's function as called with these arguments (by parameter name).

    Raises LadderError for code that cannot be followed or changed since it was imported.
    """
    start = Unit(fn.__module__, fn.__qualname__)
    found: dict[Unit, str] = {}
    packages: set[str] = set()
    words: set[str] = set()
    waiting = [start]
    with _TURN:
        while waiting:
            unit = waiting.pop()
            if unit not in found:
                reach = _reach(unit, tuple(arguments) if unit == start else ())
                memory = _Memory(unit)
                found[unit] = reach.digest + memory.digest
                packages |= reach.packages
                words |= reach.words | memory.words
                waiting += reach.units | memory.units
                waiting += (_chosen(choice, arguments) for choice in reach.choices)
            if not waiting:
                waiting += (each for each in _brought(arguments, words) if each not in found)
        return Fingerprint({str(unit): found[unit] for unit in sorted(found)}, _versions(packages))


def check(fn: Callable[..., Any]) -> None:
    """Refuse, when a stage is defined, what cannot be followed from it.  Raises LadderError."""
    if "<locals>" in fn.__qualname__:
        raise LadderError(f"{fn.__module__}: the stage {fn.__name__} is defined in a function, "
                          "where its process cannot find it; move it to module level")  # fmt: skip
    parameters = tuple(inspect.signature(fn).parameters)
    start = Unit(fn.__module__, fn.__qualname__)
    waiting, seen = [start], {start}
    with _TURN:
        for unit in waiting:
            reach = _reach(unit, parameters if unit == start else ())
            new = (reach.units | {choice.registry for choice in reach.choices}) - seen
            waiting += new
            seen |= new
            # Looked up now, so that processes forked from this one know the versions already.
            _versions(reach.packages)


# By source


@functools.cache
def _reach(unit: Unit, parameters: tuple[str, ...]) -> Reach:
    module = source.read(unit.module)
    statements = source.statements(*unit)
    if not statements:
        raise LadderError(f"{module.path}: `{unit.name}` is not defined at module level, so its "
                          "changes would be missed; define it there")  # fmt: skip
    text = "\n".join(map(ast.unparse, statements))
    nodes = [node for statement in statements for node in ast.walk(statement)]
    within = source.imports_among(nodes, unit.module, module.path)
    names = source.global_names(text, {*module.bindings, *module.imports}) | within.keys()
    imports = {  # of several methods one may mean the module's name, another its own
        name: module.imports.get(name, set()) | within.get(name, set())
        for name in {*module.imports, *within}
    }
    source.refuse_opaque(nodes, names, module, imports)

    chosen = _choices(nodes, source.steady(text, parameters), module, imports)
    targets: set[Unit | str] = set()
    for name in sorted(names - chosen.keys()):
        if name in module.bindings:
            targets.add(Unit(unit.module, name))
        elif name not in imports and not hasattr(builtins, name) and name != "__file__":
            raise LadderError(f"{module.path}: {unit.name} names `{name}`, which the module does "
                              "not define, so it cannot be followed")  # fmt: skip
        for origin in imports.get(name, ()):
            targets |= {*_targets(name, *origin, nodes, module.path)}
    return Reach(
        hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        frozenset(each for each in targets - {unit} if isinstance(each, Unit)),
        frozenset(each for each in targets if isinstance(each, str)),
        frozenset(choice for name in names & chosen.keys() for choice in chosen[name]),
        frozenset(word for node in nodes for word in _words(node)),
    )


def _words(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.Attribute(attr=name):
            return (name,)
        case ast.Constant(value=str(text)):
            return re.findall(r"\w+", text)
    return ()


def _targets(
    name: str, module: str, attribute: str, nodes: list[ast.AST], path: str
) -> Iterator[Unit | str]:
    """Where an imported name leads: project units, or packages of others."""
    whole = f"{module}.{attribute}".strip(".")
    if not source.is_ours(module):
        yield module.partition(".")[0]
    elif attribute and not source.is_module(whole):
        yield from _defined(module, attribute)
    elif not _in_engine(whole):
        # A project module: every use must be an attribute of it, and leads to that attribute.
        for chain in source.chains(nodes, name):
            here, rest = whole, list(chain)
            while rest and source.is_module(f"{here}.{rest[0]}"):
                here = f"{here}.{rest.pop(0)}"
            if not source.is_ours(here):  # the rest of a namespace
                yield here.partition(".")[0]
                continue
            if not rest:
                raise LadderError(f"{path}: the module `{here}` is used as a value, which "
                                  "cannot be followed; name what it is used for")  # fmt: skip
            yield from _defined(here, rest[0])


def _defined(name: str, attribute: str) -> Iterator[Unit | str]:
    """What a project module calls so, through re-exports."""
    if _in_engine(f"{name}.{attribute}"):
        return
    module = source.read(name)
    if attribute in module.bindings:
        yield Unit(name, attribute)
    elif attribute not in module.imports:
        raise LadderError(f"{module.path}: `{attribute}` is not defined there, so it cannot be "
                          "followed")  # fmt: skip
    for further, inner in module.imports.get(attribute, ()):
        if not source.is_ours(further):
            yield further.partition(".")[0]
        elif inner and not source.is_module(f"{further}.{inner}"):
            yield from _defined(further, inner)
        elif not _in_engine(f"{further}.{inner}"):
            raise LadderError(f"{module.path}: the module `{attribute}` is imported from there, "
                              "which cannot be followed; import it where it is used")  # fmt: skip


def _in_engine(name: str) -> bool:
    return f"{name}.".startswith(f"{ENGINE}.")


# By registries


def _choices(
    nodes: list[ast.AST], steady: set[str], module: source.Module, imports: source.Imports
) -> dict[str, set[Choice]]:
    """Registries whose every use here is a subscript by a parameter: name -> the choices."""
    uses: dict[str, set[Choice | None]] = {}
    subscripted: set[ast.AST] = set()
    for node in nodes:  # what holds an expression comes before it
        match node:
            case ast.Subscript(value=ast.Name(id=name) as whole, slice=index):
                subscripted.add(whole)
                uses.setdefault(name, set()).add(_choice(name, index, steady, module, imports))
            case ast.Name(id=name) if node not in subscripted:
                uses.setdefault(name, set()).add(None)
    return {name: {*filter(None, each)} for name, each in uses.items() if None not in each}


def _choice(
    name: str, index: ast.expr, steady: set[str], module: source.Module, imports: source.Imports
) -> Choice | None:
    own = {(module.name, name)} if name in module.bindings else set()
    [*origins] = imports.get(name, own)
    match index:
        case ast.Name(id=parameter):
            attribute = ""
        case ast.Attribute(value=ast.Name(id=parameter), attr=attribute):
            pass
        case _:
            return None
    if len(origins) != 1 or parameter not in steady:
        return None
    place, original = origins[0]
    if source.is_ours(place) and original and not source.is_module(f"{place}.{original}"):
        for target in _defined(place, original):
            if isinstance(target, Unit) and source.entries(source.read(target.module), target.name):
                return Choice(target, parameter, attribute)
    return None


def _chosen(choice: Choice, arguments: Mapping[str, Any]) -> Unit:
    value = arguments[choice.parameter]
    if choice.attribute and not getattr(type(value), "model_config", {}).get("frozen"):
        return choice.registry  # what is not frozen may have changed before it is used
    key = getattr(value, choice.attribute) if choice.attribute else value
    module, name = choice.registry
    written = source.entries(source.read(module), name)
    if len(_in_memory(choice.registry)) != len(written):
        raise LadderError(f"{choice.registry} was changed at run time, which cannot be followed; "
                          f"add the entry in {source.read(module).path}")  # fmt: skip
    if key not in written:
        raise LadderError(f"unknown {choice.attribute or choice.parameter} {key!r}; "
                          f"{choice.registry} has {', '.join(map(str, written))}")  # fmt: skip
    return Unit(module, f"{name}[{key!r}]")


# By arguments


def _brought(arguments: Mapping[str, Any], words: set[str]) -> Iterator[Unit]:
    """Members of project classes that arrive as arguments, where they are mentioned.

    And what is called without a mention: `load` of an input, special methods of anything else.
    """
    for kind, loaded in {(type(value), is_input(value)): None for value in _flat(arguments)}:
        for owner in kind.__mro__:
            if _followed(owner.__module__):
                for name in vars(owner):
                    wanted = name == "load" if loaded else name.startswith("__")
                    unit = Unit(owner.__module__, f"{owner.__qualname__}.{name}")
                    # What @dataclass wrote, say, stands in no source.
                    if (wanted or name in words) and source.statements(*unit):
                        yield unit


def _flat(value: Any) -> Iterator[Any]:
    """A value and all that lies in it."""
    if isinstance(value, BaseModel):
        yield value
        value = dict(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


# By memory


def _in_memory(unit: Unit) -> Any:
    """What a unit is in memory; of a stage, its function.  Ellipsis where nothing can be found."""
    name, _, key = unit.name.partition("[")
    try:
        found = operator.attrgetter(name)(importlib.import_module(unit.module))
        found = found[ast.literal_eval(key[:-1])] if key else found
    except (ImportError, AttributeError, LookupError):
        return ...
    return getattr(found, "fn", ...) if _in_engine(type(found).__module__) else found


class _Memory:
    """What a unit holds in memory: data, more code, and words that may name methods.

    Raises LadderError for code that is not what the source says.
    """

    def __init__(self, unit: Unit) -> None:
        self.units: set[Unit] = set()
        self.words: set[str] = set()
        self._unit = unit
        # Each object by its id, and kept: the id of one that is gone is given to another.
        self._seen: dict[int, tuple[Any, Any]] = {}
        value = _in_memory(unit)
        match source.statements(*unit):
            case [ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() as node]:
                _insist_on_definition(node, value, unit)
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
                return [str(value.dtype), value.tolist()]
            case re.Pattern():
                return value.pattern
            case list() | tuple() | collections.deque():
                return [self._data(item) for item in value]
            case set() | frozenset():
                return sorted(repr(self._data(item)) for item in value)
            case Mapping():
                return [[self._data(key), self._data(item)] for key, item in value.items()]
            case functools.partial():
                return [self._data(each) for each in (value.func, *value.args, value.keywords)]
            case MethodType():
                return [self._data(value.__func__), self._data(value.__self__)]
            case FunctionType() if _followed(value.__globals__["__name__"]):
                return self._function(value)
            case type() if _followed(value.__module__):
                return self._class(value)
            case _ if _followed(type(value).__module__):
                return [self._data(type(value)), self._data(_state(value))]
            case FunctionType():  # a wrapper by others: what it holds is followed, its state not
                self._data([cell.cell_contents for cell in value.__closure__ or ()])
        return ...

    def _function(self, function: FunctionType) -> list[Any]:
        module = source.read(function.__globals__["__name__"])
        code = function.__code__
        # What a function made at run time is stands in the source of the one that made it.
        name = code.co_qualname.partition(".<locals>")[0].removesuffix(".<lambda>")
        if name != "<lambda>":
            self.units |= {Unit(module.name, name)} - {self._unit}
        elif not self._holds_line(code.co_firstlineno):  # and it has no name to follow
            source.refuse("a lambda that is put elsewhere", module.path, code.co_firstlineno)
        return [f"{module.name}.{name}", *self._parts(function, module)]

    def _parts(self, function: FunctionType, module: source.Module) -> list[Any]:
        """The data that a function holds, which is held against its source."""
        code = function.__code__
        if source.essence(code) not in module.codes.get(code.co_qualname, ()):
            raise LadderError(f"{module.path} changed after it was imported ({code.co_qualname}); "
                              "start again")  # fmt: skip
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        held = [function.__defaults__, function.__kwdefaults__, *cells]
        return [self._data(each) for each in held if each is not None]

    def _class(self, kind: type) -> list[Any]:
        module = source.read(kind.__module__)
        name = kind.__qualname__.partition(".<locals>")[0]
        self.units |= {Unit(module.name, name)} - {self._unit}
        found = [f"{module.name}.{name}"]
        for attribute, member in vars(kind).items():
            bare = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)))
            if isinstance(bare, FunctionType):
                if bare.__code__.co_filename == module.path:  # not one that @dataclass wrote
                    found += self._parts(bare, module)
            elif not attribute.startswith("__") and (data := self._data(member)) is not ...:
                found += [attribute, data]
        return found

    def _holds_line(self, number: int) -> bool:
        nodes = source.statements(*self._unit)
        return any(node.lineno <= number <= (node.end_lineno or number) for node in nodes)


def _short(data: Any) -> str:
    return hashlib.sha256(repr(data).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    members = [item for kind in type(value).__mro__ for item in vars(kind).items()]
    slots = [name for name, each in members if isinstance(each, MemberDescriptorType)]
    return {name: getattr(value, name, ...) for name in slots} | getattr(value, "__dict__", {})


def _followed(module: str) -> bool:
    return source.is_ours(module) and not _in_engine(module)


def _insist_on_definition(node: ast.stmt, value: Any, unit: Unit) -> None:
    """What a definition made must still be there, and in a class each of its methods."""
    match node:
        case ast.FunctionDef(decorator_list=[]) | ast.ClassDef(decorator_list=[]):
            names = (getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
            if value is not ... and names != unit:
                raise LadderError(f"{unit} was replaced at run time, which cannot be followed")
    if isinstance(node, ast.ClassDef) and isinstance(value, type):
        for inner in node.body:
            member = vars(value).get(getattr(inner, "name", ""), ...)
            if isinstance(member, FunctionType) and _followed(member.__module__):
                _insist_on_definition(inner, member, Unit(unit.module, f"{unit.name}.{inner.name}"))  # type: ignore[attr-defined] # just looked


# Versions


@functools.cache
def _version(package: str) -> dict[str, str]:
    """The versions of the distributions that bring the package which Python's search finds."""
    found = source.installed(package)
    here = {folder for home in source.homes(package) for folder in home} & found.keys()
    # Of two with one name, the search finds the one in the folder that comes first.
    each = [one for folder in found if folder in here or not here for one in found[folder]]
    first = {one.name: one for one in reversed(each)}
    return {name: _release(first[name]) for name in sorted(first)}


def _release(distribution: Distribution) -> str:
    """A distribution's version, and what its files are where a version does not say that.

    The local part (`+cpu`, `+cu126`) names a build of the same release: a shared store serves
    machines with and without a GPU.
    """
    version = str(distribution.version).partition("+")[0]
    origin = distribution.read_text("direct_url.json") or ""
    if not re.search(r'"(dir|vcs)_info"', origin):
        return version
    # Installed from somebody's folder, it may be edited and installed again as the same version.
    lines = (distribution.read_text("RECORD") or "").splitlines()
    files = "\n".join(sorted(line for line in lines if line.partition(",")[0].endswith(".py")))
    return f"{version} ({hashlib.sha256(files.encode()).hexdigest()[:8]})"


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in sorted({*packages} - sys.stdlib_module_names):
        found |= _version(package)
    return found
