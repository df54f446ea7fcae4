"""What a body asks for beside its arguments: files, folders' names, variables of the environment.

No source shows which they are, so they are noted when it happens, by Python's audit hook, and held
in the record: it serves while each is as it was.  What asks is the innermost function of the
project's own on the stack; what the engine, Python and installed packages read for themselves is
no one's trace, nor is the code that an import reads, which the fingerprint follows.

A helper may keep what it once read (`lru_cache`), for the next stage that runs in this process.  So
what each function has asked for in this process counts for every stage that reaches the function.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.caching import own
from tasks.caching.basics import LadderError, digest_of_file

Trace = dict[str, str]  # "$SCALE", "tasks/limits.json" or "folder/": what it was, "" for nothing

_ROOT = str(Path(__file__).resolve().parents[2])
_ENGINE = str(Path(__file__).resolve().parent) + os.sep
_INSTALLED = tuple(
    {f"{os.path.realpath(sysconfig.get_path(kind))}/" for kind in ("stdlib", "purelib", "platlib")}
    | {f"{sysconfig.get_path(kind)}/" for kind in ("stdlib", "purelib", "platlib")}
)
_NOBODYS = (*_INSTALLED, "/proc/", "/sys/", "/dev/")
_QUOTES = "/linecache.py"  # of Python: reads code for a message
_FINDS = ("/importlib/metadata/", "<frozen importlib", "<frozen zipimport")  # modules, in folders
_LOOKS_ROUND = ("/platform.py", "/uuid.py", "/ctypes/util.py")  # of Python: at the machine
_REFUSED = {
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn",
                     "pty.spawn"), "start another program"),
    **dict.fromkeys(("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"),
                    "use the network"),
}  # fmt: skip
_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)
_MIXED = "changed while it was read"  # which nothing is ever equal to
_ENVIRON = type(os.environ)

# Each function, with the file it is in: what it asked for, and what that was
_asked: dict[tuple[str, str], dict[str, Any]] = {}
_tracing: list[Tracer] = []
_local = threading.local()


class Tracer:
    """Notes what is asked for inside `with`, and refuses what cannot be held."""

    def __init__(self, apart: Iterable[str]) -> None:
        """`apart`: folders of which nothing counts: the store, the images."""
        self._apart = tuple(
            f"{path(each)}{os.sep}"
            for each in apart
            for path in (os.path.realpath, os.path.abspath)
        )
        self._states: dict[str, Any] = {}
        self._written: set[str] = set()
        self._refused: LadderError | None = None

    def __enter__(self) -> Tracer:
        _tracing.append(self)
        self._outer, _local.tracer = getattr(_local, "tracer", None), self
        return self

    def __exit__(self, *error: object) -> None:
        _tracing.remove(self)
        _local.tracer = self._outer
        if self._refused:
            raise self._refused

    def is_apart(self, path: str) -> bool:
        """Whether a path is of what counts otherwise, or was written here."""
        return path.startswith(self._apart) or path in self._written

    def wrote(self, path: str) -> None:
        """What is read of a file after this was made here."""
        self._written.add(path)

    def note(self, name: str, state: Any) -> None:
        """Take down what was asked for, and what it was."""
        self._states[name] = state if self._states.get(name, state) == state else _MIXED

    def refuse(self, error: LadderError) -> None:
        """Keep what a stage must not do, in case that its code catches it."""
        self._refused = error

    def trace(self, pieces: Iterable[str]) -> Trace:
        """What the body asked for, and what these pieces of code did earlier in this process."""
        reached = {*pieces}
        for (file, function), earlier in [*_asked.items()]:
            if any(piece in reached for piece in _pieces(file, function)):
                for name, state in earlier.items():
                    self.note(name, state)
        # What was changed since is not what was read, or not all of it.
        return {
            name: now(name) if _state(name) == state else _MIXED
            for name, state in sorted(self._states.items())
        }


def changed(trace: Mapping[str, str]) -> tuple[str, ...]:
    """In words, what is no longer as it was when a body asked for it."""
    return tuple(
        _said(name, was, here) for name, was in trace.items() if (here := now(name)) != was
    )


def _said(name: str, was: str, now: str) -> str:
    if not name.startswith("$"):
        return (
            f"{name} {'is gone' if was and not now else 'is new' if now and not was else 'changed'}"
        )
    shown = [
        text[1:] if text[:1] == "=" else text[:8] if text else "not set" for text in (was, now)
    ]
    text = f"{name} {shown[0]} -> {shown[1]}"
    return text if len(text) <= 100 else f"{name} changed"


# What something is


def _state(name: str) -> Any:
    """What something is, as can be seen at a glance: of a file, its stat; None where it is not."""
    if name.startswith("$"):
        return _variable(name[1:])
    path = located(name)
    _local.busy = True
    try:
        if name.endswith("/"):
            return _digest("\0".join(sorted(os.listdir(path))).encode("utf-8", "surrogateescape"))
        stat = os.stat(path)
    except (OSError, ValueError):
        return ""
    finally:
        _local.busy = False
    return path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def now(name: str) -> str:
    """What a trace says of something: a variable's text, or a digest; empty for nothing."""
    state = _state(name)
    return state if isinstance(state, str) else _of_file(*state)


def _variable(name: str) -> str:
    """A variable as it can be shown; of a secret, or a long one, its digest."""
    if name == "*":
        return _digest(repr(sorted(dict.items(_plain_environment()))).encode())
    value = _plain_environment().get(name)
    if value is None:
        return ""
    if len(value) > 60 or _SECRET.search(name):
        return _digest(value.encode("utf-8", "surrogateescape"))
    return f"={value}"


def _plain_environment() -> dict[str, str]:
    data: Any = os.environ
    return {data.decodekey(key): data.decodevalue(value) for key, value in data._data.items()}


