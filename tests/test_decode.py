"""Every pixel equals Pillow's, and no damaged, changed or unsuitable file becomes an image."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import struct
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from tasks.caching import machine
from tasks.caching.basics import LadderError, StageError, told
from tasks.caching.call import Settings
from tasks.caching.orchestration import Orchestrated
from tasks.caching.stage import Run
from tasks.caching.values import Stack, content_digest
from tasks.images import canvas, folders, listings
from tasks.images import decode as chapter
from tasks.images import png as careful
from tasks.images.canvas import Canvas
from tasks.images.form import AS_THEY_ARE, Form
from tasks.images.listings import Listing
from tasks.images.plain import FEWEST, plain_images
from tasks.images.png import ADAM7
from tasks.images.scan import Files

decode = chapter.decode.fn
HERE = Path("training/7")
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of files, gone at once
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode_rows(
    data: list[bytes], names: list[str], folder: Path, form: Form = AS_THEY_ARE
) -> np.ndarray:
    """images[N, H, W] or [N, H, W, 3] uint8 from the bytes of N files of one folder."""
    canvas = Canvas(folder, names)
    canvas.decode(range(len(names)), data, form)
    return canvas.finished()[1]


def stretched(size: tuple[int, int] | None) -> Form:
    return Form(size=size, fit="stretch", strict=True)


def files_of(folder: Path, data: dict[str, bytes]) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in data.items():
        (folder / name).write_bytes(each)
    names = sorted(data)
    digests = b"".join(hashlib.sha256(data[name]).digest() for name in names)
    return Files(folder, names, np.frombuffer(digests, np.uint8).reshape(-1, 32))


def saved(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)))


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, depth: int = 8, colour: int = 0, *methods: int) -> bytes:
    methods = methods or (0, 0, 0)
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *methods))


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def filtered_png(rows: np.ndarray, filters: list[int], channels: int = 1) -> bytes:
    """A PNG of these filtered bytes, whatever they decode to: rows[H, W * channels] uint8."""
    raw = b"".join(
        bytes([number]) + row.tobytes() for number, row in zip(filters, rows, strict=True)
    )
    width = rows.shape[1] // channels
    kind = header(width, len(rows), 8, {1: 0, 3: 2}[channels])
    return png(kind, chunk(b"IDAT", zlib.compress(raw)))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def decoded(data: bytes, name: str = "a.png", copies: int = 1) -> np.ndarray:
    """The file alone, or as the last of enough plain PNGs of the same size for the fast path."""
    shape = by_pillow(PLAIN).shape
    plain = [saved(noise(*shape, seed=i)) for i in range(copies - 1)]
    names = [f"{i}.png" for i in range(copies - 1)] + [name]
    return decode_rows([*plain, data], names, HERE)[-1]


PIXELS = noise(6, 5)
PLAIN = saved(PIXELS)
RAW = b"".join(b"\0" + row.tobytes() for row in PIXELS)
IDAT = chunk(b"IDAT", zlib.compress(RAW))
BOTH_PATHS = pytest.mark.parametrize("copies", [1, FEWEST], ids=["pillow", "fast"])


# Right pixels


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_every_filter_gives_the_pixels_that_pillow_gives(
    height: int, width: int, channels: int, seed: int, kinds: int
) -> None:
    """Noise under every mixture of the five filters, many files at once and each alone."""
    generator = np.random.default_rng(seed)
    data = [
        filtered_png(
            generator.choice([generator.integers(0, 256), 0, 255], (height, width * channels))
            .astype(np.uint8),
            generator.choice(generator.permutation(5)[:kinds], height).tolist(),
            channels,
        )
        for _ in range(FEWEST)
    ]  # fmt: skip
    rows, images = plain_images(data)
    assert rows == list(range(FEWEST))
    names = [f"{i}.png" for i in rows]
    expected = np.stack([by_pillow(each) for each in data])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(decode_rows(data, names, HERE), expected)
    np.testing.assert_array_equal(decode_rows(data[:2], names[:2], HERE), expected[:2])


def test_a_stack_holds_pixels_names_and_digests(tmp_path: Path) -> None:
    data = {f"{i:03d}.png": saved(noise(6, 5, seed=i)) for i in range(100)}
    stack = decode(files_of(tmp_path, data))
    assert isinstance(stack, Stack)
    assert stack.names == sorted(data)
    assert stack.images.dtype == torch.uint8
    expected = np.stack([by_pillow(data[name]) for name in stack.names])
    np.testing.assert_array_equal(stack.images.numpy(), expected)
    digests = [hashlib.sha256(b"6 5 " + each.tobytes()).digest() for each in expected]
    assert stack.digests.shape == (100, 32)
    assert stack.digests.tobytes() == b"".join(digests)


def test_digests_tell_shapes_apart_and_files_of_equal_pixels_not(tmp_path: Path) -> None:
    flat, tall = np.zeros((2, 8), np.uint8), np.zeros((8, 2), np.uint8)
    colour = np.zeros((2, 2, 3), np.uint8)
    stacks = [
        decode(files_of(tmp_path / str(i), {"a.png": saved(pixels)}))
        for i, pixels in enumerate((flat, tall, colour))
    ]
    assert len({stack.digests.tobytes() for stack in stacks}) == 3
    again = saved(flat, compress_level=0)
    assert again != saved(flat)
    other = decode(files_of(tmp_path / "other", {"b.png": again}))
    assert other.digests.tobytes() == stacks[0].digests.tobytes()


def grey_palette(pixels: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
    image.putpalette([value for grey in range(256) for value in (grey,) * 3])
    return image


BLACK_WHITE = np.where(PIXELS > 127, 255, 0).astype(np.uint8)
SIXTEEN = (PIXELS // 17 * 17).astype(np.uint8)
PACKED = b"".join(
    b"\0" + bytes((row[i] // 17 << 4) | (row[i + 1] // 17 if i < 4 else 0) for i in (0, 2, 4))
    for row in SIXTEEN
)


@BOTH_PATHS
@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (PLAIN, PIXELS),
        (saved(PIXELS, compress_level=0), PIXELS),
        (png(header(5, 6), chunk(b"IDAT", zlib.compress(RAW)[:9]),
             chunk(b"IDAT", zlib.compress(RAW)[9:])), PIXELS),
        (png(header(5, 6), chunk(b"IDAT"), IDAT), PIXELS),
        (png(header(5, 6), chunk(b"gAMA", b"\0\0\xb1\x8f"), chunk(b"tEXt", b"a\0b"), IDAT,
             chunk(b"tIME", b"\7\xe8\1\1\0\0\0")), PIXELS),
        (png(header(5, 6), chunk(b"prVt", b"?"), IDAT), PIXELS),
        (saved(Image.fromarray(BLACK_WHITE).convert("1")), BLACK_WHITE),
        (png(header(5, 6, 4), chunk(b"IDAT", zlib.compress(PACKED))), SIXTEEN),
        (saved(grey_palette(PIXELS)), PIXELS),
    ],
    ids=["plain", "stored", "two IDAT", "empty IDAT", "ancillary", "private", "1 bit", "4 bits",
         "grey palette"],
)  # fmt: skip
def test_any_other_valid_greyscale_png_is_right_too(
    data: bytes, pixels: np.ndarray, copies: int
) -> None:
    np.testing.assert_array_equal(decoded(data, copies=copies), pixels)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """A PNG in Adam7's seven passes, unfiltered."""
    raw = b""
    for left, top, across, down in ADAM7:
        part = pixels[top::down, left::across]
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    kind = header(pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 1)
    return png(kind, chunk(b"IDAT", zlib.compress(raw)))


