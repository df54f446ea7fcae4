"""Images of any size, mode and format become alike by stated rules, or are refused by name."""

from __future__ import annotations

import json
import random
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.caching.basics import LadderError
from tasks.images.canvas import read_image
from tasks.images.form import Form
from tasks.images.headers import choose, converted, header, shape_of
from tasks.images.scan import scan
from tasks.rungs.recipes import Recipe
from tests.climbing import climb
from tests.test_decode import SIGNATURE as PNG_SIGNATURE
from tests.test_decode import by_pillow, chunk, decode, files_of, noise, saved
from tests.test_decode import header as png_header

FORMATS = {".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".png": "PNG"}
ANY, STRICT = Form(), Form(strict=True)


def read(data: bytes, name: str = "a.png", form: Form = ANY) -> np.ndarray:
    return read_image(data, Path("cat") / name, form)


def seen(*files: tuple[str, bytes]) -> np.ndarray:
    return np.array([header(data, name) for name, data in files], np.int32)


def chosen(*files: tuple[str, bytes], size: Any = None, strict: bool = False) -> Form:
    return choose(seen(*files), size, "crop", strict, skip_bad=False)


# Formats


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_gives_the_pixels_that_pillow_gives(suffix: str) -> None:
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    pixels = noise(9, 7) if suffix == ".gif" else noise(9, 7, 3)
    data = saved(pixels, FORMATS[suffix], **options)
    np.testing.assert_array_equal(read(data, f"a{suffix}"), pixels)
    assert header(data, f"a{suffix}")[:2] == (9, 7)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiffs_are_read_however_they_are_packed(compression: str) -> None:
    data = saved(noise(9, 7, 3), "TIFF", compression=compression)
    np.testing.assert_array_equal(read(data, "a.tiff"), noise(9, 7, 3))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken_and_a_strict_run_refuses(kind: str) -> None:
    frames = [Image.fromarray(noise(9, 7, seed=i)) for i in range(3)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    name = next(f"a{suffix}" for suffix, each in FORMATS.items() if each == kind)
    image = read(data, name, Form(colour="greyscale"))
    np.testing.assert_array_equal(image, np.asarray(frames[0]))
    assert converted(seen((name, data)), Form(), chosen=False)[-1].startswith("1 of several")
    with pytest.raises(LadderError, match=r"cat/a\.\w+ is (of several|animated)"):
        read(data, name, STRICT)


def test_a_wrong_suffix_is_taken_as_what_the_bytes_are_and_a_strict_run_refuses() -> None:
    data = saved(noise(9, 7, 3), "WEBP", lossless=True)
    np.testing.assert_array_equal(read(data, "a.jpg"), noise(9, 7, 3))
    assert converted(seen(("a.jpg", data)), Form(), chosen=False) == [
        "1 named as another kind: taken as what the bytes are"
    ]
    with pytest.raises(LadderError, match=r"a.jpg is a WebP image: rename it to .webp"):
        read(data, "a.jpg", STRICT)


# Modes


def attempt(data: bytes, name: str) -> tuple[np.ndarray | None, str]:
    """The image, or why it is refused."""
    try:
        return read(data, name, Form(colour="greyscale")), ""
    except LadderError as error:
        return None, str(error)


def see_through(kind: str = "PNG", value: int = 0) -> bytes:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    image.putpixel((0, 0), (10, 20, 30, value))
    return saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))


def deep(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(pixels.astype(np.uint16) * 257), kind)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_put_over_white(kind: str) -> None:
    name = next(f"a{suffix}" for suffix, each in FORMATS.items() if each == kind)
    image = read(see_through(kind), name)
    assert image[0, 0].tolist() == [255] * 3
    assert image[3, 3].tolist() == [10, 20, 30]
    half = read(see_through(kind, 128), name)[0, 0].tolist()
    assert half == pytest.approx([132, 137, 142], abs=1)
    with pytest.raises(LadderError, match="is transparent"):
        read(see_through(kind), name, STRICT)


def test_an_opaque_alpha_channel_changes_nothing_even_in_a_strict_run() -> None:
    assert (read(see_through(value=255), form=STRICT) == [10, 20, 30]).all()


