"""Pillow, with care: one image by one of its plugins, its size bounded, turned upright.

Pillow takes damaged files without a word: rows that are missing, wrong checksums, no end.  And it
refuses whole ones for what is no part of the picture: long texts, large profiles.  So `png` and
`jpeg` check the structure of a file themselves before they come here.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tasks.caching.basics import LadderError, clean

MAX_PIXELS, MAX_SIDE = 64_000_000, 65_535  # a larger image is a mistake or an attack
# How EXIF's orientation is undone (CIPA DC-008, tag 274)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (height, width): bilinear, antialiased."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def loaded(
    plugin: type[PngImageFile] | type[JpegImageFile], data: bytes, path: Path
) -> Image.Image:
    """The image by this plugin alone: no other format is ever tried."""
    try:
        image = plugin(BytesIO(data))
        insist_on_size(*image.size, path)
        image.load()
    except (LadderError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything in there
        if "memory" in str(error):
            raise MemoryError from None
        raise damaged(path, str(error)) from None
    return image


def upright(image: Image.Image, told: Image.Image | bytes) -> Image.Image:
    """The image as it is to be looked at, by what itself or another PNG tells in EXIF or XMP data.

    What is wrong with such data does not matter.
    """
    orientation = 1
    try:
        told = told if isinstance(told, Image.Image) else PngImageFile(BytesIO(told))
        orientation = Image.Image.getexif(told).get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # anything may be raised there too
        return image
    way = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if way is None else image.transpose(way)


def insist_on_size(width: int, height: int, path: Path) -> None:
    """Raise LadderError for an image of no pixels or too many, or too long to be resized."""
    if not width * height:
        raise damaged(path, f"its header says {height} x {width} pixels")
    many, long = width * height > MAX_PIXELS, max(width, height) > MAX_SIDE
    if many or long:
        most = f"{MAX_PIXELS:,} pixels" if many else f"{MAX_SIDE:,} pixels a side"
        raise LadderError(
            f"{clean(path)} is {height} x {width}; at most {most} are read: shrink it or remove it"
        )


def damaged(path: Path, why: str) -> LadderError:
    """The error for a file that was whole once, or should have been."""
    return LadderError(f"{clean(path)} is damaged ({clean(why)}): mend or remove it")


def unwanted(path: Path, what: str) -> LadderError:
    """The error for a whole image of a kind that a ladder does not take."""
    return LadderError(
        f"{clean(path)} is {what}: convert it to 8-bit greyscale or RGB without transparency, or "
        "remove it"
    )