@pytest.mark.parametrize("height", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("width", [1, 3, 4, 8, 9])
def test_interlaced_pngs_of_any_size_are_right(height: int, width: int) -> None:
    pixels = noise(height, width)
    data = interlaced_png(pixels)
    np.testing.assert_array_equal(by_pillow(data), pixels)
    np.testing.assert_array_equal(decode_rows([data], ["a.png"], HERE)[0], pixels)


def test_palettes_become_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(noise(6, 5, 3)).quantize(7)
    data = saved(image)
    assert by_pillow(data).ndim == 2
    stack = decode(files_of(tmp_path, {"a.PNG": data}))
    np.testing.assert_array_equal(stack.images[0].numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("shape", [(16, 9), (16, 9, 3)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_jpegs_are_what_pillow_says(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, object]
) -> None:
    data = {name: saved(noise(*shape), "JPEG", **options) for name in ("a.jpg", "b.JPEG")}
    stack = decode(files_of(tmp_path, data))
    for image, name in zip(stack.images.numpy(), stack.names, strict=True):
        np.testing.assert_array_equal(image, by_pillow(data[name]))
    assert stack.images.shape == (2, *shape)


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {f"{i:03d}.png": saved(noise(6, 5, 3, seed=i)) for i in range(200)}
    files = files_of(tmp_path, data)
    whole = decode(files)
    monkeypatch.setattr(chapter, "BLOCK_FILES", 70)
    calls: list[tuple[int, int, str]] = []
    parts = decode(files, run=Run(progress=lambda *call: calls.append(call)))
    assert torch.equal(whole.images, parts.images)
    assert whole.digests.tobytes() == parts.digests.tobytes()
    assert [call[:2] for call in calls] == [(70, 200), (140, 200), (200, 200)]


def test_all_of_mnists_testing_images_equal_pillows(mnist: Path) -> None:
    for folder in sorted((mnist / "testing").iterdir()):
        data = {path.name: path.read_bytes() for path in folder.iterdir()}
        names = sorted(data)
        images = decode_rows([data[name] for name in names], names, folder)
        np.testing.assert_array_equal(images, np.stack([by_pillow(data[n]) for n in names]))


# Sizes


def test_a_size_resizes_every_image_as_pillow_does(tmp_path: Path) -> None:
    pixels = [noise(20, 10), noise(9, 30), noise(7, 4)]
    data = {f"{i}.png": saved(each) for i, each in enumerate(pixels)}
    stack = decode(files_of(tmp_path, data), stretched((7, 4)))
    assert stack.images.shape == (3, 7, 4)
    for image, each in zip(stack.images.numpy(), pixels, strict=True):
        expected = Image.fromarray(each).resize((4, 7), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_a_size_applies_to_the_fast_path_too(tmp_path: Path) -> None:
    data = {f"{i:02d}.png": saved(noise(6, 5, seed=i)) for i in range(FEWEST)}
    stack = decode(files_of(tmp_path, data), stretched((3, 4)))
    expected = Image.fromarray(noise(6, 5, seed=9)).resize((4, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stack.images[9].numpy(), np.asarray(expected))


@pytest.mark.parametrize("odd", [noise(5, 6), noise(6, 5, 3), noise(1, 1)])
@pytest.mark.parametrize("copies", [3, FEWEST])
@pytest.mark.parametrize("block", [2, 10_000])
def test_the_first_image_unlike_the_others_is_named(
    tmp_path: Path, odd: np.ndarray, copies: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "BLOCK_FILES", block)
    data = {f"{i:02d}.png": saved(noise(6, 5)) for i in range(copies)}
    data |= {"022.png": saved(odd), "023.png": saved(odd)}
    with pytest.raises(LadderError, match=r"022.png is . x . \w+ among images of 6 x 5 greyscale;"):
        decode(files_of(tmp_path, data))


# Wrong files


def with_byte(data: bytes, position: int, change: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]


def apng() -> bytes:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(3)]
    return saved(frames[0], save_all=True, append_images=frames[1:])


DAMAGED = {
    "empty": b"",
    "a cut signature": SIGNATURE[:5],
    "zeros": bytes(999),
    "signature alone": SIGNATURE,
    "wrong signature": with_byte(PLAIN, 0),
    "wrong IHDR CRC": with_byte(PLAIN, 29),
    "wrong IDAT CRC": with_byte(PLAIN, -13),
    "wrong IEND CRC": with_byte(PLAIN, -1),
    "flipped pixel data": with_byte(PLAIN, 50),
    "no IEND": PLAIN[:-12],
    "half an IEND": PLAIN[:-6],
    "cut in its pixels": PLAIN[:55],
    "its end before its pixels": png(header(5, 6)) + IDAT,
    "no IDAT": png(header(5, 6)),
    "no IHDR": png(IDAT),
    "two IHDR": png(header(5, 6), header(5, 6), IDAT),
    "IDAT in two places": png(header(5, 6), chunk(b"IDAT", zlib.compress(RAW)[:9]),
                              chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", zlib.compress(RAW)[9:])),
    "too few rows": png(header(5, 7), IDAT),
    "too many rows": png(header(5, 5), IDAT),
    "no checksum of its pixels": png(header(5, 6), chunk(b"IDAT", zlib.compress(RAW)[:-4])),
    "wrong checksum of its pixels": png(
        header(5, 6), chunk(b"IDAT", zlib.compress(RAW)[:-1] + b"\0")),
    "pixels that do not inflate": png(header(5, 6), chunk(b"IDAT", b"x" * 30)),
    "an unknown filter": png(
        header(5, 6), chunk(b"IDAT", zlib.compress(RAW[:6] + b"\5" + RAW[7:]))),
    "an unknown critical chunk": png(header(5, 6), chunk(b"ABCD"), IDAT),
    "an unknown compression": png(header(5, 6, 8, 0, 1, 0, 0), IDAT),
    "an unknown interlacing": png(header(5, 6, 8, 0, 0, 0, 2), IDAT),
    "an invalid depth": png(header(5, 6, 3), IDAT),
    "an invalid colour type": png(header(5, 6, 8, 5), IDAT),
    "a short IHDR": png(chunk(b"IHDR", struct.pack(">II", 5, 6)), IDAT),
    "no width": png(header(0, 6), chunk(b"IDAT", zlib.compress(bytes(6)))),
    "a palette image without palette": png(header(5, 6, 8, 3), IDAT),
    "an index beyond its palette": png(header(5, 6, 8, 3), chunk(b"PLTE", bytes(6)), IDAT),
    "an inflation bomb": png(header(5, 6), chunk(b"IDAT", zlib.compress(bytes(10**8)))),
    "a length beyond the file": PLAIN[:33] + b"\x7f" + PLAIN[34:],
}  # fmt: skip


@BOTH_PATHS
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_png_is_refused_by_name(name: str, copies: int) -> None:
    """Pillow alone takes some of these without a word."""
    with pytest.raises(
        LadderError, match=r"training/7/bad.png (.*damaged|.*pixels are read|is blank)"
    ) as caught:
        decoded(DAMAGED[name], "bad.png", copies)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    {
        "empty": "it is empty",
        "a cut signature": "it ends too early",
        "signature alone": "it ends too early",
        "no IEND": "it ends too early",
        "cut in its pixels": "it ends too early",
        "a length beyond the file": "it ends too early",
        "wrong IDAT CRC": "the checksum of its chunk IDAT at byte 33 is wrong",
        "wrong checksum of its pixels": "the checksum of its pixels is wrong",
        "pixels that do not inflate": "its pixels do not inflate",
        "too few rows": "its pixels are incomplete",
        "too many rows": "it has more pixels than its header says",
        "an inflation bomb": "it has more pixels than its header says",
        "no width": "its header says 6 x 0 pixels",
        "an unknown critical chunk": "chunks are missing, unknown or out of order",
        "an invalid depth": "its header is invalid",
    }.items(),
)
def test_the_reason_given_for_damage_is_true(name: str, says: str) -> None:
    with pytest.raises(LadderError, match=f"bad.png is damaged .{says}.: mend or remove it"):
        decoded(DAMAGED[name], "bad.png")


JPEG = saved(noise(16, 16, 3), "JPEG")
THUMBNAIL = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG + JPEG[2:]
FRAME = JPEG.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (JPEG[:-2], "damaged .it ends too early"),
        (JPEG[: len(JPEG) // 2], "ends too early"),
        (JPEG[:30], "ends too early"),
        (JPEG[:3], "ends too early"),
        (JPEG[:2], "ends too early"),
        (THUMBNAIL[:-2], "ends too early"),
        (JPEG[:2] + b"\xff\xff\xff" + JPEG[3:40], "ends too early"),
        (JPEG[:FRAME] + b"\xff\xd9", "damaged .it ends without a header"),
        (JPEG.replace(b"\xff\xda", b"\xff\xfe"), "damaged .it ends without pixels"),
        (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), "damaged"),
        (JPEG[: FRAME + 5] + bytes(2) + JPEG[FRAME + 7 :], "its header says 0 x 16 pixels"),
        (with_byte(JPEG, FRAME + 4, 8 ^ 12), "is a 12-bit JPEG: convert it to 8-bit"),
        (with_byte(JPEG, FRAME + 1, 0xC0 ^ 0xC3), "is a lossless JPEG: convert it"),
        (with_byte(JPEG, FRAME + 1, 0xC0 ^ 0xF7), "is a JPEG-LS: convert it"),
        (with_byte(JPEG, FRAME + 9, 3 ^ 2), "is of 2 channels: convert it"),
        (b"", "damaged .it is empty"),
        (saved(Image.new("CMYK", (4, 4)), "JPEG"), "is CMYK: convert it"),
        (PLAIN, " is a PNG: rename it to .png"),
    ],
)
def test_a_jpeg_that_is_cut_or_of_another_kind_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(LadderError, match=f"bad.jpg.*{says}"):
        decode_rows([data], ["bad.jpg"], HERE)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str
)
@pytest.mark.parametrize("shape", [(50, 40), (50, 40, 3), (9, 17, 3), (8, 8)], ids=str)
def test_a_scan_that_ends_before_its_image_is_seen_though_an_end_was_put_after_it(
    shape: tuple[int, ...], options: dict[str, object]
) -> None:
    """What is missing libjpeg leaves blank without a word; a white corner is no such thing."""
    pixels = noise(*shape)
    pixels[shape[0] // 2 :] = 255
    whole = saved(pixels, "JPEG", **options)
    np.testing.assert_array_equal(decode_rows([whole], ["a.jpg"], HERE)[0], by_pillow(whole))
    start = whole.index(b"\xff\xda")
    cut = whole[: start + (len(whole) - start) // 2].removesuffix(b"\xff") + b"\xff\xd9"
    with pytest.raises(
        LadderError, match=r"bad.jpg is damaged .(its pixels are inc|it ends too e)"
    ):
        decode_rows([cut], ["bad.jpg"], HERE)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 272\n"


@pytest.mark.parametrize("name", ["bad.png", "bad.jpg"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (LFS, "is a Git LFS pointer, not a .*: run `git lfs pull` in its folder"),
        (b"/annex/objects/MD5E-s3--a.png\n", "is a git-annex pointer, .*: run `git annex get`"),
        (saved(PIXELS, "WEBP"), "is a WebP image: rename it to .webp or remove it"),
        (saved(noise(6, 5, 3), "AVIF"), "is an AVIF image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "is a HEIC image"),
        (b"\0\0\0\x18ftypisom", "is a video"),
        (saved(PIXELS, "GIF"), "is a GIF image"),
        (saved(PIXELS, "BMP"), "is a BMP image"),
        (saved(PIXELS, "TIFF"), "is a TIFF image"),
        (saved(PIXELS, "JPEG2000"), "is a JPEG 2000 image"),
        (saved(PIXELS, "PDF"), "is a PDF file"),
        (saved(PIXELS, "PPM"), "is a PNM image"),
        (saved(noise(6, 5, 3), "ICO"), "is an icon"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><html>", "is a web page, not .*: bring the image again"),
        (b"<?xml version='1.0'?>\n<svg width='1'/>", "is an SVG"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is an XML file"),
        (b'{"message": "Not Found"}', "is JSON text, not .*: bring the image again or remove it"),
        (gzip.compress(PLAIN), "is packed with gzip, not a .*: unpack it"),
        (b"PK\3\4\x14\0", "is a zip archive, .*: unpack it"),
        (b"\0\5\x16\7\0\2", "is a resource fork of macOS"),
        (PLAIN.replace(b"\r\n", b"\n"), "is an image sent as text, .*: bring it again as binary"),
        (PLAIN.replace(b"\n", b"\r\n"), "is an image sent as text"),
        (PLAIN.decode("latin-1").encode(), "is an image sent as text"),
        (JPEG.decode(errors="replace").encode(), "is an image sent as text"),
        ("Größe, 猫".encode(), "is a text, not .*: bring the image again"),
        (bytes(4096), "is blank .zero bytes where an image begins.*bring the image again"),
        (bytes(range(9, 99)), "is damaged .it does not begin like a (PNG|JPEG)"),
    ],
)
def test_what_is_no_image_of_its_suffix_is_said_to_be_what_it_is(
    data: bytes, says: str, name: str
) -> None:
    with pytest.raises(LadderError, match=f"training/7/{name} {says}"):
        decode_rows([data], [name], HERE)


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:FRAME] + b"\0" + JPEG[FRAME:],
        JPEG[:20] + b"\0\0\x80" + JPEG[20:],
        JPEG + b"\0\0",
        saved(noise(16, 16, 3), "JPEG", restart_marker_blocks=1),
        saved(noise(16, 16, 3), "JPEG", progressive=True) + b"\xff",
        saved(Image.fromarray(noise(16, 16, 3)), "MPO", save_all=True,
              append_images=[Image.fromarray(noise(16, 16, 3, seed=1))]),
        saved(noise(16, 16, 3), "JPEG", icc_profile=bytes(200_000), comment=b"x" * 60_000),
        with_byte(JPEG, FRAME + 1, 0xC0 ^ 0xC1),
    ],
    ids=["a byte between segments", "bytes between segments", "bytes after its end", "restarts",
         "progressive", "MPO", "large profile", "extended"],
)  # fmt: skip
def test_what_cameras_write_is_read_as_pillow_reads_it(data: bytes) -> None:
    np.testing.assert_array_equal(decode_rows([data], ["a.jpg"], HERE)[0], by_pillow(data))


def with_exif(image: Image.Image, orientation: object, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(image, kind, exif=exif)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_photographs_are_upright(orientation: int, kind: str) -> None:
    """EXIF's eight orientations, and two that mean nothing; before they are resized."""
    data = with_exif(Image.fromarray(noise(6, 9, 3)), orientation, kind)
    name = f"a.{kind.lower()}".replace("jpeg", "jpg")
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert expected.size == ((6, 9) if 5 <= orientation <= 8 else (9, 6))
    np.testing.assert_array_equal(decode_rows([data], [name], HERE)[0], np.asarray(expected))
    small = np.asarray(expected.resize((3, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_rows([data], [name], HERE, stretched((2, 3)))[0], small)


TURNED = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
HEXED = b"Raw profile type exif\0\nexif\n      26\n" + TURNED.hex().encode()
XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "told",
    [
        chunk(b"tEXt", HEXED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        chunk(b"eXIf", TURNED) + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0damaged"),
        b"http://ns.adobe.com/xap/1.0/\0" + XMP,
    ],
    ids=["ImageMagick's", "XMP", "packed XMP", "EXIF beside damaged XMP", "XMP of a JPEG"],
)
def test_photographs_are_upright_wherever_their_orientation_is_told(told: bytes) -> None:
    """By EXIF data in a text, and by XMP data, as Pillow has it."""
    name, data = "a.png", png(header(5, 6), told, IDAT)
    if told.startswith(b"http"):
        name, data = "a.jpg", JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(told) + 2) + told
        data += JPEG[2:]
    image = decode_rows([data], [name], HERE)[0]
    whole = JPEG if name == "a.jpg" else PLAIN
    np.testing.assert_array_equal(image, np.rot90(by_pillow(whole), -1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"", b"MM", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\x7f"])
def test_damaged_exif_data_does_no_harm(exif: bytes) -> None:
    data = saved(PIXELS, "JPEG", exif=b"Exif\0\0" + exif)
    expected = by_pillow(saved(PIXELS, "JPEG"))
    np.testing.assert_array_equal(decode_rows([data], ["a.jpg"], HERE)[0], expected)
    data = png(header(5, 6), chunk(b"eXIf", exif), IDAT)
    np.testing.assert_array_equal(decode_rows([data], ["a.png"], HERE)[0], PIXELS)


OPAQUE = np.dstack([noise(6, 5, 3), np.full((6, 5), 255, np.uint8)])
TWO_BITS = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes([0b00011011, 0]) for _ in range(6))))
TWO_BITS_PIXELS = np.tile(np.array([0, 85, 170, 255, 0], np.uint8), (6, 1))
INDEXED = Image.fromarray(noise(6, 5, 3)).quantize(4)


@BOTH_PATHS
@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (PLAIN + b"\n", PIXELS),
        (PLAIN + b"\0" * 1000, PIXELS),
        (PLAIN + SIGNATURE, PIXELS),
        (png(header(5, 6), chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(10**7))),
             chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7))), chunk(b"tEXt", bytes(10**6)),
             IDAT), PIXELS),
        (saved(OPAQUE), OPAQUE[:, :, :3]),
        (saved(np.dstack([PIXELS, OPAQUE[:, :, 3]])), PIXELS),
        (saved(Image.fromarray(np.full((6, 5), 7, np.uint8)), transparency=8), np.full((6, 5), 7)),
        (saved(Image.fromarray(OPAQUE[:, :, :3]), transparency=(1, 2, 3)), OPAQUE[:, :, :3]),
        (saved(INDEXED, transparency=b"\xff" * 4), np.asarray(INDEXED.convert("RGB"))),
        (saved(INDEXED, transparency=b"\xff" * 4 + b"\0"), np.asarray(INDEXED.convert("RGB"))),
        (png(header(5, 6, 2), TWO_BITS), TWO_BITS_PIXELS),
        (png(header(5, 6), chunk(b"acTL", b"\0\0\0\1\0\0\0\0"), IDAT), PIXELS),
    ],
    ids=["newline", "zeros", "another", "large texts", "RGBA", "LA", "key of L", "key of RGB",
         "palette", "long palette", "2 bits", "one frame"],
)  # fmt: skip
def test_what_is_no_part_of_the_picture_does_not_matter(
    data: bytes, pixels: np.ndarray, copies: int
) -> None:
    """Bytes after a PNG's end, texts beyond Pillow's limits, transparency that no pixel has."""
    if pixels.ndim == 3:
        copies = 1
    np.testing.assert_array_equal(decoded(data, copies=copies), pixels)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(header(5, 6, 2), chunk(b"tRNS", b"\0\2"), TWO_BITS), "is transparent"),
        (saved(INDEXED, transparency=b"\xff\xfe"), "is transparent"),
        (saved(np.dstack([PIXELS, np.where(PIXELS[3, 3] == PIXELS, 254, 255)]).astype(np.uint8)),
         "is transparent"),
        (png(header(5, 6), chunk(b"tRNS", b"\0"), IDAT), "damaged .its transparent colour is inv"),
        (SIGNATURE + chunk(b"CgBI") + PLAIN[8:], "is a PNG for iOS alone"),
    ],
)  # fmt: skip
def test_a_pixel_that_is_transparent_is_seen(data: bytes, says: str) -> None:
    with pytest.raises(LadderError, match=f"bad.png.*{says}"):
        decode_rows([data], ["bad.png"], HERE)


