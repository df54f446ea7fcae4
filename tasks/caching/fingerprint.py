"""What code a stage reaches: every function, class and constant of this project that it names.

The source is followed by name, never run: from the stage's function through module globals,
imports, aliases and attributes of project modules, to the end.  A registry, a dict or tuple
written out at module level and subscripted by a parameter (`LOSSES[recipe.loss]`), is followed
into the chosen entry alone.  Other people's code counts by its distribution's version.  The engine
itself (`tasks.caching`) is not followed: `store.FORMAT` stands for it.

What is hashed is the syntax tree as text, without comments, docstrings, annotations of functions
and formatting.  What cannot be followed is refused where it stands.  Before a fingerprint is used,
the functions in memory are held against the source on disk, so that an edit made after the import
can never give a new key to what old code computed.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import operator
import symtable
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from pydantic import BaseModel

from tasks.caching.basics import LadderError
from tasks.caching.plan import is_input
from tasks.caching.store import digest_of

ENGINE = "tasks.caching"
_OWN = ("tasks", "flows")
_OPAQUE = {"eval", "exec", "compile", "globals", "locals", "vars", "__import__"}
_DYNAMIC = {"getattr", "setattr", "delattr"}
# Code that reaches other code by these, or reads what is not fingerprinted.
_HIDDEN = {
    "__dict__",
    "__doc__",
    "__annotations__",
    "__globals__",
    "__subclasses__",
    "import_module",
}
_LOADERS = {"importlib.import_module", "importlib.reload", "sys.modules", "builtins.__import__",
            "builtins.eval", "builtins.exec"}  # fmt: skip


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
    """What one unit is and what it names."""

    digest: str
    units: frozenset[Unit]
    packages: frozenset[str]  # top-level names of other people's packages
    choices: frozenset[Choice]
    attributes: frozenset[str]  # names of all attributes it mentions


class Fingerprint(NamedTuple):
    """The code and the distributions that a stage reaches with its arguments."""

    code: dict[str, str]
    versions: dict[str, str]


_TURN = threading.Lock()  # Python 3.11 counts the depth of syntax trees across threads


def fingerprint(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Fingerprint:
    """Follow a stage's function as called with these arguments (by parameter name).

    Raises LadderError for code that cannot be followed or changed since it was imported.
    """
    with _TURN:
        return _followed(fn, arguments)


def _followed(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> Fingerprint:
    start = Unit(fn.__module__, fn.__qualname__)
    found: dict[Unit, str] = {}
    packages: set[str] = set()
    attributes: set[str] = set()
    waiting = [start]
    while waiting:
        while waiting:
            unit = waiting.pop()
            if unit in found:
                continue
            reach = _reach(unit, tuple(arguments) if unit == start else ())
            _check_in_memory(unit)
            found[unit] = reach.digest + _live_value(unit)
            packages |= reach.packages
            attributes |= reach.attributes
            waiting += reach.units
            waiting += (_chosen(choice, arguments) for choice in reach.choices)
        waiting += [unit for unit in _methods(arguments, attributes) if unit not in found]
    code = {str(unit): digest for unit, digest in sorted(found.items())}
    return Fingerprint(code, _versions(packages))


def check(fn: Callable[..., Any]) -> None:
    """Refuse, when a stage is defined, what cannot be followed from it.  Raises LadderError."""
    if "<locals>" in fn.__qualname__:
        raise LadderError(f"{fn.__module__}: the stage {fn.__name__} is defined in a function, "
                          "where its process cannot find it; move it to module level")  # fmt: skip
    parameters = tuple(inspect.signature(fn).parameters)
    start = Unit(fn.__module__, fn.__qualname__)
    seen: set[Unit] = set()
    waiting = [start]
    while waiting:
        unit = waiting.pop()
        if unit not in seen:
            seen.add(unit)
            reach = _reach(unit, parameters if unit == start else ())
            waiting += reach.units
            waiting += (choice.registry for choice in reach.choices)
            # Looked up now, so that processes forked from this one know the versions already.
            _versions(set(reach.packages))


# Modules


Imports = dict[str, set[tuple[str, str]]]  # name -> each (module, attribute or "") it may come from


class _Module(NamedTuple):
    name: str
    path: str
    tree: ast.Module
    code: CodeType
    bindings: dict[str, list[ast.stmt]]  # name -> the top-level statements that make or change it
    imports: Imports


@functools.cache
def _module(name: str) -> _Module:
    path = _origin(name)
    source = Path(path).read_bytes()
    tree = ast.parse(source, path)
    bindings: dict[str, list[ast.stmt]] = {}
    imports: Imports = {}
    for statement in tree.body:
        for node in _import_nodes(statement):
            _add(imports, _imported(node, name, path))
    for statement in tree.body:
        for bound in _touched(statement):
            bindings.setdefault(bound, []).append(statement)
    return _Module(name, path, tree, compile(source, path, "exec"), bindings, imports)


def _origin(name: str) -> str:
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded:
        return str(loaded)
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise LadderError(f"the source of {name} cannot be found, so its changes would be missed")
    return spec.origin


@functools.cache
def _is_ours(name: str) -> bool:
    """Whether a module is project code: not the standard library, not an installed distribution."""
    top = name.partition(".")[0]
    if top in _OWN:
        return True
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    try:
        origin = Path(_origin(top)).resolve()
    except (LadderError, ValueError):
        return False
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return not any(origin.is_relative_to(folder) for folder in installed)


def _import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a top-level statement; those inside functions belong to the functions."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from _import_nodes(child)


def _imported(
    node: ast.Import | ast.ImportFrom, module: str, path: str
) -> dict[str, tuple[str, str]]:
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0],
                "",
            )
            for alias in node.names
        }
    source = node.module or ""
    if node.level:
        # A package's own module counts as one of its modules.
        inner = f"{module}." if Path(path).name == "__init__.py" else module
        package = inner.rsplit(".", node.level)[0]
        source = f"{package}.{source}" if source else package
    if any(alias.name == "*" for alias in node.names):
        raise LadderError(f"{path}:{node.lineno}: `from {source} import *` cannot be followed; "
                          "import the names it uses")  # fmt: skip
    return {alias.asname or alias.name: (source, alias.name) for alias in node.names}


def _add(imports: Imports, more: dict[str, tuple[str, str]]) -> None:
    """A name that several imports bind, as in `try: ... except ImportError:`, may be any."""
    for name, source in more.items():
        imports[name] = imports.get(name, set()) | {source}


def _touched(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement makes or may change."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Import() | ast.ImportFrom():
            return set()
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))]):
            return {name}  # LOSSES["l1"] = l1 changes LOSSES, not l1
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return set()  # the script's entry is no part of the module
    # Anything else, such as a loop that fills a dict, may change all it names.
    found = set()
    for node in ast.walk(statement):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.Name(id=name):
                found.add(name)
    for conditional in _import_nodes(statement):
        found |= {each.asname or each.name.partition(".")[0] for each in conditional.names}
    return found


# Units


@functools.cache
def _reach(unit: Unit, parameters: tuple[str, ...]) -> Reach:
    module = _module(unit.module)
    nodes = _nodes(module, unit)
    statements = [_cleaned(node) for node in nodes]
    text = "\n".join(ast.unparse(statement) for statement in statements)
    names = _global_names(text, {*module.bindings, *module.imports})
    for original in nodes:
        _refuse_opaque(original, names, module)
    local: Imports = {}
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _add(local, _imported(node, unit.module, module.path))
    names |= set(local)
    imports = {  # of several methods one may mean the module's name, another its own
        name: module.imports.get(name, set()) | local.get(name, set())
        for name in {*module.imports, *local}
    }
    units: set[Unit] = set()
    packages: set[str] = set()
    choices: set[Choice] = set()
    chosen = _choices(statements, module, imports, parameters)
    for name in sorted(names):
        if name in chosen:
            choices |= chosen[name]
            continue
        if name in imports:
            for target in _follow(name, imports[name], statements, module):
                if isinstance(target, Unit):
                    units.add(target)
                else:
                    packages.add(target)
        if name in module.bindings:
            units.add(Unit(unit.module, name))
        elif name not in imports and not hasattr(builtins, name) and name != "__file__":
            raise LadderError(f"{module.path}: {unit.name} names `{name}`, which the module does "
                              "not define, so it cannot be followed")  # fmt: skip
    attributes = {
        attribute
        for statement in statements
        for node in ast.walk(statement)
        for attribute in _mentioned(node)
    }
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Reach(
        digest,
        frozenset(units - {unit}),
        frozenset(packages),
        frozenset(choices),
        frozenset(attributes),
    )


def _mentioned(node: ast.AST) -> Iterator[str]:
    """The attribute that an expression reads, also by `getattr` with the name written out."""
    match node:
        case ast.Attribute(attr=name):
            yield name
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            yield name


def _nodes(module: _Module, unit: Unit) -> list[ast.stmt]:
    """The statements a unit consists of: those that bind the name, a method, a registry's entry."""
    name, _, key = unit.name.partition("[")
    if key:
        entry = _entries(module, name)[ast.literal_eval(key[:-1])]
        return [ast.copy_location(ast.Expr(entry), entry)]
    top, *inner = name.replace(".<locals>", "").split(".")
    nodes = module.bindings.get(top, [])
    for part in inner:
        nodes = [
            child
            for node in nodes
            for child in ast.walk(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        ]
    if not nodes:
        raise LadderError(f"{module.path}: `{unit.name}` is not defined at module level, so its "
                          "changes would be missed; define it there")  # fmt: skip
    return nodes


class _Cleaner(ast.NodeTransformer):
    """Drops what changes no result: docstrings, and annotations of functions and variables.

    A class keeps the annotations in its body, which define the fields of a dataclass or model.
    """

    def _body(self, node: Any, within_class: bool) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        outer, self.within_class = self.within_class, within_class
        self.generic_visit(node)
        self.within_class = outer
        return node

    within_class = False
    fields_only = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self._body(node, within_class=False)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        node.returns = None
        return self._body(node, within_class=False)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        # A tuple's or dataclass's annotations name its fields; their types do nothing.
        kinds = [ast.unparse(each) for each in (*node.bases, *node.decorator_list)]
        self.fields_only = any("NamedTuple" in kind or "dataclass" in kind for kind in kinds)
        return self._body(node, within_class=True)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if self.within_class:
            if self.fields_only:
                node.annotation = ast.Constant(ast.unparse(node.annotation))
            return node
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def _cleaned(node: ast.stmt) -> Any:
    # A copy: the module's own tree keeps its line numbers and annotations.
    text = ast.unparse(node)
    # A bare annotation binds nothing, and nothing of it is left.
    cleaned: Any = _Cleaner().visit(ast.parse(text).body[0]) or ast.Pass()
    for inner in ast.walk(cleaned):
        if getattr(inner, "body", None) == [] and isinstance(inner, ast.stmt):
            inner.body = [ast.Pass()]  # type: ignore[attr-defined] # it has one: just looked
    return ast.fix_missing_locations(cleaned)


def _global_names(text: str, module: set[str]) -> set[str]:
    """The names that a piece of module-level code takes from its module, by Python's own rules."""
    top = symtable.symtable(text, "<unit>", "exec")
    names = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        if table.get_type() == "class":  # its body may read a module's name before it binds it
            names |= module & {each.get_name() for each in table.get_symbols()}
    return names


def _refuse_opaque(statement: ast.stmt, names: set[str], module: _Module) -> None:
    named: set[ast.AST] = set()  # `getattr` where the attribute is written out
    for node in ast.walk(statement):
        match node:
            case ast.Global():
                _refuse(f"`{ast.unparse(node)}`", module, node.lineno)
            case ast.Call(func=ast.Name(id=name) as function, args=[_, ast.Constant(), *_]):
                named.add(function)
            case ast.Call(func=ast.Name(id=name)) if name in _DYNAMIC:
                _refuse(f"`{ast.unparse(node)}`", module, node.lineno)
            case ast.Name(id=name) if name in names and name not in module.bindings:
                sources = {f"{source}.{name}" for source, name in module.imports.get(name, ())}
                computed = name in _DYNAMIC and node not in named
                if name in _OPAQUE or sources & _LOADERS or computed:
                    _refuse(f"`{name}`", module, node.lineno)
            case ast.Attribute(attr=attribute):
                if attribute in _HIDDEN or ast.unparse(node) in _LOADERS:
                    _refuse(f"`{ast.unparse(node)}`", module, node.lineno)
            case ast.ImportFrom(module=source, names=names_):
                for each in names_:
                    if f"{source}.{each.name}" in _LOADERS:
                        _refuse(f"`{ast.unparse(node)}`", module, node.lineno)


def _refuse(what: str, module: _Module, line: int) -> None:
    raise LadderError(f"{module.path}:{line}: {what} cannot be followed, so a change behind it "
                      "would be missed; name the function, or put it in a dict")  # fmt: skip


def _follow(
    name: str, sources: set[tuple[str, str]], statements: list[ast.stmt], module: _Module
) -> Iterator[Unit | str]:
    """Where an imported name leads: project units, or packages of others."""
    for source, attribute in sources:
        yield from _follow_one(name, source, attribute, statements, module)


def _follow_one(
    name: str, source: str, attribute: str, statements: list[ast.stmt], module: _Module
) -> Iterator[Unit | str]:
    if not _is_ours(source):
        yield source.partition(".")[0]
        return
    if _in_engine(f"{source}.{attribute}"):
        return
    if attribute and not _is_module(f"{source}.{attribute}"):
        yield from _unit(source, attribute)
        return
    # A project module: every use must be an attribute of it, and leads to that attribute.
    prefix = f"{source}.{attribute}" if attribute else source
    for statement in statements:
        for chain in _chains(statement, name):
            here = prefix
            rest = list(chain)
            while rest and _is_module(f"{here}.{rest[0]}"):
                here = f"{here}.{rest.pop(0)}"
            if not rest:
                raise LadderError(f"{module.path}: the module `{here}` is used as a value, which "
                                  "cannot be followed; name what it is used for")  # fmt: skip
            if not _in_engine(f"{here}."):
                yield from _unit(here, rest[0])


def _unit(source: str, attribute: str) -> Iterator[Unit | str]:
    """A project module's name, through re-exports."""
    module = _module(source)
    if attribute in module.bindings:
        yield Unit(source, attribute)
    elif attribute in module.imports:
        for further, name in module.imports[attribute]:
            if not _is_ours(further):
                yield further.partition(".")[0]
            elif name and not _in_engine(f"{further}.{name}"):
                yield from _unit(further, name)
    else:
        raise LadderError(f"{module.path}: `{attribute}` is not defined there, so it cannot be "
                          "followed")  # fmt: skip


def _in_engine(name: str) -> bool:
    return f"{name}.".startswith(f"{ENGINE}.")


@functools.cache
def _is_module(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _chains(statement: ast.AST, name: str) -> Iterator[tuple[str, ...]]:
    """How a name is used: `losses.one_hot(...)` gives ("one_hot",), a bare `losses` gives ()."""

    def visit(node: ast.AST, chain: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(node, ast.Attribute):
            yield from visit(node.value, (node.attr, *chain))
        elif isinstance(node, ast.Name):
            if node.id == name:
                yield chain
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, ())

    return visit(statement, ())


# Registries


def _choices(
    statements: list[ast.stmt],
    module: _Module,
    imports: Imports,
    parameters: tuple[str, ...],
) -> dict[str, set[Choice]]:
    """Registries whose every use here is a subscript by a parameter: name -> the choices."""
    uses: dict[str, list[Choice | None]] = {}
    subscripted: set[ast.Name] = set()
    for statement in statements:
        for node in ast.walk(statement):
            match node:
                case ast.Subscript(value=ast.Name(id=name) as registry, slice=index):
                    if found := _registry(name, module, imports):
                        subscripted.add(registry)
                        choice = _choice(found, index, parameters)
                        uses.setdefault(name, []).append(choice)
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in uses and node not in subscripted:
                uses[node.id].append(None)  # also used whole
    return {
        name: {choice for choice in choices if choice}
        for name, choices in uses.items()
        if all(choices)
    }


def _registry(name: str, module: _Module, imports: Imports) -> Unit | None:
    (source, attribute), *others = imports.get(name, {(module.name, name)})
    if others:
        return None
    if not _is_ours(source) or not attribute or _is_module(f"{source}.{attribute}"):
        return None
    if name not in imports and name not in module.bindings:
        return None
    target = next(_unit(source, attribute))
    if isinstance(target, Unit) and _entries(_module(target.module), target.name):
        return target
    return None


def _choice(registry: Unit, index: ast.expr, parameters: tuple[str, ...]) -> Choice | None:
    match index:
        case ast.Name(id=name) if name in parameters:
            return Choice(registry, name, "")
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in parameters:
            return Choice(registry, name, attribute)
    return None


def _entries(module: _Module, name: str) -> dict[Any, ast.expr]:
    """The entries of a registry written out in one statement; empty for anything else."""
    match module.bindings.get(name):
        case [ast.Assign(value=value)] | [ast.AnnAssign(value=value)]:
            match value:
                case ast.Dict(keys=keys, values=values) if all(
                    isinstance(key, ast.Constant) for key in keys
                ):
                    return {
                        key.value: entry  # type: ignore[union-attr] # a Constant: just looked
                        for key, entry in zip(keys, values, strict=True)
                    }
                case ast.Tuple(elts=entries) | ast.List(elts=entries):
                    return dict(enumerate(entries))
    return {}


def _chosen(choice: Choice, arguments: Mapping[str, Any]) -> Unit:
    value = arguments[choice.parameter]
    key = getattr(value, choice.attribute) if choice.attribute else value
    module, name = choice.registry
    written = _entries(_module(module), name)
    live = getattr(sys.modules.get(module), name, None)
    if live is not None and len(live) != len(written):
        raise LadderError(f"{choice.registry} was changed at run time, which cannot be followed; "
                          f"add the entry in {_module(module).path}")  # fmt: skip
    if key not in written:
        raise LadderError(f"unknown {choice.attribute or choice.parameter} {key!r}; "
                          f"{choice.registry} has {', '.join(map(str, written))}")  # fmt: skip
    return Unit(module, f"{name}[{key!r}]")


# Arguments that bring code with them


def _methods(arguments: Mapping[str, Any], attributes: set[str]) -> Iterator[Unit]:
    """Methods and properties of project classes that arrive as arguments and are mentioned."""
    for value in _flat(arguments):
        if is_input(value):
            continue  # loaded by the engine; the stage sees what is loaded
        for owner in type(value).__mro__:
            if _is_ours(owner.__module__) and not _in_engine(owner.__module__):
                for name, member in vars(owner).items():
                    # Operators, loops and `with` call special methods without naming them.
                    special = name.startswith("__") and _written_out(member, owner.__module__)
                    named = name in attributes and _is_method(member)
                    if special or named:
                        yield Unit(owner.__module__, f"{owner.__qualname__}.{name}")


def _is_method(member: Any) -> bool:
    kinds = FunctionType | property | classmethod | staticmethod
    return isinstance(member, kinds) or hasattr(member, "func")


def _written_out(member: Any, module: str) -> bool:
    """Whether a function stands in its module's source: one that @dataclass wrote does not."""
    return isinstance(member, FunctionType) and member.__code__.co_filename == _module(module).path


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


# Versions


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.cache
def _version(package: str) -> dict[str, str]:
    names = sorted(set(_distributions().get(package, [])))
    # The local part (`+cpu`, `+cu126`) names a build of the same release: a shared store serves
    # machines with and without a GPU.
    return {name: importlib.metadata.version(name).partition("+")[0] for name in names}


def _versions(packages: set[str]) -> dict[str, str]:
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in sorted(packages - sys.stdlib_module_names):
        found |= _version(package)
    return found


# The code in memory


def _check_in_memory(unit: Unit) -> None:
    """Hold a function or class in memory against the source its fingerprint was made from."""
    if "[" in unit.name or "<locals>" in unit.name:
        return
    loaded = sys.modules.get(unit.module)
    try:
        live = operator.attrgetter(unit.name)(loaded)
    except AttributeError:
        return  # still being imported
    module = _module(unit.module)
    match module.bindings.get(unit.name, [])[-1:]:
        case [ast.FunctionDef(decorator_list=[])] if getattr(live, "__module__", "") != unit.module:
            raise LadderError(f"{unit} was replaced at run time, which cannot be followed")
    for function in _functions(live, unit.module):
        source = _find_code(module.code, function.__qualname__.split("."))
        if source is None or _essence(source) != _essence(function.__code__):
            raise LadderError(f"{module.path} changed after it was imported ({unit.name}); "
                              "start again")  # fmt: skip


def _live_value(unit: Unit) -> str:
    """The digest of a constant's value, which its source may not tell: a template read from a file.

    Empty for anything but plain data.
    """
    value = getattr(sys.modules.get(unit.module), unit.name, None)
    try:
        return f"+{digest_of(value)[:16]}" if value is not None else ""
    except (TypeError, ValueError):
        return ""


def _functions(live: Any, module: str) -> Iterator[FunctionType]:
    live = inspect.unwrap(getattr(live, "fn", live))
    if isinstance(live, FunctionType) and live.__module__ == module:
        yield live
    elif isinstance(live, type) and live.__module__ == module:
        for member in vars(live).values():
            if _written_out(member, module):
                yield member


def _find_code(code: CodeType, path: list[str]) -> CodeType | None:
    if not path:
        return code
    if path[0] == "<locals>":
        return _find_code(code, path[1:])
    # The last definition of a name is the one that counts.
    for constant in reversed(code.co_consts):
        if isinstance(constant, CodeType) and constant.co_name == path[0]:
            return _find_code(constant, path[1:])
    return None


def _essence(code: CodeType) -> tuple[Any, ...]:
    """What a code object does, without where it stands."""
    constants = tuple(
        _essence(item) if isinstance(item, CodeType) else item for item in code.co_consts
    )
    return code.co_code, constants, code.co_names, code.co_varnames