@functools.lru_cache(maxsize=256)
def _of_file(path: str, *_stat: int) -> str:
    _local.busy = True
    try:
        return digest_of_file(Path(path))
    except LadderError:
        return ""
    finally:
        _local.busy = False


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


# Where something is: a record may come from a machine on which the code lies elsewhere


def _roots() -> Iterator[str]:
    yield from dict.fromkeys(
        [_ROOT, *own.PLACES, *(each for each in sys.path if each and os.path.isdir(each))]
    )


def _named(path: str) -> str:
    for root in _roots():
        if path.startswith(f"{root}{os.sep}"):
            return path[len(root) + 1 :]
    return path


def located(name: str) -> str:
    """Where what a trace names is on this machine, or would be."""
    path = name.rstrip("/")
    paths = [os.path.join(root, path) for root in ([""] if os.path.isabs(path) else _roots())]
    return next(filter(os.path.exists, paths), paths[0])


# How it is noted


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        # A name alone for os.open is most often one in an open folder, as when images are read.
        if flags & os.O_DIRECTORY or (mode is None and path.__class__ is str and path[:1] != "/"):
            return
        writes = flags & os.O_ACCMODE != os.O_RDONLY
    elif event in _EVENTS:
        path, writes = arguments[0] if arguments else None, False
    else:
        return
    if getattr(_local, "busy", False) or isinstance(path, int):
        return
    if event in _REFUSED:
        if _tracing:
            _refuse(event)
        return
    with contextlib.suppress(TypeError, ValueError):
        path = os.path.abspath(os.fsdecode("." if path is None else path))
        _look(path, is_file=event == "open", writes=writes)


def _look(path: str, *, is_file: bool, writes: bool) -> None:
    if path.startswith(_NOBODYS):
        return
    tracers = _tracers()
    if writes:
        for tracer in tracers:
            tracer.wrote(path)
        return
    if any(tracer.is_apart(path) for tracer in tracers):
        return
    asker = _asker(sys._getframe(2), _FINDS if not is_file else _FINDS[:1], path)
    if asker is None:
        return
    if path.endswith(".pyc"):
        with contextlib.suppress(ValueError):
            path = importlib.util.source_from_cache(path)
    _take_down(asker, _named(path) + ("" if is_file else "/"), tracers)


def _take_down(asker: tuple[str, str], name: str, tracers: list[Tracer]) -> None:
    state = _state(name)
    _asked.setdefault(asker, {})[name] = state
    for tracer in tracers:
        tracer.note(name, state)


def _tracers() -> list[Tracer]:
    """That of this thread; of a thread that a body has started, all that are at work."""
    mine = getattr(_local, "tracer", None)
    return [mine] if mine else [*_tracing]


def _asker(frame: FrameType | None, finders: tuple[str, ...], path: str) -> tuple[str, str] | None:
    """The innermost function of the project's own: its file and its name; None before an import."""
    while frame is not None:
        code = frame.f_code
        part = _part(code.co_filename)
        if part == "ours":
            return code.co_filename, code.co_qualname
        if any(each in code.co_filename for each in finders):
            return None
        if path.endswith(".py") and code.co_filename.endswith(_QUOTES):
            return None
        if part == "engine" or (part == "import" and code.co_name == "_find_and_load"):
            return None
        frame = frame.f_back
    return None


@functools.cache
def _part(file: str) -> str:
    if file.startswith("<"):
        return "import" if file == "<frozen importlib._bootstrap>" else "other"
    path = os.path.realpath(file)
    if path.startswith(_INSTALLED) or not path.endswith(".py"):
        return "other"
    return "engine" if path.startswith((_ENGINE, f"{_ROOT}/flows/")) else "ours"


def _directly(frame: FrameType | None) -> FrameType | None:
    """The project's own function that asks Python itself, with no package between them."""
    while frame is not None:
        file = frame.f_code.co_filename
        if _part(file) == "ours":
            return frame
        of_python = file.startswith(("<frozen", *_INSTALLED)) and "-packages/" not in file
        if not of_python or file.endswith(_LOOKS_ROUND):
            return None
        frame = frame.f_back
    return None


def _refuse(event: str) -> None:
    if frame := _directly(sys._getframe(2)):
        error = LadderError(
            f"{frame.f_code.co_filename}:{frame.f_lineno}: a stage cannot {_REFUSED[event]}, whose "
            "answer may be another the next time; do that before, and read a file"
        )
        for tracer in _tracers():
            tracer.refuse(error)
        raise error


class _Environ(_ENVIRON):  # type: ignore[valid-type,misc] # a class that typeshed knows by a name of its own
    """The environment, which notes who asks it."""

    def __getitem__(self, key: Any) -> Any:
        _tell(f"${os.fsdecode(key)}")
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        _tell("$*")
        return super().__iter__()


def _tell(name: str) -> None:
    if not getattr(_local, "busy", False) and (frame := _directly(sys._getframe(2))):
        code = frame.f_code
        _take_down((code.co_filename, code.co_qualname), name, _tracers())


def _pieces(file: str, function: str) -> Iterator[str]:
    """What a function may be called among the pieces of code that a stage reaches."""
    names = function.partition(".<locals>")[0].split(".")
    stem = file.removesuffix("/__init__.py").removesuffix(".py").split("/")
    for depth in range(1, min(len(stem), 8)):
        module = ".".join(stem[-depth:])
        yield from (f"{module}.{'.'.join(names[:count])}" for count in range(1, len(names) + 1))


_EVENTS = {"os.listdir", "os.scandir", *_REFUSED}

for _environ in (os.environ, os.environb):  # the same object for all who hold it
    _environ.__class__ = _Environ
sys.addaudithook(_hook)  # for good: Python has no way to take one away
