"""Twins: images of two sides that look alike, though their pixels differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.caching.stage import stage
from tasks.caching.values import Stack
from tasks.images.likeness import HEIGHT, WIDTH, alike, miniatures

SHOWN = 12


@stage
def twins(
    training: list[Stack], watched: list[Stack], testing: list[Stack], classes: list[str]
) -> dict[str, Any]:
    """Find near duplicates among sides: a Stack per class each, images[N, H, W(, 3)] uint8.

    watched: the images given for validation; empty where they come out of training.  Returns how
    many images of "testing" look like one of training or validation, how many of "validation" like
    one of training, and "examples", pairs of their places.  Equal images do not count.
    """
    sides = {"training": training, "validation": watched, "testing": testing}
    looks = {side: _looks(stacks) for side, stacks in sides.items()}
    images = {side: _images(side, stacks, classes) for side, stacks in sides.items()}
    found: dict[str, Any] = {"testing": 0, "validation": 0, "examples": []}
    for side, others in (("testing", ("training", "validation")), ("validation", ("training",))):
        seen: dict[int, list[str]] = {}
        for other in others:
            for row, like in alike(looks[side], looks[other]):
                (here, own), (there, theirs) = images[side][row], images[other][like]
                if own != theirs:
                    seen.setdefault(row, [there, here])
        found[side] = len(seen)
        found["examples"] += [*seen.values()][: SHOWN - len(found["examples"])]
    return found


def _looks(stacks: list[Stack]) -> np.ndarray:
    """The miniatures of all images of a side."""
    none = np.empty((0, HEIGHT, WIDTH), np.uint8)
    return np.concatenate([none, *(miniatures(stack.images.numpy()) for stack in stacks)])


def _images(side: str, stacks: list[Stack], classes: list[str]) -> list[tuple[str, bytes]]:
    """What a person calls each image of a side, and its digest."""
    return [
        (f"{side}/{label}/{name}", digest.tobytes())
        for label, stack in zip(classes, stacks, strict=False)
        for name, digest in zip(stack.names, stack.digests, strict=True)
    ]
