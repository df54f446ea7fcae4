"""When an image is unlike all that was trained on: a classifier names one of its classes anyway.

Three plain measures, and the bounds between which nearly all images of training lie:  brightness,
the mean pixel;  roughness, how far neighbouring pixels differ;  and the largest logit, which is low
where a model finds nothing that it knows (Vaze et al., "Open-Set Recognition: A Good Closed-Set
Classifier Is All You Need?", 2022).  The first two catch noise and scenes, the third other shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tasks.caching.stage import stage
from tasks.caching.values import Stack

OUTSIDE = 0.002  # the share of training images that lie beyond each bound of their looks
UNSURE = 0.005  # the share of the images held out whose largest logit is too low
BLOCK = 4_000_000  # pixels looked at at a time
LOOKS = ("brightness", "roughness")


@stage
def familiar(training: list[Stack]) -> dict[str, list[float]]:
    """How training images look: "brightness" and "roughness", each [low, high], 0 to 1.

    training: a stack per class, images[N, H, W(, 3)] uint8.
    """
    seen = torch.cat([looks(stack.images) for stack in training])
    return {name: bounds(seen[:, at]) for at, name in enumerate(LOOKS)}


def bounds(values: Tensor) -> list[float]:
    """Low and high of values[N], but for OUTSIDE at either end; wider where they are few."""
    low, high = values.quantile(OUTSIDE).item(), values.quantile(1 - OUTSIDE).item()
    margin = (high - low) / len(values) ** 0.5
    return [low - margin, high + margin]


def lowest_logit(logits: Tensor) -> float:
    """What the largest of an image's logits is at least, but for UNSURE of logits[M, C]."""
    largest = logits.double().max(1).values
    low = largest.quantile(UNSURE).item()
    return low - (largest.max().item() - low) / len(largest) ** 0.5


def looks(images: Tensor) -> Tensor:
    """[N, 2] float64, 0 to 1: brightness and roughness of images[N, H, W(, 3)] uint8."""
    step = max(1, BLOCK // max(1, images[:1].numel()))
    seen = torch.empty(len(images), len(LOOKS), dtype=torch.float64)  # first: what is kept between
    for start in range(0, len(images), step):  # blocks that are freed would keep them apart
        seen[start : start + step] = _looks(images[start : start + step])
    return seen


def _looks(images: Tensor) -> Tensor:
    axes = tuple(range(1, images.ndim))
    pixels = images.short()
    steps = [pixels.diff(dim=axis).abs() for axis in (1, 2)]
    count = sum(each[:1].numel() for each in steps)
    rough = sum((each.sum(axes, dtype=torch.float64) for each in steps), torch.zeros(()))
    bright = images.double().mean(axes)
    return torch.stack([bright, rough / max(1, count)], 1) / 255


def unlike(images: Tensor, logits: Tensor, known: Mapping[str, Any]) -> Tensor:
    """Which of images[N, H, W(, 3)] uint8 with logits[N, C] are unlike all of training: [N] bool.

    known: "brightness", "roughness" [low, high] and "lowest_logit".
    """
    seen = looks(images)
    found = logits.double().max(1).values < known["lowest_logit"]
    for at, name in enumerate(LOOKS):
        low, high = known[name]
        found |= (seen[:, at] < low) | (seen[:, at] > high)
    return found
