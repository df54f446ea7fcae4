"""What a body asks for beside its arguments: of files and folders, variables, the machine.

No source shows which they are, so they are noted when it happens, by Python's audit hook and by
functions put in the place of Python's own and of compiled readers, and held in the record: it
serves while each is as it was (`held`).  What asks is the innermost function of the project's own
on the stack; what the engine, Python and installed packages read for themselves is no one's trace,
nor is the code that an import reads, which the fingerprint follows.  What nobody can hold, such as
numbers that are drawn without a seed, is refused with its line, by whatever name it was called.

A helper may keep what it once read (`lru_cache`), for the next stage that runs in this process.  So
what each function has asked for in this process counts for every stage that reaches the function.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pkgutil
import random
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy.random

from tasks.caching.basics import LadderError
from tasks.caching.held import BUSY, MIXED, ORDER, PLAIN, Trace, located, named, now, quietly
from tasks.caching.held import state as state_of
from tasks.caching.reach import UNORDERED

_ROOT = str(Path(__file__).resolve().parents[2])
_ENGINE = "/tasks/caching/"  # of another checkout too, that this process has run before
_INSTALLED = tuple(
    {f"{os.path.realpath(sysconfig.get_path(kind))}/" for kind in ("stdlib", "purelib", "platlib")}
    | {f"{sysconfig.get_path(kind)}/" for kind in ("stdlib", "purelib", "platlib")}
)
_MACHINE = ("/proc/", "/sys/")  # which counts where it is asked for plainly
_NOISE = ("/dev/urandom", "/dev/random")
_SHARED_MEMORY = "/dev/shm/"
_VERSION = "/METADATA"  # of a distribution that is installed
_QUOTES = "/linecache.py"  # of Python: reads code for a message
_FINDS = ("/importlib/metadata/", "<frozen importlib", "<frozen zipimport")  # modules, in folders
_WATCH = f"{_ROOT}/flows/watch.py"  # notes besides, and hands on
_LOOKS_ROUND = ("/platform.py", "/uuid.py", "/ctypes/util.py")  # of Python: at the machine
_NAMES = ("/tempfile.py", "/multiprocessing/")  # of Python: draws what nothing else is called
_SETTINGS = "/pydantic"  # reads variables into fields
_REFUSED = {
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn",
                     "pty.spawn"), "start another program"),
    **dict.fromkeys(("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"),
                    "use the network"),
    "noise": "draw numbers without a seed",
}  # fmt: skip
_MAKES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir"}
# Of Python, what looks at a path, or at the machine, for who calls it ...
_LOOKING = {"os", "posixpath", "genericpath", "pathlib", "glob", "shutil", "filecmp", "socket",
            "concurrent", "threading"}  # fmt: skip
# ... but for functions that look whether something is in their way
_MAKING = {"mkdir", "makedirs", "rmtree", "move", "copyfile", "copy", "copy2", "copytree",
           "copystat", "copymode", "removedirs", "renames", "getfqdn"}  # fmt: skip
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
        )  # and the folders that are made here
        self._states: dict[str, Any] = {}
        self._named: dict[str, str] = {}
        self._is_silent = False
        self._written: set[str] = set()
        self._refused: LadderError | None = None
        self._process = os.getpid()

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
        return f"{path}{os.sep}".startswith(self._apart) or path in self._written

    def wrote(self, path: str, *, is_folder: bool) -> None:
        """Take down that a file or folder was made, moved or removed here: it is no trace then."""
        if is_folder:
            self._apart += (f"{path}{os.sep}",)
        self._written.add(path)

    def note(self, name: str, state: Any) -> None:
        """Take down what was asked for, and what it was.  Raises LadderError in a fork."""
        if os.getpid() != self._process:
            raise LadderError(f"a process that a stage has started asks for {name}, which no "
                              "record would hold: let the stage read it")  # fmt: skip
        self._states[name] = state if self._states.get(name, state) == state else MIXED

    def expect(self, paths: Iterable[str] | None) -> None:
        """Take down files that may be read without a word to Python, as compiled code does.

        None where nothing that is called does.  What a body lists, it may go on to read.
        """
        self._is_silent |= paths is not None
        self._named |= {named(each): each for each in paths or () if not self.is_apart(each)}

    def listed(self, folder: str) -> None:
        """Take down that the body has looked for files in a folder."""
        if self._is_silent:
            paths = (os.path.join(folder, each) for each in os.listdir(folder))
            data = (each for each in paths if not each.endswith((".py", ".pyc")))
            self._named |= {named(each): each for each in data if os.path.isfile(each)}

    def refuse(self, error: LadderError) -> None:
        """Keep what a stage must not do, in case that its code catches it."""
        self._refused = error

    def trace(self, pieces: Iterable[str]) -> Trace:
        """What the body asked for, and what these pieces of code did earlier in this process."""
        reached = {*pieces}
        for (file, function), earlier in [*_asked.items()]:
            if any(piece in reached for piece in _pieces(file, function)):
                for name, state in earlier.items():
                    if name.startswith(("$", "@")) or not self.is_apart(located(name)):
                        self.note(name, state)
        if sys.flags.hash_randomization and not reached.isdisjoint(UNORDERED):
            self.note(ORDER, state_of(ORDER))
        # What the body made itself, it may have made without a word, too.
        expected = (name for name, path in self._named.items() if not self.is_apart(path))
        self._states |= {name: state_of(name) for name in {*expected} - self._states.keys()}
        # What was changed since is not what was read, or not all of it.
        return {
            name: now(name) if state_of(name) == state else MIXED
            for name, state in sorted(self._states.items())
        }


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
    if isinstance(path, int) and not _tracing:
        return
    if event in _REFUSED:
        _refuse(event)
    elif event in _OPENS:
        _silently(re.sub(r"^file:(//)?|\?.*", "", str(path)))
    elif event in _MAKES:
        for each in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
            _wrote(each, is_folder=event in ("os.mkdir", "os.rename"))
    elif writes:
        _wrote(path)
    elif (whole := _whole(path)).endswith(_VERSION):
        _tell(named(whole))
    elif whole and not _is_nobodys(whole):
        _look(whole, event)


def _is_nobodys(path: str) -> bool:
    is_device = path.startswith("/dev/") and not path.startswith(_SHARED_MEMORY)
    return path.startswith(_INSTALLED) or (is_device and path not in _NOISE)


def _whole(path: Any, folder: int | None = None) -> str:
    """A path from the root, from the working directory or an open folder; "" where it has none."""
    with contextlib.suppress(TypeError, ValueError, OSError):
        if isinstance(path, int):
            path = PLAIN["os.readlink"](f"/proc/self/fd/{path}")
        path = os.fsdecode("." if path is None else path)
        if folder is not None and not os.path.isabs(path):
            path = os.path.join(PLAIN["os.readlink"](f"/proc/self/fd/{folder}"), path)
        if not os.path.isabs(path):
            path = os.path.join(PLAIN["os.getcwd"](), path)
        return os.path.normpath(path)
    return ""


def _wrote(path: Any, *, is_folder: bool = False) -> None:
    if _tracing and not getattr(BUSY, "now", False) and (whole := _whole(path)):
        for tracer in _tracers():
            tracer.wrote(whole, is_folder=is_folder)


def _look(path: str, event: str) -> None:
    """Take down that a file is read, or the names in a folder."""
    if path in _NOISE:
        _refuse("noise")
    tracers, is_file = _tracers(), event == "open"
    if any(tracer.is_apart(path) for tracer in tracers):
        return
    apart = (*_FINDS[: 1 if is_file else None], *([_QUOTES] if path.endswith(".py") else []))
    passes = _plainly if path.startswith(_MACHINE) else _anyhow
    asker = _asking(lambda each: passes(each) and not _is_of(each, apart))
    if asker is None:
        return
    if path.endswith(".pyc"):
        with contextlib.suppress(ValueError):
            path = importlib.util.source_from_cache(path)
    _take_down(asker, named(path) + ("" if is_file else "/"))
    if not is_file:
        with quietly(), contextlib.suppress(OSError):
            for tracer in tracers:
                tracer.listed(path)
    if event == "os.scandir" and asker is sys._getframe(2):
        _take_down(asker, f"?entries {named(path)}")  # each tells its size, too


def _is_of(frame: FrameType, files: Iterable[str]) -> bool:
    return any(each in frame.f_code.co_filename for each in files)


def _silently(path: Any, *_how: Any, **_more: Any) -> None:
    """Take down a file that compiled code is given, which opens it without a word to Python."""
    whole = _whole(path)
    is_data = _tracing and not whole.startswith(_INSTALLED) and os.path.isfile(whole)
    if is_data and _asking(_anyhow):
        for tracer in _tracers():
            tracer.expect([whole])


def _take_down(asker: FrameType, name: str) -> None:
    state, code = state_of(name), asker.f_code
    _asked.setdefault((code.co_filename, code.co_qualname), {})[name] = state
    for tracer in _tracers():
        tracer.note(name, state)


def _tracers() -> list[Tracer]:
    """That of this thread; of a thread that a body has started, all that are at work."""
    mine = getattr(_local, "tracer", None)
    return [mine] if mine else [*_tracing]


def _asking(passes: Callable[[FrameType], bool]) -> FrameType | None:
    """The innermost function of the project's own, where all through which it asks pass that on.

    Of a thread that a body has started, Python's own at its root: `pool.map(Path.read_text, ...)`.
    """
    if getattr(BUSY, "now", False):
        return None
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    root, is_python = frame, not getattr(_local, "tracer", None) and bool(_tracing)
    while frame and _part(frame.f_code.co_filename) != "ours":
        if not passes(frame):
            return None
        is_python = is_python and _is_python(frame.f_code.co_filename)
        root, frame = frame, frame.f_back
    return frame or (root if is_python else None)


def _anyhow(frame: FrameType) -> bool:
    """Packages read files for who calls them, unless it is an import, or the engine's own."""
    part = _part(frame.f_code.co_filename)
    return part != "engine" and (part != "import" or frame.f_code.co_name != "_find_and_load")


