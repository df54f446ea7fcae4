"""How far a model's confidence can be believed, from the images held out of training.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017): one temperature
divides all logits, which leaves every answer as it is and makes its probability honest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.caching.stage import stage
from tasks.rungs.familiar import lowest_logit

COLDEST, HOTTEST = 1 / 64, 64.0  # temperatures between which the best one is looked for
BINS = 15  # of equal width, as in the paper


@stage
def calibrate(trained: dict[str, Any]) -> dict[str, Any]:
    """Fit a temperature on what `train` held out.

    Returns "temperature"; "calibration_error": {"before", "after"}, 0 to 1, on the same images; and
    "lowest_logit", see `familiar`.
    """
    logits, labels = trained["held_out"]["logits"], trained["held_out"]["labels"]
    temperature = best_temperature(logits, labels)
    return {
        "temperature": temperature,
        "lowest_logit": lowest_logit(logits),
        "calibration_error": {
            "before": calibration_error(logits.softmax(1), labels),
            "after": calibration_error(calibrated(logits, temperature), labels),
        },
    }


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [N, C] float32 of logits[N, C]."""
    return (logits.double() / temperature).softmax(1).float()


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature under which labels[M] are likeliest, given logits[M, C].

    By golden section over its logarithm: the loss has one valley in 1 / temperature.  Each label
    is believed to (M + 1) / (M + 2), as in Platt, "Probabilistic outputs for support vector
    machines" (1999): where all of a few images are right, to be quite sure of the next is too sure.
    """
    doubt = 1 / (len(labels) + 2)
    smoothing = doubt * logits.shape[1] / max(1, logits.shape[1] - 1)

    def loss(power: float) -> float:
        scaled = logits.double() / 2**power
        return F.cross_entropy(scaled, labels, label_smoothing=min(1.0, smoothing)).item()

    golden = (5**0.5 - 1) / 2
    low, high = torch.tensor([COLDEST, HOTTEST]).log2().tolist()
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(2 ** ((low + high) / 2))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error, 0 to 1.  probabilities[N, C], labels[N].

    Over bins of confidence, the mean distance of how sure from how often right, by images.
    """
    sure, said = probabilities.double().max(1)
    places = (sure * BINS).ceil().long().sub(1).clamp(min=0)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, places, (said == labels).double() - sure)
    return (gaps.abs().sum() / len(labels)).item()