def test_no_change_of_a_few_bytes_is_a_wrong_image_or_another_error() -> None:
    """Bytes set, put in, taken out and cut off: what is accepted is as Pillow has it."""
    random, outcomes = np.random.default_rng(5), {"the same": 0, "refused": 0}
    bases = [("a.png", PLAIN), ("a.png", saved(OPAQUE)), ("a.png", saved(INDEXED)), ("a.jpg", JPEG),
             ("a.jpg", saved(noise(17, 9), "JPEG", progressive=True)), ("a.jpg", THUMBNAIL),
             ("a.png", with_exif(Image.fromarray(PIXELS), 6, "PNG"))]  # fmt: skip
    for name, whole in bases:
        for _ in range(120):
            at, new = int(random.integers(2, len(whole))), random.bytes(int(random.integers(0, 3)))
            taken = int(random.choice([0, 1, 2, len(whole)]))
            data = whole[:at] + new + whole[at + taken :]
            try:
                image = decode_rows([data], [name], HERE)[0]
            except LadderError:
                outcomes["refused"] += 1
                continue
            shown = ImageOps.exif_transpose(Image.open(BytesIO(data)))
            mode = "RGB" if image.ndim == 3 else "L"
            np.testing.assert_array_equal(image, np.asarray(shown.convert(mode)))
            outcomes["the same"] += 1
    assert min(outcomes.values()) > 50


