"""Own: what an image is known by, however large it is made later; its side is drawn from that."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np

from tasks.caching.basics import LadderError
from tasks.images.canvas import read_image
from tasks.images.form import Form
from tasks.images.likeness import HEIGHT, WIDTH, miniatures
from tasks.images.plain import SIGNATURE
from tasks.images.png import png

FORM, SMALL = Form(), Form(size=(64, 64), fit="stretch")
DIGEST, LOOKS = 32, HEIGHT * WIDTH  # bytes


def own_digest(data: bytes) -> bytes:
    """sha256 of a PNG's mode, size and pixels, so that another way to save them changes nothing.

    Of any other file, and of a damaged one, it is that of its bytes: a JPEG that is saved again has
    other pixels, and its decoder's next version may give others for the same bytes.
    """
    if data.startswith(SIGNATURE):
        try:
            image = png(data, FORM, Path("image"))
        except LadderError:  # decoding says so, naming the file
            return sha256(data).digest()
        return sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()
    return sha256(data).digest()


def own_looks(data: bytes, name: str) -> bytes:
    """The miniature of a file's image; of a damaged one zeros, which are like nothing."""
    try:
        image = read_image(data, Path(name), SMALL)
    except LadderError:
        return bytes(LOOKS)
    return miniatures(image[None]).tobytes()


def looks(own: np.ndarray) -> np.ndarray:
    """The miniatures[N, 16, 18] among own[N, 32 + 288] uint8."""
    return own[:, DIGEST:].reshape(-1, HEIGHT, WIDTH)
