"""What a project module's source says: what binds a name, where imports lead, what a piece names.

The source is read and never run.  A piece of it counts as the text of its syntax tree, without
comments, docstrings, annotations of functions and formatting.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import re
import symtable
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from tasks.caching.basics import LadderError

OWN = ("tasks", "flows")
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# What reaches code, or changes it, by a name that is computed.
_OPAQUE = {"importlib.import_module", "importlib.reload", "sys.modules"} | {
    f"builtins.{name}"
    for name in ("eval", "exec", "compile", "globals", "locals", "vars", "__import__",
                 "setattr", "delattr")
}  # fmt: skip
_BY_TEXT = {"builtins.getattr", "operator.attrgetter", "operator.methodcaller"}
_HIDDEN = {"__dict__", "__doc__", "__annotations__", "__globals__", "__subclasses__"}

FOLLOWED: set[str] = set()  # the modules that have been read

Imports = dict[str, set[tuple[str, str]]]  # name -> each (module, attribute or "") it may come from


class Module(NamedTuple):
    """A project module, without what changes no result."""

    name: str
    path: str
    bindings: dict[str, list[ast.stmt]]  # name -> the top-level statements that make or change it
    imports: Imports
    codes: dict[str, set[CodeType]]  # qualified name -> what functions of that name do


@functools.cache
def read(name: str) -> Module:
    """Read a module's source.  Raises LadderError where there is none or it imports `*`."""
    FOLLOWED.add(name)
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = None if loaded else importlib.util.find_spec(name)
    path = str(loaded or (spec and spec.origin))
    if not path.endswith(".py"):
        raise LadderError(f"the source of {name} cannot be found, so its changes would be missed")
    source = _bytes(name, path)
    tree = cleaned(ast.parse(source, path))
    imports = imports_among(_outside_functions(tree), name, path)
    bindings: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for bound in _touched(statement, imports):
            bindings.setdefault(bound, []).append(statement)
    codes: dict[str, set[CodeType]] = {}
    waiting = [compile(source, path, "exec", dont_inherit=True)]
    for code in waiting:
        codes.setdefault(code.co_qualname, set()).add(essence(code))
        waiting += (each for each in code.co_consts if isinstance(each, CodeType))
    return Module(name, path, bindings, imports, codes)