def test_a_jpegs_thumbnail_and_fill_bytes_do_no_harm() -> None:
    for data in (THUMBNAIL, JPEG[:2] + b"\xff\xff" + JPEG[2:]):
        image = decode_rows([data], ["a.jpg"], HERE)[0]
        np.testing.assert_array_equal(image, by_pillow(JPEG))


@pytest.mark.parametrize("copies", [1, FEWEST])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved(noise(6, 5, 4)), "is transparent: convert it"),
        (saved(noise(6, 5, 2)), "is transparent"),
        (saved(Image.fromarray(PIXELS), transparency=int(PIXELS[2, 2])), "is transparent"),
        (saved(Image.fromarray(noise(6, 5, 3)).quantize(4), transparency=1), "is transparent"),
        (saved(Image.fromarray(PIXELS.astype(np.uint16) * 257)), "is 16-bit: convert it"),
        (png(header(5, 6, 16, 2), chunk(b"IDAT", zlib.compress(bytes(6 * 31)))), "is 16-bit"),
        (apng(), "is animated"),
        (JPEG, "is a JPEG: rename it to .jpg"),
        (png(header(9000, 9000), IDAT), "is 9000 x 9000; at most 24,000,000 pixels"),
        (png(header(2**31 - 1, 2**31 - 1), IDAT), "at most 24,000,000 pixels"),
        (png(header(1, 65_536), IDAT), "is 65536 x 1; at most 65,535 pixels a side are read"),
    ],
)
def test_other_kinds_of_images_are_refused_with_what_to_do(
    data: bytes, says: str, copies: int
) -> None:
    with pytest.raises(LadderError, match=f"training/7/bad.png.*{says}"):
        decoded(data, "bad.png", copies)


