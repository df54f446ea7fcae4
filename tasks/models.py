"""The rungs of the ladder: a linear model, the post's small network, a convnet, ResNet18.

Every model is `build(shape, classes) -> nn.Module`, where `shape` is one image's [H, W] or
[H, W, 3], and maps images[B, H, W(, 3)] float32, 0 to 1, to logits[B, classes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(shape: Sequence[int], classes: int) -> nn.Module:
    """One weight per pixel and class, and one bias per class."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Sequence[int], classes: int) -> nn.Module:
    """The post's network: all pixels -> 64 sigmoid units -> classes."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.Sigmoid(), nn.Linear(64, classes)
    )


def convnet(shape: Sequence[int], classes: int) -> nn.Module:
    """Three convolutions, 32, 64 and 96 channels wide, and one linear layer.

    A 28x28 image goes through maps of 12x12, 10x10, 5x5 and 3x3.  Below 20 pixels there are none
    to spare: the first convolution keeps the size and the last one pads, 8x8 -> 8 -> 6 -> 3 -> 3.
    """
    small = min(shape[:2]) < 20
    stride, around, trim = (1, 2, 0) if small else (2, 0, 2)
    height, width = [((s + 2 * around - 5) // stride - 1) // 2 - trim for s in shape[:2]]
    return nn.Sequential(
        Maps(),
        nn.Conv2d(channels(shape), 32, 5, stride, padding=around, bias=False),
        norm(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False),
        nn.MaxPool2d(2),
        norm(64),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1 if small else 0, bias=False),
        norm(96),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96 * height * width, classes),
    )


def resnet18(shape: Sequence[int], classes: int) -> nn.Module:
    """ResNet18 of He et al., Deep Residual Learning for Image Recognition, table 1."""
    return nn.Sequential(
        Maps(),
        nn.Conv2d(channels(shape), 64, 7, stride=2, padding=3, bias=False),
        norm(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
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
            Conv3x3(inputs, outputs, stride),
            norm(outputs),
            nn.ReLU(),
            Conv3x3(outputs, outputs, 1),
            norm(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x[B, C, H, W] -> [B, outputs, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.shortcut(x))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution padded by one pixel that is a matrix product on 2x2 and 1x1 maps.

    There most of the nine taps only ever meet padding, yet convolution kernels pay for all of
    them.  The products are the same sums over the same parameters, so gradients agree too.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x[B, inputs, H, W] -> [B, outputs, H / stride, W / stride], rounded up."""
        size = tuple(x.shape[2:])
        if size not in ((1, 1), (2, 2)):
            return super().forward(x)
        side = size[0] // self.stride[0] or 1
        # The output at (i, j) sees the input's pixels through this window of the taps.
        windows = [
            self.weight[:, :, 1 - i : 1 - i + size[0], 1 - j : 1 - j + size[1]]
            for i in range(side)
            for j in range(side)
        ]
        # Channels go last, as in a channels_last map, so that no activation is copied.
        matrix = torch.cat([window.permute(0, 2, 3, 1).flatten(1) for window in windows])
        product = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix)
        return product.view(len(x), side, side, -1).permute(0, 3, 1, 2)


class Maps(nn.Module):
    """images[B, H, W(, 3)] -> maps[B, 1 or 3, H, W], channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """images[B, H, W(, 3)] -> maps[B, 1 or 3, H, W]."""
        maps = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
        return maps.contiguous(memory_format=torch.channels_last)


def channels(shape: Sequence[int]) -> int:
    """1 for greyscale [H, W], 3 for [H, W, 3]."""
    return 1 if len(shape) == 2 else shape[2]


def norm(channels: int) -> nn.Module:
    """Batch norm that forgets within ten steps, as some trainings here have but forty.

    At torch's momentum of 0.1 the running averages would still remember their start, and a model
    that fits its batches well would fail every image it meets alone.
    """
    return nn.BatchNorm2d(channels, momentum=0.3)


def initialize(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw a model's parameters from `generator`, in place.

    "randn" is the post's: every weight and bias from the standard normal distribution.
    "default" is torch's: uniform within 1 / sqrt(inputs of a unit).  Batch norms start as the
    identity either way.
    """
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
            elif isinstance(layer, (nn.Linear, nn.Conv2d)):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters():
                    if init == "randn":
                        parameter.normal_(generator=generator)
                    else:
                        parameter.uniform_(-bound, bound, generator=generator)


MODELS = {"linear": linear, "mlp": mlp, "convnet": convnet, "resnet18": resnet18}
