"""Which images are trained on, which are watched meanwhile, and which are kept for the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.machine import insist_on_room
from tasks.caching.values import Stack


class Labelled(NamedTuple):
    """Images and the index of each one's class."""

    images: Tensor  # [N, H, W] or [N, H, W, 3] uint8
    labels: Tensor  # [N] int64


def split(
    training: list[Stack],
    testing: list[Stack],
    shape: Sequence[int],
    validation: float | Literal["testing"],
) -> tuple[Labelled, Labelled, Labelled]:
    """The images to train on, those to watch meanwhile, and those to test on.

    Equal images are always on the same side, see `held_out_of`.
    """
    tests = gather(testing, [np.full(len(stack.names), True) for stack in testing], shape)
    if validation == "testing":
        seen = gather(training, [np.full(len(stack.names), True) for stack in training], shape)
        held_out = tests
    else:
        if not 0 < validation < 1:
            raise LadderError(f"validation is a fraction between 0 and 1, not {validation}")
        out = held_out_of([stack.digests for stack in training], validation)
        seen, held_out = gather(training, [~o for o in out], shape), gather(training, out, shape)
    if len(seen.labels) < 2 or not len(held_out.labels) or not len(tests.labels):
        raise LadderError(
            f"{len(seen.labels)} images to train on, {len(held_out.labels)} for validation and "
            f"{len(tests.labels)} for testing are too few: add images or change validation"
        )
    return seen, held_out, tests


def held_out_of(classes: list[np.ndarray], validation: float) -> list[np.ndarray]:
    """Which images of each class are held out: those whose own number is below `validation`.

    So an image stays on its side when others come or go, but for one case: a class that would be
    held out whole keeps its image with the highest number, and training keeps what equals it.
    classes: an array of digests [N, 32] uint8 each; gives [N] bool for each.
    """
    out = [draw(digests) < validation for digests in classes]
    last = [
        digests[draw(digests).argmax()].tobytes()
        for digests, held in zip(classes, out, strict=True)
        if held.size and held.all()
    ]
    for digest in last:
        kept = [(digests == np.frombuffer(digest, np.uint8)).all(axis=1) for digests in classes]
        out = [held & ~keep for held, keep in zip(out, kept, strict=True)]
    return out


def draw(digests: np.ndarray) -> np.ndarray:
    """Each image's own number, 0 to 1, from its digest's first 8 bytes.  [N, 32] -> [N]."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] / 2.0**64


def gather(stacks: list[Stack], chosen: list[np.ndarray], shape: Sequence[int]) -> Labelled:
    """The chosen rows of all stacks, copied once; an image's label is its stack's index."""
    rows = [torch.from_numpy(mask).nonzero()[:, 0] for mask in chosen]
    insist_on_room("to train and measure", sum(map(len, rows)), shape)
    images = torch.empty(sum(map(len, rows)), *shape, dtype=torch.uint8)
    for part, stack, index in zip(images.split([*map(len, rows)]), stacks, rows, strict=True):
        if len(index):
            torch.index_select(stack.images, 0, index, out=part)
    labels = [torch.full((len(index),), label) for label, index in enumerate(rows)]
    return Labelled(images, torch.cat(labels))


def common_shape(
    training: list[Stack], testing: list[Stack], classes: list[str]
) -> tuple[int, ...]:
    """The [H, W] or [H, W, 3] that all images share; LadderError names a stack that differs."""
    if not len(training) == len(testing) == len(classes) > 1:
        raise LadderError(
            f"train takes one training and one testing stack for each of two or more classes, "
            f"not {len(training)} and {len(testing)} for {len(classes)}"
        )
    names = [f"{side}/{name}" for side in ("training", "testing") for name in classes]
    shapes = {
        name: tuple(stack.images.shape[1:])
        for name, stack in zip(names, [*training, *testing], strict=True)
        if len(stack.images)
    }
    first, shape = next(iter(shapes.items()), ("", ()))
    for name, other in shapes.items():
        if other != shape:
            same_mode = len(other) == len(shape)
            raise LadderError(
                f"{name} has images of shape {list(other)}, {first} of {list(shape)}: "
                + ("make them one size, or ask for one with --size" if same_mode
                   else "save all images as RGB, or all as greyscale")
            )  # fmt: skip
    return shape
