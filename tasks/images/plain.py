"""Plain PNGs, many at a time: each is inflated alone, then their filters are undone side by side.

Plain are those of 8-bit greyscale or RGB, not interlaced, with nothing but IHDR, one IDAT and IEND:
what most datasets of small images hold.  One image row at a time is worked on across all of them.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter

import numpy as np

FEWEST, MOST_PIXELS = 64, 64 * 64  # for fewer files or larger images Pillow is faster
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def plain_images(data: list[bytes]) -> tuple[list[int], np.ndarray]:
    """Rows of the plain PNGs of the commonest size and kind, and their images."""
    if len(data) < FEWEST:
        return [], np.empty(0, np.uint8)
    header, _ = Counter([each[:33] for each in data]).most_common(1)[0]
    shape = _plain_shape(header)
    if shape is None:
        return [], np.empty(0, np.uint8)
    height, width = shape[0], math.prod(shape[1:])
    inflated = [_inflate(each, header, height * (1 + width)) for each in data]
    filtered = np.frombuffer(b"".join(inflated), np.uint8).reshape(-1, height, 1 + width)
    if filtered[:, :, 0].max(initial=0) > 4:  # unknown: Pillow finds the file
        return [], np.empty(0, np.uint8)
    return [row for row, each in enumerate(inflated) if each], _unfilter(filtered, shape)


def _plain_shape(header: bytes) -> tuple[int, ...] | None:
    """(H, W) or (H, W, 3) when a file's first 33 bytes begin a small plain PNG."""
    if len(header) < 33 or header[:16] != SIGNATURE + b"\0\0\0\x0dIHDR":
        return None
    width, height, depth, colour, *methods, crc = struct.unpack(">IIBBBBBI", header[16:])
    if depth != 8 or colour not in (0, 2) or any(methods) or crc != zlib.crc32(header[12:29]):
        return None
    if not 0 < width * height <= MOST_PIXELS:
        return None
    return (height, width, 3) if colour == 2 else (height, width)


def _inflate(data: bytes, header: bytes, length: int) -> bytes:
    """The filtered rows of a plain PNG with this header, or b"" when it is anything else."""
    if len(data) > 57:
        start = header + (len(data) - 57).to_bytes(4) + b"IDAT"
        end = zlib.crc32(data[37:-16]).to_bytes(4) + END
        if data.startswith(start) and data.endswith(end):
            return _inflated(data[41:-16], length)
    return b""


def _inflated(data: bytes, length: int) -> bytes:
    """What `data` inflates to if that is whole and of this length, otherwise b""."""
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data, length + 1)  # a bomb goes off one byte too far, no more
    except zlib.error:
        return b""
    return rows if len(rows) == length and inflater.eof else b""


def _unfilter(filtered: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """images[N, H, W] or [N, H, W, 3] from filtered[N, H, 1 + W (* 3)], all uint8.

    The first byte of a row names its filter: 0 none, 1 sub, 2 up, 3 average, 4 Paeth, which add
    to each byte what its neighbours predict (PNG specification, section 9).
    """
    filters = filtered[:, :, 0].T.copy()  # [H, N]: what is searched lies together
    images = filtered[:, :, 1:].copy().reshape(-1, *shape[:2], math.prod(shape[2:]))
    above = np.zeros_like(images[:, 0])
    for y in range(shape[0]):
        for number, undo in FILTERS.items():
            which = np.flatnonzero(filters[y] == number)
            if len(which):
                images[which, y] = undo(images[which, y], above[which])
        above = images[:, y]
    return images.reshape(-1, *shape)


def _sub(row: np.ndarray, _above: np.ndarray) -> np.ndarray:
    return np.cumsum(row, axis=1, dtype=np.uint8)


def _up(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    return row + above


def _average(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    pixels, ups = _by_pixel(row), _by_pixel(above)
    left = np.zeros_like(pixels[0])
    for x, up in enumerate(ups):
        pixels[x] += (left + up) >> 1
        pixels[x] &= 255
        left = pixels[x]
    return pixels.transpose(2, 0, 1)


def _paeth(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    pixels, ups = _by_pixel(row), _by_pixel(above)
    left = corner = np.zeros_like(pixels[0])
    for x, up in enumerate(ups):
        down, across = up - corner, left - corner
        to_left, to_up, to_corner = np.abs(down), np.abs(across), np.abs(down + across)
        nearest = np.where(to_up <= to_corner, up, corner)
        nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
        pixels[x] += nearest
        pixels[x] &= 255
        left, corner = pixels[x], up
    return pixels.transpose(2, 0, 1)


def _by_pixel(row: np.ndarray) -> np.ndarray:
    """row[N, W, C] uint8 -> [W, C, N] int16: one pixel of all files lies together."""
    return row.transpose(1, 2, 0).astype(np.int16, order="C")


FILTERS = {1: _sub, 2: _up, 3: _average, 4: _paeth}
