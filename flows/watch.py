"""What project code asks the machine for while it is imported and planned, which no source shows.

A constant may come from a file, from a folder's names or from a variable of the environment, and a
plan's fingerprints hold its value.  So the short cut (`flows.quick`), which imports none of that
code, is only taken while all that it asked for is as it was.

What is asked for counts when the innermost project module on the stack is one whose values reach
a plan: a chapter, the flow, a package of the user's; not the engine, nor the command line.  With
an import between the two, it is the imported module that asks.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.machinery
import importlib.util
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from tasks.caching.basics import LadderError

# Of what these give, nobody can say at a glance whether it would be the same again ...
_OPAQUE = {
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn",
    "os.spawn", "pty.spawn", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "sqlite3.connect", "urllib.Request", "ctypes.dlopen",
}  # fmt: skip
# ... nor of what comes from these modules while another is imported.
_CHANGING = {"time", "datetime", "random", "secrets", "uuid", "getpass", "pwd", "tempfile"}
_TOOLS = (
    "tasks.caching", "flows.cli", "flows.climb", "flows.console", "flows.debug", "flows.endings",
    "flows.options", "flows.quick", "flows.reports", "flows.results", "flows.server", "flows.watch",
)  # fmt: skip
_IMPORTABLE = {"", *importlib.machinery.all_suffixes(), ".egg", ".zip"}
_LOOKS = ("stat", "lstat", "access", "open", "readlink")
_PLAIN = os.stat


class Seen(NamedTuple):
    """What was asked for, and what each of it was."""

    paths: dict[str, Any]  # each with its stat, or None where there is nothing
    folders: dict[str, Any]  # each with the names in it
    packages: dict[str, Any]  # each with the names in it that could be imported
    variables: dict[str, Any]  # each with its value; "*" with all there are

    def again(self, environment: Mapping[str, str]) -> Seen:
        """The same now."""
        return Seen(
            {path: row_of(path) for path in self.paths},
            {path: _names(path) for path in self.folders},
            {path: importable(path) for path in self.packages},
            {name: _value(environment, name) for name in self.variables},
        )


def row_of(path: str) -> tuple[int, ...] | None:
    """Size, mtime, ctime and inode, as links lead; of a folder nothing but that it is one."""
    try:
        found = _PLAIN(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _names(path: str) -> list[str] | None:
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError):
        return None


def importable(path: str) -> Any:
    """What an entry of `sys.path`, or a package, offers, and what its distributions are."""
    names = _names(path or ".")
    if names is None:
        return row_of(path)  # an archive, or nothing
    found: list[Any] = []
    for name in names:
        whole = f"{path or '.'}/{name}"
        if name.endswith("-info"):
            told = row_of(f"{whole}/METADATA") or row_of(f"{whole}/PKG-INFO")
            found.append((name, told or row_of(whole)))
        elif name.endswith((".pth", ".egg-link")) or name.startswith("__editable__"):
            found.append((name, row_of(whole)))
        elif name[len(name.partition(".")[0]) :] in _IMPORTABLE and name != "__pycache__":
            found.append(name)
    return found


def _value(environment: Mapping[str, str], name: str) -> Any:
    return sorted(environment.items()) if name == "*" else environment.get(name)


class Watch:
    """Notes what is asked for between `begin` and `end`."""

    def __init__(self) -> None:
        # "path", "folder", "variable" or "opaque", and which; with what it was
        self._was: dict[tuple[str, str], Any] = {}
        self._early: set[str] = set()
        self._environment: dict[str, str] = {}

    def begin(self) -> None:
        """Note from here on."""
        self._early = {*sys.modules}
        self._environment = dict(os.environ)
        self._start()

    def _start(self) -> None:
        from tasks.caching import traces  # noqa: F401 - what that notes goes on below

        _PARTS.clear()
        _add_hook()
        _WATCHES.append(self)
        self._were: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _LOOKS}
        for name, function in self._were.items():
            setattr(os, name, _noting(function))
        self._class = os.environ.__class__
        for environ in (os.environ, os.environb):  # the same object for all who hold it
            environ.__class__ = _noting_class(self._class)

    def end(self) -> None:
        """Note no more."""
        for environ in (os.environ, os.environb):
            environ.__class__ = self._class
        for name, function in self._were.items():
            setattr(os, name, function)
        _WATCHES.remove(self)

    def _run_again(self, name: str) -> None:
        """Note what a module asks for that was imported before: beside itself, it is run anew."""
        spec: Any = importlib.util.find_spec(name)
        beside = importlib.util.module_from_spec(spec)
        self._start()
        try:
            spec.loader.exec_module(beside)
        finally:
            self.end()

    def note(self, kind: str, what: str) -> None:
        """Take down that something was asked for, and what it is, the first time."""
        key = kind, str(Path(what).absolute()) if kind in ("path", "folder") else what
        if key not in self._was:
            self._was[key] = {"path": row_of, "folder": _names}.get(kind, str)(key[1])

    def seen(self, *apart: Path) -> Seen | None:
        """What all was that a plan may depend on, but for what lies in the folders `apart`.

        None where it has changed since, or where a glance cannot tell whether it will have.
        """
        from tasks.caching import own, source

        ours = _project_modules()
        names = [name for name in ours.keys() & source.FOLLOWED if not _is_tool(name)]
        for name in self._early.intersection(names):
            self._run_again(name)
        followed = [source.read(name) for name in names]
        if any(kind == "opaque" for kind, _ in self._was) or any(
            map(_calls_what_changes, followed)
        ):
            return None
        named = {
            kind: [what for which, what in self._was
                   if which == kind and not any(Path(what).is_relative_to(each) for each in apart)]
            for kind in ("path", "folder", "variable")
        }  # fmt: skip
        files = {*named["path"], *_files(ours.values()), *_named_files(followed)}
        folders = {str(place) for each in ours.values() for place in getattr(each, "__path__", ())}
        folders |= own.PLACES.keys()
        wanted = [sorted(each) for each in (files, named["folder"], folders, named["variable"])]
        found = Seen(*map(dict.fromkeys, wanted)).again(self._environment)
        same = all(
            now == self._was.get((kind, what), now)
            for kind, states in (("path", found.paths), ("folder", found.folders))
            for what, now in states.items()
        )
        return found if same else None


# What the project is, for when all of it is imported


def _project_modules() -> dict[str, ModuleType]:
    from tasks.caching.origins import is_ours

    tops = {name.partition(".")[0] for name in [*sys.modules]}
    ours = {top for top in tops if is_ours(top)}
    return {
        name: module for name, module in [*sys.modules.items()]
        if name.partition(".")[0] in ours and is_ours(name)
    }  # fmt: skip


def _is_tool(name: str) -> bool:
    return f"{name}.".startswith(tuple(f"{each}." for each in _TOOLS))


def _files(modules: Iterable[ModuleType]) -> Iterator[str]:
    for module in modules:
        if isinstance(file := getattr(module, "__file__", None), str):
            yield file


def _calls_what_changes(module: Any) -> bool:
    """Whether a module's values may be new each time it is imported.

    By what it calls meanwhile, itself or in a function, of its own or of another of our modules.
    """
    waiting = [(module, node) for nodes in module.bindings.values() for node in nodes]
    called: set[tuple[str, str]] = set()
    for where, node in waiting:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            defaults = [each for each in (*node.args.defaults, *node.args.kw_defaults) if each]
            waiting += ((where, each) for each in (*defaults, *getattr(node, "decorator_list", ())))
            continue
        waiting += ((where, each) for each in ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            names = _named(where, node)
            if names & _changing(where):
                return True
            for target in _targets(where, names) - called:
                called.add(target)
                waiting += _bodies(*target)
    return False


def _named(module: Any, call: ast.Call) -> set[str]:
    """The names in a call; not those in a lambda for `stage`, which calls it with a stage."""
    names = [each for each in ast.walk(call) if isinstance(each, ast.Name)]
    origins = module.imports.get(getattr(call.func, "id", ""), ())
    if any(_is_tool(place) for place, _ in origins):
        later = [each for each in ast.walk(call) if isinstance(each, ast.Lambda)]
        put_off = {inner for each in later for inner in ast.walk(each.body)}
        names = [each for each in names if each not in put_off]
    return {each.id for each in names}


def _changing(module: Any) -> set[str]:
    """A module's names for what gives other values each time it is asked, and for its parts."""
    found = {
        name for name, origins in module.imports.items()
        if any(origin.partition(".")[0] in _CHANGING for origin, _ in origins)
    }  # fmt: skip
    for name, nodes in module.bindings.items():
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute | ast.Name):
                named = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
                found |= {name} if named & found else set()
    return found


