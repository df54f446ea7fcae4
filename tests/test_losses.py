"""The three losses against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tasks.caching.basics import LadderError
from tasks.rungs.losses import LOSSES, cross_entropy, one_hot, sigmoid_mse, softmax_mse

LOGITS = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])  # sigmoids .5 .75 .5 .5
LABELS = torch.tensor([1, 0])


def test_one_hot_has_a_one_at_the_label() -> None:
    """Each row is the indicator of its label."""
    assert one_hot(torch.tensor([2, 0]), 3).T.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_smoothing_spreads_mass_and_loses_none() -> None:
    """A smoothed column gives every class its share and still sums to 1."""
    rows = one_hot(torch.tensor([2]), 4, 0.2).T
    torch.testing.assert_close(rows, torch.tensor([[0.05, 0.05, 0.85, 0.05]]))


def test_sigmoid_mse_is_the_mean_over_all_numbers() -> None:
    """(.5-0)^2, (.75-1)^2, (.5-1)^2, (.5-0)^2, over four."""
    expected = (0.25 + 0.0625 + 0.25 + 0.25) / 4
    assert sigmoid_mse(LOGITS, LABELS).item() == pytest.approx(expected)


def test_softmax_mse_is_the_mean_over_all_numbers() -> None:
    """Softmaxes are .25 .75 and .5 .5."""
    expected = (0.0625 + 0.0625 + 0.25 + 0.25) / 4
    assert softmax_mse(LOGITS, LABELS).item() == pytest.approx(expected)


def test_cross_entropy_is_the_mean_surprise_in_nats() -> None:
    """-ln .75 and -ln .5, over two."""
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert cross_entropy(LOGITS, LABELS).item() == pytest.approx(expected)


def test_cross_entropy_smooths_as_one_hot_does() -> None:
    """Label smoothing means the same target in every loss."""
    targets = one_hot(LABELS, 2, 0.1).T
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, 0.1), expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(4, 1, 3), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.zeros(1, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.zeros(4)),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)),
    ],
    ids=["extra axis", "no classes", "column of labels", "one label", "float labels", "integers"],
)
def test_what_would_broadcast_is_refused(loss, logits, labels) -> None:
    """A shape or type that torch might silently stretch raises, naming both shapes."""
    with pytest.raises(LadderError, match=r"logits\[B, C\]"):
        loss(logits, labels)