def test_a_transparent_colour_or_palette_entry_is_put_over_white() -> None:
    grey = saved(Image.fromarray(np.array([[0, 9], [9, 9]], np.uint8)), "PNG", transparency=0)
    assert read(grey).tolist() == [[255, 9], [9, 9]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for kind, name in (("PNG", "a.png"), ("GIF", "a.gif")):
        data = saved(palette, kind, transparency=1)
        assert read(data, name, Form(colour="RGB")).tolist() == [[[255, 0, 0], [255] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_are_kept(kind: str) -> None:
    name = "a.png" if kind == "PNG" else "a.tif"
    np.testing.assert_array_equal(read(deep(noise(9, 7), kind), name), noise(9, 7))
    with pytest.raises(LadderError, match="is 16-bit"):
        read(deep(noise(9, 7), kind), name, STRICT)


def test_cmyk_becomes_rgb() -> None:
    data = saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG")
    assert read(data, "a.jpg")[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_what_no_rule_converts_is_refused_by_name(mode: str) -> None:
    with pytest.raises(LadderError, match=f"a.tif is of the mode {mode}"):
        read(saved(Image.new(mode, (4, 4)), "TIFF"), "a.tif")


def test_greyscale_stays_so_alone_and_becomes_rgb_among_colour() -> None:
    grey, colour = ("a.png", saved(noise(4, 4))), ("b.jpg", saved(noise(4, 4, 3), "JPEG"))
    assert chosen(grey).colour == "greyscale"
    form = chosen(grey, colour)
    np.testing.assert_array_equal(read(grey[1], form=form), np.repeat(noise(4, 4)[..., None], 3, 2))
    assert converted(seen(grey, colour), form, chosen=False) == [
        "1 greyscale: made RGB as the others are"
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_images_are_upright_in_every_format(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = saved(noise(6, 9, 3), kind, exif=exif)
    name = next((f"a{s}" for s, each in FORMATS.items() if each == kind), "a.jpg")
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    np.testing.assert_array_equal(read(data, name), expected)
    assert header(data, name)[:2] == expected.shape[:2]


# Sizes


def test_images_of_one_size_keep_it_up_to_64_pixels() -> None:
    assert chosen(("a.png", saved(noise(64, 20)))).size is None
    assert chosen(("a.png", saved(noise(64, 128)))).size == (32, 64)
    assert chosen(("a.png", saved(noise(64, 128))), strict=True).size is None
    assert chosen(("a.png", saved(noise(64, 128))), size=(9, 9)).size == (9, 9)


def test_where_sizes_differ_the_median_shorter_side_is_rounded_down_to_one_of_few() -> None:
    def of(*sides: tuple[int, int]) -> tuple[int, int] | None:
        return chosen(*((f"{i}.png", saved(noise(*each))) for i, each in enumerate(sides))).size

    assert of((30, 50), (40, 40), (90, 33)) == (32, 32)
    assert of((30, 50), (40, 40), (90, 33), (200, 300)) == (32, 32)  # one more moves nothing
    assert of((300, 200), (500, 500)) == (64, 64)
    assert of((1, 2), (2, 1)) == (4, 4)


def test_a_crop_keeps_the_aspect_a_pad_everything_a_stretch_neither() -> None:
    pixels = np.zeros((10, 20), np.uint8)
    pixels[:, 5:15] = 100
    data = saved(pixels)
    cropped = ImageOps.fit(Image.fromarray(pixels), (5, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read(data, form=Form(size=(5, 5))), np.asarray(cropped))
    assert (np.asarray(cropped)[:, 1:-1] == 100).all()
    padded = read(data, form=Form(size=(20, 20), fit="pad"))
    assert (padded[:5] == 255).all()
    np.testing.assert_array_equal(padded[5:15], pixels)
    whole = Image.fromarray(pixels).resize((6, 6), Image.Resampling.BILINEAR)
    stretched = read(data, form=Form(size=(6, 6), fit="stretch"))
    np.testing.assert_array_equal(stretched, np.asarray(whole))


def test_a_damaged_file_has_no_say_in_the_size() -> None:
    good, bad = ("a.png", saved(noise(20, 20))), ("b.png", saved(noise(50, 50))[:20])
    assert header(bad[1], "b.png") == (0, 0, 0)
    assert chosen(good, bad).size is None
    empty = PNG_SIGNATURE + png_header(0, 9)
    assert header(empty, "b.png") == (0, 0, 0)


def test_what_pillow_refuses_to_open_has_its_say_in_size_and_colour() -> None:
    """A long text is no part of the picture."""
    data = saved(noise(9, 7, 3))
    for key in (b"a", b"XML:com.adobe.xmp"):
        text = chunk(b"zTXt", key + b"\0\0" + zlib.compress(bytes(3_000_000)))
        assert header(data[:33] + text + data[33:], "a.png") == (9, 7, 1)


def test_a_huge_jpeg_is_decoded_at_a_smaller_scale_and_a_huge_png_refused() -> None:
    huge = Image.new("L", (9000, 9000), 77)
    image = read(saved(huge, "JPEG"), "a.jpg", Form(size=(32, 32)))
    assert image.shape == (32, 32)
    assert (image == 77).all()
    with pytest.raises(LadderError, match=r"a.png is 9000 x 9000; at most 24,000,000 pixels"):
        read(saved(huge), form=Form(size=(32, 32)))
    wide = saved(Image.new("RGB", (9300, 9000)), "JPEG", progressive=True)
    with pytest.raises(LadderError, match=r"a.jpg is a progressive JPEG of 9000 x 9300"):
        read(wide, "a.jpg", Form(size=(32, 32)))


# Damaged files


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_cut_of_a_file_is_refused(suffix: str) -> None:
    data = saved(noise(9, 7), FORMATS[suffix])
    for end in range(len(data)):
        with pytest.raises(LadderError, match=f"cat/a{suffix} is "):
            read(data[:end], f"a{suffix}")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_flipped_bit_is_an_image_of_some_pixels_or_an_error_by_name(suffix: str) -> None:
    """WebP, BMP, GIF and TIFF have no checksum, so that wrong pixels may come of it; PNG has."""
    data = saved(noise(9, 7), FORMATS[suffix])
    draw = random.Random(1)
    for _ in range(300):
        at = draw.randrange(len(data))
        bad = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        header(bad, "a.png")
        image, why = attempt(bad, f"a{suffix}")
        assert (image is None) == bool(re.fullmatch(f"cat/a{suffix} .*", why))
        if suffix == ".png" and image is not None:
            np.testing.assert_array_equal(image, by_pillow(data))


def test_damaged_files_are_left_out_and_listed_when_asked(tmp_path: Path) -> None:
    data = {f"{i}.png": saved(noise(6, 5, seed=i)) for i in range(6)}
    data |= {"2.png": data["2.png"][:50], "4.png": b""}
    stack = decode(files_of(tmp_path / "training" / "cat", data), Form(skip_bad=True))
    assert list(stack.names) == ["0.png", "1.png", "3.png", "5.png"]
    np.testing.assert_array_equal(stack.images[2].numpy(), noise(6, 5, seed=3))
    assert stack.left_out == [
        "2.png: damaged (it ends too early)",
        "4.png: damaged (it is empty)",
    ]
    with pytest.raises(LadderError, match="cat holds no image that can be read"):
        decode(files_of(tmp_path / "none" / "cat", {"2.png": b""}), Form(skip_bad=True))


def test_a_scan_keeps_headers_and_reads_them_no_more(tmp_path: Path) -> None:
    """They follow from the bytes alone, so that nothing is read again for them."""
    for split in ("training", "testing"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            files_of(folder, {"a.png": saved(noise(6, 5)), "b.jpg": saved(noise(8, 9, 3), "JPEG")})
    first = scan(tmp_path / "pets", tmp_path / "cache").headers
    assert first.tolist() == [[6, 5, 0], [8, 9, 1]] * 4
    again = scan(tmp_path / "pets", tmp_path / "cache").headers
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("headers", "size", "strict", "shape"),
    [
        ([(28, 20, 0)], None, False, (28, 20)),
        ([(0, 0, 0), (28, 20, 1)], None, False, (28, 20, 3)),  # one is damaged
        ([(28, 20, 0), (28, 20, 1)], (9, 8), False, (9, 8, 3)),
        ([(28, 20, 0), (28, 20, 1)], (9, 8), True, (9, 8)),  # decoding refuses the second
        ([(0, 0, 0)], None, False, None),
    ],
)
def test_the_shape_is_known_before_anything_is_decoded(headers, size, strict, shape) -> None:
    """What a ladder is chosen by: sides and colour of the first image that can be decoded."""
    headers = np.array(headers, np.int32)
    assert shape_of(headers, choose(headers, size, "crop", strict, skip_bad=False)) == shape


def test_a_run_on_images_of_every_kind_says_in_its_report_what_was_made_of_them(
    tmp_path: Path,
) -> None:
    for split in ("training", "testing"):
        for at, name in enumerate(("cat", "dog")):
            files = {
                **{f"{i}.jpg": saved(noise(40 + i, 30, 3, seed=i + at), "JPEG") for i in range(12)},
                "a.webp": saved(noise(50, 60, 3, seed=at), "WEBP"),
                "b.png": see_through(),
                "c.gif": saved(Image.fromarray(noise(33, 44, 3, seed=at)).quantize(8), "GIF"),
                "c.png": saved(noise(9, 9, seed=at)),
                "d.tif": b"II*\0",
                "e.psd": b"8BPS",
            }
            files_of(tmp_path / "pets" / split / name, files)
    refs = climb(
        tmp_path,
        dataset="pets",
        recipes=[Recipe(model="linear", loss="cross_entropy", epochs=1)],
        skip_bad=True,
    )
    results = json.loads(refs["report"].load(tmp_path / "cache")["results.json"])
    assert results["dataset"]["shape"] == [24, 24, 3]
    assert results["dataset"]["converted"] == [
        "64 images of 4 x 4 to 51 x 60 resized to 24 x 24, cropped at the centre where the shape "
        "differs (56); chosen from the images, at most 64: --size asks for another",
        "4 with an alpha channel or a transparent colour: put over white",
        "4 of a palette: made RGB",
        "4 greyscale: made RGB as the others are",
    ]
    skipped = results["health"]["skipped"]
    assert "training/cat/e.psd: .psd is no image that is read" in skipped
    assert any(re.match(r"testing/dog/d.tif: damaged \(", line) for line in skipped)
    assert len(skipped) == 8