def _bytes(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except NotADirectoryError:  # it lies in a zip archive
        loader: Any = importlib.util.find_spec(name).loader  # type: ignore[union-attr] # just found
        data: bytes = loader.get_data(path)
        return data


def essence(code: CodeType) -> CodeType:
    """What a code object does, without where it stands."""
    constants = (essence(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_firstlineno=1, co_linetable=b"", co_consts=tuple(constants))


@functools.cache
def distributions() -> Mapping[str, list[Distribution]]:
    """The installed distributions that bring a top-level package: there may be several.

    As `importlib.metadata.packages_distributions` says it, without a Path for each of their files,
    and without the names of those that nobody asks for.
    """
    found: dict[str, list[Distribution]] = {}
    for each in importlib.metadata.distributions():
        for top in _tops(each):
            found.setdefault(top, []).append(each)
    return found


def _tops(each: Distribution) -> Iterable[str]:
    if tops := (each.read_text("top_level.txt") or "").split():
        return tops
    lines = (each.read_text("RECORD") or "").splitlines()
    if not lines:  # Linux distributions leave that list out
        return [re.sub(r"[-.]+", "_", each.name or "")]
    paths = [line.rsplit(",", 2)[0].strip('"') for line in lines]
    return {p.partition("/")[0].partition(".")[0] for p in paths if p.endswith((".py", ".so"))}


@functools.cache
def installed(top: str) -> Mapping[Path, list[Distribution]]:
    """Other people's distributions that bring a top-level package, by the folder they lie in.

    What is installed as editable is not among them: its sources are somebody's to edit.
    """
    found: dict[Path, list[Distribution]] = {}
    for each in distributions().get(top, []):
        if not _is_editable(each):
            found.setdefault(_folder(each), []).append(each)
    return found


def _folder(each: Distribution) -> Path:
    return Path(str(each.locate_file(""))).resolve()


def _is_editable(each: Distribution) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        if origin := json.loads(each.read_text("direct_url.json") or "{}"):
            return bool(origin.get("dir_info", {}).get("editable"))
    if each.read_text("METADATA") or each.read_text("installed-files.txt"):
        return False
    # An .egg-info stands in a site folder when installed, and beside the sources in development.
    return not _folder(each).name.endswith(("-packages", ".egg"))


def homes(name: str) -> list[set[Path]]:
    """The folders in which Python's search finds a module: one, of a namespace several.

    Each as it is written and with its links followed, which may be another.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    paths = [Path(spec.origin)] if spec.origin and spec.has_location else []
    inner = spec.submodule_search_locations
    if inner is not None and not paths:
        paths = [Path(each, "__init__.py") for each in inner]
    upwards = name.count(".") + (inner is not None)
    return [
        {each.parents[upwards].resolve() for each in (path, path.resolve())
         if len(each.parents) > upwards}
        for path in paths
    ]  # fmt: skip


@functools.cache
def is_ours(name: str) -> bool:
    """Whether a module is project code: not Python's, and of no installed distribution."""
    top, *inner = name.split(".")
    if top in OWN or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return top in OWN
    whole, theirs = top, installed(top).keys()
    while found := [bool(home & theirs) for home in homes(whole)]:
        if len({*found}) == 1 or not inner:
            return not all(found)
        whole = f"{whole}.{inner.pop(0)}"  # a namespace of theirs and ours: the next name tells
    return whole != top


@functools.cache
def is_module(name: str) -> bool:
    """Whether there is a module of that full name."""
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs when a module is imported, but for the bodies of its classes."""
    yield node
    if not isinstance(node, DEFINITION):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def imports_among(nodes: Iterable[ast.AST], module: str, path: str) -> Imports:
    """Where names lead.  One that several imports bind, as in `try: ... except`, may be any."""
    found: Imports = {}
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    found.setdefault(alias.asname or whole, set()).add((whole, ""))
            case ast.ImportFrom(names=names, level=level):
                source = node.module or ""
                if level:  # a package's own module counts as one of its modules
                    inner = f"{module}." if Path(path).name == "__init__.py" else module
                    package = inner.rsplit(".", level)[0]
                    source = f"{package}.{source}" if source else package
                for alias in names:
                    if alias.name == "*":
                        refuse(f"`from {source} import *`", path, node.lineno)
                    found.setdefault(alias.asname or alias.name, set()).add((source, alias.name))
    return found


def _touched(statement: ast.stmt, imports: Imports) -> set[str]:
    """The names that a top-level statement makes or may change."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import() | ast.ImportFrom():
            return set()
        case (
            ast.Assign(targets=[ast.Name(id=name)])
            | ast.AnnAssign(target=ast.Name(id=name))
            # LOSSES["l1"] = l1 changes LOSSES, not l1 ...
            | ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))])
        ):
            changed = {name}
            for node in ast.walk(statement):
                match node:  # ... and so does old = LOSSES.pop("l1")
                    case ast.Call(func=ast.Attribute(value=ast.Name(id=owner))):
                        changed |= {owner} - imports.keys()
            return changed
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return set()  # the script's entry is no part of the module
    # Anything else, such as a loop that fills a dict, may change all it names.
    nodes = list(ast.walk(statement))
    return {
        *(node.id for node in nodes if isinstance(node, ast.Name)),
        *(node.name for node in nodes if isinstance(node, DEFINITION)),
        *imports_among(_outside_functions(statement), "", ""),
    }


# Pieces of a module


@functools.cache
def statements(place: str, name: str) -> list[ast.stmt]:
    """Those of a module that bind a name, a class's member (`C.run`) or a registry's entry."""
    module = read(place)
    name, _, key = name.partition("[")
    if key:
        entry = entries(module, name)[ast.literal_eval(key[:-1])]
        return [ast.copy_location(ast.Expr(entry), entry)]
    top, *inner = name.split(".")
    nodes = module.bindings.get(top, [])
    for part in inner:
        nodes = [each for node in nodes for each in ast.walk(node) if _binds(each, part)]  # type: ignore[misc] # what binds is a statement
    return nodes


def _binds(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=bound)]) | ast.AnnAssign(target=ast.Name(id=bound)):
            return bound == name
    return isinstance(node, DEFINITION) and node.name == name


def entries(module: Module, name: str) -> dict[Any, ast.expr]:
    """The entries of a registry written out in one statement; empty for anything else."""
    match module.bindings.get(name):
        case [ast.Assign(value=value)] | [ast.AnnAssign(value=value)]:
            match value:
                case ast.Tuple(elts=items) | ast.List(elts=items):
                    return dict(enumerate(items))
                case ast.Dict(keys=keys, values=items):
                    constants = [key.value for key in keys if isinstance(key, ast.Constant)]
                    if len(constants) == len(keys):
                        return dict(zip(constants, items, strict=True))
    return {}


