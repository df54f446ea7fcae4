"""Feature maps and how they are convolved, in fewer multiplications than the definition says.

Feature maps are maps[B, C, H, W], as everywhere in torch.  In memory they lie as is fastest: on a
GPU channels last, on the CPU the batch inside, as [H, W, B, C], where a small convolution is a few
matrix products over all images and channels at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channels(shape: Sequence[int]) -> int:
    """1 for greyscale [H, W], 3 for [H, W, 3]."""
    return 1 if len(shape) == 2 else shape[2]


class Maps(nn.Module):
    """images[B, H, W(, 3)] -> maps[B, 1 or 3, H, W], channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """images[B, H, W(, 3)] -> maps[B, 1 or 3, H, W]."""
        maps = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
        return maps.contiguous(memory_format=torch.channels_last)


class First(nn.Conv2d):
    """The convolution that images meet first, whose one or three channels suit torch's kernels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights, channels last."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
        draw_uniform(self.weight)


def draw_uniform(weight: Tensor) -> None:
    """Torch's start of a convolution, but drawn in the order in which the weights lie.

    weight[outputs, inputs, kernel, kernel], within 1 / sqrt(inputs of an output).
    """
    bound = weight[0].numel() ** -0.5
    nn.init.uniform_(weight, -bound, bound)


class Conv(nn.Conv2d):
    """A convolution without bias that multiplies less often than its definition says.

    Along each axis it is y = A ((G w) * (B x)) for the constant matrices of `bilinear`, exactly.
    Along both, that is one matrix product of all images and channels for every pair of rows of B:
    121 instead of 441 for a 3x3 kernel on a 7x7 map (Lavin and Gray, Fast Algorithms for
    Convolutional Neural Networks).  Large maps, GPUs and bfloat16 are left to torch.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, padding: int):
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights, which lie as [kernel, kernel, outputs, inputs], as steps want them."""
        lying = self.weight.detach().permute(2, 3, 0, 1).contiguous()
        self.weight = nn.Parameter(lying.permute(2, 3, 0, 1))
        draw_uniform(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x[B, inputs, H, W] -> [B, outputs, (H + 2 padding - kernel) / stride + 1, ...]."""
        if not _is_for_products(x):
            last = torch.channels_last
            x, weight = (each.contiguous(memory_format=last) for each in (x, self.weight))
            return F.conv2d(x, weight, None, self.stride, self.padding)
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        down, across = (bilinear(size, kernel, stride, padding, x.dtype) for size in x.shape[2:])
        taps = self.weight.permute(2, 3, 0, 1)[down.taps, across.taps]  # as they lie
        u = torch.kron(down.g, across.g) @ taps.reshape(-1, self.out_channels * self.in_channels)
        u = u.view(-1, self.out_channels, self.in_channels)  # [P, O, C]
        v = _along(down.b, across.b, x.permute(2, 3, 0, 1).contiguous()).flatten(0, 1)  # [P, B, C]
        products = torch.bmm(v, u.transpose(1, 2)).unflatten(0, (len(down.b), len(across.b)))
        return _along(down.a, across.a, products).permute(2, 3, 0, 1)


def _is_for_products(x: Tensor) -> bool:
    """Whether maps[B, C, H, W] are convolved by matrix products, and not by torch."""
    return not (x.is_cuda or torch.is_autocast_enabled(x.device.type) or max(x.shape[2:]) > LARGEST)


LARGEST = 10  # pixels along an axis: torch's kernels are as fast on larger maps


class Turn(nn.Module):
    """Lays maps as the convolutions after it want them, once, instead of in each of them."""

    def forward(self, x: Tensor) -> Tensor:
        """x[B, C, H, W] -> the same, the batch inside where matrix products follow."""
        turned: Tensor = _Turning.apply(x) if _is_for_products(x) else x
        return turned


