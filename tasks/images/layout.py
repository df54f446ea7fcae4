"""Layout: how a dataset's folder is laid out: its two splits, their classes, what is left aside.

    animals/training/cat/*.png    animals/testing/cat/*.png
    animals/training/dog/*.png    animals/testing/dog/*.png

All that is wrong is told at once, and nothing is left aside without a line.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tasks.caching.basics import LadderError, clean, told
from tasks.images.folders import Entries, entries, is_text, left_aside, not_utf8, some, unreadable

TRAINING = ("training", "train")
TESTING = ("testing", "test", "valid")
SUFFIXES = (".png", ".jpg", ".jpeg")


class Layout(NamedTuple):
    """A dataset's folders; `training[i]` and `testing[i]` belong to `classes[i]`."""

    classes: list[str]  # in Unicode's composed form (NFC), sorted
    training: list[Path]
    testing: list[Path]
    skipped: list[str]  # "train/labels.csv: not in a class folder"


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
    problems += _lacking(path, top.folders)
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


def _split(
    path: Path, folders: list[str], names: tuple[str, ...], problems: list[str]
) -> Path | None:
    """The folder of a split; None where there is none, or more than one, which is a problem."""
    found = [name for name in names if name in folders]
    if len(found) == 1:
        return path / found[0]
    if found:
        problems.append(f"{clean(path)} has both {found[0]} and {found[1]}; keep one of them")
    return None


def _lacking(path: Path, folders: list[str]) -> Iterator[str]:
    """A line for the splits that are not there, with a guess at what is meant instead."""
    missing = [names for names in (TRAINING, TESTING) if not any(n in folders for n in names)]
    if missing:
        wanted = " and no folder ".join(" or ".join(names) for names in missing)
        like = {names[0]: [name for name in folders if get_close_matches(_blurred(name), names, 1)]
                for names in missing}  # fmt: skip
        yield (
            f"{clean(path)} has no folder {wanted}; a dataset is laid out as training/CLASS/*.png "
            f"and testing/CLASS/*.png{_meant(path, folders)}"
            + "".join(f"; if '{clean(near[0])}' is meant, rename it to {name}"
                      for name, near in like.items() if near)
        )  # fmt: skip


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
