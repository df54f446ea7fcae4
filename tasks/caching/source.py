"""A project module by its source: what binds each name, where imports lead, its registries."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import importlib.util
import marshal
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from tasks.caching.basics import LadderError
from tasks.caching.effects import Effects
from tasks.caching.origins import is_brought, is_module
from tasks.caching.syntax import (
    DEFINITION,
    Imports,
    cleaned,
    imports_among,
    outside_functions,
    refuse,
    touched,
)

# What reaches code, or changes it, by a name that is computed.
_OPAQUE = {"importlib.import_module", "importlib.reload", "sys.modules", "posix"} | {
    f"builtins.{name}"
    for name in ("eval", "exec", "compile", "globals", "locals", "vars", "__import__",
                 "setattr", "delattr")
} | {"pkgutil.resolve_name", "runpy.run_path", "runpy.run_module", "inspect.getsource",
     "inspect.getsourcelines", "inspect.getcomments"}  # fmt: skip
# What is another each time that it is asked, or elsewhere, so that no key holds it.
_PASSING = {f"{module}.{name}" for module, *names in map(str.split, """
    time time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time
    time process_time_ns thread_time thread_time_ns clock_gettime clock_gettime_ns ctime asctime
    time localtime gmtime mktime tzname timezone altzone daylight
    timeit default_timer timeit repeat
    datetime datetime.now datetime.today datetime.utcnow date.today
    uuid uuid1 uuid4 getnode
    os urandom getpid getppid getpgrp times getloadavg statvfs fstatvfs
    threading get_ident get_native_id current_thread active_count enumerate
    multiprocessing current_process active_children
    sys argv getrefcount getsizeof getallocatedblocks
    gc get_stats get_count get_objects
    resource getrusage
    shutil disk_usage
    builtins id
    random SystemRandom
    secrets token_bytes token_hex token_urlsafe randbits randbelow choice SystemRandom
    email.utils formatdate make_msgid localtime
    traceback format_exc print_exc format_exception format_stack extract_stack
    torch seed random.seed cuda.seed cuda.mem_get_info cuda.memory_allocated
    psutil Process cpu_percent cpu_times cpu_freq cpu_stats virtual_memory swap_memory disk_usage
    psutil disk_io_counters net_io_counters pids process_iter boot_time users
    """.strip().splitlines()) for name in names}  # fmt: skip
# What draws from the machine's own noise, or asks where this machine is, unless it is given more
_UNSEEDED = {"random.Random", "random.seed"} | {
    f"numpy.random.{name}" for name in ("default_rng", "RandomState", "SeedSequence", "PCG64",
                                        "MT19937", "Philox", "SFC64", "seed")
}  # fmt: skip
_UNSEEDED_METHODS = {"seed", "astimezone", "now", "today", "utcnow"}
# ... and what, given a single argument, takes this machine's timezone, or now
_LOCAL = {"datetime.datetime.fromtimestamp", "time.strftime"}
# ... and what of NumPy and pandas takes these texts for the time
_NOW, _TIMES = ("now", "today"), ("datetime64", "Timestamp", "to_datetime")
_BY_TEXT = {"builtins.getattr", "operator.attrgetter", "operator.methodcaller"}
_TOLD_OF = {
    ".".join(parts[:count])
    for parts in (name.split(".") for name in _OPAQUE | _PASSING | _UNSEEDED | _LOCAL | _BY_TEXT)
    for count in range(1, len(parts) + 1)
}
# Modules of others that are handed on for what else they have
_HANDED_ON = {"numpy", "torch"}
_HIDDEN = {"__dict__", "__doc__", "__annotations__", "__globals__", "__subclasses__",
           "f_lineno", "tb_lineno", "co_firstlineno"}  # fmt: skip

_UNCHECKED = 1  # flags of bytecode that is used whatever became of its source
WHOLE = "<module>"  # as Python calls what a module does when it is imported
FOLLOWED: set[str] = set()  # the modules that have been read


class Module(NamedTuple):
    """A project module, without what changes no result."""

    name: str
    path: str
    bindings: dict[str, list[ast.stmt]]  # name -> the top-level statements that make or change it
    imports: Imports
    effects: Effects  # what it may change of what other modules have made


@functools.cache
def read(name: str, *whole: bool) -> Module:
    """Read a module's source; whole, with the annotations and docstrings that mostly do nothing.

    Raises LadderError where there is none or it imports `*`.
    """
    FOLLOWED.add(name)
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = None if loaded else importlib.util.find_spec(name)
    path = str(loaded or (spec and spec.origin))
    if not path.endswith(".py"):
        raise LadderError(f"the source of {name} cannot be found, so its changes would be missed")
    source = _bytes(name, path)
    tree = ast.parse(source, path)
    imports = imports_among(outside_functions(tree), name, path)
    tree = tree if any(whole) else cleaned(tree, imports)
    bindings: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for bound in touched(statement, imports):
            bindings.setdefault(bound, []).append(statement)
    for_effect = functools.partial(_is_for_effect, source)
    effects = Effects(tree.body, bindings, imports, for_effect, _effects_of)
    return Module(name, path, bindings, imports, effects)


def _effects_of(name: str) -> Effects | None:
    return read(name).effects if is_brought(name) else None


def _is_for_effect(source: bytes, statement: ast.stmt) -> bool:
    """Whether a statement imports a package that is not named again: not one of Python's own."""
    if not isinstance(statement, ast.Import):
        return False
    names = {each.name.partition(".")[0] for each in statement.names if not each.asname}
    return any(
        len(re.findall(rf"\b{name}\b".encode(), source)) == 1
        for name in names - sys.stdlib_module_names
    )


