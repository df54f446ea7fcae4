"""Canvas: the images of a folder to be, filled row by row from the bytes of files.

Small plain PNGs are decoded many at a time, everything else by Pillow, file by file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.caching import machine
from tasks.caching.basics import LadderError, clean, told
from tasks.images.form import Form
from tasks.images.jpeg import jpeg
from tasks.images.kinds import JPEG_START, REMEDY, SUFFIXES, kind_of, of_suffix
from tasks.images.others import other
from tasks.images.pillow import PLUGINS, damaged, fitted
from tasks.images.plain import SIGNATURE, plain_images
from tasks.images.png import png

FEW = 3  # images of another size are told one by one; more of them are summed up


class Canvas:
    """The images of a folder to be, filled row by row, and what stands against it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        self.images = np.empty(0, np.uint8)  # of the first image's shape
        self.rows: dict[tuple[int, ...], list[int]] = {}  # by the shape of their images
        self.problems: list[str] = []
        self.skipped: dict[int, str] = {}  # rows of bad files that are left out, and their lines

    def decode(self, rows: Sequence[int], data: list[bytes], form: Form) -> None:
        """Fill these rows from the bytes of their files."""
        are_png = all(of_suffix(self.names[row]) == "a PNG" for row in rows)
        found, plain = plain_images(data if are_png else [])
        as_they_are = form.size in (None, plain.shape[1:3]) and (
            form.colour is None or (form.colour == "RGB") == (plain.ndim == 4)
        )
        if as_they_are and found:
            self._put([rows[at] for at in found], plain)
            if len(found) == len(rows):
                return
        done = dict(zip(found, plain, strict=True))
        for at, (row, each) in enumerate(zip(rows, data, strict=True)):
            if at not in done:
                self._read(row, each, form)
            elif not as_they_are:
                self._put([row], np.asarray(fitted(Image.fromarray(done[at]), form))[None])

    def finished(self) -> tuple[list[int], np.ndarray]:
        """The rows that were filled, and their images[N, H, W] or [N, H, W, 3].

        Raises LadderError with a line for each problem.
        """
        self.problems += _unlike(self.rows, self.names, self.folder)
        if self.problems:
            raise LadderError(told(self.problems))
        filled = self.filled()
        if not filled:
            raise LadderError(
                f"{clean(self.folder)} holds no image that can be read: add some, or remove it\n"
                + told(self.skipped.values())
            )
        if len(filled) < len(self.names):
            return filled, self.images[filled]
        return filled, self.images

    def filled(self) -> list[int]:
        """The rows that have their images."""
        return sorted(row for rows in self.rows.values() for row in rows)

    def _read(self, row: int, data: bytes, form: Form) -> None:
        path = self.folder / self.names[row]
        try:
            image = read_image(data, path, form)
        except LadderError as error:
            if form.skip_bad:
                self.skipped[row] = _left_out(error, path)
            else:
                self.problems.append(str(error))
        except MemoryError:
            raise LadderError(
                f"{clean(path)}: there is too little memory to decode it; close other programs, "
                "shrink it or remove it"
            ) from None
        else:
            self._put([row], image[None])

    def _put(self, rows: list[int], images: np.ndarray) -> None:
        shape = images.shape[1:]
        if not self.rows:
            self.images = room(len(self.names), shape)
        if shape == self.images.shape[1:]:
            self.images[rows] = images
        self.rows.setdefault(shape, []).extend(rows)


def read_image(data: bytes, path: Path, form: Form) -> np.ndarray:
    """One image[H, W] or [H, W, 3] uint8 from the bytes of any accepted file, made as `form` says.

    This is the whole way from a file to what a model is given, in training as in prediction: what
    the bytes are decides how they are read, and in this order the image is decoded (a JPEG far
    larger than needed at a smaller scale), turned upright, put over the background where it is
    transparent, fitted to the size, made grey or RGB.  `path` is only named in messages.

    Raises LadderError naming `path` for what is no such image or what a strict form refuses,
    MemoryError where it does not fit.
    """
    named, kind = of_suffix(path.name), kind_of(data)
    if kind not in PLUGINS or (form.strict and kind != named):
        raise _misnamed(data, path, named or "an image", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Pillow finds in EXIF data and the like
        if kind == "a PNG":
            image = png(data, form, path)
        else:
            image = jpeg(data, form, path) if kind == "a JPEG" else other(data, kind, form, path)
        return np.asarray(fitted(image, form))


def _left_out(error: LadderError, path: Path) -> str:
    """The line of a bad file that is left out, wherever its folder lies: "a.png: damaged"."""
    why = str(error).removeprefix(clean(path)).removeprefix(" is ").partition(": ")[0].strip()
    return f"{clean(path.name)}: {why}"


def _misnamed(data: bytes, path: Path, named: str, kind: str) -> LadderError:
    if any(start.startswith(data) for start in (SIGNATURE, JPEG_START)):
        return damaged(path, "it ends too early" if data else "it is empty")
    if not kind:
        return damaged(path, f"it does not begin like {named}")
    if kind in PLUGINS:
        suffix = next(each for each, says in SUFFIXES.items() if says == kind)
        return LadderError(f"{clean(path)} is {kind}: rename it to {suffix} or remove it")
    remedy = REMEDY.get(kind, "convert it to PNG or JPEG, or remove it")
    return LadderError(f"{clean(path)} is {kind}, not {named}: {remedy}")


def room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array for so many images, in memory or, where they are many, on the disk."""
    size = count * math.prod(shape)
    if size <= machine.LARGE:
        return np.empty((count, *shape), np.uint8)
    return np.frombuffer(machine.on_disk(size), np.uint8).reshape(count, *shape)


def _unlike(
    rows: dict[tuple[int, ...], list[int]], names: list[str], folder: Path
) -> Iterator[str]:
    """Lines for the images that are not of the commonest shape."""
    if len(rows) < 2:
        return
    usual = max(rows, key=lambda shape: len(rows[shape]))
    odd = sorted((row, shape) for shape in rows if shape != usual for row in rows[shape])
    colours = [(row, shape) for row, shape in odd if len(shape) != len(usual)]
    for row, shape in colours:
        yield (
            f"{clean(folder / names[row])} is {_described(shape)} among images of "
            f"{_described(usual)}; save it as {_kind(usual)} like the others"
        )
    sizes = [(row, shape) for row, shape in odd if len(shape) == len(usual)]
    for row, shape in sizes[: FEW if len(sizes) > FEW + 1 else None]:
        yield (
            f"{clean(folder / names[row])} is {_described(shape)} among images of "
            f"{_described(usual)}; make them alike or ask for one size, such as "
            f"--size {usual[0]}x{usual[1]}"
        )
    if len(sizes) > FEW + 1:
        yield f"{clean(folder)} has {len(sizes) - FEW:,} more of other sizes than most"


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} {_kind(shape)}"


def _kind(shape: tuple[int, ...]) -> str:
    return "RGB" if len(shape) == 3 else "greyscale"
