"""The baselines: the nearest average image of a class, and always the commonest class.

Machine learning must beat the best of them before it is worth its cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.stage import stage
from tasks.caching.values import Stack

BLOCK = 16_000_000  # numbers in float32 at a time, that memory holds little beside the images


@stage(exact=True)
def mean(stack: Stack) -> Tensor:
    """The pretty average image.  images[N, H, W(, 3)] uint8 -> [H, W(, 3)] float32, 0 to 1.

    The sum of bytes is exact in integers, so only the last division rounds.
    """
    images = stack.images.numpy()
    total = images.sum(axis=0, dtype=np.uint64)
    return torch.from_numpy((total / (255 * len(images))).astype(np.float32))


@stage
def baseline(
    means: list[Tensor], testing: list[Stack], classes: list[str], distance: str
) -> dict[str, Any]:
    """Call each testing image what the nearest mean is called, and count how often that is right.

    means: C x [H, W(, 3)] float32;  testing: C stacks, both in the order of classes.
    Gives {"distance", "accuracy", "mean_of_classes", "per_class"}: fractions, 0 to 1.  "accuracy"
    weighs every image alike, "mean_of_classes" every class that has images (the figure of the
    post); "per_class" is 0 for a class without.  "said" [N]
    int32 is what each testing image was called, in the order of the stacks.
    Raises LadderError when the images of a class differ in shape from the means.
    """
    measure = DISTANCES[distance]
    prototypes = _flat(means, classes)  # [C, D]
    block = max(1, BLOCK // prototypes.shape[1])
    said, right = [], []
    for truth, stack in enumerate(testing):
        _check_shape(f"testing/{classes[truth]}", stack.images.shape[1:], means[0].shape)
        nearest = [
            measure(some.flatten(1).float() / 255, prototypes).argmin(dim=1)  # [N, D] -> [N]
            for some in stack.images.split(block)
        ]
        said.append(torch.cat(nearest))
        right.append((said[-1] == truth).sum().item())
    counts = [len(stack.images) for stack in testing]
    per_class = [hits / max(1, count) for hits, count in zip(right, counts, strict=True)]
    return {
        "distance": distance,
        "accuracy": sum(right) / sum(counts),
        "mean_of_classes": sum(per_class) / sum(count > 0 for count in counts),
        "per_class": per_class,
        "said": torch.cat(said).int(),
    }


def commonest(training: list[Stack], testing: list[Stack]) -> tuple[int, Tensor]:
    """The class with the most training images, the first of several, said of every testing image.

    Gives its index and what each testing image is called, [N] int32.
    """
    counts = [len(stack.names) for stack in training]
    most = counts.index(max(counts))
    return most, torch.full((sum(len(stack.names) for stack in testing),), most).int()


def _flat(means: list[Tensor], classes: list[str]) -> Tensor:
    for name, average in zip(classes, means, strict=True):
        _check_shape(f"training/{name}", average.shape, means[0].shape)
    return torch.stack(means).reshape(len(means), -1)


def _check_shape(where: str, shape: torch.Size, expected: torch.Size) -> None:
    # Without this, images of another size might broadcast silently into nonsense.
    if shape != expected:
        raise LadderError(
            f"images in {where} are {list(shape)} and those of the first class {list(expected)} "
            "[height, width(, colours)]; "
            + ("make them one size, or ask for one with --size" if len(shape) == len(expected)
               else "save all images as RGB, or all as greyscale")
        )  # fmt: skip


def mae(images: Tensor, means: Tensor) -> Tensor:
    """Mean absolute error.  images[N, D], means[C, D] -> [N, C] float32."""
    return torch.cdist(images, means, p=1) / images.shape[1]


def mse(images: Tensor, means: Tensor) -> Tensor:
    """Mean squared error.  images[N, D], means[C, D] -> [N, C] float64.

    Multiplied out, (x - m)^2 = x^2 - 2xm + m^2, the work is one matrix product; float64 makes up
    for the digits that the subtraction loses.
    """
    x, m = images.double(), means.double()
    squares = (x**2).sum(dim=1)[:, None] + (m**2).sum(dim=1)[None, :]  # [N, C]
    return (squares - 2 * x @ m.T) / images.shape[1]


DISTANCES = {"mae": mae, "mse": mse}
