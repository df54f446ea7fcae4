"""`stepladder look`: what a folder holds, as a run would read it, and the command to run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flows.datasets import find_dataset, validates
from flows.options import Dataset, Options
from tasks.caching.basics import LadderError, clean, told
from tasks.images.headers import UNKNOWN, choose, converted, header
from tasks.images.kinds import of_suffix
from tasks.images.labelled import Layout
from tasks.images.layout import Reading, survey
from tasks.images.scan import listed_in

SAMPLE = 200  # images whose beginnings are read
BEGINNING = 65_536  # bytes; what tells of size and kind is nearly always there
SHOWN = 12  # classes


def look(dataset: Dataset = "sample", /, *, options: Options = Options()) -> None:
    """Say what a folder holds: layout, classes, counts, sizes, kinds, and the command to run next.

    Takes the options of `run`, stores nothing, and reads the beginnings of a few images only.
    """
    from flows.console import Terminal, plain

    asked = options.parameters(dataset)
    place = find_dataset(str(dataset), asked["name"])
    reading = Reading(**{field: asked[field] for field in Reading._fields})
    found, problems = survey(place.folder.resolve(), reading)
    validates(asked["validation"], is_given="validation" in found.sides)
    skipped = [*found.skipped]
    names = {
        side: [listed_in(images, skipped, problems)[0] for images in each]
        for side, each in found.sides.items()
    }
    seen = _sampled(found, names)
    bad = [name for name, known in seen.items() if known == UNKNOWN]
    console = Terminal(soft_wrap=True)
    for line in [
        *_layout(place.name, found, names, reading.testing),
        *_images(seen, names),
        *_made(seen, asked),
        *(f"skipped: {line}" for line in skipped[:SHOWN]),
        *([f"... and {len(skipped) - SHOWN:,} more lines"] if len(skipped) > SHOWN else []),
        *([f"damaged or unknown: {', '.join(bad[:3])} ({len(bad)} of {len(seen):,} looked at); "
           "--skip-bad leaves such files out"] if bad else []),
    ]:  # fmt: skip
        console.print(plain(line))
    if "all" in names:
        problems += [
            f"{clean(place.folder)}: the class {clean(label)} has one image; one is needed for "
            "training and one for testing: add some, or remove the class"
            for label, each in zip(found.classes, names["all"], strict=True)
            if len(each) == 1
        ]
    if problems:
        raise LadderError(told(problems))
    command = options.command(str(dataset))
    console.print(plain(f"next: {command}{' --skip-bad' if bad and not options.skip_bad else ''}"))


def _layout(
    name: str, found: Layout, names: dict[str, list[list[str]]], testing: float
) -> Iterator[str]:
    count = sum(len(each) for side in names.values() for each in side)
    classes = "1 class" if len(found.classes) == 1 else f"{len(found.classes):,} classes"
    yield f"{name}: {count:,} images of {classes}"
    if "all" in names:
        share = f"{testing:.0%} for testing, and validation out of the rest"
        yield f"split: {found.split.replace('by pixels', f'by pixels, {share}')}"
    else:
        sides = ", ".join(f"{side} {sum(map(len, each)):,}" for side, each in names.items())
        yield f"split: {sides}, {found.split}"
    for label, *counts in list(zip(found.classes, *names.values(), strict=True))[:SHOWN]:
        yield f"  {label}: {' + '.join(f'{len(each):,}' for each in counts)}"
    if len(found.classes) > SHOWN:
        yield f"  ... and {len(found.classes) - SHOWN:,} more classes"


def _sampled(found: Layout, names: dict[str, list[list[str]]]) -> dict[str, tuple[int, int, int]]:
    """Size and kind of a few images of each class, by their paths."""
    lists = [
        (images.folder, these)
        for side, each in found.sides.items()
        for images, these in zip(each, names[side], strict=True)
        if these
    ]
    most = max(1, SAMPLE // max(1, len(lists)))
    seen = {}
    for folder, these in lists[:SAMPLE]:
        for name in these[:: max(1, len(these) // most)][:most]:
            seen[str(folder / name)] = _header(folder / name)
    return seen


def _header(path: Path) -> tuple[int, int, int]:
    try:
        with path.open("rb") as file:
            data = file.read(BEGINNING)
            known = header(data, path.name)
            return header(data + file.read(), path.name) if known == UNKNOWN else known
    except OSError:
        return UNKNOWN


def _images(
    seen: dict[str, tuple[int, int, int]], names: dict[str, list[list[str]]]
) -> Iterator[str]:
    """Kinds of all images, sizes of the few that were looked at."""
    kinds = Counter(of_suffix(name) for side in names.values() for each in side for name in each)
    if kinds:
        told_kinds = ", ".join(
            f"{n:,} {kind.partition(' ')[2].replace(' image', '')}"
            for kind, n in kinds.most_common()
        )
        yield f"files: {told_kinds}"
    sizes = Counter(known[:2] for known in seen.values() if known != UNKNOWN)
    if len(sizes) == 1:
        ((height, width),) = sizes
        yield f"sizes: all {height} x {width}, of {len(seen):,} looked at"
    elif sizes:
        (low, _), (high, _) = min(sizes.items()), max(sizes.items())
        yield (
            f"sizes: {len(sizes):,} of them, {low[0]} x {low[1]} to {high[0]} x {high[1]}, of "
            f"{len(seen):,} images looked at"
        )


def _made(seen: dict[str, tuple[int, int, int]], asked: dict[str, object]) -> Iterator[str]:
    """What a run would make of the images that were looked at."""
    headers = np.array([*seen.values()], np.int32).reshape(-1, 3)
    form = choose(headers, asked["size"], asked["fit"], asked["strict"], asked["skip_bad"])  # type: ignore[arg-type]
    if form.colour:
        yield f"colours: {form.colour}"
    yield from (
        f"to be made of those looked at: {line}"
        for line in converted(headers, form, chosen=asked["size"] is not None)
    )
