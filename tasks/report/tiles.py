"""What the pixels show, as tiles packed into one picture: means, samples, mistakes, weights."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.caching.values import Stack
from tasks.report import cases

SMALL = 56  # longest side of images that are kept as they are, as PNG
LARGE = 112  # longest side that larger ones are scaled down to, as JPEG
COLUMNS = 16  # tiles in one row of a sheet
BYTES = 300_000  # that the pictures of the testing images may take, by and large


class Sheet(NamedTuple):
    """Equal tiles in one picture, row by row."""

    uri: str  # data URI of the picture
    width: int  # of one tile, in pixels
    height: int
    rows: int

    def view(self, i: int) -> str:
        """The `viewBox` that shows tile i alone."""
        row, column = divmod(i, COLUMNS)
        return f"{column * self.width} {row * self.height} {self.width} {self.height}"


def sheet(images: Sequence[np.ndarray]) -> Sheet:
    """Pack images into one picture.  images: [H, W(, 3 or 4)] uint8 of one shape, at least one."""
    w, h = _size(images[0].shape)
    tiles = [Image.fromarray(image) for image in images]
    rows = math.ceil(len(tiles) / COLUMNS)
    page = Image.new(tiles[0].mode, (COLUMNS * w, rows * h))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, COLUMNS)
        page.paste(tile if tile.size == (w, h) else tile.resize((w, h)), (column * w, row * h))
    photos = max(w, h) > SMALL and page.mode != "RGBA"
    file = io.BytesIO()
    page.save(file, "JPEG" if photos else "PNG", **({"quality": 85} if photos else {}))
    coded = base64.b64encode(file.getvalue()).decode()
    return Sheet(f"data:image/{'jpeg' if photos else 'png'};base64,{coded}", w, h, rows)


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height of the tile of an image [H, W(, ...)]."""
    height, width = shape[:2]
    scale = min(1.0, LARGE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _room(shape: Sequence[int]) -> int:
    """How many images [H, W(, 3)] fit into BYTES, from 48 to 480."""
    w, h = _size(shape)
    each = w * h * (0.35 if max(w, h) > SMALL else 2.5 if len(shape) > 2 else 0.6)
    return int(min(480, max(48, BYTES / each)))


def exhibits(
    sides: Mapping[str, Sequence[Stack]],
    classes: Sequence[str],
    means: list[Tensor],
    rungs: dict[str, dict],
    results: dict[str, Any],
) -> dict[str, Any]:
    """What the pixels show: mean images, samples, mistakes, images that are alike, weights.

    sides: "training", "validation" and "testing", a Stack per class.  rungs: what `together` gave
    of each rung's model.  results: as results.json holds them.
    Of many classes the first 48 are shown, so that the page stays small enough to send.
    """
    training = sides["training"]
    shown = min(48, len(training))
    shape = tuple(training[0].images.shape[1:])
    each = max(2, min(12, 240 // shown))
    samples = [
        (stack.images[row].numpy(), stack.names[row])
        for stack in training[:shown] for row in _spaced(len(stack.names), each)
    ]  # fmt: skip
    counts = [len(_spaced(len(stack.names), each)) for stack in training[:shown]]
    starts = np.cumsum([0, *counts]).tolist()
    recipes = {rung["label"]: rung["recipe"] for rung in results["rungs"]}
    weights = {
        label: learned(rung["weights"].tensors, recipes[label], shape)
        for label, rung in rungs.items()
    }
    return {
        "classes": shown,
        "means": sheet([_pixels(mean) for mean in means[:shown]]),
        "samples": {
            "sheet": sheet([image for image, _ in samples]),
            "names": [name for _, name in samples],
            "tiles": [[*range(start, start + n)]
                      for start, n in zip(starts, counts, strict=False)],
        },
        "weights": {
            label: sheet(signed(values[:shown]))
            for label, values in weights.items()
            if values is not None
        },
        **_wrong(sides["testing"], rungs, results),
        "alike": _alike(sides, classes, results["health"]),
    }  # fmt: skip


def _wrong(
    testing: Sequence[Stack], rungs: dict[str, dict], results: dict[str, Any]
) -> dict[str, Any]:
    """The testing images that are shown, once each, and what every rung says of them.

    "pictures": their Sheet, None where there is none.  "said": a row for each, as they lie in it:
    file "name", "truth", and "answers", class and probability by rung.  "mistakes": of each rung,
    the numbers of such rows; "suspects": those whose label may be wrong.
    """
    places = [
        (label, row) for label, stack in enumerate(testing) for row in range(len(stack.names))
    ]
    truth = np.array([label for label, _ in places])
    said = {label: rung["probabilities"].numpy() for label, rung in rungs.items()}
    odd = cases.suspects(said, truth, cases.good_rungs(results["rungs"]))
    wrong = {label: cases.mistakes(each, truth)[: cases.EACH] for label, each in said.items()}
    first = [rung["label"] for rung in results["rungs"]][::-1]  # the top of the ladder
    room = _room(testing[0].images.shape[1:])
    rows = cases.choose([odd, *(wrong[label] for label in first)], room)
    at = {row: number for number, row in enumerate(rows)}
    table = []
    for row in rows:
        label, number = places[row]
        answers = [(int(each[row].argmax()), float(each[row].max())) for each in said.values()]
        table.append({"name": testing[label].names[number], "truth": label, "answers": answers})
    images = [testing[places[row][0]].images[places[row][1]].numpy() for row in rows]
    return {
        "pictures": sheet(images) if images else None,
        "said": table,
        "mistakes": {
            label: [at[row] for row in each if row in at] for label, each in wrong.items()
        },
        "suspects": [at[row] for row in odd if row in at],
    }


def _alike(
    sides: Mapping[str, Sequence[Stack]], classes: Sequence[str], health: dict[str, Any]
) -> dict[str, Any]:
    """Equal images and near duplicates: a Sheet, and of each name the number of its tile."""
    wanted = {
        name for group in (*health["examples"], *health["near"]["examples"]) for name in group
    }
    found = {
        place: stack.images[row].numpy()
        for side, stacks in sides.items()
        for label, stack in zip(classes, stacks, strict=False)
        for row, name in enumerate(stack.names)
        if wanted and (place := f"{side}/{label}/{name}") in wanted
    }
    return {
        "sheet": sheet([*found.values()]) if found else None,
        "at": {name: number for number, name in enumerate(found)},
    }


def signed(weights: np.ndarray) -> list[np.ndarray]:
    """Weights as pictures: one hue speaks for the class, the other against, zero is transparent.

    weights[C, H, W] float -> C images [H, W, 4] uint8, all on one scale.
    """
    limit = np.quantile(np.abs(weights), 0.995) or 1.0  # a few outliers must not fade the rest
    strength = np.clip(np.abs(weights) / limit, 0, 1)
    hue = np.where((weights > 0)[..., None], (20, 130, 130), (214, 96, 40))
    return list(np.concatenate([hue, 255 * strength[..., None]], axis=-1).astype(np.uint8))


def _spaced(length: int, count: int) -> list[int]:
    """Up to `count` numbers below `length` at even steps."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length))]


def _pixels(mean: Tensor) -> np.ndarray:
    """A mean image, 0 to 1, as uint8."""
    return np.rint(255 * mean.numpy()).astype(np.uint8)


def learned(
    tensors: dict[str, Tensor], recipe: Mapping[str, Any], shape: tuple[int, ...]
) -> np.ndarray | None:
    """What training added to a model that is one matrix from pixels to classes, else None.

    Gives [C, H, W] float32, colours averaged.  The matrix may be [pixels, classes] or [classes,
    pixels].  Of "randn", large beside what is learned, the start is taken off: the first numbers
    that a generator of the recipe's seed gives (see `tasks.rungs.building.initialize`).
    """
    matrices = [tensor for tensor in tensors.values() if tensor.ndim > 1]
    pixels = math.prod(shape)
    if len(matrices) != 1 or pixels not in matrices[0].shape:
        return None
    matrix = matrices[0].float()
    if recipe["init"] == "randn" and recipe.get("weights", "none") == "none":
        generator = torch.Generator().manual_seed(recipe["seed"])
        matrix = matrix - torch.empty(matrix.shape).normal_(generator=generator)
    rows = matrix if matrix.shape[1] == pixels else matrix.T
    return rows.reshape(-1, *shape[:2], math.prod(shape[2:])).mean(-1).numpy()