def test_no_flipped_bit_changes_a_png_unseen() -> None:
    """Each bit of a PNG flipped in turn: an error, in either path."""
    for position in range(len(PLAIN)):
        data = with_byte(PLAIN, position, 1 << position % 8)
        with pytest.raises(LadderError, match=r"bad\.png"):
            decode_rows([data], ["bad.png"], HERE)
    many = [with_byte(PLAIN, position, 1 << position % 8) for position in range(33, len(PLAIN))]
    rows, _ = plain_images([PLAIN] * FEWEST + many)
    assert rows == list(range(FEWEST))


def change(file: Path) -> None:
    file.write_bytes(saved(noise(6, 5, seed=99)))


@pytest.mark.parametrize(
    ("act", "says"),
    [(change, "changed while it was read; run again"), (Path.unlink, "cannot be read")],
)
def test_a_file_that_changed_since_the_scan_is_an_error(
    tmp_path: Path, act: Callable[[Path], None], says: str
) -> None:
    files = files_of(tmp_path, {f"{i}.png": saved(noise(6, 5, seed=i)) for i in range(5)})
    act(tmp_path / "3.png")
    with pytest.raises(LadderError, match=f"3.png {says}"):
        decode(files)


def test_all_bad_files_of_a_folder_are_told_at_once(tmp_path: Path) -> None:
    """The first twenty and how many more; unreadable, changed, damaged, of another kind, unlike."""
    data = {f"{i:02}.png": saved(noise(6, 5, seed=i)) for i in range(20)}
    data |= {f"{i:02}.png": PLAIN[:-1] for i in range(20, 45)}
    data |= {"00.png": PLAIN[:50], "02.png": LFS, "03.png": saved(noise(5, 5))}
    files = files_of(tmp_path, data)
    change(tmp_path / "04.png")
    (tmp_path / "05.png").unlink()
    with pytest.raises(LadderError) as caught:
        decode(files)
    lines = str(caught.value).replace(f"{tmp_path}/", "").split("\n")
    assert lines[:5] == [
        "05.png cannot be read (it has just vanished): run again",
        "04.png changed while it was read; run again",
        "00.png is damaged (it ends too early): mend or remove it",
        "02.png is a Git LFS pointer, not a PNG: run `git lfs pull` in its folder to bring the "
        "image",
        "20.png is damaged (it ends too early): mend or remove it",
    ]
    assert lines[20:] == ["and 10 more"]


