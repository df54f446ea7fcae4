"""The course of an epoch: which images make a step, how they are moved, at which learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.rungs.recipes import Recipe


class Course(NamedTuple):
    """What the steps of an epoch go by."""

    batches: Sequence[Tensor]  # of [B] int64 each, the images as they come
    shifts: Tensor  # [steps, 4, 2] int64, by how much each quarter of a batch moves, see `shifted`
    flips: Tensor  # [steps, 4] bool, whether each quarter of a batch is mirrored
    rates: Tensor  # [steps] float64, learning rates


def course(
    generator: torch.Generator,
    recipe: Recipe,
    schedule: Callable[[float], float],
    images: int,
    epoch: int,
) -> Course:
    """Draw the course of an epoch, counted from 0, before its first step."""
    parts = batches(torch.randperm(images, generator=generator), recipe.batch(images))
    steps = len(parts)
    shifts = torch.zeros(steps, 4, 2, dtype=torch.int64)
    if recipe.shift:
        shifts = torch.randint(2 * recipe.shift + 1, shifts.shape, generator=generator)
    flips = torch.zeros(steps, 4, dtype=torch.bool)
    if recipe.flip:
        flips = torch.rand(flips.shape, generator=generator) < 0.5
    done = [(epoch + (step + 0.5) / steps) / recipe.epochs for step in range(steps)]
    rates = [recipe.lr * schedule(share) for share in done]
    return Course(parts, shifts, flips, torch.tensor(rates, dtype=torch.float64))


def batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut order[N] into batches; the last is as short as it comes out.

    Only a last batch under an eighth of `size`, or of one image, joins the one before it: batch
    norm cannot make a statistic of one image and makes a bad one of a few.
    """
    parts = order.split(size)
    if len(parts) > 1 and len(parts[-1]) < max(2, size / 8):
        return (*parts[:-2], torch.cat(parts[-2:]))
    return parts


def shifted(images: Tensor, pixels: int, shifts: Tensor) -> Tensor:
    """Each quarter of a batch moved by up to `pixels` along H and W, black flowing in.

    images[B, H, W(, 3)] uint8, shifts[4, 2] int64 from 0 (down, right) to 2 pixels (up, left) ->
    the same shape as images.
    """
    if not pixels:
        return images
    height, width = images.shape[1:3]
    around = (0, 0) * (images.ndim - 3) + (pixels,) * 4
    windows = F.pad(images, around).unfold(1, height, 1).unfold(2, width, 1)
    rows = torch.arange(len(images), device=images.device)
    down, across = shifts[_quarters(images)].unbind(1)
    moved = windows[rows, down, across]  # [B(, 3), H, W]
    return moved if images.ndim == 3 else moved.movedim(1, 3)


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Those quarters of a batch mirrored, left and right changed, that flips[4] bool says.

    images[B, H, W(, 3)] uint8 -> the same shape.
    """
    chosen = flips[_quarters(images)].view(-1, *[1] * (images.ndim - 1))
    return torch.where(chosen, images.flip(2), images)


def _quarters(images: Tensor) -> Tensor:
    """Which quarter of the batch each image is in: [B] int64, 0 to 3."""
    return torch.arange(len(images), device=images.device) // -(-len(images) // 4)
