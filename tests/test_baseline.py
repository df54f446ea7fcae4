"""The average image and the nearest of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.caching.basics import LadderError
from tasks.caching.values import Stack
from tasks.images.decode import decode
from tasks.images.scan import scan
from tasks.rungs import baseline as chapter
from tasks.rungs.baseline import DISTANCES, baseline, mean

# Accuracy per digit 0..9 of the post's nearest mean, reproduced with the post's own method.
POST = {
    "mae": [0.8153, 0.9982, 0.4234, 0.6089, 0.6680, 0.3262, 0.7871, 0.7646, 0.4425, 0.7760],
    "mse": [0.8959, 0.9621, 0.7568, 0.8059, 0.8259, 0.6861, 0.8633, 0.8327, 0.7372, 0.8067],
}


def stack_of(images: torch.Tensor) -> Stack:
    n = len(images)
    return Stack(images, [f"{i}.png" for i in range(n)], np.zeros((n, 32), np.uint8))


def test_the_mean_is_the_average_of_all_pixels_from_0_to_1() -> None:
    images = torch.tensor([[[0, 255]], [[255, 255]], [[0, 255]]], dtype=torch.uint8)
    average = mean.fn(stack_of(images))
    assert average.dtype == torch.float32
    assert average.shape == (1, 2)
    assert torch.equal(average, torch.tensor([[1 / 3, 1.0]]))


@pytest.mark.parametrize(("name", "power"), [("mae", 1), ("mse", 2)])
def test_a_distance_is_its_formula_written_out(name: str, power: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((50, 30), generator=generator)
    means = torch.rand((4, 30), generator=generator)
    expected = (images[:, None] - means[None]).abs().pow(power).mean(2)  # [50, 4]
    torch.testing.assert_close(DISTANCES[name](images, means).float(), expected)


def test_accuracy_weighs_images_and_the_posts_figure_weighs_classes() -> None:
    means = [torch.zeros(2, 2), torch.ones(2, 2)]
    black, white = torch.zeros(1, 2, 2).byte(), torch.full((1, 2, 2), 255).byte()
    testing = [stack_of(torch.cat([black, black, black])), stack_of(torch.cat([white, black]))]
    result = baseline.fn(means, testing, ["dark", "light"], "mse")
    assert result["per_class"] == [1.0, 0.5]
    assert result["accuracy"] == 4 / 5
    assert result["mean_of_classes"] == 0.75
    assert result["said"].tolist() == [0, 0, 0, 1, 0]
    assert result["said"].dtype == torch.int32


def test_images_are_called_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 4, 4), generator=generator).byte()
    means = [torch.rand(4, 4, generator=generator) for _ in range(3)]
    testing = [stack_of(images[:0]), stack_of(images[:4]), stack_of(images[4:])]
    whole = baseline.fn(means, testing, ["a", "b", "c"], "mse")
    monkeypatch.setattr(chapter, "BLOCK", 33)
    parts = baseline.fn(means, testing, ["a", "b", "c"], "mse")
    assert whole.pop("said").tolist() == parts.pop("said").tolist()
    assert whole == parts


def test_images_of_another_shape_are_named_instead_of_broadcast() -> None:
    means = [torch.zeros(2, 2), torch.zeros(2, 2)]
    testing = [stack_of(torch.zeros(1, 2, 2).byte()), stack_of(torch.zeros(3, 1, 2).byte())]
    with pytest.raises(LadderError, match=r"testing/b are \[1, 2\].*--size"):
        baseline.fn(means, testing, ["a", "b"], "mae")
    with pytest.raises(LadderError, match=r"training/b are \[2\].*save all images as RGB"):
        baseline.fn([torch.zeros(2, 2), torch.zeros(2)], testing, ["a", "b"], "mae")


def test_mnist_gives_the_posts_twenty_accuracies(mnist: Path, tmp_path: Path) -> None:
    """All 20 per-digit accuracies equal the post's method to four decimals."""
    dataset = scan(mnist, tmp_path)
    stacks = {
        split: [decode.fn(each.load(tmp_path)) for each in getattr(dataset, split)]
        for split in ("training", "testing")
    }
    means = [mean.fn(stack) for stack in stacks["training"]]
    for distance, expected in POST.items():
        result = baseline.fn(means, stacks["testing"], dataset.classes, distance)
        assert [round(share, 4) for share in result["per_class"]] == expected