def test_those_of_several_folders_are_counted_together() -> None:
    first = told(f"a{i}" for i in range(30))
    assert told([first, told(["b"]), told(f"c{i:,}" for i in range(2000))]).split("\n") == [
        *(f"a{i}" for i in range(20)), "and 2,011 more"
    ]  # fmt: skip
    assert told(["only\nthese"]) == "only\nthese"


def test_the_run_ends_with_the_bad_files_of_all_its_folders() -> None:
    """A stage's own failure is told whole; what could not begin for it is not told."""
    session = Orchestrated(Settings(cache="", dataset=""))
    errors = [LadderError(told(f"decode[{c}]: {c}{i}" for i in range(15))) for c in "ab"]
    for error in (*errors, StageError("Traceback\n" + "line\n" * 30 + "end"), None):
        state = mock.Mock()
        state.is_failed.return_value = error is not None
        state.is_crashed.return_value = False
        state.result.return_value = error
        session.futures.append(mock.Mock(state=state))
    with pytest.raises(LadderError) as caught:
        session.finish(None)
    lines = str(caught.value).split("\n")
    assert lines[:32] == ["Traceback", *["line"] * 30, "end"]
    assert lines[32:] == [*(f"decode[a]: a{i}" for i in range(15)),
                          *(f"decode[b]: b{i}" for i in range(5)), "and 10 more"]  # fmt: skip


def test_grey_among_colour_is_said_to_be_that_with_and_without_a_size(tmp_path: Path) -> None:
    data = {f"{i}.jpg": saved(noise(6, 5, 3), "JPEG") for i in range(5)}
    files = files_of(tmp_path, data | {"3.jpg": saved(noise(9, 9), "JPEG")})
    for size, is_now in ((None, "9 x 9"), ((6, 5), "6 x 5")):
        with pytest.raises(LadderError) as caught:
            decode(files, stretched(size))
        assert str(caught.value) == (
            f"{tmp_path}/3.jpg is {is_now} greyscale among images of 6 x 5 RGB; save it as RGB "
            "like the others"
        )


def test_many_sizes_are_summed_up(tmp_path: Path) -> None:
    data = {f"{i}.png": saved(noise(6, 1 + i)) for i in range(9)}
    with pytest.raises(LadderError) as caught:
        decode(files_of(tmp_path, data | {"x.png": saved(noise(6, 1))}))
    lines = str(caught.value).replace(f"{tmp_path}", "F").split("\n")
    assert [line[:60] for line in lines] == [
        *(f"F/{i}.png is 6 x {i + 1} greyscale among images of 6 x 1 greyscale; make"[:60]
          for i in (1, 2, 3)),
        "F has 5 more of other sizes than most",
    ]  # fmt: skip
    assert lines[0].endswith("ask for one size, such as --size 6x1")


def test_many_images_lie_on_the_disk_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stack and its stored bytes are the same, nothing is left there, a full disk is told."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    files = files_of(tmp_path, {f"{i}.png": saved(noise(30, 40, 3, seed=i)) for i in range(10)})
    small = decode(files)
    stored = content_digest(small)
    monkeypatch.setattr(machine, "LARGE", 30_000)
    large = decode(files)
    assert torch.equal(small.images, large.images)
    assert content_digest(large) == stored
    assert list((tmp_path / "data/cache").iterdir()) == []

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(LadderError, match="data/cache: No space left"):
        decode(files)


