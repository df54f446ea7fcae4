"""Canvas: the images of a folder to be, filled row by row from the bytes of files.

Small plain PNGs are decoded many at a time, everything else by Pillow, file by file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.caching.basics import LadderError, clean, told
from tasks.caching.machine import insist_on_room
from tasks.images.jpeg import jpeg
from tasks.images.kinds import JPEG_START, REMEDY, kind_of
from tasks.images.pillow import damaged, resized
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

    def decode(self, rows: Sequence[int], data: list[bytes], size: tuple[int, int] | None) -> None:
        """Fill these rows from the bytes of their files."""
        are_png = all(is_png(self.names[row]) for row in rows)
        found, plain = plain_images(data if are_png else [])
        if size is None and found:
            self._put([rows[at] for at in found], plain)
            if len(found) == len(rows):
                return
        done = dict(zip(found, plain, strict=True))
        for at, (row, each) in enumerate(zip(rows, data, strict=True)):
            if at not in done:
                self._read(row, each, size)
            elif size:
                self._put([row], np.asarray(resized(Image.fromarray(done[at]), size))[None])

    def finished(self) -> np.ndarray:
        """The images[N, H, W] or [N, H, W, 3]; LadderError with a line for each problem."""
        self.problems += _unlike(self.rows, self.names, self.folder)
        if self.problems:
            raise LadderError(told(self.problems))
        return self.images

    def _read(self, row: int, data: bytes, size: tuple[int, int] | None) -> None:
        path = self.folder / self.names[row]
        try:
            image = read_image(data, path, size)
        except LadderError as error:
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
            self.images = room(len(self.names), shape, self.folder / self.names[rows[0]])
        if shape == self.images.shape[1:]:
            self.images[rows] = images
        self.rows.setdefault(shape, []).extend(rows)


def read_image(data: bytes, path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """The image[H, W] or [H, W, 3] uint8 of any accepted file, upright, resized where asked.

    Raises LadderError naming `path` for what is no such image, MemoryError where it does not fit.
    """
    named = "a PNG" if path.suffix.lower() == ".png" else "a JPEG"
    kind = kind_of(data)
    if kind != named:
        raise _misnamed(data, path, named, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Pillow finds in EXIF data and the like
        image = png(data, path) if kind == "a PNG" else jpeg(data, path)
    return np.asarray(resized(image, size) if size else image)


def _misnamed(data: bytes, path: Path, named: str, kind: str) -> LadderError:
    if any(start.startswith(data) for start in (SIGNATURE, JPEG_START)):
        return damaged(path, "it ends too early" if data else "it is empty")
    if not kind:
        return damaged(path, f"it does not begin like {named}")
    if kind in ("a JPEG", "a PNG"):
        suffix = ".png" if kind == "a PNG" else ".jpg"
        return LadderError(f"{clean(path)} is {kind}: rename it to {suffix} or remove it")
    remedy = REMEDY.get(kind, "convert it to PNG or JPEG, or remove it")
    return LadderError(f"{clean(path)} is {kind}, not {named}: {remedy}")


def is_png(name: str) -> bool:
    """Whether a file's name says that it is a PNG; else it says JPEG."""
    return name.lower().endswith(".png")


def room(count: int, shape: tuple[int, ...], like: Path) -> np.ndarray:
    """An array for so many images; LadderError where they would take over half of the memory."""
    insist_on_room(clean(like), count, shape, 0.5)
    return np.empty((count, *shape), np.uint8)


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
