"""Which dataset is meant: what a person gave becomes a name, an identity and a folder.

A dataset is known by its place as it was given.  Links in it are not followed: `current`, which
points to another snapshot each night, is one dataset.  Under the data root the place is the path
from there (so the data root may move), elsewhere the absolute path.  Relative or absolute, with
`~`, `..` or a slash at the end, the same place is the same dataset, and two places never share a
history, whatever their last names, unless both are told the same name (`--name`).

Its history lies under its `home`: the name itself for a folder right under the data root and for a
name that was told; else the last name, made safe, and a digest of the place: `images-1f0c5a9e2b`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePath
from typing import NamedTuple

from tasks.caching.basics import LadderError, clean, data_root, expand, shown


class Place(NamedTuple):
    """A dataset's folder, and which dataset it is."""

    name: str  # what a person calls it
    home: str  # its history, and the folder of its reports: no other dataset has it
    folder: Path  # absolute, its links as they are
    given: str  # what means it on a command line, in whatever folder that is typed


def find_place(dataset: str, name: str = "") -> Place | None:
    """The dataset given as a name under the data root, or as a path; None where no folder is.

    A path is what begins with /, ./, ../ or ~ or holds `..`; anything else may be either, and the
    data root comes first.  name: what to call it, and the history it belongs to.
    Raises LadderError for what cannot be meant.
    """
    _insist_on_dataset(dataset)
    if name:
        insist_on_name(name, "--name")
    for path in candidates(dataset):
        if _is_folder(path):
            insist_on_reach(path, "the dataset")
            place = _place(path, _composed(name))
            _insist_on_a_home(place)
            return place
    return None


def is_remote() -> bool:
    """Whether a deployment started this run: whoever asked for it may sit at another machine."""
    return bool(os.environ.get("PREFECT__FLOW_RUN_ID"))


def insist_on_reach(path: Path, what: str) -> None:
    """Let a deployment's run use no path but those under the data root.  Raises LadderError.

    Whoever may ask for runs over HTTP would else read and list what its worker can.
    """
    if is_remote():
        insist_on_data_root(path, what)


def insist_on_data_root(path: Path, what: str) -> None:
    """Raise LadderError for a path that no deployment may use."""
    allowed = os.environ.get("STEPLADDER_ALLOW_PATHS") == "1"
    if not allowed and absolute(data_root()) not in absolute(path).parents:
        raise LadderError(
            f"{what} {clean(path)} lies outside the data root {data_root()}: a deployment takes "
            "only what is there; move or link it there, or start the worker with "
            "STEPLADDER_ALLOW_PATHS=1"
        )


def candidates(dataset: str) -> Iterator[Path]:
    """Where a dataset may be, absolute, the likeliest first."""
    if not dataset.startswith(("/", "./", "../", "~")) and ".." not in PurePath(dataset).parts:
        yield absolute(data_root() / dataset)
    yield absolute(expand(dataset))


def insist_on_name(name: str, where: str) -> None:
    """Raise LadderError for what is no plain name for a dataset; `where` says what gave it."""
    # Marks, too, are parts of letters: of é typed as two, or of many in Hindi or Thai.
    letters = "".join(c for c in name if not unicodedata.category(c).startswith("M"))
    if not re.fullmatch(r"\w([\w .+-]*[\w+-])?", letters) or len(os.fsencode(name)) > 100:
        raise LadderError(
            f"{where} {shown(name)} cannot name a dataset; choose letters, digits, - and _, "
            "at most 100"
        )


def absolute(path: Path) -> Path:
    """A path from the root, spelled as on disk; links stay, but where `..` leaves one again."""
    here = Path("/")
    for part in (path if path.is_absolute() else _here() / path).parts[1:]:
        if part == ".." and _is_folder(here):
            here = (here.resolve() if here.is_symlink() else here).parent
        else:  # where there is no folder, a step up from it leads nowhere
            here = here / _spelled(here, part)
    return here


def _here() -> Path:
    """The current folder by the links that the shell came through, where it says so."""
    try:
        now = Path.cwd()
    except OSError:
        raise LadderError("the current folder is gone; change to one that is there") from None
    told = Path(os.environ.get("PWD", ""))
    with contextlib.suppress(OSError):
        return told if told.is_absolute() and told.samefile(now) else now
    return now


def _spelled(folder: Path, part: str) -> str:
    """A name as the disk has it: some disks do not tell case, and none tells how é was typed."""
    forms = {unicodedata.normalize(form, part) for form in ("NFC", "NFD")}
    others = {part.swapcase(), *forms} - {part}
    try:
        if not any(os.path.lexists(folder / other) for other in others):
            return part
        entries = sorted(os.listdir(folder))
        if part in entries:
            return part
        like = folded if os.path.lexists(folder / part) else _composed
        return next((each for each in entries if like(each) == like(part)), part)
    except (OSError, ValueError):
        return part


def folded(name: str) -> str:
    """What names have in common that a disk ignoring case and accents' spelling takes for one."""
    return _composed(_composed(name).casefold())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _insist_on_dataset(dataset: str) -> None:
    """Raise LadderError for what cannot be the name or the path of a dataset's folder."""
    what = shown(dataset)
    if "://" in dataset:
        raise LadderError(f"{what} is a URL; `stepladder fetch NAME --from URL` brings it here")
    if "\0" in dataset:
        raise LadderError(f"{what} holds a zero byte, which no folder's name does")
    if PurePath(dataset).name in ("", ".."):
        raise LadderError(
            f"{what} names no dataset: give a folder's name, or its path with a name at its end, "
            "such as ./pets"
        )
    _insist_on_utf8(dataset)
    if len(dataset.encode()) > 4096 or max(len(p.encode()) for p in PurePath(dataset).parts) > 255:
        raise LadderError(f"{what} is too long for the name of a folder")


def _insist_on_utf8(path: str) -> None:
    if not path.isascii() and path.encode(errors="replace").decode() != path:
        raise LadderError(f"the name {ascii(path)[1:-1]} is not UTF-8; rename it")


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except PermissionError as error:
        raise LadderError(f"{clean(path)} cannot be looked at ({error.strerror})") from None
    except OSError:
        return False


def _place(path: Path, told: str) -> Place:
    _insist_on_utf8(str(path))
    inside = _from_data_root(path)
    given = inside if inside and not inside.startswith(("-", "~")) else str(path)
    if told:
        return Place(told, told, path, given)
    if inside and "/" not in inside:
        return Place(inside, inside, path, given)
    digest = sha256((inside or str(path)).encode()).hexdigest()[:10]
    safe = re.sub(r"[^\w.+-]+", "-", _composed(path.name)).strip(".-")[:40] or "dataset"
    return Place(inside or path.name, f"{safe}-{digest}", path, given)


def _insist_on_a_home(place: Place) -> None:
    """Raise LadderError where a disk that ignores case would mix two datasets' reports."""
    reports = data_root() / "reports"
    if os.path.lexists(reports / place.home):
        there = os.listdir(reports)
        taken = [each for each in there if folded(each) == folded(place.home)]
        if taken and place.home not in there:
            raise LadderError(
                f"this disk would mix the reports of {shown(place.home)} with those of "
                f"{shown(taken[0])}: give another --name"
            )


def _from_data_root(path: Path) -> str:
    """The path from the data root, or nothing for what lies elsewhere."""
    root = data_root()
    if _is_folder(root):
        for parent in path.parents:
            if parent.samefile(root):
                return path.relative_to(parent).as_posix()
    return ""
