"""What one piece of a module reaches by its source: further pieces, and packages of others.

A piece is a *unit*, a name of a project module.  The names it takes from its module lead to further
units, through imports, aliases and attributes of modules, or to packages of others.  A registry, a
dict or tuple written out at module level and subscripted by a parameter (`LOSSES[recipe.loss]`),
leads to the chosen entry alone.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import hashlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.caching import source, syntax
from tasks.caching.basics import LadderError
from tasks.caching.origins import is_followed, is_module, is_ours
from tasks.caching.syntax import Imports


class Unit(NamedTuple):
    """A name of a project module; an entry of a registry is written `LOSSES['cross_entropy']`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_PYTHON_S, _DATA = ("sys", "os", "platform"), bool | int | float | str | tuple
# The texts in each unit that has been reached here, with the file that it is in
TEXTS: dict[str, tuple[str, frozenset[str]]] = {}
UNORDERED: set[str] = set()  # and those that make sets, whose order is another in each process
_SETS = re.compile(r"\b(set|frozenset|hash)\b|\.keys\(\) [-&|^]|[-&|^] [\w.]+\.keys\(\)")


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
    reads: bool  # whether it may look at annotations and docstrings


@functools.cache
def reach(unit: Unit, parameters: tuple[str, ...], *whole: bool) -> Reach:
    """What a unit is and names; of a stage's own function, with its parameters.

    whole: with the annotations and docstrings that mostly do nothing.

    Raises LadderError, with the line, for what cannot be followed.
    """
    module = source.read(unit.module, *whole)
    statements = source.statements(*unit, *whole)
    if not statements:
        raise LadderError(f"{module.path}: `{unit.name}` is not defined at module level, so its "
                          "changes would be missed; define it there")  # fmt: skip
    text = "\n".join(map(ast.unparse, statements))
    nodes = syntax.walked(statements)
    within = syntax.imports_among(nodes, unit.module, module.path)
    known = {*module.bindings, *module.imports}
    names = syntax.global_names(text, known) | within.keys() | (known & _quoted(nodes))
    imports = {  # of several methods one may mean the module's name, another its own
        name: module.imports.get(name, set()) | within.get(name, set())
        for name in {*module.imports, *within}
    }
    source.refuse_opaque(nodes, names, module, imports)
    code, text = text, text + "".join(_of_python(nodes, names, imports))
    constants = (each.value for each in nodes if isinstance(each, ast.Constant))
    TEXTS[str(unit)] = module.path, frozenset(each for each in constants if isinstance(each, str))
    if not {ast.Set, ast.SetComp}.isdisjoint(map(type, nodes)) or _SETS.search(text):
        UNORDERED.add(str(unit))

    steady = syntax.steady(code, parameters)
    chosen = _choices(nodes, steady, module, imports) if steady else {}
    targets: set[Unit | str] = set()
    for name in sorted(names - chosen.keys()):
        if name in module.bindings:
            targets |= {Unit(unit.module, name)} if is_followed(unit.module, name) else set()
        elif name not in imports and not hasattr(builtins, name) and name != "__file__":
            raise LadderError(f"{module.path}: {unit.name} names `{name}`, which the module does "
                              "not define, so it cannot be followed")  # fmt: skip
        for origin in imports.get(name, ()):
            targets |= {*_targets(name, *origin, nodes, module.path)}
    brought = {unit.module} | {
        place for origins in within.values() for place, _ in origins if is_ours(place)
    }
    targets |= {Unit(each, source.WHOLE) for place in brought for each in source.changers(place)}
    return Reach(
        hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        frozenset(each for each in targets - {unit} if isinstance(each, Unit)),
        frozenset(each for each in targets if isinstance(each, str)),
        frozenset(choice for name in names & chosen.keys() for choice in chosen[name]),
        frozenset(
            word
            for node in nodes
            if isinstance(node, ast.Attribute | ast.Constant)
            for word in _words(node)
        ),
        syntax.may_read(nodes, {name: imports.get(name, set()) for name in names}),
    )


def _of_python(nodes: list[ast.AST], names: set[str], imports: Imports) -> Iterator[str]:
    """What data of Python's own modules is here, such as `sys.platform`: no version tells it."""
    for name in sorted(names & imports.keys()):
        for place, inner in sorted(imports[name]):
            for chain in syntax.chains(nodes, name) if place in _PYTHON_S else ():
                whole = ".".join(filter(None, (place, inner, *chain)))
                with contextlib.suppress(AttributeError, ImportError):
                    if isinstance(value := pkgutil.resolve_name(whole), _DATA):
                        yield f"\n{whole} {value!r}"


def _quoted(nodes: list[ast.AST]) -> set[str]:
    """The names in the texts of annotations, which pydantic looks up: `child: "Node"`."""
    kept = [each.annotation for each in nodes if type(each) is ast.AnnAssign]
    return {word for each in syntax.walked(kept) if isinstance(each, ast.Constant)
            for word in _words(each)}  # fmt: skip


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
    if not is_ours(module):
        yield module.partition(".")[0]
    elif attribute and not is_module(whole):
        yield from defined(module, attribute)
    else:
        # A project module: every use must be an attribute of it, and leads to that attribute.
        for chain in syntax.chains(nodes, name):
            here, rest = whole, list(chain)
            while rest and is_module(f"{here}.{rest[0]}"):
                here = f"{here}.{rest.pop(0)}"
            if not is_ours(here):  # the rest of a namespace
                yield here.partition(".")[0]
                continue
            if not rest:
                raise LadderError(f"{path}: the module `{here}` is used as a value, which "
                                  "cannot be followed; name what it is used for")  # fmt: skip
            yield from defined(here, rest[0])


def defined(name: str, attribute: str) -> Iterator[Unit | str]:
    """What a module calls so: of a project's, through re-exports; of others', their package."""
    if not is_ours(name):
        yield name.partition(".")[0]
    if not is_followed(name, attribute):
        return
    module = source.read(name)
    if attribute in module.bindings:
        yield Unit(name, attribute)
    elif attribute not in module.imports:
        raise LadderError(f"{module.path}: `{attribute}` is not defined there, so it cannot be "
                          "followed")  # fmt: skip
    for further, inner in module.imports.get(attribute, ()):
        if not is_ours(further):
            yield further.partition(".")[0]
        elif inner and not is_module(f"{further}.{inner}"):
            yield from defined(further, inner)
        else:
            raise LadderError(f"{module.path}: the module `{attribute}` is imported from there, "
                              "which cannot be followed; import it where it is used")  # fmt: skip


# By registries


def _choices(
    nodes: list[ast.AST], steady: set[str], module: source.Module, imports: Imports
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
    name: str, index: ast.expr, steady: set[str], module: source.Module, imports: Imports
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
    if is_ours(place) and original and not is_module(f"{place}.{original}"):
        for target in defined(place, original):
            if isinstance(target, Unit) and source.entries(source.read(target.module), target.name):
                return Choice(target, parameter, attribute)
    return None
