"""Any JPEG: its markers are walked, and its scans seen to be whole, as Pillow does not."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tasks.caching.basics import LadderError, clean
from tasks.images.form import Form
from tasks.images.pillow import damaged, flat, insist_on_size, loaded, refuse, unwanted, upright

# A JPEG's marker, after fill bytes FF; FF 00 is a byte of its pixels (ITU-T T.81, B.1.1)
MARKER = re.compile(rb"\xff([^\x00\xff])")
PROGRESSIVE = 0xC2
# Bytes of no meaning, for a scan that has not come to its end; and for one with restart markers
NOISE = bytes(at * 97 % 251 for at in range(128))
FILLER = NOISE + b"".join(b"\xff%c%b" % (0xD0 + number, NOISE) for number in range(8))
SPARE = 4  # times the size wanted that a JPEG is decoded at, at least: the rest is averaged after
MAX_BYTES = 250_000_000  # of memory for the coefficients of a progressive one
MAX_SCANS = 100  # each goes over the whole image; those that refine it are a dozen
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0 to RST7, SOI
FRAMES = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2), "a JPEG"),
    **dict.fromkeys((0xC3, 0xCB), "a lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "an arithmetic-coded JPEG"),
    0xF7: "a JPEG-LS",
}


def jpeg(data: bytes, form: Form, path: Path) -> Image.Image:
    """The image of a JPEG, mode L or RGB, upright; a far larger one than the form's, scaled down.

    A JPEG has no checksum: other damage within its scans shows only in its pixels.
    """
    kind, end = _frame(data, path)
    least = (SPARE * max(form.size),) * 2 if form.size else None
    image = loaded(JpegImageFile, data, path, least)
    if _may_be_cut(image, kind) and _is_cut(image, data, end, path, least):
        raise damaged(path, "its pixels are incomplete")
    if image.mode == "CMYK":
        refuse(form, path, "CMYK")
    return flat(upright(image, image), form, path)


def _frame(data: bytes, path: Path) -> tuple[int, int]:
    """A JPEG's frame marker and where the end marker is that follows its scans.

    A thumbnail has an end of its own, so the markers are walked.  Bytes astray between the segments
    are passed over, as cameras write such and libjpeg does.
    """
    at, kind, scans = 2, 0, 0
    while found := MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            if kind and scans:
                return kind, found.start()
            raise damaged(path, f"it ends without {'pixels' if kind else 'a header'}")
        if marker in FRAMES and not scans:
            kind = marker
            _insist_on_kind(marker, data[at : at + 20], path)
        if marker not in ALONE:
            scans += marker == 0xDA
            at += int.from_bytes(data[at : at + 2])
        if scans > MAX_SCANS:
            raise unwanted(path, f"a JPEG of over {MAX_SCANS} scans")
    raise damaged(path, "it ends too early")


def _may_be_cut(image: Image.Image, kind: int) -> bool:
    """Whether a scan may have ended before the image: what is missing libjpeg leaves blank.

    Of a progressive JPEG only details may be missing.  An arithmetic-coded one may leave out zeros.
    """
    if FRAMES[kind] != "a JPEG":
        return False
    width, height = image.size
    left, top = (min(side - 1, (side - 1) // 8 * 8 + 1) for side in (width, height))
    corner = np.asarray(image.crop((left, top, width, height)))
    is_one_block = width * height <= 256
    return kind == PROGRESSIVE or is_one_block or bool((corner == corner[0, 0]).all())


def _is_cut(
    image: Image.Image, data: bytes, end: int, path: Path, least: tuple[int, int] | None
) -> bool:
    """Whether bytes put before a JPEG's end count as pixels: a whole scan has no use for them."""
    while data[end - 1] == 0xFF:  # fill bytes before the marker
        end -= 1
    other = loaded(JpegImageFile, data[:end] + FILLER + data[end:], path, least)
    width, height = image.size
    boxes = ((0, top, width, min(top + 256, height)) for top in range(0, height, 256))
    return any(image.crop(box).tobytes() != other.crop(box).tobytes() for box in boxes)


def _insist_on_kind(marker: int, frame: bytes, path: Path) -> None:
    """See that Pillow reads such a frame: length, precision, height, width, components."""
    if len(frame) >= 8:
        kind = FRAMES[marker]
        _, precision, height, width, components = struct.unpack(">HBHHB", frame[:8])
        if kind not in ("a JPEG", "an arithmetic-coded JPEG"):
            raise unwanted(path, kind)
        if precision != 8:
            raise unwanted(path, f"a {precision}-bit JPEG")
        if components not in (1, 3, 4):
            raise unwanted(path, f"of {components} channels")
        if not width * height:
            insist_on_size(width, height, path)
        # Of a progressive one libjpeg holds two bytes for each sample, at whatever scale
        if (
            marker in (PROGRESSIVE, 0xCA)
            and 2 * width * height * _density(frame[8 : 8 + 3 * components]) > MAX_BYTES
        ):
            raise LadderError(
                f"{clean(path)} is a progressive JPEG of {height} x {width}, which takes over "
                f"{MAX_BYTES // 10**6} MB to decode: shrink it, save it as baseline or remove it"
            )


def _density(components: bytes) -> float:
    """Samples for each pixel, by a frame's components: number, sampling factors, table of each."""
    factors = [(each >> 4 or 1, each & 15 or 1) for each in components[1::3]]
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    return sum(across * down for across, down in factors) / most
