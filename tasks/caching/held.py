"""What a trace says of something outside a stage's arguments, now and on this machine.

A trace is a name, and what it was.  The names are

    $SCALE                      a variable of the environment, `$*` for all of them
    tasks/limits.json           a file, by its content
    tasks/tables/               a folder, by the names in it
    ?st_size tasks/limits.json  what a look at a path gives, without its content
    @os.getcwd                  what this process or machine is
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import locale
import os
import platform
import re
import resource
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tasks.caching import own
from tasks.caching.basics import LadderError, digest_of_file

Trace = dict[str, str]  # what was asked for, by its name: what it was, "" for nothing

MIXED = "changed while it was read"  # which nothing is ever equal to
ORDER = "@hash ('the order of sets',)"  # where Python was not started with PYTHONHASHSEED=0
# Of Python's functions that look at a path or at the machine, those that nobody is told of
PLAIN: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": inspect.unwrap(getattr(module, name))
    for module, names in (
        (os, ("stat", "lstat", "fstat", "access", "readlink", "open", "getcwd", "getcwdb", "uname",
              "cpu_count", "process_cpu_count", "sched_getaffinity", "getuid", "geteuid", "getgid",
              "getlogin", "sysconf", "confstr")),
        (socket, ("gethostname", "getfqdn")),
        (resource, ("getrlimit",)),
        (locale, ("getlocale", "localeconv", "getpreferredencoding", "getencoding")),
        (sys, ("getrecursionlimit",)),
        (platform, ("node", "system", "release", "version", "machine", "processor", "platform",
                    "uname", "python_version", "architecture", "libc_ver",
                    "freedesktop_os_release")),
    )
    for name in names if hasattr(module, name)
}  # fmt: skip
_ROOT = str(Path(__file__).resolve().parents[2])
_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
BUSY = threading.local()  # where `now` is set, it is this chapter that asks


def changed(trace: Mapping[str, str]) -> tuple[str, ...]:
    """In words, what is no longer as it was when a body asked for it."""
    said = [_said(name, was, here) for name, was in trace.items() if (here := now(name)) != was]
    return tuple(dict.fromkeys(said))


def _said(name: str, was: str, now: str) -> str:
    path = name
    if name.startswith("?"):
        field, _, path = name[1:].partition(" ")
        name = path if field.endswith("exists") else f"{field.removeprefix('l')} of {path}"
    if name == path and not name.startswith(("$", "@")):
        return (
            f"{name} {'is gone' if was and not now else 'is new' if now and not was else 'changed'}"
        )
    unset = "not set" if name.startswith("$") else "nothing"
    shown = [text[1:] if text[:1] == "=" else text[:8] if text else unset for text in (was, now)]
    text = f"{name.removeprefix('@')} {shown[0]} -> {shown[1]}"
    return text if len(text) <= 100 else f"{name.removeprefix('@')} changed"


def now(name: str) -> str:
    """What a trace says of something: a short text as it is, or a digest; empty for nothing."""
    found = state(name)
    with quietly():
        return found if isinstance(found, str) else _of_file(*found)


def state(name: str) -> Any:
    """The same, but for a file's content: its stat, which tells at a glance that it changed."""
    with quietly(), contextlib.suppress(OSError, ValueError, TypeError):
        return _state(name)
    return ""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, nobody is told what is asked for."""
    before, BUSY.now = getattr(BUSY, "now", False), True
    try:
        yield
    finally:
        BUSY.now = before


def _state(name: str) -> Any:
    if name.startswith("$"):
        return _variable(name[1:])
    if name.startswith("@"):
        call, _, given = name[1:].partition(" ")
        return _shown(PLAIN.get(call, hash)(*ast.literal_eval(given or "()")))
    path = located(name)
    if name.startswith("?"):
        return _look(name[1:].partition(" ")[0], path)
    if name.endswith("/"):
        return _shown(_rows(path, os.DirEntry.is_dir))
    if path.startswith(("/proc/", "/sys/")):  # whose times tell nothing
        return _digest(Path(path).read_bytes())
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _look(what: str, path: str) -> str:
    """What one look at a path gives; with "l" before a field of its stat, of a link itself."""
    if what == "target":
        return f"={os.readlink(path)}"
    if what == "entries":
        return _shown(_rows(path, _row))
    if what.startswith("access"):
        return f"={os.access(path, int(what[6:]))}"
    found = os.lstat(path) if what.startswith("l") else os.stat(path)
    what = what.removeprefix("l")
    if what == "kind":
        return f"={_KINDS.get(stat.S_IFMT(found.st_mode), 'other')}"
    return "=yes" if what == "exists" else f"={getattr(found, what)}"


def _rows(path: str, row: Callable[[os.DirEntry[str]], Any]) -> list[tuple[str, Any]]:
    with os.scandir(path) as inside:
        return sorted((each.name, row(each)) for each in inside)


def _row(entry: os.DirEntry[str]) -> tuple[int, ...]:
    """Of an entry what a stage may look at; of a link that leads nowhere, its own."""
    for follow in (True, False):
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=follow)
            return found.st_mode, found.st_size, found.st_mtime_ns
    return ()


def _shown(value: Any) -> str:
    text = repr(sorted(value) if isinstance(value, set) else value)
    return f"={text}" if len(text) <= 60 else _digest(text.encode("utf-8", "surrogateescape"))


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
    try:
        return digest_of_file(Path(path))
    except LadderError:
        return ""


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


# Where something is: a record may come from a machine on which the code lies elsewhere


def _roots() -> Iterator[str]:
    yield from dict.fromkeys([_ROOT, *own.PLACES, *filter(None, sys.path)])


def named(path: str) -> str:
    """What a trace calls a path: from the folder that code is found in, if it lies there."""
    around = [root for root in _roots() if path.startswith(f"{root}{os.sep}")]
    # The innermost: an environment with packages may lie in the project's folder, or elsewhere.
    return path[len(max(around, key=len)) + 1 :] if around else path


def located(name: str) -> str:
    """Where the file or folder that a trace names is on this machine, or would be."""
    path = (name.partition(" ")[2] if name.startswith("?") else name).rstrip("/")
    paths = [os.path.join(root, path) for root in ([""] if os.path.isabs(path) else _roots())]
    return next(filter(os.path.exists, paths), paths[0])