def _plainly(frame: FrameType) -> bool:
    """Python asks for who calls it, and so does a package that reads variables into fields."""
    file = frame.f_code.co_filename
    is_asked = _is_python(file) and not file.endswith(_LOOKS_ROUND)
    return is_asked or file == _WATCH or _SETTINGS in file


def _closely(frame: FrameType) -> bool:
    """Python's functions for paths look at one for who calls them."""
    module = str(frame.f_globals.get("__name__")).partition(".")[0]
    looks = module in _LOOKING and frame.f_code.co_name not in _MAKING
    return looks or frame.f_code.co_filename == _WATCH


def _is_python(file: str) -> bool:
    return file.startswith(("<frozen", *_INSTALLED)) and "-packages/" not in file


@functools.cache
def _part(file: str) -> str:
    if file.startswith("<"):
        return "import" if file == "<frozen importlib._bootstrap>" else "other"
    with quietly():
        path = os.path.realpath(file)
    if path.startswith(_INSTALLED) or not path.endswith(".py"):
        return "other"
    return "engine" if _ENGINE in path or path.startswith(f"{_ROOT}/flows/") else "ours"


def _refuse(event: str, passes: Callable[[FrameType], bool] = _plainly) -> None:
    apart = _NAMES if event == "noise" else ()
    if _tracing and (frame := _asking(lambda each: passes(each) and not _is_of(each, apart))):
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
    if frame := _asking(_plainly):
        _take_down(frame, name)


