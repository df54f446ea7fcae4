"""Layout: how a dataset's folder is laid out: its two splits, their classes, what is left aside.

    animals/training/cat/*.png    animals/testing/cat/*.png
    animals/training/dog/*.png    animals/testing/dog/*.png

All that is wrong is told at once, and nothing is left aside without a line.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tasks.caching.basics import LadderError, clean, told

TRAINING = ("training", "train")
TESTING = ("testing", "test", "valid")
SUFFIXES = (".png", ".jpg", ".jpeg")
# What operating systems, storage boxes and tools leave in folders, in lower case
JUNK = {
    *("__macosx", "desktop.ini", "thumbs.db", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "@tmp", "#recycle", "@recycle", "#snapshot", "~snapshot"),
    *("__pycache__", "found.000"),
}
# What failed is this computer, not the file
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ADVICE = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (`ulimit -n`) and run again"),
    errno.ENOMEM: "close other programs and run again",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "make it readable or remove it"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
        "the file may be whole: look at its disk or network share, then run again",
    ),
}


class Layout(NamedTuple):
    """A dataset's folders; `training[i]` and `testing[i]` belong to `classes[i]`."""

    classes: list[str]  # in Unicode's composed form (NFC), sorted
    training: list[Path]
    testing: list[Path]
    skipped: list[str]  # "train/labels.csv: not in a class folder"


class Entries(NamedTuple):
    """What a folder holds, sorted: what counts, and the lines of what does not."""

    folders: list[str]
    files: list[str]
    skipped: list[str]


def layout(path: Path) -> Layout:
    """The dataset in a folder.  Raises LadderError with a line for each thing that is wrong."""
    found, problems = survey(path)
    if problems:
        raise LadderError(told(problems))
    return found


def survey(path: Path) -> tuple[Layout, list[str]]:
    """The dataset in a folder, as far as it is one, and a line for each thing that is wrong.

    Raises LadderError where there are no two splits.
    """
    problems: list[str] = []
    top = entries(path, clean(path.name))
    training, testing = (
        _split(path, top.folders, names, problems) for names in (TRAINING, TESTING)
    )
    if training is None or testing is None:
        raise LadderError(told(problems))
    if os.path.samestat(training.stat(), testing.stat()):
        raise LadderError(
            f"{clean(training)} and {clean(testing)} are one folder: testing needs other images"
        )
    skipped = [*top.skipped, *_beside(path, top, (training.name, testing.name))]
    trained, tested = (_classes(each, skipped, problems) for each in (training, testing))
    if trained and tested:
        problems += _unequal(training, trained, testing, tested)
        problems += _same([*trained.values(), *tested.values()])
        problems += _too_few(path, {**tested, **trained})
    both = sorted(trained.keys() & tested.keys())  # by code point, as their UTF-8 bytes sort too
    sides = [[side[name] for name in both] for side in (trained, tested)]
    return Layout(both, sides[0], sides[1], skipped), problems


def entries(folder: Path, place: str) -> Entries:
    """What a folder holds; `place` is what the lines of what is left aside call it."""
    folders: list[str] = []
    files: list[str] = []
    hidden, junk = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    hidden.append(entry.name)
                elif entry.name.lower() in JUNK:
                    junk.append(entry.name)
                else:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise LadderError(
            f"{clean(folder)}: no such folder; give a dataset's folder, or fetch one first"
        ) from None
    except OSError as error:
        raise unreadable(folder, error) from None
    skipped = [
        *left_aside(place, hidden, "hidden"),
        *left_aside(place, junk, "left by a system, no images"),
    ]
    return Entries(sorted(folders), sorted(files), skipped)


def left_aside(place: str, names: Iterable[str], why: str) -> Iterator[str]:
    """The line that tells why some of what lies at a place is not used; none where there is none.

    "training/cat/notes.txt: not ..." for one, "training/cat: not ... (12: a.txt, b.txt, ...)".
    """
    names = sorted(names)
    if len(names) == 1:
        yield f"{place}/{clean(names[0])}: {why}"
    elif names:
        yield f"{place}: {why} ({len(names):,}: {some(names)})"


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join([*map(clean, names[:5]), *["..."] * (len(names) > 5)])


def unreadable(path: Path, error: OSError) -> LadderError:
    """The error for a file or folder that cannot be read, with what to do about it.

    Where this computer is short of something, which no other file would mend, it is raised.
    """
    why = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, "mend or remove it")
    if error.errno == errno.ENOENT:
        if path.is_symlink():
            why = "a broken link"
        else:
            why, advice = "it has just vanished", "run again"
    told = LadderError(f"{clean(path)} cannot be read ({why}): {advice}")
    if error.errno in _OURS:
        raise told from None
    return told


def not_utf8(folder: Path, names: list[str]) -> Iterator[str]:
    """A line for each name that is no text."""
    if not is_text("".join(names)):
        for name in names:
            if not is_text(name):
                yield f"{clean(folder)}: the name {clean(name)} is not UTF-8; rename it"


