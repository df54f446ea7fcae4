"""What a piece of source says, as a syntax tree: what it binds, imports and names.

Nothing is run.  Comments, docstrings, annotations of functions and formatting do not count.
"""

from __future__ import annotations

import ast
import functools
import re
import symtable
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.caching.basics import LadderError
from tasks.caching.origins import is_ours

DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_COMPREHENSION = ast.ListComp | ast.SetComp | ast.DictComp
Imports = dict[str, set[tuple[str, str]]]  # name -> each (module, attribute or "") it may come from


# Decorators that look at no annotation and no docstring; so do those of the project's own, unless
# code that is reached names one of the readers
_INERT = re.compile(
    r"(functools\.(?!singledispatch)|contextlib\.|abc\.|typing|enum\.|atexit\.|dataclasses\."
    r"|torch\.(no_grad|enable_grad|inference_mode|compile)\b|numpy\.vectorize\b"
    r"|pydantic\.(field_validator|model_validator)\b)"
)
_READERS = {
    "get_type_hints", "get_annotations", "getdoc", "getfullargspec", "signature", "singledispatch",
    "singledispatchmethod", "validate_call", "validate_arguments", "TypeAdapter", "create_model",
    "model_json_schema", "render_doc", "script", "custom_op", "infer_schema",
}  # fmt: skip
_READING = {"typing", "inspect", "functools", "pydantic", "torch", "pydoc", "typing_extensions"}


class _Cleaner(ast.NodeTransformer):
    """Drops what changes no result: docstrings, and annotations of functions and variables.

    A function keeps both where a decorator may look at them.  A class keeps the annotations in its
    body, which make a model's fields.  Those of a tuple or dataclass are kept as texts: they name
    its fields, but their types do nothing.
    """

    annotations = "dropped"

    def __init__(self, imports: Imports) -> None:
        self._imports = imports

    def _may_read(self, decorator: ast.expr) -> bool:
        """Whether a decorator may look at the annotations and docstring of what it decorates."""
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        name, _, rest = ast.unparse(called).partition(".")
        if name not in self._imports:  # `@f.register`, of a function's own attribute
            return rest not in ("", "setter", "getter", "deleter")
        origins = [f"{place}.{inner}".strip(".") for place, inner in self._imports[name]]
        whole = [f"{each}.{rest}" for each in origins]
        return not all(is_ours(place) for place, _ in self._imports[name]) and not all(
            map(_INERT.match, whole)
        )

    def _scope(self, node: Any, annotations: str) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        outer, self.annotations = self.annotations, annotations
        self.generic_visit(node)
        self.annotations = outer
        return node

    def generic_visit(self, node: Any) -> Any:
        """Only statements hold what is dropped: no expression is looked into."""
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            if (inner := getattr(node, block, None)) is not None:
                kept = [each for each in map(self.visit, inner) if each]
                setattr(node, block, kept or ([ast.Pass()] if block == "body" else []))
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        if any(map(self._may_read, node.decorator_list)):
            return node
        node.returns = None
        for each in ast.walk(node.args):
            if isinstance(each, ast.arg):
                each.annotation = None
        return self._scope(node, "dropped")

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the library's name

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        kinds = [each.func if isinstance(each, ast.Call) else each
                 for each in (*node.bases, *node.decorator_list)]  # fmt: skip
        names = [ast.unparse(each).partition(".") for each in kinds]
        # Where Python's own make the class, and not pydantic's
        places = {
            place
            for first, _, rest in names
            if "NamedTuple" in f"{first}.{rest}" or "dataclass" in f"{first}.{rest}"
            for place, _ in self._imports.get(first, ())
        }
        as_texts = places and places <= {"typing", "dataclasses"}
        return self._scope(node, "texts" if as_texts else "kept")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if self.annotations == "dropped":
            return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)
        if self.annotations == "texts":
            node.annotation = ast.Constant(ast.unparse(node.annotation))
        return node


def cleaned(tree: ast.Module, imports: Imports) -> ast.Module:
    """The tree itself, without what changes no result; what is left keeps its line numbers."""
    _Cleaner(imports).visit(tree)
    return tree