@pytest.mark.parametrize("size", [(100_000, 100_000), (0, 5), (5, -1), (8001, 8000)])
def test_a_size_out_of_bounds_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    says = f"--size {size[0]}x{size[1]}: sides are from 1, and at most 24,000,000 pixels are made"
    with pytest.raises(LadderError, match=says):
        decode(files_of(tmp_path, {"a.png": PLAIN}), stretched(size))


def test_a_size_holds_one_image_at_full_size_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a quarter of the peak that is allowed, and there are ten."""
    flat = saved(np.zeros((1500, 2000), np.uint8))
    files = files_of(tmp_path, {f"{i}.png": flat for i in range(10)})
    alive: list[weakref.ref[Image.Image]] = []
    most = 0
    read_image = canvas.read_image

    def watched(data: bytes, path: Path, form: Form) -> np.ndarray:
        nonlocal most
        with mock.patch.object(careful, "loaded", loaded):
            image = read_image(data, path, form)
        most = max(most, sum(each() is not None for each in alive))
        return image

    def loaded(*given: Any) -> Image.Image:
        image = load(*given)
        alive.append(weakref.ref(image))
        return image

    load = careful.loaded
    monkeypatch.setattr(canvas, "read_image", watched)
    assert decode(files, stretched((3, 4))).images.shape == (10, 3, 4)
    assert (len(alive), most) == (10, 0)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading")])
def test_too_little_memory_is_not_called_damage(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_image: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(LadderError, match=r"bad.png: there is too little memory to decode it"):
        decode_rows([PLAIN], ["bad.png"], HERE)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("bad.png", png(header(5, 6), *[chunk(b"tEXt", b"a\0b")] * 20_000), "out of order"),
        ("bad.png", b"<!---->" * 150 + b"<", "is a web page"),
        ("bad.jpg", JPEG[:2] + b"\xff" * 200_000 + b"\0" + JPEG[3:-2], "ends too early"),
        (
            "bad.jpg",
            JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") : -2] * 101 + JPEG[-2:],
            "of over 100",
        ),
    ],
)
def test_what_is_made_to_take_long_does_not(name: str, data: bytes, says: str) -> None:
    """Patterns that would try every division of a file, scans that each go over all pixels."""
    with pytest.raises(LadderError, match=f"{name}.*{says}"):
        decode_rows([data], [name], HERE)


def test_a_png_of_endless_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs time and memory, whatever is in it."""
    monkeypatch.setattr(careful, "MAX_CHUNKS", 100)
    with pytest.raises(LadderError, match=r"bad.png is a PNG of over 100 chunks"):
        decode_rows([png(header(5, 6), chunk(b"tEXt") * 100, IDAT)], ["bad.png"], HERE)


def test_names_are_told_in_one_line_whatever_is_in_them() -> None:
    name = "a\nb\x1b[31m\u202e.png"
    says = r"training/7/a\\nb\\x1b\[31m\\u202e.png is damaged \(it is empty\): mend or remove it"
    with pytest.raises(LadderError, match=f"^{says}$"):
        decode_rows([b""], [name], HERE)


def test_memory_within_control_groups_and_limits_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both versions of groups, one above another; what a group read of files can be given back."""
    assert machine.available_memory() > 10**8
    mounts = "1 1 0:1 / /two rw - cgroup2 x rw\n2 1 0:2 / /one rw - cgroup x rw,memory\n"
    for name, text in {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:       8 kB\n",
        "proc/self/statm": "1 1 1",
        "proc/self/cgroup": "4:cpu:/\n3:memory:/\n0::/job/step\n",
        "proc/self/mountinfo": mounts,
        "two/job/step/memory.max": "max\n",
        "two/job/memory.max": "9000",
        "two/job/memory.current": "5000",
        "two/job/memory.stat": "anon 1\ninactive_file 700\n",
        "one/memory.limit_in_bytes": "6000",
        "one/memory.usage_in_bytes": "1000",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    left = []
    for lost in ("two/job/memory.max", "one/memory.limit_in_bytes", "proc/self/cgroup"):
        left.append(machine.available_memory(tmp_path))
        (tmp_path / lost).unlink()
    assert left == [4700, 5000, 8192]
    page = machine.os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _kind: (page + 7, page + 7))
    assert machine.available_memory(tmp_path) == 7


# Only what is new


class Memory:
    """Decodes folders as the engine has it done, with the earlier results at hand, newest first."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results: list[tuple[list[str], Stack]] = []
        self.looks = 0
        self.read: list[str] = []  # names of the files that the last call read

    def earlier(self, *path: str) -> Iterator[tuple[Any, Any]]:
        """What Run.earlier gives; counts how much of it is taken."""
        assert path == ("inputs", "files")
        for result in self.results:
            self.looks += 1
            yield result

    def decode(self, files: Files, form: Form = AS_THEY_ARE) -> Stack:
        """The stack, remembered for later calls."""
        self.read, self.looks = [], 0
        read_files = folders.read_files

        def spy(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
            self.read += names
            return read_files(folder, names)

        with mock.patch.object(chapter, "read_files", spy):
            stack = decode(files, form, run=Run(cache=self.root, earlier=self.earlier))
        listing = listings.write_listing(self.root, Listing(files.names, files.digests))
        self.results.insert(0, ([listing], stack))
        return stack


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "cache")


def assert_equal(stack: Stack, expected: Stack) -> None:
    assert stack.names == expected.names
    assert stack.images.dtype == expected.images.dtype
    assert torch.equal(stack.images, expected.images)
    assert stack.digests.dtype == np.uint8
    np.testing.assert_array_equal(stack.digests, expected.digests)


@functools.cache
def tiny(seed: int) -> bytes:
    return saved(noise(3, 2, seed=seed))


def test_only_new_and_changed_files_are_read(tmp_path: Path, memory: Memory) -> None:
    data = {f"{i:03d}.png": tiny(i) for i in range(100)}
    memory.decode(files_of(tmp_path / "7", data))
    assert len(memory.read) == 100
    data |= {"005.png": tiny(500), "0055.png": tiny(501)}
    del data["090.png"]
    files = files_of(tmp_path / "7", data)
    stack = memory.decode(files)
    assert memory.read == ["005.png", "0055.png"]
    assert_equal(stack, decode(files))


