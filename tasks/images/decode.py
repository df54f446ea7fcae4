"""Decode: a class folder -> images[N, H, W] or images[N, H, W, 3] uint8, one row per file.

Small plain PNGs are decoded many at a time, everything else by Pillow, file by file.  Each image
goes to its row as it is decoded, so that memory holds little beside the stack.  All files that
cannot be used are told at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from tasks.caching.basics import LadderError, clean
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.images.canvas import Canvas, room
from tasks.images.folders import read_files
from tasks.images.form import AS_THEY_ARE, Form
from tasks.images.kinds import of_suffix
from tasks.images.listings import read_listing
from tasks.images.pillow import MAX_PIXELS
from tasks.images.scan import Files, lost

BLOCK_FILES, BLOCK_BYTES = 8192, 4_000_000  # of files read at a time
LOOKS = 128  # earlier results to search: looking into more takes longer than decoding anew


@stage(exact=True, apart=lambda: (lost,))
def decode(files: Files, form: Form = AS_THEY_ARE, *, run: Run = Run()) -> Stack:
    """The folder's images[N, H, W] or [N, H, W, 3] uint8, with a digest of each image's pixels.

    `form` is what each is made into; where it leaves them their size or colour, all must be equal.
    Black-and-white images and palettes that hold greys alone count as greyscale.  Images are
    turned upright as their EXIF data says.

    Raises LadderError with a line for each file that is damaged, differs from the others or has
    changed since the scan, and for any other kind of image.  Of many images the pixels lie on the
    disk while they are decoded, so that memory does not grow with their number.

    Files whose bytes an earlier result has decoded are not read: their rows are copied from there.
    """
    if form.size:
        _insist_on_size(form.size)
    try:
        return _stack(files, form, run)
    except MemoryError:
        raise LadderError(
            f"{clean(files.folder)}: there is too little memory for its images; close other "
            "programs or ask for a smaller --size"
        ) from None


def _stack(files: Files, form: Form, run: Run) -> Stack:
    """The rows that are known, copied, and the others, decoded."""
    parts = [] if form.skip_bad else list(_known(files, run))
    if not parts:
        return _decoded(files, form, run)
    new = np.ones(len(files.names), bool)
    for part in parts:
        new[part.rows] = False
    if new.any():
        rows = np.flatnonzero(new)
        fresh = Files(files.folder, [files.names[row] for row in rows], files.digests[rows])
        parts.append(Part(rows, _decoded(fresh, form, run), np.arange(len(rows))))
    shapes = {part.stack.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        return _decoded(files, form, run)  # names the file that differs
    images = room(len(files.names), shapes.pop())
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
            of_suffix(files.names[row]) == of_suffix(old.names[other])
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


def _decoded(files: Files, form: Form, run: Run) -> Stack:
    """All of the files, read and decoded block by block."""
    canvas = Canvas(files.folder, files.names)
    for done, rows, data in _blocks(files, canvas.problems):
        canvas.decode(rows, data, form)
        run.progress(done, len(files.names), "")
    rows, images = canvas.finished()
    names = [files.names[row] for row in rows] if canvas.skipped else files.names
    left_out = [*canvas.skipped.values()]
    return Stack(torch.from_numpy(images), names, _pixel_digests(images), left_out)


def _insist_on_size(size: tuple[int, int]) -> None:
    height, width = size
    if min(size) < 1 or height * width > MAX_PIXELS:
        raise LadderError(
            f"--size {height}x{width}: sides are from 1, and at most {MAX_PIXELS:,} pixels are made"
        )


def _blocks(files: Files, problems: list[str]) -> Iterator[tuple[int, list[int], list[bytes]]]:
    """Not too many files at a time: how many are done by then, rows and bytes of the readable."""
    rows: list[int] = []
    block: list[bytes] = []
    held = 0
    for row, data in enumerate(read_files(files.folder, files.names)):
        if isinstance(data, LadderError):
            problems.append(str(data))
            continue
        rows.append(row)
        block.append(data)
        held += len(data)
        if len(block) == BLOCK_FILES or held > BLOCK_BYTES:
            yield row + 1, *_scanned(rows, block, files, problems)
            rows, block, held = [], [], 0
    if block:
        yield len(files.names), *_scanned(rows, block, files, problems)


def _scanned(
    rows: list[int], data: list[bytes], files: Files, problems: list[str]
) -> tuple[list[int], list[bytes]]:
    """What is as the scan saw it; what is not is a problem."""
    now = np.frombuffer(b"".join([sha256(each).digest() for each in data]), np.uint8)
    changed = (now.reshape(-1, 32) != files.digests[rows]).any(axis=1)
    if not changed.any():
        return rows, data
    for at in np.flatnonzero(changed):
        path = clean(files.folder / files.names[rows[at]])
        problems.append(f"{path} changed while it was read; run again")
    same = np.flatnonzero(~changed)
    return [rows[at] for at in same], [data[at] for at in same]


def _pixel_digests(images: np.ndarray) -> np.ndarray:
    """digests[N, 32] uint8: sha256 of "H W " or "H W 3 " and the pixels of each image."""
    header = np.frombuffer("".join(f"{length} " for length in images.shape[1:]).encode(), np.uint8)
    size = len(header) + math.prod(images.shape[1:])
    step = max(1, BLOCK_BYTES // size)
    digests = []
    for start in range(0, len(images), step):
        block = images[start : start + step]
        texts = np.empty((len(block), size), np.uint8)
        texts[:, : len(header)] = header
        texts[:, len(header) :] = block.reshape(len(block), -1)
        data = texts.data.cast("B")
        digests += [sha256(data[at : at + size]).digest() for at in range(0, len(data), size)]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
