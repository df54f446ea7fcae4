"""What the pixels show, as tiles packed into one PNG: means, samples, mistakes, weights."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from tasks.caching.values import Stack

TILE = 56  # longest side of a tile in pixels; larger images are scaled down
COLUMNS = 16  # tiles in one row of a sheet


class Sheet(NamedTuple):
    """Equal tiles in one PNG, row by row."""

    uri: str  # data URI of the PNG
    width: int  # of one tile, in pixels
    height: int
    rows: int

    def view(self, i: int) -> str:
        """The `viewBox` that shows tile i alone."""
        row, column = divmod(i, COLUMNS)
        return f"{column * self.width} {row * self.height} {self.width} {self.height}"


def sheet(images: Sequence[np.ndarray]) -> Sheet:
    """Pack images into one PNG.  images: [H, W(, 3 or 4)] uint8 of one shape, at least one."""
    height, width = images[0].shape[:2]
    scale = min(1.0, TILE / max(height, width))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    tiles = [Image.fromarray(image) for image in images]
    rows = math.ceil(len(tiles) / COLUMNS)
    page = Image.new(tiles[0].mode, (COLUMNS * w, rows * h))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, COLUMNS)
        page.paste(tile if scale == 1 else tile.resize((w, h)), (column * w, row * h))
    png = io.BytesIO()
    page.save(png, "PNG")
    return Sheet("data:image/png;base64," + base64.b64encode(png.getvalue()).decode(), w, h, rows)


def exhibits(
    training: list[Stack], testing: list[Stack], means: list[Tensor], rungs: dict[str, dict]
) -> dict[str, Any]:
    """What the pixels show: mean images, samples, each rung's mistakes, the linear weights.

    Of many classes the first 48 are shown, so that the page stays small enough to send.
    """
    shown = min(48, len(training))
    shape = tuple(training[0].images.shape[1:])
    each = max(2, min(12, 240 // shown))
    rows = [_spaced(stack.images, each) for stack in training[:shown]]
    ends = np.cumsum([len(row) for row in rows]).tolist()
    weights = {label: _linear(rung["weights"].tensors, shape) for label, rung in rungs.items()}
    return {
        "classes": shown,
        "means": sheet([_pixels(mean) for mean in means[:shown]]),
        "samples": {
            "sheet": sheet([image for row in rows for image in row]),
            "tiles": [
                list(range(end - len(row), end)) for row, end in zip(rows, ends, strict=True)
            ],
        },
        "mistakes": {label: mistakes(rung, testing) for label, rung in rungs.items()},
        "weights": {
            label: sheet(signed(values[:shown]))
            for label, values in weights.items()
            if values is not None
        },
    }


def mistakes(rung: dict[str, Any], testing: list[Stack], most: int = 24) -> dict[str, Any]:
    """The wrong answers a rung was surest of, surest first.

    rung: its `probabilities`[N, C] are in the order of the testing stacks.  Gives `sheet` (None
    without mistakes) and `cases`, dicts of file `name`, `truth`, `said` (class numbers), `sure`.
    """
    places = [
        (truth, row) for truth, stack in enumerate(testing) for row in range(len(stack.names))
    ]
    probabilities = rung["probabilities"].numpy()
    said, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(said != np.array([truth for truth, _ in places]))
    cases, images = [], []
    for i in wrong[np.argsort(-sure[wrong], kind="stable")][:most]:
        truth, row = places[i]
        name = testing[truth].names[row]
        cases.append({"name": name, "truth": truth, "said": int(said[i]), "sure": float(sure[i])})
        images.append(testing[truth].images[row].numpy())
    return {"sheet": sheet(images) if images else None, "cases": cases}


def signed(weights: np.ndarray) -> list[np.ndarray]:
    """Weights as pictures: one hue speaks for the class, the other against, zero is transparent.

    weights[C, H, W] float -> C images [H, W, 4] uint8, all on one scale.
    """
    limit = np.quantile(np.abs(weights), 0.995) or 1.0  # a few outliers must not fade the rest
    strength = np.clip(np.abs(weights) / limit, 0, 1)
    hue = np.where((weights > 0)[..., None], (20, 130, 130), (214, 96, 40))
    return list(np.concatenate([hue, 255 * strength[..., None]], axis=-1).astype(np.uint8))


def _spaced(images: Tensor, count: int) -> list[np.ndarray]:
    """Up to `count` images at even steps."""
    steps = np.linspace(0, len(images) - 1, min(count, len(images)))
    return [images[int(i)].numpy() for i in steps]


def _pixels(mean: Tensor) -> np.ndarray:
    """A mean image, 0 to 1, as uint8."""
    return np.rint(255 * mean.numpy()).astype(np.uint8)


def _linear(tensors: dict[str, Tensor], shape: tuple[int, ...]) -> np.ndarray | None:
    """The weights[C, H, W] of a model that is one matrix from pixels to classes, else None.

    Its matrix may be [pixels, classes] or [classes, pixels]; colours are averaged.
    """
    matrices = [tensor for tensor in tensors.values() if tensor.ndim > 1]
    pixels = math.prod(shape)
    if len(matrices) != 1 or pixels not in matrices[0].shape:
        return None
    matrix = matrices[0].float()
    rows = matrix if matrix.shape[1] == pixels else matrix.T
    return rows.reshape(-1, *shape[:2], math.prod(shape[2:])).mean(-1).numpy()