def test_moved_renamed_and_copied_files_are_not_read(tmp_path: Path, memory: Memory) -> None:
    """From another class, another dataset, or under another name in the same folder."""
    threes = {f"{i}.png": tiny(i) for i in range(10)}
    sevens = {f"{i}.png": tiny(i) for i in range(100, 110)}
    for name, data in (("3", threes), ("7", sevens)):
        memory.decode(files_of(tmp_path / name, data))
    sevens |= {"new.png": threes["4.png"], "copy.png": threes["4.png"], "r.png": sevens["104.png"]}
    del sevens["104.png"]
    files = files_of(tmp_path / "7", sevens)
    stack = memory.decode(files)
    assert memory.read == []
    assert_equal(stack, decode(files))


def test_no_further_result_is_looked_into_than_needed(tmp_path: Path, memory: Memory) -> None:
    for i in range(5):
        memory.decode(files_of(tmp_path / str(i), {"a.png": tiny(i), "b.png": tiny(i + 50)}))
    memory.decode(files_of(tmp_path / "x", {"y.png": tiny(3), "z.png": tiny(54)}))
    assert (memory.read, memory.looks) == ([], 2)
    memory.decode(files_of(tmp_path / "n", {"y.png": tiny(99)}))
    assert (memory.read, memory.looks) == (["y.png"], 6)


def test_a_long_history_costs_no_more_than_a_few_looks(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "LOOKS", 3)
    for i in range(5):
        memory.decode(files_of(tmp_path / str(i), {"a.png": tiny(i)}))
    memory.decode(files_of(tmp_path / "x", {"y.png": tiny(0)}))
    assert (memory.read, memory.looks) == (["y.png"], 3)


@pytest.mark.parametrize("lost", ["missing", "damaged"])
def test_a_lost_listing_only_costs_time(tmp_path: Path, memory: Memory, lost: str) -> None:
    files = files_of(tmp_path / "7", {"a.png": tiny(1)})
    expected = memory.decode(files)
    (listing,) = (memory.root / "listings").iterdir()
    if lost == "missing":
        listing.unlink()
    else:
        listing.write_bytes(listing.read_bytes().replace(b"a.png", b"b.png"))
    assert_equal(memory.decode(files), expected)
    assert memory.read == ["a.png"]


@pytest.mark.parametrize("odd", [noise(5, 6), noise(6, 5, 3)])
def test_a_known_file_unlike_the_others_is_still_named(
    tmp_path: Path, memory: Memory, odd: np.ndarray
) -> None:
    """Whether the others are known or new, and whichever comes first."""
    memory.decode(files_of(tmp_path / "odd", {"o.png": saved(odd)}))
    data = {"a.png": PLAIN, "b.png": PLAIN, "o.png": saved(odd)}
    says = r"mixed/o.png is . x . \w+ among images of 6 x 5 greyscale"
    with pytest.raises(LadderError, match=says):
        memory.decode(files_of(tmp_path / "mixed", data))
    memory.decode(files_of(tmp_path / "plain", {"a.png": PLAIN}))
    with pytest.raises(LadderError, match=says):
        memory.decode(files_of(tmp_path / "mixed", data))


def test_a_new_file_among_known_ones_is_checked_as_ever(tmp_path: Path, memory: Memory) -> None:
    memory.decode(files_of(tmp_path, {"a.png": PLAIN}))
    with pytest.raises(LadderError, match=r"b.png is damaged"):
        memory.decode(files_of(tmp_path, {"a.png": PLAIN, "b.png": PLAIN[:-1]}))
    files = files_of(tmp_path, {"a.png": PLAIN, "b.png": tiny(1)})
    change(tmp_path / "b.png")
    with pytest.raises(LadderError, match=r"b.png changed while it was read"):
        memory.decode(files)


@pytest.mark.parametrize("copies", [1, FEWEST])
def test_known_bytes_under_a_wrong_suffix_are_refused_as_ever(
    tmp_path: Path, memory: Memory, copies: int
) -> None:
    data = {f"{i:02d}.png": tiny(i) for i in range(copies)}
    memory.decode(files_of(tmp_path / "before", data))
    data["x.jpg"] = data.pop("00.png")
    files = files_of(tmp_path / "after", data)
    for attempt in (decode, memory.decode):
        with pytest.raises(LadderError, match=r"after/x.jpg is a PNG: rename it to .png"):
            attempt(files)


ACT = st.tuples(
    st.sampled_from(["add", "change", "remove", "move", "copy"]),
    st.sampled_from(["3", "7"]),
    st.integers(0, 9),  # which file
    st.integers(0, 15),  # which image, out of few so that the same bytes come again
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACT, max_size=12), st.sampled_from([None, (2, 2)]))
def test_any_history_gives_what_decoding_from_nothing_gives(
    acts: list[tuple[str, str, int, int]], size: tuple[int, int] | None
) -> None:
    """Names, order, pixels and digests, and only bytes that were never seen are read."""
    folders = {name: {f"{i}.png": tiny(i) for i in range(4)} for name in ("3", "7")}
    seen: set[bytes] = set()
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as root, mock.patch("os.fsync"):
        memory = Memory(Path(root) / "cache")
        for act, here, which, image in [("add", "3", 0, 0), *acts]:
            files, name = folders[here], f"{which}.png"
            if act in ("add", "change"):
                files[name] = tiny(image)
            elif name in files and len(files) > 1:
                other = folders["3" if here == "7" else "7"]
                if act in ("move", "copy"):
                    other[f"{image}.png"] = files[name]
                if act != "copy":
                    del files[name]
            for label, data in folders.items():
                found = files_of(Path(root) / label, data)
                stack = memory.decode(found, stretched(size))
                new = [n for n in found.names if hashlib.sha256(data[n]).digest() not in seen]
                assert memory.read == new
                assert_equal(stack, decode(found, stretched(size)))
                seen |= {hashlib.sha256(each).digest() for each in data.values()}
