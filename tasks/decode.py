"""Decode: a class folder -> images[N, H, W] or images[N, H, W, 3] uint8, one row per file.

Small plain PNGs are decoded many at a time: each is inflated alone, then their filters are undone
one image row at a time across all of them.  Whatever that path does not fully recognise goes to
Pillow, after a check of the file's structure, because Pillow takes damaged files without a word.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tasks.caching.basics import LadderError
from tasks.caching.stage import Run, stage
from tasks.caching.store import Stack
from tasks.scan import Files, read_files, read_listing

BLOCK_FILES, BLOCK_BYTES = 8192, 4_000_000  # at a time: memory holds little beside the stack
LOOKS = 128  # earlier results to search: looking into more takes longer than decoding anew
MAX_PIXELS = 64_000_000  # a larger image is a mistake or an attack
PLAIN_FILES, PLAIN_PIXELS = 64, 64 * 64  # for fewer files or larger images Pillow is faster
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# First column and row, and steps across and down, of an interlaced PNG's passes (its section 8)
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
END = b"\0\0\0\0IEND\xae\x42\x60\x82"


@stage
def decode(files: Files, size: tuple[int, int] | None = None, *, run: Run = Run()) -> Stack:
    """The folder's images[N, H, W] or [N, H, W, 3] uint8, with a digest of each image's pixels.

    `size` is (height, width) to resize to (bilinear, antialiased); without it all must be equal.
    Greyscale stays one channel, as do black-and-white images and palettes that hold greys alone;
    other palettes become RGB.  Raises LadderError naming the file for one that is damaged, that
    differs from the others or has changed since the scan, and for any other kind of image.

    Files whose bytes an earlier result has decoded are not read: their rows are copied from there.
    """
    parts = list(_known(files, run))
    if not parts:
        return _decoded(files, size, run)
    new = np.ones(len(files.names), bool)
    for part in parts:
        new[part.rows] = False
    if new.any():
        rows = np.flatnonzero(new)
        fresh = Files(files.folder, [files.names[row] for row in rows], files.digests[rows])
        parts.append(Part(rows, _decoded(fresh, size, run), np.arange(len(rows))))
    shapes = {part.stack.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        return _decoded(files, size, run)  # names the file that differs
    images = np.empty((len(files.names), *shapes.pop()), np.uint8)
    digests = np.empty((len(files.names), 32), np.uint8)
    for part in parts:
        images[part.rows] = part.stack.images.numpy()[part.source]
        digests[part.rows] = part.stack.digests[part.source]
    return Stack(torch.from_numpy(images), files.names, digests)


class Part(NamedTuple):
    """Rows of the stack to be, and the rows of another stack that they equal."""

    rows: np.ndarray  # [M] int64
    stack: Stack
    source: np.ndarray  # [M] int64


def _known(files: Files, run: Run) -> Iterator[Part]:
    """The rows whose bytes were decoded before: in this folder, another one or another dataset."""
    missing = np.arange(len(files.names))
    for (listing,), stack in islice(run.earlier("inputs", "files"), LOOKS):
        old = read_listing(run.cache, listing) if run.cache else None
        if old is None:
            continue
        keys = _starts(old.digests)
        order = np.argsort(keys)
        at = np.searchsorted(keys[order], _starts(files.digests[missing]))
        source = order[at % len(order)]
        found = (old.digests[source] == files.digests[missing]).all(axis=1)
        # The same bytes under another suffix may be refused.
        found[found] = [
            _is_png(files.names[row]) == _is_png(old.names[other])
            for row, other in zip(missing[found], source[found], strict=True)
        ]
        if found.any():
            yield Part(missing[found], stack, source[found])
            missing = missing[~found]
        if not len(missing):
            return


def _starts(digests: np.ndarray) -> np.ndarray:
    """The first 8 bytes of digests[N, 32] as numbers[N]: enough to find one, not to be sure."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def _decoded(files: Files, size: tuple[int, int] | None, run: Run) -> Stack:
    """All of the files, read and decoded block by block."""
    images = np.empty(0, np.uint8)
    done = 0
    for data in _blocks(files):
        rows = slice(done, done + len(data))
        names = files.names[rows]
        _insist_on_scanned(data, files.digests[rows], names, files.folder)
        block = decode_rows(data, names, files.folder, size)
        if done == 0:
            images = np.empty((len(files.names), *block.shape[1:]), np.uint8)
        _insist_on_shape(images.shape[1:], [block.shape[1:]], names, files.folder)
        images[rows] = block
        done += len(data)
        run.progress(done, len(files.names), "")
    return Stack(torch.from_numpy(images), files.names, _pixel_digests(images))


