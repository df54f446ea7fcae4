"""WebP, BMP, GIF and TIFF: seen to be as long as they say, then left to Pillow's plugin.

None has a checksum: damage within the pixels shows only there.  Of several frames or pages the
first is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tasks.images.form import Form
from tasks.images.pillow import PLUGINS, damaged, flat, loaded, refuse, upright

STRIPS = ((273, 279), (324, 325))  # TIFF's tags of where strips or tiles are, and how long


def other(data: bytes, kind: str, form: Form, path: Path) -> Image.Image:
    """The image of a WebP, BMP, GIF or TIFF file, mode L or RGB, upright."""
    if _length(data, kind) > len(data) or (kind == "a GIF image" and not _has_end(data)):
        raise damaged(path, "it ends too early")
    image: Any = loaded(PLUGINS[kind], data, path)
    if kind == "a TIFF image" and _strips_end(image) > len(data):
        raise damaged(path, "it ends too early")
    if getattr(image, "is_animated", False):
        refuse(form, path, "of several frames or pages")
    # Pillow turns a TIFF upright itself as it loads it
    return flat(image if kind == "a TIFF image" else upright(image, image), form, path)


def _length(data: bytes, kind: str) -> int:
    """Bytes that a file must have, by its own header; 0 where that does not say."""
    if kind == "a WebP image":
        return 8 + int.from_bytes(data[4:8], "little")
    return int.from_bytes(data[2:6], "little") if kind == "a BMP image" else 0


def _strips_end(image: Any) -> int:
    """Where the last strip or tile of a TIFF ends."""
    ends = [0]
    for offsets, counts in STRIPS:
        starts, lengths = image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ())
        ends += [start + length for start, length in zip(starts, lengths, strict=False)]
    return max(ends)


def _has_end(data: bytes) -> bool:
    """Whether a GIF's blocks lead to its trailer (GIF89a, sections 18 to 27)."""

    def table(packed: int) -> int:
        return 3 << (packed & 7) + 1 if packed & 0x80 else 0

    if len(data) < 13:
        return False
    at = 13 + table(data[10])
    while at < len(data) and data[at] in (0x21, 0x2C):
        if data[at] == 0x21:
            at += 2
        else:
            at += 11 + (table(data[at + 9]) if at + 9 < len(data) else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return at < len(data) and data[at] == 0x3B
