"""What is done to training images besides shifts and flips."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.own import Registry


def none(images: Tensor) -> Tensor:
    """Nothing."""
    return images


def cutout(images: Tensor) -> Tensor:
    """A square of half the shorter side blanked in each image, at a random place.

    images[B, H, W(, 3)] uint8 -> the same shape.  Its middle lies anywhere in the image (DeVries
    and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout).
    """
    height, width = images.shape[1:3]
    middle = torch.rand(len(images), 2, device=images.device)
    reach = min(height, width) / 4

    def near(side: int, axis: int) -> Tensor:
        places = torch.arange(side, device=images.device) + 0.5
        return (places - middle[:, axis, None] * side).abs() < reach  # [B, side]

    inside = near(height, 0)[:, :, None] & near(width, 1)[:, None]  # [B, H, W]
    return images.masked_fill(inside if images.ndim == 3 else inside[..., None], 0)


def check_augmentation(given: Tensor, made: object) -> None:
    """Raise LadderError unless an augmentation made images like those it was given."""
    if isinstance(made, Tensor) and (made.shape, made.dtype) == (given.shape, given.dtype):
        return
    like = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
    raise LadderError(f"the augmentation makes {like} of images {given.dtype} {list(given.shape)}, "
                      "which must stay as they are in both")  # fmt: skip


AUGMENTATIONS = Registry({"none": none, "cutout": cutout})