def walked(statements: Iterable[ast.AST]) -> list[ast.AST]:
    """All nodes of a piece of source, what holds another before it; contexts, such as Load, not."""
    found = [*statements]
    for node in found:  # which grows
        for name in node._fields:
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                found += [each for each in inner if isinstance(each, ast.AST)]
            elif isinstance(inner, ast.AST) and name not in ("ctx", "op"):
                found.append(inner)
    return found


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs when a module is imported, but for the bodies of its classes."""
    yield node
    if not isinstance(node, DEFINITION):
        for child in ast.iter_child_nodes(node):
            yield from outside_functions(child)


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
                        what = f"`from {source} import *`{_unknown(module.partition('.')[0])}"
                        refuse(what, path, node.lineno)
                    found.setdefault(alias.asname or alias.name, set()).add((source, alias.name))
    return found


def _unknown(top: str) -> str:
    """Why a package of other people's may be taken for ours."""
    if not top or top in ("tasks", "flows"):
        return ""
    return f" in {top}, which counts as yours (its .dist-info is missing, or it is editable),"


def may_read(nodes: Iterable[ast.AST], imports: Imports) -> bool:
    """Whether a piece of source, which uses these imports, may look at annotations or docstrings.

    `timm.create_model` is another package's name for something else.
    """
    others = {
        name for name, origins in imports.items()
        if origins and not any(place.partition(".")[0] in _READING or is_ours(place)
                               for place, _ in origins)
    }  # fmt: skip
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in _READERS:
            first = ast.unparse(node).partition(".")[0]
            if first not in others:
                return True
    return any(name in _READERS for origins in imports.values() for _, name in origins)


def touched(statement: ast.stmt, imports: Imports) -> set[str]:
    """The names that a top-level statement makes or may change."""
    match statement:
        case (
            ast.FunctionDef(name=name, decorator_list=decorators)
            | ast.AsyncFunctionDef(name=name, decorator_list=decorators)
            | ast.ClassDef(name=name, decorator_list=decorators)
        ):
            # `@main.command()` changes main
            called = [each.func if isinstance(each, ast.Call) else each for each in decorators]
            return {name} | {
                each.value.id
                for each in called
                if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)
            } - imports.keys()
        case ast.Import() | ast.ImportFrom():
            return set()
        case (
            ast.Assign(targets=[ast.Name(id=name)])
            | ast.AnnAssign(target=ast.Name(id=name))
            # LOSSES["l1"] = l1 changes LOSSES, not l1 ...
            | ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))])
        ):
            changed = {name}
            for node in walked([statement]):
                match node:  # ... and so does old = LOSSES.pop("l1")
                    case ast.Call(func=ast.Attribute(value=ast.Name(id=owner))):
                        changed |= {owner} - imports.keys()
                    case ast.NamedExpr(target=ast.Name(id=owner)):
                        changed.add(owner)
            return changed
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return set()  # the script's entry is no part of the module
    # Anything else, such as a loop that fills a dict, may change all it names.
    nodes = walked([statement])
    return {
        *(node.id for node in nodes if isinstance(node, ast.Name)),
        *(node.name for node in nodes if isinstance(node, DEFINITION)),
        *imports_among(outside_functions(statement), "", ""),
    }


class _AsGenerators(ast.NodeTransformer):
    """Each comprehension as a generator of the same names, which has a table of its own.

    From Python 3.12 on the others share that of the code around them.
    """

    def _generator(self, node: _COMPREHENSION) -> ast.GeneratorExp:
        self.generic_visit(node)
        made = ast.Tuple([node.key, node.value]) if isinstance(node, ast.DictComp) else node.elt
        return ast.GeneratorExp(made, node.generators)

    visit_ListComp = visit_SetComp = visit_DictComp = _generator  # noqa: N815 - as ast calls them


@functools.lru_cache(1)  # asked for a unit's names, then for its parameters
def _tables(text: str) -> list[symtable.SymbolTable]:
    """Python's own symbol tables of a piece of module-level code, the outermost first."""
    tree = ast.parse(text)
    if any(isinstance(node, _COMPREHENSION) for node in ast.walk(tree)):
        text = ast.unparse(_AsGenerators().visit(tree))
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


def refuse(what: str, path: str, line: int) -> None:
    """Raise LadderError for code that cannot be followed."""
    raise LadderError(f"{path}:{line}: {what} cannot be followed, so a change behind it "
                      "would be missed; name the function, or put it in a dict")  # fmt: skip
