"""Any PNG: its structure is checked, and Pillow is given nothing but what makes its pixels.

The PNG specification (third edition) is what sections are named of.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tasks.caching.basics import clean
from tasks.images.form import Form
from tasks.images.headers import MAX_CHUNKS, TELLING
from tasks.images.pillow import (
    damaged,
    flat,
    insist_on_size,
    loaded,
    over_background,
    refuse,
    unwanted,
    upright,
)
from tasks.images.plain import END, SIGNATURE

NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # what makes a PNG's pixels
PIECE = 1_000_000  # bytes inflated at a time
# First column and row, and steps across and down, of an interlaced PNG's passes (its section 8)
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Samples of a pixel and the depths allowed, by a PNG's colour type (its section 11.2.2)
COLOURS = {
    0: (1, (1, 2, 4, 8, 16)),
    2: (3, (8, 16)),
    3: (1, (1, 2, 4, 8)),
    4: (2, (8, 16)),
    6: (4, (8, 16)),
}


class Chunk(NamedTuple):
    """A piece of a PNG."""

    kind: bytes
    body: memoryview
    whole: memoryview  # with its length, kind and checksum


def png(data: bytes, form: Form, path: Path) -> Image.Image:
    """The image of a PNG, mode L or RGB, upright; of an animated one what shows without motion."""
    chunks = _chunks(data, path)
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", chunks[0].body)
    samples, depths = COLOURS.get(colour, (0, ()))
    if any(methods) or interlaced > 1 or depth not in depths:
        raise damaged(path, "its header is invalid")
    named = {each.kind: each.body for each in chunks}
    if named.get(b"acTL", b"")[:4] not in (b"", b"\0\0\0\1") or b"fdAT" in named:
        refuse(form, path, "animated")
    if depth == 16:
        refuse(form, path, "16-bit")
    insist_on_size(width, height, path)
    length = _filtered_length(width, height, depth * samples, interlaced)
    _insist_on_pixels((each.body for each in chunks if each.kind == b"IDAT"), length, path)
    needed = [each.whole for each in chunks if each.kind in NEEDED]
    is_bare = len(data) == len(SIGNATURE) + sum(map(len, needed))
    bare = data if is_bare else b"".join([SIGNATURE, *needed])
    image = loaded(PngImageFile, bare, path)
    key = bytes(named.get(b"tRNS", b"")) if colour in (0, 2, 3) else b""
    image = _opaque(image, key, depth, len(named.get(b"PLTE", b"")) // 3, form, path)
    told = [each.whole for each in chunks if each.kind == b"eXIf"]
    told = told or [each.whole for each in chunks if TELLING.match(each.body)]
    header = chunks[0].whole
    return upright(image, b"".join([SIGNATURE, header, *told, END])) if told else image


def _chunks(data: bytes, path: Path) -> list[Chunk]:
    """The chunks of a PNG up to its end, their order, lengths and CRCs seen to be right.

    What follows the end is no part of the image: tools add newlines, signatures and more.
    """
    chunks: list[Chunk] = []
    view = memoryview(data)
    start = len(SIGNATURE)
    while not chunks or chunks[-1].kind != b"IEND":
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if end + 4 > len(data):
            raise damaged(path, "it ends too early")
        kind = data[start + 4 : start + 8]
        if data[end : end + 4] != zlib.crc32(view[start + 4 : end]).to_bytes(4):
            raise damaged(path, f"the checksum of its chunk {clean(ascii(kind)[2:-1])} at byte "
                           f"{start:,} is wrong")  # fmt: skip
        chunks.append(Chunk(kind, view[start + 8 : end], view[start : end + 4]))
        start = end + 4
        if len(chunks) > MAX_CHUNKS:
            raise unwanted(path, f"a PNG of over {MAX_CHUNKS:,} chunks")
    if chunks[0].kind == b"CgBI":
        raise unwanted(path, "a PNG for iOS alone (CgBI)")
    if not _in_order([each.kind for each in chunks]):
        raise damaged(path, "chunks are missing, unknown or out of order")
    if len(chunks[0].body) != 13:
        raise damaged(path, "its header is invalid")
    return chunks


def _in_order(kinds: list[bytes]) -> bool:
    """Whether a PNG begins with its header, and its pixels are there and in one place."""
    needed = [kind for kind in kinds if not re.fullmatch(rb"[a-z]\w{3}", kind)]
    pixels = [at for at, kind in enumerate(kinds) if kind == b"IDAT"]
    return (
        kinds[0] == b"IHDR"
        and re.fullmatch(rb"IHDR( PLTE)?( IDAT)+ IEND", b" ".join(needed)) is not None
        and len(pixels) == pixels[-1] - pixels[0] + 1
    )


def _insist_on_pixels(bodies: Iterable[memoryview], length: int, path: Path) -> None:
    """Inflate a PNG's pixels to see that they are whole and no more; nothing of them is kept."""
    inflater = zlib.decompressobj()
    left = length
    try:
        for body in bodies:
            rest: bytes | memoryview = body
            while rest and not inflater.eof and left >= 0:  # a bomb goes off one piece too far
                left -= len(inflater.decompress(rest, PIECE))
                rest = inflater.unconsumed_tail
        if left > 0:
            left -= len(inflater.flush())
    except zlib.error as error:
        wrong = "incorrect data check" in str(error)
        why = "the checksum of its pixels is wrong" if wrong else "its pixels do not inflate"
        raise damaged(path, why) from None
    if left < 0:
        raise damaged(path, "it has more pixels than its header says")
    if left or not inflater.eof:
        raise damaged(path, "its pixels are incomplete")


def _filtered_length(width: int, height: int, bits: int, interlaced: int) -> int:
    """Bytes of a PNG's filtered rows at `bits` a pixel."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (len(range(left, width, across)), len(range(top, height, down)))
        for left, top, across, down in passes
    ]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)


def _opaque(
    image: Image.Image, key: bytes, depth: int, colours: int, form: Form, path: Path
) -> Image.Image:
    """The image in mode L or RGB, what its tRNS `key` says is transparent put over a background."""
    if image.mode == "P":
        used = np.flatnonzero(image.histogram())
        if used[-1] >= colours:
            raise damaged(path, "its palette is too short")
        palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[:colours]
        mode = "L" if (palette == palette[:, :1]).all() else "RGB"
        alpha = np.frombuffer(key.ljust(256, b"\xff"), np.uint8)[np.asarray(image)]
        return over_background(image.convert(mode), Image.fromarray(alpha), form, path)
    image = flat(image, form, path)
    if len(key) not in (0, 2 * len(image.mode)):
        raise damaged(path, "its transparent colour is invalid")
    if key and depth == 16:
        raise unwanted(path, "16-bit with a transparent colour")
    if not key:
        return image
    # Two bytes a sample, of which as many bits count as the image has (PNG, section 11.3.2.1)
    colour = [sample % 2**depth * 255 // (2**depth - 1) for sample in key[1::2]]
    clear = np.ones(image.size[::-1], bool)
    for band, sample in zip(image.getbands(), colour, strict=True):
        clear &= np.asarray(image.getchannel(band)) == sample
    alpha = np.where(clear, np.uint8(0), np.uint8(255))
    return over_background(image, Image.fromarray(alpha), form, path)
