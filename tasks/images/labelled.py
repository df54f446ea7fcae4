"""Labelled: a dataset whose classes are told by a manifest or found in the names of its images."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from tasks.caching.basics import LadderError, clean, shown, told
from tasks.images.folders import below, left_aside, some
from tasks.images.sides import are_splits, role_of


class Images(NamedTuple):
    """Where the images of one class lie."""

    folder: Path
    names: list[str] | None = None  # from there; None for all that lie below


class Layout(NamedTuple):
    """A dataset's images: a side has one `Images` for each of `classes`."""

    classes: list[str]  # in Unicode's composed form (NFC), sorted
    sides: dict[str, list[Images]]  # training and testing, with or without validation, or "all"
    skipped: list[str]  # "train/labels.csv: not in a class folder"
    split: str  # in words, how the sides came about


class Row(NamedTuple):
    """What is said of one image."""

    path: str  # from the dataset's folder
    label: str
    side: str  # the word for it; "" where none is said


def in_words(roles: dict[str, str]) -> str:
    """How the sides came about.  roles: what stands for each of them; "all" for what is drawn."""
    if "all" in roles or not roles:
        return "by pixels"
    if len(roles) == 3:
        return "as given"
    if role_of(roles["testing"]) == "testing":
        return "as given, validation out of training"
    return (
        f"as given: {clean(roles['testing'])} tests, as nothing else does, and validation comes "
        "out of training"
    )


def by_pattern(
    path: Path, roles: dict[str, str], pattern: str, skipped: list[str]
) -> tuple[Layout, list[str]]:
    """The dataset whose classes a pattern finds in the paths of its images.

    roles: as `in_words` takes them.  Gives a line for each thing that is wrong, too.
    Raises LadderError for what is no pattern, or finds nothing.
    """
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise LadderError(
            f"--class-from {shown(pattern)} is no regular expression ({error})"
        ) from None
    rows, unlike = [], []
    for role, name in (roles or {"all": ""}).items():
        for file in below(path / name, clean(name or path.name), skipped):
            at = f"{name}/{file}" if name else file
            found = search.search(at)
            if found and (label := found[1] if search.groups else found[0]):
                rows.append(Row(at, label, "" if role == "all" else name))
            else:
                unlike.append(at)
    if not rows:
        seen = f", such as {some(unlike[:1])}" if unlike else ""
        raise LadderError(
            f"--class-from {shown(pattern)} finds a class in none of the {len(unlike):,} images "
            f"of {clean(path)}{seen}; its first group is the class, as in '([a-z]+)_[0-9]+'"
        )
    skipped += left_aside(clean(path.name), unlike, "no class in its path by --class-from")
    return of_rows(path, rows, "classes out of paths", skipped)


def of_rows(path: Path, rows: list[Row], how: str, skipped: list[str]) -> tuple[Layout, list[str]]:
    """The dataset of rows, and a line for each thing that is wrong.

    Raises LadderError where it cannot be told what is for training.
    """
    meaning = _meaning(path, rows)
    names: dict[str, dict[str, list[str]]] = {
        side: {} for side in ("training", "validation", "testing") if side in meaning.values()
    } or {"all": {}}
    for row in rows:
        side = names[meaning.get(row.side, "all")]
        side.setdefault(unicodedata.normalize("NFC", row.label), []).append(row.path)
    classes = sorted({label for each in names.values() for label in each})
    problems = [
        f"{clean(path)}: no image for {side} is of the class {clean(label)}, which others are: "
        "add some, or remove it"
        for side, each in names.items()
        for label in classes
        if label not in each
    ]
    if len(classes) == 1:
        problems.append(
            f"{clean(path)} has one class, {clean(classes[0])}: a ladder needs two or more"
        )
    sides = {
        side: [Images(path, sorted(each.get(label, []))) for label in classes]
        for side, each in names.items()
    }
    said = {role: word for word, role in meaning.items()}
    return Layout(classes, sides, skipped, f"{in_words(said)}, {how}"), problems


def _meaning(path: Path, rows: list[Row]) -> dict[str, str]:
    """Which side each word for one stands for; empty where none is said."""
    words = {row.side: row.path for row in rows}
    meaning = {word: role_of(word) for word in sorted(words) if word}
    problems = []
    if unknown := [word for word, role in meaning.items() if not role]:
        problems.append(
            f"{clean(path)}: the split {some(unknown)} is not known; train, val, valid, dev and "
            "test are"
        )
    elif meaning and "" in words:
        problems.append(
            f"{clean(path)}: no split is given for {clean(words[''])}: give all images one, or none"
        )
    elif meaning and not are_splits({*meaning.values()}):
        problems.append(
            f"{clean(path)}: all images are of the split {some([*meaning])}: besides train "
            "another is needed, or no split at all"
        )
    if problems:
        raise LadderError(told(problems))
    if "testing" not in meaning.values():
        return {word: role.replace("validation", "testing") for word, role in meaning.items()}
    return meaning
