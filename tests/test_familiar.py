"""What is unlike all that was trained on: noise and negatives are told, digits are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tasks.caching.values import Stack
from tasks.rungs.familiar import bounds, familiar, looks, lowest_logit, unlike

DIGITS = torch.from_numpy((load_digits().images * 15).astype(np.uint8))  # [1797, 8, 8]
NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8))


def stacks(images: torch.Tensor) -> list[Stack]:
    half = len(images) // 2
    parts = images[:half], images[half:]
    return [Stack(each, [""] * len(each), np.zeros((len(each), 32), np.uint8)) for each in parts]


@pytest.mark.parametrize("few", [1000, 20])
def test_noise_and_negatives_are_told_and_digits_left_alone(few: int) -> None:
    """By looks alone, whatever a model says: of digits by other writers at most 4 in 100 are."""
    known = familiar.fn(stacks(DIGITS[:few])) | {"lowest_logit": -1.0}
    sure = torch.zeros(1, 10)
    told = {
        name: unlike(images, sure.expand(len(images), 10), known).double().mean().item()
        for name, images in (("new", DIGITS[1000:]), ("negatives", 255 - DIGITS), ("noise", NOISE))
    }
    assert told["new"] <= 0.04
    assert told["negatives"] >= 0.9
    assert told["noise"] >= (0.9 if few == 1000 else 0.5)


def test_a_model_that_knows_nothing_of_an_image_tells_of_it() -> None:
    """A largest logit below nearly all of those held out, whatever the image looks like."""
    held_out = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0)) + 3
    known = familiar.fn(stacks(DIGITS)) | {"lowest_logit": lowest_logit(held_out)}
    images = DIGITS[:50]
    assert not unlike(images, torch.full((50, 10), 9.0), known).double().mean() > 0.05
    assert unlike(images, torch.zeros(50, 10), known).all()
    low = held_out.max(1).values < known["lowest_logit"]
    assert 0 < low.sum() <= 5


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 1, 7), (4, 5, 3, 3)])
def test_looks_are_shares_of_the_range(shape: tuple[int, ...]) -> None:
    """Black is dark and smooth, stripes are rough; one pixel has no neighbour to differ from."""
    black, white = torch.zeros(shape, dtype=torch.uint8), torch.full(shape, 255).byte()
    assert torch.equal(looks(black), torch.zeros(4, 2).double())
    assert torch.equal(looks(white), torch.tensor([[1.0, 0.0]] * 4).double())
    if shape[2] == 7:
        white[:, :, ::2] = 0
        assert looks(white)[0].tolist() == pytest.approx([3 / 7, 1])


def test_one_image_bounds_itself() -> None:
    assert bounds(torch.tensor([0.25]).double()) == [0.25, 0.25]
