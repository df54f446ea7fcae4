"""What a training minimises: the post's two squared errors and the cross-entropy.

Each is written with its slope, the gradient by the logits, which so is known when the loss is.
Inside, an image is a column: a softmax over rows of ten numbers takes twice the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tasks.caching.basics import LadderError
from tasks.caching.own import Registry


class Sloped(torch.autograd.Function):
    """A loss, value[], of logits[B, C], whose slope[B, C] is known."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The value as it is."""
        ctx.slope = slope
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The slope, as steep as what follows the loss makes it: gradient[]."""
        return ctx.slope * gradient, None, None


def sloped(logits: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """A loss, value[], that carries its slope[C, B] along; autograd finds it, too."""
    if logits.requires_grad and torch.is_grad_enabled():
        value = Sloped.apply(logits, value, slope.t())
    value.slope = slope  # type: ignore[attr-defined] # for whoever does without autograd
    return value


def one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """What a perfect model would say, as columns.  labels[B] int64 -> [C, B] float32, sums of 1.

    `smoothing` (0 to 1) of each column's mass is spread evenly over all classes (Szegedy et al.,
    Rethinking the Inception Architecture, section 7).
    """
    columns = identity(classes, labels.device).index_select(1, labels)
    return columns.mul_(1 - smoothing).add_(smoothing / classes) if smoothing else columns


@functools.cache
def identity(size: int, device: torch.device) -> Tensor:
    """[size, size] float32, of ones where row and column are the same."""
    return torch.eye(size, device=device)


def sigmoid_mse(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Squared error of one sigmoid per class, mean over all B x C numbers: a scalar, 0 to 1.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    said = logits.detach().t().sigmoid()
    error = said - one_hot(labels, len(said), smoothing)
    slope = (1 - said).mul_(said).mul_(error).mul_(2 / error.numel())
    return sloped(logits, error.square().mean(), slope)


def softmax_mse(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Squared error of the softmax, mean over all B x C numbers: a scalar, 0 to 1.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    said = logits.detach().t().softmax(0)
    error = said - one_hot(labels, len(said), smoothing)
    slope = (error - (error * said).sum(0)).mul_(said).mul_(2 / error.numel())
    return sloped(logits, error.square().mean(), slope)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log of the softmax at the right class, in nats, mean over the B images: a scalar, 0 up.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    log = logits.detach().t().log_softmax(0)
    value = F.nll_loss(log.t(), labels)
    if smoothing:
        value = value * (1 - smoothing) - log.mean() * smoothing
    slope = (log.exp_() - one_hot(labels, len(log), smoothing)).mul_(1 / len(labels))
    return sloped(logits, value, slope)


def check(logits: Tensor, labels: Tensor) -> None:
    """Raise LadderError unless logits are [B, C] float and labels [B] int64.

    Subtraction would silently broadcast [B, 1] against [B] to [B, B] and train on nonsense.
    """
    if (
        logits.ndim != 2
        or labels.shape != logits.shape[:1]
        or labels.dtype != torch.int64
        or not logits.is_floating_point()
    ):
        raise LadderError(
            f"a loss takes logits[B, C] float and labels[B] int64, not "
            f"logits{list(logits.shape)} {logits.dtype} and labels{list(labels.shape)} "
            f"{labels.dtype}: mend the model that gave them"
        )


def check_loss(
    loss: Callable[[Tensor, Tensor, float], Tensor], classes: int, smoothing: float
) -> None:
    """Raise LadderError unless a loss gives a scalar that depends on the logits."""
    value = loss(torch.zeros(2, classes, requires_grad=True), torch.tensor([0, 1]), smoothing)
    what = f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    if what != "[]" or not value.is_floating_point():
        raise LadderError(f"the loss gives {what}, not a scalar: take the mean over the batch")
    if not value.requires_grad:
        raise LadderError("the loss does not depend on the logits, so there is nothing to train: "
                          "compute it from them by tensors alone")  # fmt: skip


LOSSES = Registry(
    {"sigmoid_mse": sigmoid_mse, "softmax_mse": softmax_mse, "cross_entropy": cross_entropy}
)
