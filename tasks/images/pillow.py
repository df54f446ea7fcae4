"""Any PNG or JPEG through Pillow, after a check of what Pillow does not look at.

Pillow takes damaged files without a word: rows that are missing, wrong checksums, no end.  And it
refuses whole ones for what is no part of the picture: long texts, large profiles.  So the structure
is checked here, and of a PNG Pillow is given nothing but what makes its pixels.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from tasks.caching.basics import LadderError, clean
from tasks.images.png import SIGNATURE

MAX_PIXELS, MAX_SIDE = 64_000_000, 65_535  # a larger image is a mistake or an attack
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
# A JPEG's marker, after fill bytes FF; FF 00 is a byte of its pixels (ITU-T T.81, B.1.1)
MARKER = re.compile(rb"\xff([^\x00\xff])")
PROGRESSIVE = 0xC2
# Bytes of no meaning, for a scan that has not come to its end; and for one with restart markers
NOISE = bytes(at * 97 % 251 for at in range(128))
FILLER = NOISE + b"".join(b"\xff%c%b" % (0xD0 + number, NOISE) for number in range(8))
MAX_SCANS = 100  # each goes over the whole image; those that refine it are a dozen
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0 to RST7, SOI
FRAMES = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2), "a JPEG"),
    **dict.fromkeys((0xC3, 0xCB), "a lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "an arithmetic-coded JPEG"),
    0xF7: "a JPEG-LS",
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
JPEG_START = b"\xff\xd8\xff"
# What is named .png or .jpg and is neither: a pattern of its first bytes, and what to call it
OTHERS = [
    (re.escape(SIGNATURE), "a PNG"),
    (JPEG_START, "a JPEG"),
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer"),
    (rb"(\.\.)?/[^\0]*annex/objects/", "a git-annex pointer"),
    (rb"RIFF....WEBP", "a WebP image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM.{4}\0{4}", "a BMP image"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF image"),
    (rb"....ftyp(hei[cxs]|hev[cx]|mif1|msf1)", "a HEIC image"),
    (rb"....ftypavi[fs]", "an AVIF image"),
    (rb"....ftyp", "a video"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\x8a[MJ]NG\r\n\x1a\n", "an MNG animation"),
    (rb"P[1-7]\s", "a PNM image"),
    (rb"\x93NUMPY", "a NumPy file"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\0\x05\x16[\0\x07]", "a resource fork of macOS"),
    (rb"%PDF", "a PDF file"),
    (rb"%!PS", "a PostScript file"),
    (rb"\x1f\x8b", "packed by gzip"),
    (rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18", "packed"),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!|.{257}ustar", "an archive"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|!--|html|head|body)", "a web page"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype svg|svg)", "an SVG"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|error)", "an XML file"),
    (rb"\x89PNG(\n|\r\r|\r\n\x1a\r|\r\x1a)|(\t|\xc2\x89|\xef\xbf\xbd)PNG", "an image sent as text"),
    (rb"\xc3\xbf\xc3\x98|(\xef\xbf\xbd){3}", "an image sent as text"),
    (rb"\0{16}", "blank (zero bytes where an image begins)"),
    (rb"[\t\n\r -~]+\Z", "a text"),
]  # fmt: skip
REMEDY = {
    "a Git LFS pointer": "run `git lfs pull` in its folder to bring the image",
    "a git-annex pointer": "run `git annex get` in its folder to bring the image",
    "packed by gzip": "unpack it or remove it",
    "packed": "unpack it or remove it",
    "an archive": "unpack it or remove it",
    "an image sent as text": "bring it again as binary, or remove it",
    **dict.fromkeys(
        ("blank (zero bytes where an image begins)", "a web page", "an XML file", "a text"),
        "bring the image again or remove it",
    ),
}


class Chunk(NamedTuple):
    """A piece of a PNG."""

    kind: bytes
    body: memoryview
    whole: memoryview  # with its length, kind and checksum


def read_image(data: bytes, path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """The image[H, W] or [H, W, 3] uint8 of any accepted file, upright, resized where asked.

    Raises LadderError naming `path` for what is no such image, MemoryError where it does not fit.
    """
    named = "a PNG" if path.suffix.lower() == ".png" else "a JPEG"
    kind = _kind(data)
    if kind != named:
        raise _misnamed(data, path, named, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Pillow finds in EXIF data and the like
        image = _png(data, path) if kind == "a PNG" else _jpeg(data, path)
    return np.asarray(resized(image, size) if size else image)


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (height, width): bilinear, antialiased."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _kind(data: bytes) -> str:
    """What a file is, by its first bytes; "" for what nobody knows."""
    start = data[:1024]
    found = (name for pattern, name in OTHERS if re.match(pattern, start, re.DOTALL))
    return next(found, "")


def _misnamed(data: bytes, path: Path, named: str, kind: str) -> LadderError:
    if any(start.startswith(data) for start in (SIGNATURE, JPEG_START)):
        return _damaged(path, "it ends too early" if data else "it is empty")
    if not kind:
        return _damaged(path, f"it does not begin like {named}")
    if kind in ("a JPEG", "a PNG"):
        suffix = ".png" if kind == "a PNG" else ".jpg"
        return LadderError(f"{clean(path)} is {kind}: rename it to {suffix} or remove it")
    remedy = REMEDY.get(kind, "convert it to PNG or JPEG, or remove it")
    return LadderError(f"{clean(path)} is {kind}, not {named}: {remedy}")


# PNG


def _png(data: bytes, path: Path) -> Image.Image:
    """The image of a PNG, mode L or RGB."""
    chunks = _chunks(data, path)
    width, height, depth, colour, *methods, interlaced = struct.unpack(">IIBBBBB", chunks[0].body)
    samples, depths = COLOURS.get(colour, (0, ()))
    if any(methods) or interlaced > 1 or depth not in depths:
        raise _damaged(path, "its header is invalid")
    if depth == 16:
        raise _unwanted(path, "16-bit")
    named = {each.kind: each.body for each in chunks}
    if named.get(b"acTL", b"")[:4] not in (b"", b"\0\0\0\1") or b"fdAT" in named:
        raise _unwanted(path, "animated")
    insist_on_size(width, height, path)
    length = _filtered_length(width, height, depth * samples, interlaced)
    _insist_on_pixels((each.body for each in chunks if each.kind == b"IDAT"), length, path)
    needed = [each.whole for each in chunks if each.kind in NEEDED]
    is_bare = len(data) == len(SIGNATURE) + sum(map(len, needed))
    bare = data if is_bare else b"".join([SIGNATURE, *needed])
    image = _loaded(PngImageFile, bare, path)
    key = bytes(named.get(b"tRNS", b"")) if colour in (0, 2, 3) else b""
    image = _opaque(image, key, depth, len(named.get(b"PLTE", b"")) // 3, path)
    return _upright(image, bytes(named[b"eXIf"])) if b"eXIf" in named else image


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
            raise _damaged(path, "it ends too early")
        kind = data[start + 4 : start + 8]
        if data[end : end + 4] != zlib.crc32(view[start + 4 : end]).to_bytes(4):
            raise _damaged(path, f"the checksum of its chunk {clean(ascii(kind)[2:-1])} at byte "
                           f"{start:,} is wrong")  # fmt: skip
        chunks.append(Chunk(kind, view[start + 8 : end], view[start : end + 4]))
        start = end + 4
    if chunks[0].kind == b"CgBI":
        raise _unwanted(path, "a PNG for iOS alone (CgBI)")
    if not _in_order([each.kind for each in chunks]):
        raise _damaged(path, "chunks are missing, unknown or out of order")
    if len(chunks[0].body) != 13:
        raise _damaged(path, "its header is invalid")
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
        raise _damaged(path, why) from None
    if left < 0:
        raise _damaged(path, "it has more pixels than its header says")
    if left or not inflater.eof:
        raise _damaged(path, "its pixels are incomplete")


def _filtered_length(width: int, height: int, bits: int, interlaced: int) -> int:
    """Bytes of a PNG's filtered rows at `bits` a pixel."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (len(range(left, width, across)), len(range(top, height, down)))
        for left, top, across, down in passes
    ]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)