@functools.cache
def codes(name: str) -> dict[str, set[CodeType]]:
    """What the functions of a module do, by their qualified names.

    Raises LadderError where Python runs another code than the source's.
    """
    path = read(name).path
    waiting = [compile(_bytes(name, path), path, "exec", dont_inherit=True)]
    _insist_on_bytecode(path, waiting[0])
    found: dict[str, set[CodeType]] = {}
    for code in waiting:
        found.setdefault(code.co_qualname, set()).add(essence(code))
        waiting += (each for each in code.co_consts if isinstance(each, CodeType))
    return found


@functools.cache
def changers(name: str) -> frozenset[str]:
    """The project modules that run when one is imported, and may change what others have made."""
    found, waiting = {name}, [name]
    for each in waiting:
        module = read(each)
        origins = [origin for all_of in module.imports.values() for origin in all_of]
        for place, attribute in [*origins, (each, "")]:
            whole = f"{place}.{attribute}".strip(".")
            parts = whole.split(".")
            inner = {".".join(parts[: end + 1]) for end in range(len(parts))}
            new = {one for one in inner if is_brought(one)} - found
            found |= new
            waiting += sorted(new)
    return frozenset(each for each in found if read(each).effects.statements)


def _bytes(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except NotADirectoryError:  # it lies in a zip archive
        loader: Any = importlib.util.find_spec(name).loader  # type: ignore[union-attr] # just found
        data: bytes = loader.get_data(path)
        return data


def _insist_on_bytecode(path: str, code: CodeType) -> None:
    """Refuse bytecode that Python takes for the source's, and that is of an older one.

    It goes by size and seconds, which may have been restored.
    """
    with contextlib.suppress(OSError, NotImplementedError):
        cached = Path(importlib.util.cache_from_source(path))
        data, status = cached.read_bytes(), os.stat(path)
        flags, *seen = struct.unpack("<3I", data[4:16])
        now = [int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]
        is_used = flags == _UNCHECKED or (flags == 0 and seen == now)
        if is_used and data[:4] == importlib.util.MAGIC_NUMBER and marshal.loads(data[16:]) != code:
            raise LadderError(
                f"{cached} is not what {path} says now, and Python would run it: remove it, and "
                "start again"
            )


def essence(code: CodeType) -> CodeType:
    """What a code object does, without where it stands."""
    constants = (essence(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_firstlineno=1, co_linetable=b"", co_consts=tuple(constants))


# Pieces of a module


@functools.cache
def statements(place: str, name: str, *whole: bool) -> list[ast.stmt]:
    """Those of a module that bind a name, a class's member (`C.run`) or a registry's entry."""
    module = read(place, *whole)
    if name == WHOLE:
        return module.effects.statements
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
                case ast.Call(func=ast.Name(id="Registry"), args=[ast.Dict() as written]):
                    value = written
            match value:
                case ast.Tuple(elts=items) | ast.List(elts=items):
                    return dict(enumerate(items))
                case ast.Dict(keys=keys, values=items):
                    constants = [key.value for key in keys if isinstance(key, ast.Constant)]
                    if len(constants) == len(keys):
                        return dict(zip(constants, items, strict=True))
    return {}


def outside(imports: Imports, name: str) -> Iterator[str]:
    """The full names that an imported one has where it comes from, through modules of ours."""
    for place, inner in imports.get(name, ()):
        whole = f"{place}.{inner}".strip(".")
        further = read(place).imports if inner and is_brought(place) else {}
        if inner in further and not is_module(whole):
            yield from outside(further, inner)
        else:
            yield whole


def refuse_opaque(nodes: list[ast.AST], names: set[str], module: Module, imports: Imports) -> None:
    """Raise LadderError, with the line, for code that reaches other code by no written name."""
    of_note: dict[str, set[str]] = {}
    for name in names:
        own = set() if name in {*module.bindings, *imports} else {f"builtins.{name}"}
        whole = ({*outside(imports, name)} | own) & _TOLD_OF
        of_note |= {name: whole} if whole else {}

    def meant(node: ast.AST) -> set[str]:
        """The full names that an expression such as `il.import_module` may stand for."""
        match node:
            case ast.Name(id=name):
                return of_note.get(name, set())
            case ast.Attribute(value=value, attr=name):
                return {f"{each}.{name}" for each in meant(value)}
        return set()

    def refuse_passing(node: Any) -> None:
        raise LadderError(
            f"{module.path}:{node.lineno}: `{ast.unparse(node)}` is another each time or elsewhere,"
            " and a result is kept; give it to the stage as a parameter, or give a seed or a "
            "timezone; what only tells how far a stage has come, give `apart`"
        )

    written_out: set[ast.AST] = set()
    begins: set[ast.AST] = set()  # what an attribute is taken of
    for node in nodes:  # what holds an expression comes before it
        opaque = False
        if isinstance(node, ast.Call):
            named = meant(node.func)
            if _is_passing(node, named):
                refuse_passing(node)
            if named & _LOCAL:
                written_out.add(node.func)
        written_out |= {*_as_keys(node)}
        match node:
            case ast.Call(func=function, args=args) if by_text := meant(function) & _BY_TEXT:
                texts = args[1:2] if by_text == {"builtins.getattr"} else args
                opaque = not all(isinstance(each, ast.Constant) for each in texts)
                written_out.add(function)
            case ast.Attribute(attr=name) if name in _HIDDEN:
                opaque = True
            case ast.Name() | ast.Attribute() if node not in written_out:
                names_of = meant(node)
                if names_of & _PASSING or names_of & _LOCAL:
                    refuse_passing(node)
                is_handed_on = node not in begins and any(map(_is_module_of_note, names_of))
                opaque = is_handed_on or bool(names_of & _OPAQUE or names_of & _BY_TEXT)
            case ast.Global():
                opaque = True
        if isinstance(node, ast.Attribute):
            begins.add(node.value)
        if opaque:
            refuse(f"`{ast.unparse(node)}`", module.path, node.lineno)  # type: ignore[attr-defined] # all of these have one


def _is_module_of_note(name: str) -> bool:
    """Whether it is a module whose clocks, say, nobody finds where it is handed on as a value."""
    return name in _TOLD_OF and is_module(name) and name.partition(".")[0] not in _HANDED_ON


def _is_passing(call: ast.Call, names: set[str]) -> bool:
    """Whether a call gives another thing each time for want of an argument, or asks for now."""
    attribute = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if not names and attribute not in _UNSEEDED_METHODS and attribute not in _TIMES:
        return False
    given = [*call.args, *(each.value for each in call.keywords)]
    texts = [each.value if isinstance(each, ast.Constant) else ... for each in given]
    by_method = isinstance(call.func, ast.Attribute) and attribute in _UNSEEDED_METHODS
    is_bare = all(each is None for each in texts) and (by_method or bool(names & _UNSEEDED))
    asks_now = attribute in _TIMES and bool(texts) and texts[0] in _NOW
    return is_bare or asks_now or (len(given) == 1 and bool(names & _LOCAL))


def _as_keys(node: ast.AST) -> Iterator[ast.AST]:
    """Where `id(x)` only finds something again: as a key of a dict, or to be among some."""
    match node:
        case ast.Dict(keys=found):
            pass
        case ast.DictComp(key=key) | ast.Subscript(slice=key):
            found = [key]
        case ast.Compare(left=left, comparators=others):
            found = [left, *others]
        case ast.Call(func=ast.Attribute(attr="add" | "get" | "pop" | "setdefault"), args=found):
            pass
        case _:
            return
    for each in found:
        match each:
            case ast.Call(func=ast.Name(id="id") as name):
                yield name
