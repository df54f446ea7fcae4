"""Layout: how a dataset's folder is laid out: its splits, their classes, what is left aside.

    animals/training/cat/*.png    animals/testing/cat/*.png    or, without splits,
    animals/training/dog/*.png    animals/testing/dog/*.png    animals/cat/*.png, animals/dog/*.png

What lies deeper in a class belongs to it.  A manifest, or a pattern for paths, may say the classes
instead.  All that is wrong is told at once, and nothing is left aside without a line.
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
from tasks.caching.places import insist_on_reach
from tasks.images.folders import (
    Entries,
    entries,
    is_text,
    left_aside,
    not_utf8,
    some,
    unreadable,
)
from tasks.images.kinds import of_suffix
from tasks.images.labelled import Images, Layout, by_pattern, in_words, of_rows
from tasks.images.manifest import ENDINGS, read_manifest
from tasks.images.sides import are_splits, blurred, role_of

USUAL = {"training": ["training", "train"], "testing": ["testing", "test", "validation", "valid"]}


class Reading(NamedTuple):
    """What a user says of how a folder is to be read, beyond what it says itself."""

    testing: float = 0.2  # share drawn for testing where no folder says which images are
    labels: str = ""  # path of a manifest; see `tasks.images.manifest`
    columns: dict[str, str] = {}  # noqa: RUF012 - what its columns are called; nothing changes it
    class_from: str = ""  # pattern that finds the class in a path
    keep_together: bool = False  # near duplicates, on one side

    def which(self) -> list[str]:
        """What tells two datasets in one folder apart."""
        return [self.labels, self.class_from, "together" * self.keep_together]


AS_IT_IS = Reading()


def layout(path: Path) -> Layout:
    """The dataset in a folder.  Raises LadderError with a line for each thing that is wrong."""
    found, problems = survey(path)
    if problems:
        raise LadderError(told(problems))
    return found


def survey(path: Path, reading: Reading = AS_IT_IS) -> tuple[Layout, list[str]]:
    """The dataset in a folder, as far as it is one, and a line for each thing that is wrong.

    Raises LadderError where there is none at all, and where what is to be drawn is given.
    """
    found, problems = _surveyed(path, reading)
    asked = ["--testing"] * (reading.testing != AS_IT_IS.testing)
    asked += ["--keep-together"] * reading.keep_together
    if asked and "all" not in found.sides:
        raise LadderError(
            f"{' and '.join(asked)}: {clean(path)} says itself which images test; leave this out"
        )
    return found, problems


def _surveyed(path: Path, reading: Reading) -> tuple[Layout, list[str]]:
    if reading.labels and reading.class_from:
        raise LadderError("--labels and --class-from both say the classes: give one of them")
    if reading.labels:
        insist_on_reach(Path(reading.labels), "the manifest")
        rows = read_manifest(Path(reading.labels), reading.columns, path)
        return of_rows(path, rows, f"labelled by {clean(Path(reading.labels).name)}", [])
    top = entries(path, clean(path.name))
    roles = _splits(path, top.folders)
    if not roles and not reading.class_from:
        _insist_on_classes(path, top.folders)
    beside = [*top.skipped, *_beside(path, top, roles)] if roles else top.skipped
    if reading.class_from:
        return by_pattern(path, roles, reading.class_from, beside)
    folders = {side: path / name for side, name in roles.items()}
    found, problems = _class_folders(folders or {"all": path})
    found.skipped.extend(beside if roles else [])
    return found._replace(split=in_words(roles)), problems


def _splits(path: Path, folders: list[str]) -> dict[str, str]:
    """Side -> its folder, "all" -> the one to draw from; none where the folders are the classes.

    Raises LadderError where two are one side's.
    """
    found: dict[str, list[str]] = {}
    for name in folders:
        found.setdefault(role_of(name), []).append(name)
    found.pop("", None)
    if not are_splits({*found}):
        names = found.get("training", [])
        if len(found) == len(names) == 1 and _holds_folders_alone(path / names[0]):
            return {"all": names[0]}
        return {}
    problems = [
        f"{clean(path)} has both {' and '.join(map(clean, names))}; keep one of them"
        for names in found.values()
        if len(names) > 1
    ]
    if "testing" not in found:
        found["testing"] = found.pop("validation")
    sides = [side for side in ("training", "validation", "testing") if side in found]
    one = [*_same([path / found[side][0] for side in sides])]
    problems += [line.replace("each needs images of its own", "they need other images")
                 for line in one]  # fmt: skip
    if problems:
        raise LadderError(told(problems))
    return {side: found[side][0] for side in sides}


def _holds_folders_alone(folder: Path) -> bool:
    held = entries(folder, "")
    return bool(held.folders) and not any(map(of_suffix, held.files))


def _insist_on_classes(path: Path, folders: list[str]) -> None:
    """Raise LadderError where a folder's folders are hardly classes, with a guess at what is meant.

    Splits under names with a slip of the pen would be read as classes; so would other datasets.
    """
    known = {role_of(name) for name in folders}
    near = {
        side: [name for name in folders if get_close_matches(blurred(name), usual, 1, 0.8)]
        for side, usual in USUAL.items()
    }
    lacking = [side for side in USUAL if side not in known] if known - {""} else []
    meant = _meant(path, folders)
    if folders and "training" not in lacking and not all(near.values()) and not meant:
        return
    if known - {""} or all(near.values()):
        what = " and no folder ".join(" or ".join(USUAL[each][:2]) for each in lacking or USUAL)
        what = f"folder {what}"
    else:
        images = len([name for name in entries(path, "").files if of_suffix(name)])
        what = "class folders" + f" but {images:,} images" * bool(images)
        meant = meant or _told_elsewhere(path, images > 0)
    raise LadderError(
        f"{clean(path)} has no {what}; a dataset is laid out as training/CLASS/*.png and "
        f"testing/CLASS/*.png, or as CLASS/*.png{meant}"
        + "".join(
            f"; if '{clean(near[side][0])}' is meant, rename it to {USUAL[side][0]}"
            for side in USUAL if near[side] and side not in known and not meant
        )
    )  # fmt: skip


def _meant(path: Path, folders: list[str]) -> str:
    """A guess at the folder that was meant, where one is a step up or down from here."""
    inner = [path / name for name in islice(folders, 100)]
    outer = [path.parent, path.parent.parent] if role_of(path.name) or not folders else []
    for folder in (*inner, *outer):
        try:
            with os.scandir(folder) as inside:
                names = [each.name for each in inside if each.is_dir()]
        except OSError:
            continue
        if are_splits({role_of(name) for name in names} - {""}):
            return f"; {clean(folder)} is"
    return ""


def _told_elsewhere(path: Path, has_images: bool) -> str:
    """What to try where classes are not told by folders."""
    tables = [name for name in entries(path, "").files if Path(name).suffix.lower() in ENDINGS]
    if tables:
        return f"; if {clean(tables[0])} says the classes, try --labels {clean(path / tables[0])}"
    return "; if names say the classes, try --class-from '([a-z]+)_[0-9]+'" if has_images else ""


def _beside(path: Path, top: Entries, roles: dict[str, str]) -> Iterator[str]:
    """The lines of what lies beside the splits."""
    names = [clean(name) for name in roles.values()]
    all_of_them = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    folders = [name for name in top.folders if name not in roles.values()]
    yield from left_aside(path.name, folders, f"a folder beside {all_of_them}, not used")
    yield from left_aside(path.name, top.files, f"a file beside {all_of_them}")


def _class_folders(sides: dict[str, Path]) -> tuple[Layout, list[str]]:
    """The dataset whose sides hold a folder for each class."""
    skipped: list[str] = []
    problems: list[str] = []
    found = {side: _classes(folder, skipped, problems) for side, folder in sides.items()}
    first, *others = sides
    if all(found.values()):
        for other in others:
            problems += _unequal(sides[first], found[first], sides[other], found[other])
        problems += _same([folder for each in found.values() for folder in each.values()])
        problems += _too_few(sides[first].parent if others else sides[first],
                             {name: at for each in reversed(found.values())
                              for name, at in each.items()})  # fmt: skip
    # By code point, as their UTF-8 bytes sort too
    shared = sorted(set.intersection(*(set(each) for each in found.values())))
    images = {side: [Images(each[name]) for name in shared] for side, each in found.items()}
    return Layout(shared, images, skipped, ""), problems


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
        images = [name for name in found.files if of_suffix(name)]
        instead = f" but {len(images):,} images" if images else ""
        problems.append(
            f"{clean(split)} has no class folders{instead}; make one folder of images per class"
        )
    return classes


def _unequal(
    training: Path, trained: dict[str, Path], testing: Path, tested: dict[str, Path]
) -> Iterator[str]:
    """A line for each class that one split lacks."""
    alike = {blurred(name): name for name in trained if name not in tested}
    for name in sorted(tested.keys() - trained.keys()):
        twin = alike.pop(blurred(name), None)
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
            f"each{hint or _told_elsewhere(path, False)}"
        )
