"""Gradients that are written out, against those that autograd finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tasks.rungs.by_hand import Dense
from tasks.rungs.losses import LOSSES
from tasks.rungs.measure import answers, by_hand, forward
from tasks.rungs.train import balanced, weighed

IMAGES = torch.randint(
    256, (7, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.tensor([0, 1, 2, 0, 0, 2, 0])


def absolute(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """A loss of a user's, which knows no slope."""
    return (logits.sigmoid() - torch.eye(3)[labels]).abs().mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_slopes_are_those_of_differences(loss, smoothing) -> None:
    """In float64, against what a step of a millionth to either side makes of the loss."""
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS, smoothing), logits)


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "class weights"])
@pytest.mark.parametrize("loss", [*LOSSES.values(), absolute], ids=[*LOSSES, "own"])
@pytest.mark.parametrize("sizes", [(20, 3), (20, 6, 3), (20, 8, 6, 3)], ids=str)
def test_gradients_are_autograds(sizes, loss, weights) -> None:
    """Of every layer, loss and class weight; the value of the loss, too."""
    model = Dense(*sizes)
    criterion: Callable[..., Tensor] = weighed(loss, balanced(LABELS)) if weights else loss
    expected = criterion(forward(model, IMAGES, "float32"), LABELS, 0.1)
    expected.backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    written = by_hand(model, "auto", "cpu")
    assert written
    value = written.descend(IMAGES, lambda logits: criterion(logits, LABELS, 0.1))
    torch.testing.assert_close(value, expected.detach())
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_answers_are_the_models() -> None:
    """In float32, to a few roundings."""
    model = Dense(20, 6, 3)
    expected = forward(model, IMAGES, "float32").detach()
    torch.testing.assert_close(answers(model, IMAGES, "auto"), expected)


def hooked(model: Dense) -> None:
    model[1].register_forward_hook(lambda _layer, _given, answer: answer * 2)


def frozen(model: Dense) -> None:
    model[1].weight.requires_grad_(False)


def normed(model: Dense) -> None:
    weight_norm(model[1])


def replaced(model: Dense) -> None:
    model[2] = nn.Tanh()


@pytest.mark.parametrize("change", [hooked, frozen, normed, replaced])
def test_a_changed_model_is_left_to_autograd(change) -> None:
    """What is written out would not be true of it."""
    model = Dense(20, 6, 3)
    assert by_hand(model, "float32", "cpu")
    change(model)
    assert by_hand(model, "float32", "cpu") is None


@pytest.mark.parametrize(
    ("precision", "device"), [("bfloat16", "cpu"), ("float32", "cuda"), ("auto", "cuda")]
)
def test_other_numbers_are_left_to_autograd(precision, device) -> None:
    """A GPU's kernels are not helped by it, and bfloat16 is autocast's."""
    assert by_hand(Dense(20, 3), precision, device) is None
