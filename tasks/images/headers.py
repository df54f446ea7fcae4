"""Headers: size and kind of an image by its first bytes, and what all of a dataset's come to.

They are read while a scan has the bytes at hand, so that what a dataset's images are to become is
known before one of them is decoded.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Literal

import numpy as np

from tasks.images.form import CAPPED, Fit, Form
from tasks.images.kinds import kind_of, of_suffix
from tasks.images.pillow import PLUGINS, is_grey_palette, orientation
from tasks.images.plain import END, SIGNATURE

# What a header tells, a bit each, and how the report says what is made of such an image
COLOUR, ALPHA, PALETTE, DEEP, CMYK, TURNED, SEVERAL, MISNAMED = (1 << bit for bit in range(8))
RULES = {
    ALPHA: "with an alpha channel or a transparent colour: put over white",
    PALETTE: "of a palette: made {colour}",
    DEEP: "of 16 bits: the upper 8 of each sample kept",
    CMYK: "of CMYK: made RGB without a colour profile",
    TURNED: "turned as EXIF says: stood upright",
    SEVERAL: "of several frames or pages: the first one taken",
    MISNAMED: "named as another kind: taken as what the bytes are",
}
SIDES = (4, 8, 12, 16, 24, 32, 48, CAPPED)  # few, so that one more image hardly ever moves the side
UNKNOWN = (0, 0, 0)
# Texts of a PNG with EXIF data (as ImageMagick writes it) or XMP data
TELLING = re.compile(rb"Raw profile type exif\0|XML:com\.adobe\.xmp\0")
MAX_CHUNKS = 100_000  # each costs time and memory, and a large image needs far fewer


def header(data: bytes, name: str) -> tuple[int, int, int]:
    """Height and width as the image is looked at, and the bits of its kind; zeros where unknown."""
    is_bare = data[37:41] == b"IDAT" and len(data) == 57 + int.from_bytes(data[33:37])
    if is_bare and data.startswith(SIGNATURE):
        width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
        if colour in (0, 2) and depth <= 8 and 0 < width * height < 1 << 31:
            return height, width, COLOUR * (colour == 2) | MISNAMED * (of_suffix(name) != "a PNG")
    kind = kind_of(data)
    if kind not in PLUGINS:
        return UNKNOWN
    misnamed = MISNAMED * (of_suffix(name) != kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            height, width, bits = _png(data) if kind == "a PNG" else _by_pillow(data, kind)
    except Exception:  # a damaged file may raise anything in there; decoding says what is wrong
        return UNKNOWN
    return (
        (height, width, bits | misnamed)
        if height and width and max(height, width) < 1 << 31
        else UNKNOWN
    )


def _png(data: bytes) -> tuple[int, int, int]:
    """As `header`, of a PNG: Pillow refuses some whole ones, and decodes some for EXIF."""
    found: dict[bytes, bytes] = {}
    at = len(SIGNATURE)
    while at + 12 <= len(data) and len(found) < MAX_CHUNKS:
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"eXIf") or TELLING.match(data, at + 8):
            found[kind] = data[at : at + 12 + length]
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", found[b"IHDR"][8:18])
    palette = np.frombuffer(found.get(b"PLTE", b"")[8:-4], np.uint8)
    is_colour = colour in (2, 6)
    if colour == 3:
        is_colour = bool((palette.reshape(-1, 3) != palette[::3, None]).any())
    told = [found[kind] for kind in found if kind not in (b"IHDR", b"PLTE", b"tRNS", b"acTL")]
    way = 1
    if told:
        bare = b"".join([SIGNATURE, found[b"IHDR"], *told, END])
        way = orientation(bare)
    bits = {
        COLOUR: is_colour,
        ALPHA: colour in (4, 6) or b"tRNS" in found,
        PALETTE: colour == 3,
        DEEP: depth == 16,
        TURNED: way > 1,
        SEVERAL: found.get(b"acTL", b"")[8:12] not in (b"", b"\0\0\0\1"),
    }
    return _upright(width, height, way, bits)


def _by_pillow(data: bytes, kind: str) -> tuple[int, int, int]:
    image = PLUGINS[kind](BytesIO(data))
    # The plugin of TIFF has turned its size upright already
    way = orientation(image)
    bits = {
        COLOUR: image.mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
        or (image.mode in ("P", "PA") and not is_grey_palette(image)),
        ALPHA: image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info,
        PALETTE: image.mode in ("P", "PA"),
        DEEP: image.mode.startswith("I;16"),
        CMYK: image.mode == "CMYK",
        TURNED: way > 1,
        SEVERAL: getattr(image, "is_animated", False),
    }
    return _upright(image.width, image.height, 1 if kind == "a TIFF image" else way, bits)


def _upright(width: int, height: int, way: int, bits: dict[int, bool]) -> tuple[int, int, int]:
    size = (width, height) if way >= 5 else (height, width)
    return *size, sum(bit for bit, is_so in bits.items() if is_so)


def choose(
    headers: np.ndarray, size: tuple[int, int] | None, fit: Fit, strict: bool, skip_bad: bool
) -> Form:
    """What the images of a dataset are to become.  headers: [N, 3] int32, as `header` gives them.

    Without a size, images of one size keep it, up to 64 pixels a side; others become squares of
    their median shorter side, at most 64, rounded down to one of a few sides.
    """
    if strict:
        return Form(size=size, fit=fit, strict=True, skip_bad=skip_bad)
    known = headers[headers[:, 0] > 0]
    colour: Literal["RGB", "greyscale"] = "RGB" if (known[:, 2] & COLOUR).any() else "greyscale"
    if size is None and len(known) and (known[:, :2] == known[0, :2]).all():
        height, width = known[0, :2].tolist()
        if (most := max(height, width)) > CAPPED:
            size = (max(1, round(height * CAPPED / most)), max(1, round(width * CAPPED / most)))
    elif size is None and len(known):
        median = np.median(known[:, :2].min(1))
        side = max((each for each in SIDES if each <= median), default=SIDES[0])
        size = (side, side)
    return Form(size=size, fit=fit, colour=colour, skip_bad=skip_bad)


def shape_of(headers: np.ndarray, form: Form) -> tuple[int, ...] | None:
    """The [H, W] or [H, W, 3] of a dataset's first image once it is decoded; None where unknown."""
    known = headers[headers[:, 0] > 0]
    if not len(known):
        return None
    height, width, bits = known[0].tolist()
    is_colour = bits & COLOUR if form.colour is None else form.colour == "RGB"
    return (*(form.size or (height, width)), *[3] * bool(is_colour))