def decode_rows(
    data: list[bytes], names: list[str], folder: Path, size: tuple[int, int] | None = None
) -> np.ndarray:
    """images[N, H, W] or [N, H, W, 3] uint8 from the bytes of N files of one folder."""
    rows, plain = _plain_images(data if all(map(_is_png, names)) else [])
    if len(rows) == len(data) and size is None:
        return plain
    done: dict[int, np.ndarray] = dict(zip(rows, plain, strict=True))
    images = [
        done[row] if row in done else _by_pillow(each, folder / name)
        for row, (each, name) in enumerate(zip(data, names, strict=True))
    ]
    if size:
        images = [_resized(image, size) for image in images]
    shapes = [image.shape for image in images]
    _insist_on_shape(Counter(shapes).most_common(1)[0][0], shapes, names, folder)
    return np.stack(images)


def _blocks(files: Files) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    held = 0
    for data in read_files(files.folder, files.names):
        block.append(data)
        held += len(data)
        if len(block) == BLOCK_FILES or held > BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


def _insist_on_scanned(
    data: list[bytes], digests: np.ndarray, names: list[str], folder: Path
) -> None:
    now = np.frombuffer(b"".join([sha256(each).digest() for each in data]), np.uint8)
    changed = (now.reshape(-1, 32) != digests).any(axis=1)
    if changed.any():
        name = names[int(changed.argmax())]
        raise LadderError(f"{folder / name} changed while it was read; run again")


def _insist_on_shape(
    expected: tuple[int, ...], shapes: list[tuple[int, ...]], names: list[str], folder: Path
) -> None:
    for name, shape in zip(names, shapes, strict=False):
        if shape != expected:
            raise LadderError(
                f"{folder / name} is {_described(shape)} among images of {_described(expected)}; "
                "make them alike or ask for one size"
            )


