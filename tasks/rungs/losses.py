"""What a training minimises: the post's two squared errors and the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.own import Registry


def one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """What a perfect model would say.  labels[B] int64 -> [B, C] float32, each row sums to 1.

    `smoothing` (0 to 1) of each row's mass is spread evenly over all classes (Szegedy et al.,
    Rethinking the Inception Architecture, section 7).
    """
    spread = smoothing / classes
    rows = torch.full((len(labels), classes), spread, device=labels.device)
    return rows.scatter_(1, labels[:, None], 1 - smoothing + spread)


def sigmoid_mse(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Squared error of one sigmoid per class, mean over all B x C numbers: a scalar, 0 to 1.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    return F.mse_loss(logits.sigmoid(), one_hot(labels, logits.shape[1], smoothing))


def softmax_mse(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Squared error of the softmax, mean over all B x C numbers: a scalar, 0 to 1.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    return F.mse_loss(logits.softmax(1), one_hot(labels, logits.shape[1], smoothing))


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log of the softmax at the right class, in nats, mean over the B images: a scalar, 0 up.

    logits[B, C] float32, labels[B] int64.  Raises LadderError when the shapes do not fit.
    """
    check(logits, labels)
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


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
