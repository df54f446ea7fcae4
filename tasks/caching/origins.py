"""Whose a module is: this project's, or of an installed distribution, which has a version."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path

OWN = ("tasks", "flows")
# What of the engine is not followed where code names it, or meets it in memory
_MACHINERY = {
    f"tasks.caching.{name}"
    for name in ("stage.stage", "stage.Stage", "stage.Run", "bodies.CORES", "bodies.Cores",
                 "own.Registry", "own.settle", "refs.Ref", "basics._beside")
}  # fmt: skip
# `+cpu` and `+cu126` are builds of one release, with libraries of their own: a shared store serves
# machines with and without a GPU, which the key tells apart where that matters.
_BUILDS = ("torch",)
_CODE = (".py", ".so", ".pyd", ".dylib")


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
    except (ImportError, ValueError, TypeError):  # the last of a module that gives any attribute
        return False


def is_followed(module: str, name: str) -> bool:
    """Whether what a module calls so counts by its own code, and not as another's or the engine's.

    Of the engine, helpers that a stage's code names count as anybody's do.  What leads a stage to
    its machinery does not: how that calls a stage, stores and loads stands in each key as a whole.
    """
    return is_ours(module) and f"{module}.{name}" not in _MACHINERY


@functools.cache
def is_brought(name: str) -> bool:
    """Whether a name is of a project's module, whose import may do more than make names.

    Not of the engine, and not of the flows: what these set up, bodies see in the environment.
    """
    if not is_ours(name) or f"{name}.".startswith(("tasks.caching.", "flows.")):
        return False
    if not is_module(name):
        return False
    found = sys.modules.get(name) or importlib.util.find_spec(name)
    return bool(getattr(found, "__file__", None) or getattr(found, "origin", None))


# Versions


@functools.cache
def version(package: str) -> dict[str, str]:
    """The versions of the distributions that bring the package which Python's search finds."""
    found = installed(package)
    here = {folder for home in homes(package) for folder in home} & found.keys()
    # Of two with one name, the search finds the one in the folder that comes first.
    each = [one for folder in found if folder in here or not here for one in found[folder]]
    first = {one.name: one for one in reversed(each)}
    return {name: _release(one) for name, one in sorted(_required(first))}


def _required(first: Mapping[str, Distribution]) -> Iterator[tuple[str, Distribution]]:
    """Distributions, and those they require, to the end; what is not installed cannot matter."""
    waiting, seen = [*first.items()], {*first}
    for name, each in waiting:
        yield name, each
        for line in () if name in _BUILDS else each.requires or ():
            wanted = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                if "extra ==" not in line and wanted not in seen:
                    seen.add(wanted)
                    waiting.append((wanted, importlib.metadata.distribution(wanted)))


def _release(distribution: Distribution) -> str:
    """A distribution's version, and what its files are: the same version may be installed anew."""
    version = str(distribution.version)
    if distribution.name in _BUILDS:
        return version.partition("+")[0]
    rows = [row.split(",") for row in (distribution.read_text("RECORD") or "").splitlines()]
    # Not what an installer writes besides: bytecode, scripts with the path of their Python.
    code = sorted(f"{path},{digest}" for path, digest, *_ in rows
                  if path.endswith(_CODE) and not path.startswith(".."))  # fmt: skip
    if not code:  # as Linux distributions have it
        return version
    return f"{version} ({hashlib.sha256(chr(10).join(code).encode()).hexdigest()[:8]})"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the distributions that bring these packages, and Python's."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for package in sorted({*packages} - sys.stdlib_module_names):
        found |= version(package)
    return found
