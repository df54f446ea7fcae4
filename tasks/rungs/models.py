"""The rungs of the ladder: a linear model, the post's small network, convnets, ResNet18.

Every model is `build(shape, classes) -> nn.Module`, where `shape` is one image's [H, W] or
[H, W, 3], and maps images[B, H, W(, 3)] float32, 0 to 1, to logits[B, classes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.caching.own import Registry
from tasks.rungs.by_hand import Dense
from tasks.rungs.convolution import Conv, First, Maps, Norm, Turn, channels


def linear(shape: Sequence[int], classes: int) -> nn.Module:
    """One weight per pixel and class, and one bias per class."""
    return Dense(math.prod(shape), classes)


def mlp(shape: Sequence[int], classes: int) -> nn.Module:
    """The post's network: all pixels -> 64 sigmoid units -> classes."""
    return Dense(math.prod(shape), 64, classes)


def convnet(shape: Sequence[int], classes: int) -> nn.Module:
    """Three convolutions, 16, 32 and 128 channels wide, and one linear layer.

    A 28x28 image goes through maps of 12x12, 10x10, 5x5 and 3x3.  Below 20 pixels there are none
    to spare: the first convolution keeps the size and the last one pads, 8x8 -> 8 -> 6 -> 3 -> 3.
    """
    small = min(shape[:2]) < 20
    stride, around, trim = (1, 2, 0) if small else (2, 0, 2)
    height, width = [((s + 2 * around - 5) // stride - 1) // 2 - trim for s in shape[:2]]
    return nn.Sequential(
        Maps(),
        First(channels(shape), 16, 5, stride, around),
        Norm(16),
        nn.ReLU(),
        Conv(16, 32, 3, padding=0),
        nn.MaxPool2d(2),
        Turn(),
        Norm(32),
        nn.ReLU(),
        Conv(32, 128, 3, padding=1 if small else 0),
        Norm(128),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(128 * height * width, classes),
    )


def deep_convnet(shape: Sequence[int], classes: int) -> nn.Module:
    """Five convolutions, 32 to 192 channels wide, and one linear layer: for photographs.

    The first strides over images of 24 pixels or more, so that about 16x16 are left of any size,
    and the work is the same: 16 -> 8 -> 4, then the mean of each channel.
    """
    stride = max(1, round(min(shape[:2]) / 16))
    kernel = 2 * stride if stride > 1 else 3
    return nn.Sequential(
        Maps(),
        First(channels(shape), 32, kernel, stride, (kernel - stride + 1) // 2),
        Norm(32),
        nn.ReLU(),
        Conv(32, 48, 3, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        Turn(),
        Norm(48),
        nn.ReLU(),
        Conv(48, 96, 3, padding=1),
        Norm(96),
        nn.ReLU(),
        Conv(96, 96, 3, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        Norm(96),
        nn.ReLU(),
        Conv(96, 192, 3, padding=1),
        Norm(192),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(192, classes),
    )


def resnet18(shape: Sequence[int], classes: int) -> nn.Module:
    """ResNet18 of He et al., Deep Residual Learning for Image Recognition, table 1."""
    return nn.Sequential(
        Maps(),
        First(channels(shape), 64, 7, 2, 3),
        Norm(64),
        nn.MaxPool2d(3, stride=2, padding=1),  # commutes with ReLU, which so has less to do
        nn.ReLU(),
        Turn(),
        Residual(64, 64, 1),
        Residual(64, 64, 1),
        Residual(64, 128, 2),
        Residual(128, 128, 1),
        Residual(128, 256, 2),
        Residual(256, 256, 1),
        Residual(256, 512, 2),
        Residual(512, 512, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to the input, a shortcut making sizes agree.

    x[B, inputs, H, W] -> [B, outputs, H / stride, W / stride], rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(inputs, outputs, 3, stride, padding=1),
            Norm(outputs),
            nn.ReLU(),
            Conv(outputs, outputs, 3, padding=1),
            Norm(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(Conv(inputs, outputs, 1, stride, padding=0), Norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x[B, C, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.relu_(self.body(x) + self.shortcut(x))


MODELS = Registry(
    {
        "linear": linear,
        "mlp": mlp,
        "convnet": convnet,
        "deep_convnet": deep_convnet,
        "resnet18": resnet18,
    }
)
