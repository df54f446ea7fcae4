"""Which images are trained on, which are watched meanwhile, and which are kept for the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.differences import some
from tasks.caching.values import Stack
from tasks.images.drawing import held_out_of
from tasks.rungs.rows import Images, Rows, fit


class Labelled(NamedTuple):
    """Images and the index of each one's class."""

    images: Images  # [N, H, W] or [N, H, W, 3] uint8
    labels: Tensor  # [N] int64


def split(
    training: list[Stack],
    watched: list[Stack],
    shape: Sequence[int],
    validation: float | Literal["testing", "given"],
) -> tuple[Labelled, Labelled]:
    """The images to train on, and those to watch meanwhile: `watched`, unless they are to be drawn.

    Equal images are always on the same side, see `held_out_of`.
    """
    if isinstance(validation, str):
        seen, held_out = everything(training, shape), everything(watched, shape)
    else:
        if not 0 < validation < 1:
            raise LadderError(f"validation is a fraction between 0 and 1, not {validation}")
        out = held_out_of([stack.digests for stack in training], validation)
        seen, held_out = gather(training, [~o for o in out], shape), gather(training, out, shape)
    if len(seen.labels) < 2 or not len(held_out.labels):
        raise LadderError(
            f"{len(seen.labels)} images to train on and {len(held_out.labels)} for validation are "
            "too few: add images or change validation"
        )
    return seen, held_out


def everything(stacks: list[Stack], shape: Sequence[int]) -> Labelled:
    """All images of all stacks."""
    return gather(stacks, [np.full(len(stack.names), True) for stack in stacks], shape)


def gather(stacks: list[Stack], chosen: list[np.ndarray], shape: Sequence[int]) -> Labelled:
    """The chosen rows of all stacks, copied once where they fit; a label is a stack's index."""
    rows = [torch.from_numpy(mask).nonzero()[:, 0] for mask in chosen]
    labels = torch.cat([torch.full((len(index),), label) for label, index in enumerate(rows)])
    if not fit(sum(map(len, rows)), shape):
        return Labelled(Rows([stack.images for stack in stacks], rows), labels)
    images = torch.empty(sum(map(len, rows)), *shape, dtype=torch.uint8)
    for part, stack, index in zip(images.split([*map(len, rows)]), stacks, rows, strict=True):
        if len(index):
            torch.index_select(stack.images, 0, index, out=part)
    return Labelled(images, labels)


def by_class(side: str, stacks: list[Stack], classes: list[str]) -> dict[str, Stack]:
    """A side's stacks by what a person calls them, such as training/7; LadderError for too few."""
    if not len(stacks) == len(classes) > 1:
        raise LadderError(
            f"{side} has one stack for each of two or more classes, "
            f"not {len(stacks)} for {len(classes)}"
        )
    return {f"{side}/{name}": stack for name, stack in zip(classes, stacks, strict=True)}


def common_shape(stacks: dict[str, Stack]) -> tuple[int, ...]:
    """The [H, W] or [H, W, 3] that all images share; LadderError names a stack that differs.

    stacks: see `by_class`.  Raises LadderError where there are no images at all.
    """
    shapes = {
        name: tuple(stack.images.shape[1:]) for name, stack in stacks.items() if len(stack.images)
    }
    if not shapes:
        raise LadderError(f"there are no images in {some([*stacks])}: add some")
    first, shape = next(iter(shapes.items()))
    for name, other in shapes.items():
        if other != shape:
            same_mode = len(other) == len(shape)
            raise LadderError(
                f"{name} has images of shape {list(other)}, {first} of {list(shape)}: "
                + ("make them one size, or ask for one with --size" if same_mode
                   else "save all images as RGB, or all as greyscale")
            )  # fmt: skip
    return shape