def _opaque(image: Image.Image, key: bytes, depth: int, colours: int, path: Path) -> Image.Image:
    """The image in mode L or RGB, black-and-white and palettes turned into what they show.

    Raises LadderError where a pixel is transparent, by an alpha channel or the PNG's tRNS `key`.
    """
    if image.mode == "P":
        used = np.flatnonzero(image.histogram())
        if used[-1] >= colours:
            raise _damaged(path, "its palette is too short")
        clear = any(key[index] < 255 for index in used if index < len(key))
        palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[:colours]
        mode = "L" if (palette == palette[:, :1]).all() else "RGB"
    elif image.mode in ("LA", "RGBA"):
        clear = image.getchannel("A").getextrema() != (255, 255)
        mode = image.mode.removesuffix("A")
    else:
        mode = "RGB" if image.mode == "RGB" else "L"
        image = image if image.mode == mode else image.convert(mode)
        if len(key) not in (0, 2 * len(mode)):
            raise _damaged(path, "its transparent colour is invalid")
        # Two bytes a sample, of which as many bits count as the image has (PNG, section 11.3.2.1)
        colour = [sample % 2**depth * 255 // (2**depth - 1) for sample in key[1::2]]
        clear = bool(key) and bool(
            (np.asarray(image).reshape(-1, len(mode)) == colour).all(1).any()
        )
    if clear:
        raise _unwanted(path, "transparent")
    return image if image.mode == mode else image.convert(mode)


# JPEG


def _jpeg(data: bytes, path: Path) -> Image.Image:
    """The image of a JPEG, mode L or RGB.

    A JPEG has no checksum: other damage within its scans shows only in its pixels.
    """
    kind, end = _frame(data, path)
    image = _loaded(JpegImageFile, data, path)
    if image.mode not in ("L", "RGB"):
        raise _unwanted(path, image.mode)
    if _may_be_cut(image, kind) and _is_cut(image, data, end, path):
        raise _damaged(path, "its pixels are incomplete")
    exif = image.info.get("exif")
    return _upright(image, exif) if exif else image


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
            raise _damaged(path, f"it ends without {'pixels' if kind else 'a header'}")
        if marker in FRAMES and not scans:
            kind = marker
            _insist_on_kind(FRAMES[marker], data[at : at + 8], path)
        if marker not in ALONE:
            scans += marker == 0xDA
            at += int.from_bytes(data[at : at + 2])
        if scans > MAX_SCANS:
            raise _unwanted(path, f"a JPEG of over {MAX_SCANS} scans")
    raise _damaged(path, "it ends too early")


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


def _is_cut(image: Image.Image, data: bytes, end: int, path: Path) -> bool:
    """Whether bytes put before a JPEG's end count as pixels: a whole scan has no use for them."""
    while data[end - 1] == 0xFF:  # fill bytes before the marker
        end -= 1
    other = _loaded(JpegImageFile, data[:end] + FILLER + data[end:], path)
    width, height = image.size
    boxes = ((0, top, width, min(top + 256, height)) for top in range(0, height, 256))
    return any(image.crop(box).tobytes() != other.crop(box).tobytes() for box in boxes)


def _insist_on_kind(kind: str, frame: bytes, path: Path) -> None:
    """See that Pillow reads such a frame: length, precision, height, width, components."""
    if len(frame) == 8:
        _, precision, height, width, components = struct.unpack(">HBHHB", frame)
        if kind not in ("a JPEG", "an arithmetic-coded JPEG"):
            raise _unwanted(path, kind)
        if precision != 8:
            raise _unwanted(path, f"a {precision}-bit JPEG")
        if components not in (1, 3):
            raise _unwanted(path, "CMYK" if components == 4 else f"of {components} channels")
        insist_on_size(width, height, path)


# Both


def _loaded(
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
        raise _damaged(path, str(error)) from None
    return image


def _upright(image: Image.Image, exif: bytes) -> Image.Image:
    """The image as it is to be looked at; what is wrong with EXIF data does not matter."""
    orientation = 1
    try:
        tags = Image.Exif()
        tags.load(exif)
        orientation = tags.get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # anything may be raised there too
        return image
    way = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if way is None else image.transpose(way)


def insist_on_size(width: int, height: int, path: Path) -> None:
    """Raise LadderError for an image of no pixels or too many, or too long to be resized."""
    if not width * height:
        raise _damaged(path, f"its header says {height} x {width} pixels")
    many, long = width * height > MAX_PIXELS, max(width, height) > MAX_SIDE
    if many or long:
        most = f"{MAX_PIXELS:,} pixels" if many else f"{MAX_SIDE:,} pixels a side"
        raise LadderError(
            f"{clean(path)} is {height} x {width}; at most {most} are read: shrink it or remove it"
        )


def _damaged(path: Path, why: str) -> LadderError:
    return LadderError(f"{clean(path)} is damaged ({clean(why)}): mend or remove it")


def _unwanted(path: Path, what: str) -> LadderError:
    return LadderError(
        f"{clean(path)} is {what}: convert it to 8-bit greyscale or RGB without transparency, or "
        "remove it"
    )
