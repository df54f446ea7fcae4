"""What a module changes of others when it is imported: no name leads to such a statement.

`np.random.seed(0)`, `torch.Tensor.relu = ours`, `@torch.library.custom_op(...)`.  A statement that
makes or changes a module's own names alone, such as a loop that fills its dict, counts with these.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from tasks.caching.origins import is_module
from tasks.caching.syntax import DEFINITION, Imports

# Of a call whose result is kept: most make something, these change something and say what it was
_CHANGES = re.compile("(set|seed|manual_seed|use|enable|disable|register|install|patch|config)_?")
_FIRST = ("__new__", "__init__", "__post_init__")
_ASKS = ("setattr", "delattr", "exec", "eval")
_RUNS = ("body", "orelse", "finalbody", "handlers", "cases", "test", "iter", "items",
         "context_expr")  # fmt: skip
Bindings = dict[str, list[ast.stmt]]


class Effects:
    """Looks at the top-level statements of a module, knowing what it binds and imports."""

    def __init__(
        self,
        body: list[ast.stmt],
        bindings: Bindings,
        imports: Imports,
        is_for_effect: Callable[[ast.stmt], bool],
        of: Callable[[str], Effects | None],
    ) -> None:
        """`of` gives those of another module of the project's, and None for any other's."""
        self._body = body
        self._bindings = bindings
        self._imports = imports
        self._is_for_effect = is_for_effect
        self._of = of
        self._known: dict[str, bool] = {}  # of functions of the module's own

    @functools.cached_property
    def statements(self) -> list[ast.stmt]:
        """Those that may change what other modules have made."""
        return [each for each in self._body if self.changes(each) or self._is_for_effect(each)]

    def changes(self, node: ast.AST) -> bool:  # noqa: PLR0911 - one return for each kind
        """Whether a statement, when it runs, may change what another module has made."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return any(map(self._registers, node.decorator_list))
            case ast.ClassDef():
                return any(map(self._registers, node.decorator_list)) or self._any(node.body)
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__")) | ast.Name("TYPE_CHECKING")):
                return self._any(node.orelse)
            case ast.Expr(value=value):
                return any(self._acts(call) for call in _calls(value))
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                return any(map(self._holds_foreign, targets)) or self._any(_calls(node))
            case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                return self._holds_foreign(target) or self._any(_calls(node))
            case ast.Call(func=ast.Name(id=name)) if name in self._bindings:
                return self.within(name)
            case ast.Call(func=function):
                by_name = bool(_CHANGES.match(_last(function))) and self._acts(node)
                return by_name or self._within_another(function)
            case ast.expr():
                return self._any(_calls(node))
        parts = [getattr(node, name, None) or [] for name in _RUNS]
        return any(self._any(each if isinstance(each, list) else [each]) for each in parts)

    def _any(self, nodes: list[ast.stmt] | list[ast.Call]) -> bool:
        return any(map(self.changes, nodes))

    def _acts(self, call: ast.Call) -> bool:
        """Whether a call is of, or on, what the module has not made."""
        match call.func:
            case ast.Name(id=name) if name in self._bindings.keys() - self._imports.keys():
                return any(map(self._is_foreign, call.args)) or self.within(name)
            case ast.Name(id=name) if name in _ASKS:
                return True
        return self._is_foreign(call.func)

    def _within_another(self, function: ast.expr) -> bool:
        """Whether a function that another module of ours defines does so, when it is called."""
        inner = ast.unparse(function)[len(_root(function)) + 1 :]
        for place, name in self._imports.get(_root(function), ()):
            *path, last = filter(None, (*place.split("."), *name.split("."), *inner.split(".")))
            looked = self._of(".".join(path))
            if looked and looked.within(last):
                return True
        return False

    def within(self, name: str) -> bool:
        """Whether a function of the module's own changes more than it and its arguments."""
        if name not in self._known:
            self._known[name] = False  # of one that calls itself
            made = [each for each in self._bindings.get(name, ()) if isinstance(each, DEFINITION)]
            run = [inner for each in made for inner in _run_by(each)]
            self._known[name] = self._any(run) or (
                not made and self._within_another(ast.Name(name))
            )
        return self._known[name]

    def _holds_foreign(self, target: ast.expr) -> bool:
        return isinstance(target, ast.Attribute | ast.Subscript) and self._is_foreign(target)

    def _is_foreign(self, value: ast.expr) -> bool:
        """Whether an expression leads to what another module has made."""
        name = _root(value)
        made = [each for each in self._bindings.get(name, ()) if isinstance(each, ast.Assign)]
        return name in self._imports or any(self._is_got(each.value) for each in made)

    def _is_got(self, value: ast.expr) -> bool:
        """Whether a name's value was taken from elsewhere, and not made: `torch.Tensor`."""
        match value:
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return _root(value) in self._imports
            case ast.Call(func=function):
                return _root(function) in self._imports and not _last(function)[:1].isupper()
        return False

    def _registers(self, decorator: ast.expr) -> bool:
        """Whether a decorator, by what it is called or is of, hands on what it is given."""
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        for place, name in self._imports.get(_root(called), ()):
            whole = f"{place}.{name}".strip(".") + ast.unparse(called)[len(_root(called)) :]
            if "torch.library." in whole or _last(called).startswith("register"):
                return True
            # `@main.command()`, of an object and not of a module
            if name and isinstance(called, ast.Attribute) and not is_module(f"{place}.{name}"):
                return True
        return False


def _run_by(node: Any) -> list[ast.stmt]:
    """The statements that run when a function is called, or a class."""
    first = [each for each in node.body if getattr(each, "name", "") in _FIRST]
    return [*node.body, *(inner for each in first for inner in _run_by(each))]


def _calls(node: ast.AST) -> list[ast.Call]:
    """The calls in an expression that happen when it is reached."""
    return [*_found(node)]


def _found(node: ast.AST) -> Iterator[ast.Call]:
    if isinstance(node, ast.Call):
        yield node
    if not isinstance(node, ast.Lambda):
        for inner in ast.iter_child_nodes(node):
            yield from _found(inner)


def _root(value: ast.expr) -> str:
    """The name that an expression such as `torch.Tensor.relu` begins with."""
    while isinstance(value, ast.Attribute | ast.Subscript | ast.Call):
        value = value.func if isinstance(value, ast.Call) else value.value
    return value.id if isinstance(value, ast.Name) else ""


def _last(function: ast.expr) -> str:
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