def _described(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} {'RGB' if len(shape) == 3 else 'greyscale'}"


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _pixel_digests(images: np.ndarray) -> np.ndarray:
    """digests[N, 32] uint8: sha256 of "H W " or "H W 3 " and the pixels of each image."""
    header = np.frombuffer("".join(f"{length} " for length in images.shape[1:]).encode(), np.uint8)
    texts = np.empty((len(images), len(header) + math.prod(images.shape[1:])), np.uint8)
    texts[:, : len(header)] = header
    texts[:, len(header) :] = images.reshape(len(images), -1)
    data, size = texts.data.cast("B"), texts.shape[1]
    digests = [sha256(data[at : at + size]).digest() for at in range(0, len(data), size)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


# Plain PNGs: 8-bit greyscale or RGB, not interlaced, nothing but IHDR, one IDAT and IEND.


def _plain_images(data: list[bytes]) -> tuple[list[int], np.ndarray]:
    """Rows of the plain PNGs of the commonest size and kind, and their images."""
    if len(data) < PLAIN_FILES:
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
    if not 0 < width * height <= PLAIN_PIXELS:
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


# Everything else, through Pillow.


def _by_pillow(data: bytes, path: Path) -> np.ndarray:
    """The image[H, W] or [H, W, 3] uint8 of any accepted file; LadderError naming `path`."""
    named = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    kinds = {SIGNATURE: "PNG", b"\xff\xd8\xff": "JPEG"}
    kind = next((kinds[start] for start in kinds if data.startswith(start)), None)
    if kind is None:
        raise _damaged(path, f"it does not begin like a {named}")
    if kind != named:
        suffix = ".png" if kind == "PNG" else ".jpg"
        raise LadderError(f"{path} is a {kind}: rename it to {suffix} or remove it")
    return _png(data, path) if kind == "PNG" else _jpeg(data, path)


def _png(data: bytes, path: Path) -> np.ndarray:
    chunks = _chunks(data, path)
    header = next(body for kind, body in chunks if kind == b"IHDR")
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1}.get(colour, 0)
    if depth == 16:
        raise _unwanted(path, "16-bit")
    if colour in (4, 6) or any(kind == b"tRNS" for kind, _ in chunks):
        raise _unwanted(path, "transparent")
    if any(kind == b"acTL" for kind, _ in chunks):
        raise _unwanted(path, "animated")
    _insist_on_size(width, height, path)
    length = _filtered_length(width, height, bits, interlaced)
    if any(methods) or interlaced > 1 or not bits:
        raise _damaged(path, "its header is invalid")
    if not _inflated(b"".join([body for kind, body in chunks if kind == b"IDAT"]), length):
        raise _damaged(path, "its pixels are incomplete")
    image = _loaded(PngImageFile, data, path)
    if image.mode != "P":
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    colours = b"".join([body for kind, body in chunks if kind == b"PLTE"])
    palette = np.frombuffer(colours[: len(colours) // 3 * 3], np.uint8).reshape(-1, 3)
    indices = np.asarray(image)
    if indices.max() >= len(palette):
        raise _damaged(path, "its palette is too short")
    is_grey = (palette == palette[:, :1]).all()
    return palette[indices, 0] if is_grey else palette[indices]


def _chunks(data: bytes, path: Path) -> list[tuple[bytes, bytes]]:
    """The (kind, body) of each chunk of a PNG whose order, lengths and CRCs are right."""
    chunks = []
    start = len(SIGNATURE)
    while start < len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if data[end : end + 4] != zlib.crc32(data[start + 4 : end]).to_bytes(4):
            raise _damaged(path, f"the chunk at byte {start} is broken")
        chunks.append((data[start + 4 : start + 8], data[start + 8 : end]))
        start = end + 4
    kinds = b" ".join([kind for kind, _ in chunks])
    if not re.fullmatch(
        rb"IHDR( [a-z]\w{3})*( PLTE)?( [a-z]\w{3})*( IDAT)+( [a-z]\w{3})* IEND", kinds
    ):
        raise _damaged(path, "chunks are missing or out of order")
    if len(chunks[0][1]) != 13:
        raise _damaged(path, "its header is invalid")
    return chunks


def _filtered_length(width: int, height: int, bits: int, interlaced: int) -> int:
    """Bytes of a PNG's filtered rows at `bits` a pixel."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (len(range(left, width, across)), len(range(top, height, down)))
        for left, top, across, down in passes
    ]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)


def _jpeg(data: bytes, path: Path) -> np.ndarray:
    """A JPEG has no checksum: damage within its scan shows only in its pixels."""
    if not _ends(data):
        raise _damaged(path, "it ends too early")
    image = _loaded(JpegImageFile, data, path)
    if image.mode not in ("L", "RGB"):
        raise _unwanted(path, image.mode)
    return np.asarray(image)


def _ends(data: bytes) -> bool:
    """Whether a JPEG's end marker follows its scan, not just a thumbnail in its header."""
    start = 2
    while data[start : start + 2] != b"\xff\xda":
        if data[start : start + 1] != b"\xff":
            return False
        is_fill = data[start + 1 : start + 2] == b"\xff"
        start += 1 if is_fill else 2 + int.from_bytes(data[start + 2 : start + 4])
    return data.find(b"\xff\xd9", start) > 0


def _loaded(
    plugin: type[PngImageFile] | type[JpegImageFile], data: bytes, path: Path
) -> Image.Image:
    """The image by this plugin alone: no other format is ever tried."""
    try:
        image = plugin(BytesIO(data))
        _insist_on_size(*image.size, path)
        image.load()
    except LadderError:
        raise
    except Exception as error:  # a damaged file may raise anything in there
        raise _damaged(path, str(error)) from None
    return image


def _insist_on_size(width: int, height: int, path: Path) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise LadderError(
            f"{path} is {height} x {width}; at most {MAX_PIXELS:,} pixels are read: shrink it or "
            "remove it"
        )


def _damaged(path: Path, why: str) -> LadderError:
    return LadderError(f"{path} is damaged ({why}): mend or remove it")


def _unwanted(path: Path, what: str) -> LadderError:
    return LadderError(
        f"{path} is {what}: convert it to 8-bit greyscale or RGB without transparency, or remove it"
    )