def _targets(module: Any, names: set[str]) -> set[tuple[str, str]]:
    """The functions and classes of ours that names in a module may mean, each with its module."""
    from tasks.caching.origins import is_ours

    imported = {each for name in names for each in module.imports.get(name, ()) if each[1]}
    return {(module.name, name) for name in names & module.bindings.keys()} | {
        (origin, name) for origin, name in imported if is_ours(origin) and not _is_tool(origin)
    }


def _bodies(module: str, name: str) -> Iterator[tuple[Any, ast.AST]]:
    """What runs when a function is called, or a class."""
    from tasks.caching import source

    with contextlib.suppress(LadderError):
        read = source.read(module)
        waiting: list[ast.AST] = list(read.bindings.get(name, ()))
        for node in waiting:
            if isinstance(node, ast.ClassDef):
                waiting += node.body
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from ((read, each) for each in node.body)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                yield read, node.value.body


def _named_files(modules: list[Any]) -> Iterator[str]:
    """Files that texts of the sources name: compiled code opens them without a word to Python."""
    for module in modules:
        places = (*Path(module.path).parents[:3], Path())
        nodes = (node for nodes in module.bindings.values() for each in nodes
                 for node in ast.walk(each))  # fmt: skip
        texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
        values = vars(sys.modules.get(module.name, object)).values()
        texts |= {str(each) for each in [*values] if isinstance(each, str | Path)}
        for text in texts:
            if isinstance(text, str) and 3 <= len(text) <= 255 and "." in text:
                paths = (str((place / text).absolute()) for place in places)
                yield from (path for path in paths if row_of(path))