class _Turning(torch.autograd.Function):
    """A copy in either direction, so that no operation meets maps that lie in two ways."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


class Norm(nn.BatchNorm1d):
    """Batch norm of maps[B, C, H, W] that forgets within ten steps: some trainings have but forty.

    At torch's momentum of 0.1 the running averages would still remember their start, and a model
    that fits its batches well would fail every image it meets alone.  What comes out is a view: a
    ReLU in place would make its backward pass meet maps that lie in two ways, and take 25 times as
    long.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """x[B, C, H, W] -> the same shape, each channel of mean 0 and variance 1 in training."""
        order = (2, 3, 0, 1) if _is_batch_inside(x) else (0, 2, 3, 1)
        pixels = x.permute(order)  # [..., C]
        rows: Tensor = super().forward(pixels.flatten(0, 2))
        return rows.view(pixels.shape).permute([order.index(axis) for axis in range(4)])


def _is_batch_inside(x: Tensor) -> bool:
    """Whether maps[B, C, H, W] lie in memory as [H, W, B, C]."""
    return x.permute(2, 3, 0, 1).is_contiguous()


class Bilinear(NamedTuple):
    """y = a ((g w) * (b x)): a convolution along one axis with len(b) multiplications."""

    a: Tensor  # [outputs, P]
    b: Tensor  # [P, size]
    g: Tensor  # [P, taps]
    taps: slice  # of the kernel: those that do not only meet padding


@functools.cache
def bilinear(size: int, kernel: int, stride: int, padding: int, dtype: torch.dtype) -> Bilinear:
    """The convolution of x[size] with w[kernel] in few multiplications.

    A kernel of 3 at stride 1 is cut into tiles of up to 4 outputs; anything else multiplies each
    pixel with each tap that meets it.  What only ever meets padding is left out.
    """
    if (size, kernel, stride, padding) == (2, 3, 1, 1):
        a, b, g = (np.array(each) for each in PAIR)
    else:
        outputs = (size + 2 * padding - kernel) // stride + 1
        step = 4 if (kernel, stride) == (3, 1) else 1
        tiles = [_tile(min(step, outputs - start), kernel) for start in range(0, outputs, step)]
        a = torch.block_diag(*(torch.from_numpy(tile[0]) for tile in tiles)).numpy()
        b = np.zeros((a.shape[1], size + 2 * padding))
        for number, (_a, tile, _g) in enumerate(tiles):
            row, column = number * len(tiles[0][1]), number * step * stride
            b[row : row + len(tile), column : column + tile.shape[1]] = tile
        b = b[:, padding : padding + size]
        g = np.vstack([tile[2] for tile in tiles])
    meets = b.any(axis=1)
    used = np.flatnonzero(g[meets].any(axis=0))
    taps = slice(int(used[0]), int(used[-1]) + 1)

    def tensor(matrix: np.ndarray) -> Tensor:
        return torch.tensor(matrix, dtype=dtype)

    return Bilinear(tensor(a[:, meets]), tensor(b[meets]), tensor(g[meets, taps]), taps)


# [w1 w2; w0 w1] x, a 3-tap kernel on two pixels: what both products by w1 share counts once.
PAIR = (
    [[1, 1, 0], [1, 0, 1]],
    [[1, 1], [0, 1], [1, 0]],
    [[0, 1, 0], [0, -1, 1], [1, -1, 0]],
)


def _tile(outputs: int, kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a[outputs, P], b[P, outputs + kernel - 1] and g[P, kernel] of one tile.

    By Toom and Cook: polynomials are multiplied where they are evaluated, the last of the points
    being infinity, and a convolution is the transpose of that product.
    """
    if outputs == 1:
        return np.ones((1, kernel)), np.eye(kernel), np.eye(kernel)
    count = outputs + kernel - 1

    def values(length: int) -> np.ndarray:
        """A polynomial's values at the points, from its coefficients: [count, length]."""
        finite = np.vander([0.0, 1, -1, 2, -2][: count - 1], length, increasing=True)
        return np.vstack([finite, np.eye(length)[-1]])

    return values(outputs).T, np.linalg.inv(values(count)).T, values(kernel)


def _along(down: Tensor, across: Tensor, x: Tensor) -> Tensor:
    """down[P, H] and across[Q, W] applied to x[H, W, M, N] -> [P, Q, M, N]."""
    height, width, *inner = x.shape
    rows = (down @ x.reshape(height, -1)).view(len(down), width, -1)
    return (across @ rows).view(len(down), len(across), *inner)