class _Cleaner(ast.NodeTransformer):
    """Drops what changes no result: docstrings, and annotations of functions and variables.

    A class keeps the annotations in its body, which make a model's fields.  Those of a tuple or
    dataclass are kept as texts: they name its fields, but their types do nothing.
    """

    annotations = "dropped"

    def _scope(self, node: Any, annotations: str) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        outer, self.annotations = self.annotations, annotations
        self.generic_visit(node)
        self.annotations = outer
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        node.returns = None
        return self._scope(node, "dropped")

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the library's name

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        kinds = [ast.unparse(each) for each in (*node.bases, *node.decorator_list)]
        as_texts = any("NamedTuple" in kind or "dataclass" in kind for kind in kinds)
        return self._scope(node, "texts" if as_texts else "kept")

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if self.annotations == "dropped":
            return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)
        if self.annotations == "texts":
            node.annotation = ast.Constant(ast.unparse(node.annotation))
        return node


def cleaned(tree: ast.Module) -> ast.Module:
    """The tree itself, without what changes no result; what is left keeps its line numbers."""
    _Cleaner().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined] # it has one: just looked
    return tree


def _tables(text: str) -> list[symtable.SymbolTable]:
    """Python's own symbol tables of a piece of module-level code, the outermost first."""
    tables = [symtable.symtable(text, "<unit>", "exec")]
    for table in tables:
        tables += table.get_children()
    return tables


def global_names(text: str, module: set[str]) -> set[str]:
    """The names that a piece of module-level code takes from its module."""
    top, *tables = _tables(text)
    names = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    for table in tables:
        names |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        if table.get_type() == "class":  # its body may read a module's name before it binds it
            names |= module & {each.get_name() for each in table.get_symbols()}
    return names


def steady(text: str, parameters: tuple[str, ...]) -> set[str]:
    """The parameters that are throughout what a function was given: never bound anew or hidden."""
    tables = _tables(text) if parameters else []
    symbols = [symbol for table in tables for symbol in table.get_symbols()]
    scopes = Counter(symbol.get_name() for symbol in symbols if symbol.is_local())
    anew = {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}
    return {name for name in parameters if scopes[name] == 1 and name not in anew}


def chains(nodes: list[ast.AST], name: str) -> list[tuple[str, ...]]:
    """How a name is used: `losses.one_hot(...)` gives ("one_hot",), a bare `losses` gives ()."""
    found: dict[ast.AST, tuple[str, ...]] = {}
    for node in nodes:  # what holds an expression comes before it
        if isinstance(node, ast.Attribute):
            found[node.value] = (node.attr, *found.get(node, ()))
    return [found.get(each, ()) for each in nodes if isinstance(each, ast.Name) and each.id == name]


def refuse_opaque(nodes: list[ast.AST], names: set[str], module: Module, imports: Imports) -> None:
    """Raise LadderError, with the line, for code that reaches other code by no written name."""

    def meant(node: ast.AST) -> set[str]:
        """The full names that an expression such as `il.import_module` may stand for."""
        match node:
            case ast.Name(id=name) if name in names:
                own = set() if name in module.bindings else {("builtins", name)}
                return {f"{source}.{of}".strip(".") for source, of in imports.get(name, own)}
            case ast.Attribute(value=value, attr=name):
                return {f"{each}.{name}" for each in meant(value)}
        return set()

    written_out: set[ast.AST] = set()
    for node in nodes:  # what holds an expression comes before it
        opaque = False
        match node:
            case ast.Call(func=function, args=args) if by_text := meant(function) & _BY_TEXT:
                texts = args[1:2] if by_text == {"builtins.getattr"} else args
                opaque = not all(isinstance(each, ast.Constant) for each in texts)
                written_out.add(function)
            case ast.Attribute(attr=name) if name in _HIDDEN:
                opaque = True
            case ast.Name() | ast.Attribute() if node not in written_out:
                opaque = bool(meant(node) & (_OPAQUE | _BY_TEXT))
            case ast.Global():
                opaque = True
        if opaque:
            refuse(f"`{ast.unparse(node)}`", module.path, node.lineno)  # type: ignore[attr-defined] # all of these have one


def refuse(what: str, path: str, line: int) -> None:
    """Raise LadderError for code that cannot be followed."""
    raise LadderError(f"{path}:{line}: {what} cannot be followed, so a change behind it "
                      "would be missed; name the function, or put it in a dict")  # fmt: skip
