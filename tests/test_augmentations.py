"""What is done to training images besides shifts and flips."""

from __future__ import annotations

import pytest
import torch
from test_train import fitted, quick, same_bits

from tasks.rungs.augmentations import cutout

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(8, 12), (12, 8, 3)])
def test_cutout_blanks_a_square_of_each_image(shape) -> None:
    """At most half the shorter side, less at an edge, another in each; the rest stays."""
    images = torch.randint(1, 256, (200, *shape), dtype=torch.uint8)
    torch.manual_seed(0)
    made = cutout(images)
    assert made.shape == images.shape
    blank = (made == 0).view(200, *shape[:2], -1).all(3)
    assert torch.equal(made[made > 0], images[made > 0])
    heights, widths = blank.any(2).sum(1), blank.any(1).sum(1)
    assert {*heights.tolist(), *widths.tolist()} == {2, 3, 4}
    assert torch.equal(blank.sum((1, 2)), heights * widths)
    assert len({tuple(each.flatten().tolist()) for each in blank}) > 50


def test_a_training_with_an_augmentation_is_another_and_repeats() -> None:
    recipe = quick(augment="cutout")
    first = fitted(recipe)
    assert same_bits(first, fitted(recipe))
    assert not same_bits(first, fitted(quick()))