def is_text(name: str) -> bool:
    """Whether a name is UTF-8 on the disk; what is not comes as surrogates."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _split(
    path: Path, folders: list[str], names: tuple[str, ...], problems: list[str]
) -> Path | None:
    """The folder of a split; None, and a problem, where there is none or more than one."""
    found = [name for name in names if name in folders]
    if len(found) == 1:
        return path / found[0]
    if found:
        problems.append(f"{clean(path)} has both {found[0]} and {found[1]}; keep one of them")
    else:
        problems.append(
            f"{clean(path)} has no folder {' or '.join(names)}; a dataset is laid out as "
            f"training/CLASS/*.png and testing/CLASS/*.png{_meant(path, folders)}"
        )
    return None


def _meant(path: Path, folders: list[str]) -> str:
    """A guess at the folder that was meant, where one is a step up or down from here."""
    near = [*(path / name for name in islice(folders, 100)), path.parent, path.parent.parent]
    for folder in near:
        if all(any((folder / name).is_dir() for name in names) for names in (TRAINING, TESTING)):
            return f"; {clean(folder)} is"
    return ""


def _beside(path: Path, top: Entries, splits: tuple[str, str]) -> Iterator[str]:
    """The lines of what lies beside the two splits."""
    both = " and ".join(splits)
    folders = [name for name in top.folders if name not in splits]
    yield from left_aside(path.name, folders, f"a folder beside {both}, not used")
    yield from left_aside(path.name, top.files, f"a file beside {both}")


def _classes(split: Path, skipped: list[str], problems: list[str]) -> dict[str, Path]:
    """The class folders by name; what else lies there is added to `skipped`.

    Names count in Unicode's composed form: macOS writes an é as two characters, others as one.
    """
    found = entries(split, split.name)
    skipped += [*found.skipped, *left_aside(split.name, found.files, "not in a class folder")]
    problems += not_utf8(split, found.folders)
    classes: dict[str, Path] = {}
    for name in filter(is_text, found.folders):
        composed = unicodedata.normalize("NFC", name)
        if composed in classes:
            problems.append(
                f"{clean(split)} has the class {clean(composed)} twice, its accents written in two "
                "ways: move the images of both into one folder"
            )
        classes[composed] = split / name
    if not classes:
        images = [name for name in found.files if name.lower().endswith(SUFFIXES)]
        instead = f" but {len(images):,} images" if images else ""
        problems.append(
            f"{clean(split)} has no class folders{instead}; make one folder of images per class"
        )
    return classes


def _unequal(
    training: Path, trained: dict[str, Path], testing: Path, tested: dict[str, Path]
) -> Iterator[str]:
    """A line for each class that one split lacks."""
    alike = {_blurred(name): name for name in trained if name not in tested}
    for name in sorted(tested.keys() - trained.keys()):
        twin = alike.pop(_blurred(name), None)
        if twin is None:
            yield _lacks(training, name, tested[name])
        else:
            yield (
                f"the class {_told_apart(twin, name)} of {clean(training)} is "
                f"{_told_apart(name, twin)} in {clean(testing)}: give both folders one name"
            )
    for name in sorted(alike.values()):
        yield _lacks(testing, name, trained[name])


def _lacks(split: Path, name: str, other: Path) -> str:
    return (
        f"{clean(split)} lacks the class {clean(name)}: add {clean(split / name)} or remove "
        f"{clean(other)}"
    )


def _blurred(name: str) -> str:
    """A name without what is easily mistaken in it: case, width of characters, spaces."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def _told_apart(name: str, other: str) -> str:
    """A name in quotes; escaped where it would look the same as the other one."""
    look_same = unicodedata.normalize("NFKC", name) == unicodedata.normalize("NFKC", other)
    return ascii(name) if look_same else f"'{clean(name)}'"


def _same(folders: list[Path]) -> Iterator[str]:
    """A line for each class folder that is another one too, by a link."""
    seen: dict[tuple[int, int], Path] = {}
    for folder in folders:
        try:
            state = folder.stat()
        except OSError as error:
            yield str(unreadable(folder, error))
            continue
        first = seen.setdefault((state.st_dev, state.st_ino), folder)
        if first is not folder and state.st_ino:  # some file systems number nothing
            yield f"{clean(first)} and {clean(folder)} are one folder: each needs images of its own"


def _too_few(path: Path, classes: dict[str, Path]) -> Iterator[str]:
    """A line where there is nothing to tell apart."""
    if len(classes) == 1:
        ((name, folder),) = classes.items()
        inner = entries(folder, name).folders
        hint = f"; perhaps its folders are the classes ({some(inner)}): move them up" * bool(inner)
        yield (
            f"{clean(path)} has one class, {clean(name)}: a ladder needs two or more, a folder "
            f"each{hint}"
        )
