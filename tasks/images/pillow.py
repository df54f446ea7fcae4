"""Pillow, with care: one image by one of its plugins, its size bounded, upright, in L or RGB.

Pillow takes damaged files without a word: rows that are missing, wrong checksums, no end.  And it
refuses whole ones for what is no part of the picture: long texts, large profiles.  So `png`,
`jpeg` and `others` check the structure of a file themselves before they come here.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tasks.caching.basics import LadderError, clean
from tasks.images.form import Form

# So that no image takes over 300 MB beside its file: Pillow holds 4 bytes a pixel, of one that is
# turned upright or converted twice as many, and its WebP plugin 16.
MAX_PIXELS, MAX_WEBP, MAX_SIDE = 24_000_000, 16_000_000, 65_535
PLUGINS: dict[str, Any] = {
    "a PNG": PngImageFile,
    "a JPEG": JpegImageFile,
    "a WebP image": WebPImageFile,
    "a BMP image": BmpImageFile,
    "a GIF image": GifImageFile,
    "a TIFF image": TiffImageFile,
}
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


def fitted(image: Image.Image, form: Form) -> Image.Image:
    """The image of mode L or RGB in the form's colour and at its size: bilinear, antialiased."""
    mode = {"greyscale": "L", "RGB": "RGB", None: image.mode}[form.colour]
    if form.size is None:
        return image if image.mode == mode else image.convert(mode)
    height, width = form.size
    way = Image.Resampling.BILINEAR
    if form.fit == "pad":
        white = (form.background,) * len(image.getbands())
        filling = white if len(white) > 1 else white[0]
        image = ImageOps.pad(image, (width, height), way, filling)
    else:
        box = _middle(image.size, (width, height)) if form.fit == "crop" else None
        image = image.resize((width, height), way, box)
    return image if image.mode == mode else image.convert(mode)


def _middle(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest part of an image that has the aspect that is wanted, at its centre."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    across, down = ((side - kept * scale) / 2 for side, kept in zip(size, wanted, strict=True))
    return across, down, size[0] - across, size[1] - down


def loaded(plugin: Any, data: bytes, path: Path, least: tuple[int, int] | None = None) -> Any:
    """The image by this plugin alone: no other format is ever tried.

    least: (width, height) that are enough; a JPEG is decoded at the smallest scale that has them.
    """
    try:
        image = plugin(BytesIO(data))
        if least:
            image.draft(None, least)
        most = MAX_WEBP if plugin is WebPImageFile else MAX_PIXELS
        insist_on_size(image.width, image.height, path, most)
        image.load()
    except (LadderError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything in there
        if "memory" in str(error):
            raise MemoryError from None
        raise damaged(path, str(error)) from None
    return image


def upright(image: Image.Image, told: Image.Image | bytes) -> Image.Image:
    """The image as it is to be looked at, by its own EXIF or XMP data or a PNG's."""
    way = UPRIGHT.get(orientation(told))
    return image if way is None else image.transpose(way)


def orientation(told: Image.Image | bytes) -> int:
    """EXIF's orientation, 1 to 8, by an image's own EXIF or XMP data, or that of a PNG.

    What is wrong with such data does not matter.
    """
    try:
        told = told if isinstance(told, Image.Image) else PngImageFile(BytesIO(told))
        way = Image.Image.getexif(told).get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # anything may be raised there too
        return 1
    return way if isinstance(way, int) and way in UPRIGHT else 1


def flat(image: Image.Image, form: Form, path: Path) -> Image.Image:
    """The image of any mode in mode L or RGB: transparency put over the form's background.

    Raises LadderError for modes of other colours, and where `strict` refuses the conversion.
    """
    if image.mode.startswith("I;16"):
        refuse(form, path, "16-bit")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("CMYK", "YCbCr", "RGBX"):
        refuse(form, path, image.mode)
        return image.convert("RGB")
    if image.mode in ("P", "PA"):
        mode = "L" if is_grey_palette(image) else "RGB"
        if image.mode == "P" and "transparency" not in image.info:
            return image.convert(mode)
        image = image.convert("RGBA")
        return over_background(image.convert(mode), image.getchannel("A"), form, path)
    if image.mode in ("LA", "RGBA"):
        mode = image.mode.removesuffix("A")
        return over_background(image.convert(mode), image.getchannel("A"), form, path)
    if image.mode not in ("1", "L", "RGB"):
        raise unwanted(path, f"of the mode {image.mode}")
    return image.convert("L") if image.mode == "1" else image


def over_background(image: Image.Image, alpha: Image.Image, form: Form, path: Path) -> Image.Image:
    """An image of mode L or RGB as it shows over the form's background.  alpha: 255 is opaque."""
    if alpha.getextrema() != (255, 255):
        refuse(form, path, "transparent")
        image.paste((form.background,) * len(image.mode), mask=ImageChops.invert(alpha))
    return image


def is_grey_palette(image: Image.Image) -> bool:
    """Whether a palette holds nothing but greys."""
    kept: Any = image.palette
    step = len(kept.rawmode or kept.mode)
    colours = np.frombuffer(bytes(kept.palette), np.uint8)
    colours = colours[: len(colours) // step * step].reshape(-1, step)
    return bool((colours[:, :3] == colours[:, :1]).all())


def insist_on_size(width: int, height: int, path: Path, pixels: int = MAX_PIXELS) -> None:
    """Raise LadderError for an image of no pixels or too many, or too long to be resized."""
    if not width * height:
        raise damaged(path, f"its header says {height} x {width} pixels")
    many, long = width * height > pixels, max(width, height) > MAX_SIDE
    if many or long:
        most = f"{pixels:,} pixels" if many else f"{MAX_SIDE:,} pixels a side"
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


def refuse(form: Form, path: Path, what: str) -> None:
    """Raise the error for what would be converted, where the form is strict."""
    if form.strict:
        raise unwanted(path, what)
