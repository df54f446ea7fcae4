"""Likeness: near duplicates, as a photograph saved again, made smaller or brighter.

Two images are called so when their hashes hardly differ and their miniatures are one pattern.  The
hash is dHash: whether each pixel of a miniature of 8 x 9 is brighter than the one to its left
(Neal Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

HEIGHT, WIDTH = 16, 18  # of a miniature: twice what the hash is made from
BITS = 64
NOISE = 12  # of four pixels together, which JPEG leaves in what was even
MOST_BITS = 4  # that may differ
LEAST = 0.997  # correlation of miniatures, from -1 to 1
BLOCK = 4_000_000  # numbers at a time


def miniatures(images: np.ndarray) -> np.ndarray:
    """images[N, H, W(, 3)] uint8 -> [N, 16, 18] uint8, each pixel the mean of its area."""
    height, width = images.shape[1:3]
    rows, columns = _areas(HEIGHT, height), _areas(WIDTH, width)
    small = np.empty((len(images), HEIGHT, WIDTH), np.uint8)
    step = max(1, BLOCK // (height * width))
    for start in range(0, len(images), step):
        some = images[start : start + step]
        grey = (some.mean(axis=3) if some.ndim == 4 else some).astype(np.float32)
        small[start : start + step] = np.rint(rows @ grey @ columns.T)
    return small


def _areas(wanted: int, length: int) -> np.ndarray:
    """How much of each pixel belongs to each of fewer or more pixels.  [wanted, length] float32."""
    edges = np.linspace(0, length, wanted + 1)
    pixels = np.arange(length)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(shared, 0, None) * wanted / length).astype(np.float32)


def hashes(small: np.ndarray) -> np.ndarray:
    """small[N, 16, 18] uint8 -> [N, 64] float32, 1 for a set bit and -1 for the others.

    Of two hashes the product counts the bits in which they agree.
    """
    means = small.reshape(-1, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = means[:, :, 1:] > means[:, :, :-1] + NOISE
    return np.where(bits, 1, -1).reshape(-1, BITS).astype(np.float32)


def alike(small: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int]]:
    """The rows of each two near duplicates.  small[N, 16, 18], others[M, 16, 18] uint8.

    An image of one colour is like no other.
    """
    codes, other_codes = hashes(small), hashes(others)
    patterns, other_patterns = _patterns(small), _patterns(others)
    step = max(1, BLOCK // max(1, len(others)))
    for start in range(0, len(small), step):
        same = codes[start : start + step] @ other_codes.T >= BITS - 2 * MOST_BITS
        first, second = np.nonzero(same)
        first += start
        for at in range(0, len(first), BLOCK // (HEIGHT * WIDTH)):
            ones = first[at : at + BLOCK // (HEIGHT * WIDTH)]
            twos = second[at : at + BLOCK // (HEIGHT * WIDTH)]
            found = np.einsum("ij,ij->i", patterns[ones], other_patterns[twos]) >= LEAST
            yield from zip(ones[found].tolist(), twos[found].tolist(), strict=True)


def _patterns(small: np.ndarray) -> np.ndarray:
    """Miniatures without their brightness and contrast.  [N, 288] float32 of length 1, or 0."""
    flat = small.reshape(-1, HEIGHT * WIDTH).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1)