# How it is noted


def _tell(kind: str, what: Any, frame: FrameType | None) -> None:
    """Tell those who watch, unless the command line, the engine or nobody of ours asked."""
    if not _WATCHES or getattr(_TELLING, "now", False):
        return
    _TELLING.now = True
    try:
        if _asks(frame):
            for watch in _WATCHES:
                watch.note(kind, os.fsdecode(what))
    except (OSError, TypeError, ValueError):  # nothing that has a name
        pass
    finally:
        _TELLING.now = False


def _asks(frame: FrameType | None) -> bool:
    """Whether the innermost project module on the stack, up to an import, is one that counts."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        part = _PARTS.get(name)
        if part is None:
            part = _PARTS[name] = _part_of(str(name))
        if part != "other":
            return part == "counts"
        frame = frame.f_back
    return False


def _part_of(name: str) -> str:
    from tasks.caching.origins import is_ours

    if name.startswith("importlib._bootstrap"):
        return "import"
    if name == __name__ or not is_ours(name.partition(".")[0]) or not is_ours(name):
        return "other"
    return "tool" if _is_tool(name) else "counts"


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    kind = _EVENTS.get(event)
    if kind is None or not _WATCHES:
        return
    what = arguments[0] if arguments else None
    if event == "open":
        _path, mode, flags = arguments
        # A name alone for os.open is most often one in an open folder, as when images are read.
        inner = mode is None and isinstance(what, str) and not what.startswith("/")
        if inner or flags & os.O_ACCMODE == os.O_WRONLY:
            return
    if not isinstance(what, int):
        told = event if kind == "opaque" else what or "."
        _tell(kind, told, sys._getframe(1))


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_hook)  # for good: Python has no way to take one away


@functools.cache
def _noting_class(kind: Any) -> Any:
    """The environment's class, while it is watched."""

    class Environ(kind):
        def __getitem__(self, key: Any) -> Any:
            _tell("variable", key, sys._getframe(1))
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[Any]:
            _tell("variable", "*", sys._getframe(1))
            return super().__iter__()

        def __len__(self) -> int:
            _tell("variable", "*", sys._getframe(1))
            return super().__len__()

        def __repr__(self) -> str:
            _tell("variable", "*", sys._getframe(1))
            return super().__repr__()

    return Environ


def _noting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that looks at a path, of which Python has no audit event."""

    @functools.wraps(function)
    def asked(*arguments: Any, **more: Any) -> Any:
        path = arguments[0] if arguments else more.get("path")
        flags = (arguments[1:] or (0,))[0] if function.__name__ == "open" else 0
        writes = flags & os.O_ACCMODE == os.O_WRONLY
        if _WATCHES and not writes and more.get("dir_fd") is None and not isinstance(path, int):
            _tell("path", path, sys._getframe(1))
        return function(*arguments, **more)

    kinds = (os.supports_dir_fd, os.supports_effective_ids, os.supports_fd,
             os.supports_follow_symlinks)  # fmt: skip
    for kind in kinds:
        if function in kind:
            kind.add(asked)
    return asked


_EVENTS = {"open": "path", "os.listdir": "folder", "os.scandir": "folder"} | dict.fromkeys(
    _OPAQUE, "opaque"
)
_PARTS: dict[Any, str] = {}  # of each module's name
_WATCHES: list[Watch] = []
_TELLING = threading.local()
