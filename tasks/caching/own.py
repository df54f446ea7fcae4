"""Functions in files of the user's, by name: `my_models.py:wide`, or `package.module:name`.

Known as `module:name` ("my_models:wide"), which does not say where the file lies: that is found as
Python finds modules, in folders that travel with a run.  A `Registry` gives such a function as it
gives its own entries, and the fingerprint follows its code.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import operator
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from tasks.caching.basics import LadderError, clean, shortened, shown
from tasks.caching.origins import homes
from tasks.caching.places import is_remote

T = TypeVar("T")
PLACES: dict[str, None] = {}  # the folders that such modules may lie in, in order of asking
_BESIDE: ContextVar[Path | None] = ContextVar("beside", default=None)


class Registry(dict[str, T]):
    """A dict of functions, written out, that also gives a user's own as `module:name`."""

    def __missing__(self, name: str) -> T:
        """The user's own function, from a module in one of PLACES or of STEPLADDER_CODE.

        A file of weights names its model, and may be of anybody: what it names is not imported
        unless the user has said where code of theirs lies.  Raises LadderError.
        """
        if not is_own(name):
            raise KeyError(name)
        search(_folders_of_code())
        trusted = {Path(place).resolve() for place in PLACES}
        top = name.partition(":")[0].partition(".")[0]
        if top in sys.stdlib_module_names or not any(home & trusted for home in homes(top)):
            raise LadderError(f"{shown(name)} is code of somebody's own: set STEPLADDER_CODE to "
                              f"the folder that {clean(top)} lies in, if you trust it")  # fmt: skip
        found: T = _function(name)
        return found


def is_own(name: object) -> bool:
    """Whether a name is of a user's own function."""
    return isinstance(name, str) and ":" in name


@contextlib.contextmanager
def beside(file: Path) -> Iterator[None]:
    """Inside, paths are relative to a file's folder, and not to the working directory."""
    token = _BESIDE.set(file.absolute().parent)
    try:
        yield
    finally:
        _BESIDE.reset(token)


def located(path: str) -> Path:
    """A path that a user gave, made absolute."""
    return Path(_BESIDE.get() or Path.cwd(), Path(path).expanduser())


def search(folders: Iterable[str]) -> None:
    """Let modules be found in folders, after all places that Python looks in already."""
    for each in folders:
        whole = str(Path(each).absolute())
        PLACES[whole] = None
        if whole not in sys.path:
            sys.path.append(whole)
            importlib.invalidate_caches()


def settle(text: str, takes: str) -> str:
    """The name `module:name` of a function given so, or as `FILE.py:NAME`; it is imported.

    takes: the arguments it will be called with, in words, such as "shape, classes".
    Raises LadderError where it is not there, or cannot be called so.
    """
    place, _, name = text.rpartition(":")
    path = located(place) if place.endswith(".py") else None
    module = path.stem if path else place
    if not all(part.isidentifier() for part in (name, *module.split("."))):
        raise LadderError(f"{shown(text)} names no function: write it as my_models.py:wide or as "
                          "package.module:name, in letters, digits and _")  # fmt: skip
    if is_remote():
        search(_folders_of_code())
        _insist_on_trust(
            text, {path.parent} if path else set().union(*homes(module.partition(".")[0]))
        )
    if path and not path.is_file():
        raise LadderError(f"{shown(text)}: there is no file {shortened(path)}")
    search([str(path.parent if path else located("."))])
    found = _spec(module)
    if path and not (found and found.origin and Path(found.origin).resolve() == path.resolve()):
        origin = shortened(found.origin) if found else "none"
        raise LadderError(f"{shown(text)}: Python would take another module {module} ({origin}): "
                          "rename your file")  # fmt: skip
    settled = f"{module}:{name}"
    _insist_on_call(shown(settled), _function(settled), takes)
    search(str(each) for home in homes(module.partition(".")[0]) for each in home)
    return settled


def _folders_of_code() -> list[str]:
    return [*filter(None, os.environ.get("STEPLADDER_CODE", "").split(os.pathsep))]


def _insist_on_trust(text: str, folders: set[Path]) -> None:
    """Let a deployment's run import nothing that its worker's owner has not said lies there."""
    trusted = {Path(each).resolve() for each in _folders_of_code()}
    if not trusted & {each.resolve() for each in folders}:
        raise LadderError(
            f"{shown(text)}: a deployment runs code of your own only from the folders that "
            "STEPLADDER_CODE names where its worker is started"
        )


def _spec(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _function(settled: str) -> Any:
    module, _, name = settled.rpartition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise LadderError(f"{shown(settled)}: there is no module {module}; install it, or go "
                              "to the folder where its file lies") from None  # fmt: skip
        raise LadderError(f"{shown(settled)} cannot be imported: {_briefly(error)}") from None
    if not hasattr(found, name):
        raise LadderError(f"{shown(settled)}: {clean(found.__file__)} defines no {name}")
    return operator.attrgetter(name)(found)


def _briefly(error: BaseException) -> str:
    """An error of a user's file in one line, with the last place that it came from."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
    words = getattr(error, "msg", None) or str(error)
    return clean(f"{type(error).__name__}: {shortened(words)} ({place})")


def _insist_on_call(text: str, function: Any, takes: str) -> None:
    if not callable(function):
        raise LadderError(f"{text} is no function or class but a {type(function).__name__}")
    with contextlib.suppress(ValueError):  # compiled code may not say what it takes
        signature = inspect.signature(function)
        try:
            signature.bind(*takes.split(", "))
        except TypeError:
            raise LadderError(
                f"{text} takes {signature}, but will be called with ({takes})"
            ) from None