def _pieces(file: str, function: str) -> Iterator[str]:
    """What a function may be called among the pieces of code that a stage reaches."""
    names = function.partition(".<locals>")[0].split(".")
    stem = file.removesuffix("/__init__.py").removesuffix(".py").split("/")
    for depth in range(1, min(len(stem), 8)):
        module = ".".join(stem[-depth:])
        yield from (f"{module}.{'.'.join(names[:count])}" for count in range(1, len(names) + 1))


# What has no audit event: functions in the place of Python's own


class _Status:
    """What `os.stat` gives, and notes what of it is asked for."""

    def __init__(self, found: os.stat_result, note: Callable[[str], None]) -> None:
        self._found, self._note = found, note

    def __getattr__(self, field: str) -> Any:
        # Python's own, such as Path.is_file, ask for the kind in it alone.
        is_ours = _part(sys._getframe(1).f_code.co_filename) == "ours"
        self._note("kind" if field == "st_mode" and not is_ours else field)
        return getattr(self._found, field)

    def __iter__(self) -> Iterator[Any]:
        for field in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size",
                      "st_atime", "st_mtime", "st_ctime"):  # fmt: skip
            self._note(field)
        return iter(self._found)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Status) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment] # nobody keeps such a thing in a set


def _noter(path: Any, folder: int | None, link: str = "") -> Callable[[str], None] | None:
    """What takes down that a field of a path's state was asked for; None where nobody is told."""
    if folder is not None and not _tracing:
        return None  # as a scan asks, of very many
    asker = _asking(_closely)
    if asker is None:
        return None
    whole = _whole(path, folder)
    if not whole or whole.startswith(_INSTALLED):
        return None
    if any(tracer.is_apart(whole) for tracer in _tracers()):
        return None
    name = named(whole)
    return lambda field: _take_down(asker, f"?{link}{field} {name}" if field else name)


