"""Every pixel equals Pillow's, and no damaged, changed or unsuitable file becomes an image."""

from __future__ import annotations

import functools
import hashlib
import struct
import tempfile
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
from PIL import Image

from tasks import decode as chapter
from tasks import scan as scanning
from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.caching.store import Stack
from tasks.decode import decode_rows
from tasks.pillow import ADAM7
from tasks.png import FEWEST, plain_images
from tasks.scan import Files, Listing

decode = chapter.decode.fn
HERE = Path("training/7")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    stack = decode(files_of(tmp_path, data), (7, 4))
    assert stack.images.shape == (3, 7, 4)
    for image, each in zip(stack.images.numpy(), pixels, strict=True):
        expected = Image.fromarray(each).resize((4, 7), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_a_size_applies_to_the_fast_path_too(tmp_path: Path) -> None:
    data = {f"{i:02d}.png": saved(noise(6, 5, seed=i)) for i in range(FEWEST)}
    stack = decode(files_of(tmp_path, data), (3, 4))
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
    "text": b"not an image",
    "signature alone": SIGNATURE,
    "wrong signature": with_byte(PLAIN, 0),
    "wrong IHDR CRC": with_byte(PLAIN, 29),
    "wrong IDAT CRC": with_byte(PLAIN, -13),
    "wrong IEND CRC": with_byte(PLAIN, -1),
    "flipped pixel data": with_byte(PLAIN, 50),
    "no IEND": PLAIN[:-12],
    "half an IEND": PLAIN[:-6],
    "cut in its pixels": PLAIN[:55],
    "bytes after its end": PLAIN + b"\0",
    "a second PNG after its end": PLAIN + PLAIN,
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
        LadderError, match=r"training/7/bad.png .*(damaged|pixels are read)"
    ) as caught:
        decoded(DAMAGED[name], "bad.png", copies)
    assert "\n" not in str(caught.value)


JPEG = saved(noise(16, 16, 3), "JPEG")
THUMBNAIL = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG + JPEG[2:]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (JPEG[:-2], "ends too early"),
        (JPEG[: len(JPEG) // 2], "ends too early"),
        (JPEG[:30], "ends too early"),
        (JPEG[:3], "ends too early"),
        (THUMBNAIL[:-2], "ends too early"),
        (JPEG[:2] + b"\xff\xff\xff" + JPEG[3:40], "ends too early"),
        (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), "damaged"),
        (b"", "it does not begin like a JPEG"),
        (saved(Image.new("CMYK", (4, 4)), "JPEG"), "is CMYK: convert it"),
        (PLAIN, " is a PNG: rename it to .png"),
    ],
)
def test_a_jpeg_that_is_cut_or_of_another_kind_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(LadderError, match=f"bad.jpg.*{says}"):
        decode_rows([data], ["bad.jpg"], HERE)


def test_a_jpegs_thumbnail_and_trailing_bytes_do_no_harm() -> None:
    for data in (THUMBNAIL, JPEG + b"\0\0", JPEG[:2] + b"\xff\xff" + JPEG[2:]):
        image = decode_rows([data], ["a.jpg"], HERE)[0]
        np.testing.assert_array_equal(image, by_pillow(JPEG))


@pytest.mark.parametrize("copies", [1, FEWEST])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved(noise(6, 5, 4)), "is transparent: convert it"),
        (saved(noise(6, 5, 2)), "is transparent"),
        (saved(Image.fromarray(PIXELS), transparency=3), "is transparent"),
        (saved(Image.fromarray(noise(6, 5, 3)).quantize(4), transparency=1), "is transparent"),
        (saved(Image.fromarray(PIXELS.astype(np.uint16) * 257)), "is 16-bit: convert it"),
        (png(header(5, 6, 16, 2), chunk(b"IDAT", zlib.compress(bytes(6 * 31)))), "is 16-bit"),
        (apng(), "is animated"),
        (JPEG, "is a JPEG: rename it to .jpg"),
        (saved(PIXELS, "GIF"), "it does not begin like a PNG"),
        (saved(PIXELS, "BMP"), "it does not begin like a PNG"),
        (png(header(9000, 9000), IDAT), "is 9000 x 9000; at most 64,000,000 pixels"),
        (png(header(2**31 - 1, 2**31 - 1), IDAT), "at most 64,000,000 pixels"),
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

    def decode(self, files: Files, size: tuple[int, int] | None = None) -> Stack:
        """The stack, remembered for later calls."""
        self.read, self.looks = [], 0
        read_files = scanning.read_files

        def spy(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
            self.read += names
            return read_files(folder, names)

        with mock.patch.object(chapter, "read_files", spy):
            stack = decode(files, size, run=Run(cache=self.root, earlier=self.earlier))
        listing = scanning._write_listing(self.root, Listing(files.names, files.digests))
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
    with tempfile.TemporaryDirectory() as root:
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
                stack = memory.decode(found, size)
                new = [n for n in found.names if hashlib.sha256(data[n]).digest() not in seen]
                assert memory.read == new
                assert_equal(stack, decode(found, size))
                seen |= {hashlib.sha256(each).digest() for each in data.values()}