def converted(headers: np.ndarray, form: Form, chosen: bool) -> list[str]:
    """In words, what becomes of a dataset's images, a line for each rule with its count.

    chosen: whether `--size` asked for the size.
    """
    known = headers[headers[:, 0] > 0]
    return [*_sizes(known, form, chosen), *_kinds(known, form)]


def _sizes(known: np.ndarray, form: Form, chosen: bool) -> Iterator[str]:
    if form.size is None or not len(known):
        return
    low, high = known[:, :2].min(0).tolist(), known[:, :2].max(0).tolist()
    were = f"{low[0]} x {low[1]}" + (f" to {high[0]} x {high[1]}" if low != high else "")
    how = {"crop": "cropped at the centre", "pad": "padded with white", "stretch": "stretched"}
    aspect = form.size[0] / form.size[1]
    other = int((np.abs(known[:, 0] / known[:, 1] - aspect) > 0.01 * aspect).sum())
    changed = f", {how[form.fit]} where the shape differs ({other:,})" if other else ""
    why = "" if chosen else f"; chosen from the images, at most {CAPPED}: --size asks for another"
    yield (
        f"{len(known):,} images of {were} resized to {form.size[0]} x {form.size[1]}{changed}{why}"
    )


def _kinds(known: np.ndarray, form: Form) -> Iterator[str]:
    if form.strict:
        return
    for bit, rule in RULES.items():
        if count := int((known[:, 2] & bit > 0).sum()):
            yield f"{count:,} {rule.format(colour=form.colour)}"
    grey = int((known[:, 2] & COLOUR == 0).sum())
    if form.colour == "RGB" and grey:
        yield f"{grey:,} greyscale: made RGB as the others are"