def _stat(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Any:
    note = _noter(path, dir_fd, "" if follow_symlinks else "l")
    return _noted(note, "os.stat", path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)


def _fstat(number: int) -> Any:
    return _noted(_noter(number, None), "os.fstat", number)


def _lstat(path: Any, *, dir_fd: int | None = None) -> Any:
    # Path.resolve() looks so whether there is a link, and follows it: that is noted.
    is_resolved = sys._getframe(1).f_code.co_name in ("_joinrealpath", "realpath")
    note = None if is_resolved else _noter(path, dir_fd, "l")
    return _noted(note, "os.lstat", path, dir_fd=dir_fd)


def _noted(note: Callable[[str], None] | None, call: str, path: Any, **how: Any) -> Any:
    if note is None:
        return PLAIN[call](path, **how)
    note("exists")
    return _Status(PLAIN[call](path, **how), note)


def _access(path: Any, mode: int, **how: Any) -> bool:
    if note := _noter(path, how.get("dir_fd")):
        note(f"access{mode}")
    return bool(PLAIN["os.access"](path, mode, **how))


def _readlink(path: Any, *, dir_fd: int | None = None) -> Any:
    if note := _noter(path, dir_fd):
        note("target")
    return PLAIN["os.readlink"](path, dir_fd=dir_fd)


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    # Of a path from the root the audit hook is told, and a folder may be opened for any of it.
    is_told = isinstance(path, str) and path[:1] == "/"
    reads = not flags & (os.O_ACCMODE | os.O_DIRECTORY | os.O_CREAT)
    if reads and not is_told and (note := _noter(path, dir_fd)):
        note("")
    number: int = PLAIN["os.open"](path, flags, mode, dir_fd=dir_fd)
    return number


def _telling(name: str) -> Callable[..., Any]:
    """A function that asks what this process or machine is, and notes it."""

    def asked(*arguments: Any, **more: Any) -> Any:
        if asker := _asking(_closely):
            _take_down(asker, f"@{name} {arguments!r}".removesuffix(" ()"))
        return PLAIN[name](*arguments, **more)

    return asked


def _put(place: Any, name: str, function: Any) -> None:
    """Put a function in the place of Python's own, for all who have not taken it before."""
    plain = PLAIN[f"{place.__name__}.{name}"]
    functools.update_wrapper(function, plain).__module__ = place.__name__
    for kinds in (os.supports_dir_fd, os.supports_effective_ids, os.supports_fd,
                  os.supports_follow_symlinks):  # fmt: skip
        if plain in kinds:
            kinds.add(function)
    setattr(place, name, function)


def _telling_before(plain: Any, tell: Callable[..., object]) -> Any:
    """A function of others' that is told of before it is called."""

    def called(*arguments: Any, **more: Any) -> Any:
        tell(*arguments, **more)
        return plain(*arguments, **more)

    return functools.wraps(plain)(called)


_OPENS = {"sqlite3.connect", "ctypes.dlopen"}
_OPENERS = (
    "pyarrow.OSFile", "pyarrow.memory_map", "pyarrow.lib._stringify_path",
    "pyarrow.util._stringify_path", "torch.from_file", "torch.jit.load",
    "torch.UntypedStorage.from_file", "safetensors.safe_open", "safetensors.torch.safe_open",
)  # fmt: skip
_EVENTS = {"os.listdir", "os.scandir", *_OPENS, *_MAKES, *_REFUSED}
_OF_PATHS = {"stat": _stat, "lstat": _lstat, "fstat": _fstat, "access": _access,
             "readlink": _readlink, "open": _open}  # fmt: skip

# From here on and for good: Python has no way to take an audit hook away.
for _environ in (os.environ, os.environb):  # the same object for all who hold it
    _environ.__class__ = _Environ
for _call in PLAIN:
    _place, _, _name = _call.partition(".")
    _put(sys.modules[_place], _name, _OF_PATHS.get(_name) or _telling(_call))
for _call in _OPENERS:
    _place, _, _name = _call.rpartition(".")
    _owner = pkgutil.resolve_name(_place)
    setattr(_owner, _name, _telling_before(getattr(_owner, _name), _silently))
_noise: Any = random
os.urandom = _noise._urandom = _telling_before(os.urandom, lambda _count: _refuse("noise"))
_noise.Random.seed = _telling_before(
    random.Random.seed, lambda _self, a=None, *_, **__: _refuse("noise") if a is None else None
)
_noise.seed = _noise._inst.seed
_noise = numpy.random.bit_generator
_noise.randbits = _telling_before(_noise.randbits, lambda _count: _refuse("noise", _anyhow))
sys.addaudithook(_hook)
