"""`look` says what a run would read, in a few lines, and stores nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.look import look
from flows.options import Options
from tasks.caching.basics import LadderError


@pytest.fixture
def lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """What `look` prints of the folder `pets`."""
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "300")

    def lines(**options: object) -> list[str]:
        look(str(tmp_path / "pets"), options=Options(**options))
        return capsys.readouterr().out.splitlines()

    return lines


def write(folder: Path, *images: Image.Image, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}{suffix}")


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def test_layout_classes_counts_sizes_and_the_next_command_are_told(
    lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    pets = tmp_path / "pets"
    write(pets / "cat", *[noise(20, 30)] * 3)
    write(pets / "dog/more", noise(80, 50, 3), noise(60, 60, 4))
    (pets / "dog/notes.txt").touch()
    assert lines() == [
        "pets: 5 images of 2 classes",
        "split: by pixels, 20% for testing, and validation out of the rest",
        "  cat: 3",
        "  dog: 2",
        "files: 5 PNG",
        "sizes: 3 of them, 20 x 30 to 80 x 50, of 5 images looked at",
        "colours: RGB",
        "to be made of those looked at: 5 images of 20 x 30 to 80 x 60 resized to 16 x 16, cropped "
        "at the centre where the shape differs (4); chosen from the images, at most 64: --size "
        "asks for another",
        "to be made of those looked at: 1 with an alpha channel or a transparent colour: put over "
        "white",
        "to be made of those looked at: 3 greyscale: made RGB as the others are",
        "skipped: pets/dog/notes.txt: .txt is no image that is read",
        f"next: stepladder run {pets}",
    ]
    assert not (tmp_path / "data").exists()


def test_given_splits_and_what_was_asked_for_are_kept(
    lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    pets = tmp_path / "pets"
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for label in "ab":
            write(pets / split / label, *[noise(8, 8)] * count, suffix=".jpg")
    said = lines(size="9x9", labels=None, strict=False)
    assert said[1] == "split: training 6, validation 2, testing 4, as given"
    assert said[2] == "  a: 3 + 1 + 2"
    assert said[-1] == f"next: stepladder run {pets} --size 9x9"
    with pytest.raises(LadderError, match=r"--validation 0\.3: the dataset has images for validat"):
        lines(validation="0.3")


def test_damaged_files_and_mistakes_are_told(
    lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    pets = tmp_path / "pets"
    write(pets / "a", noise(8, 8), noise(8, 8))
    write(pets / "b", noise(8, 8))
    (pets / "b/cut.png").write_bytes(b"\x89PNG")
    said = lines()
    assert said[-2].endswith("cut.png (1 of 4 looked at); --skip-bad leaves such files out")
    assert said[-1].endswith("pets --skip-bad")
    (pets / "b/cut.png").unlink()
    with pytest.raises(LadderError, match="the class b has one image; one is needed for training"):
        lines()
