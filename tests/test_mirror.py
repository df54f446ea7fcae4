"""Normalized and mirrored images: what is learned of them, and when images are mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tasks.caching.basics import LadderError
from tasks.caching.values import Stack
from tasks.rungs.building import Normalize, new_model
from tasks.rungs.course import course, flipped
from tasks.rungs.ladders import fitting_ladder, mirror_trial
from tasks.rungs.measure import load_model
from tasks.rungs.mirror import means_the_same, mirror, settled
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import SCHEDULES
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ["2", "3", "5"]


def stack(images: np.ndarray) -> Stack:
    digests = np.random.default_rng(len(images)).integers(0, 256, (len(images), 32), np.uint8)
    return Stack(torch.from_numpy(images), [f"{i}.png" for i in range(len(images))], digests)


def digits(*, both_ways: bool = False) -> list[Stack]:
    """Digits whose mirror images mean nothing, or, of every second one, the same."""
    data = load_digits()
    stacks = []
    for name in CLASSES:
        images = (data.images[data.target == int(name)] * 15).astype(np.uint8)
        if both_ways:
            images[::2] = images[::2, :, ::-1]
        stacks.append(stack(images))
    return stacks


def recipe(**fields: Any) -> Recipe:
    return Recipe(model="deep_convnet", loss="cross_entropy", **({"epochs": 4} | fields))


@pytest.mark.parametrize("both_ways", [False, True])
def test_whether_to_mirror_is_measured(both_ways) -> None:
    """Digits are not to be; pictures that come either way are, and a training then does so."""
    training = digits(both_ways=both_ways)
    asking = recipe(flip="auto", epochs=2)
    trial = mirror_trial([asking], 400)
    assert trial
    tried = train.fn(training, [], CLASSES, trial, 0.2)
    found = mirror.fn(tried, training, [], CLASSES, trial, 0.2)
    assert sum(found["right"]) > 0.8 * found["images"]
    assert found["flip"] == both_ways, found
    done = train.fn(training, [], CLASSES, asking, 0.2, found)
    assert done["flip"] is both_ways
    assert Recipe.model_validate_json(done["weights"].metadata["recipe"]).flip is both_ways
    unasked = train.fn(training, [], CLASSES, asking.model_copy(update={"flip": both_ways}), 0.2)
    assert done["history"] == unasked["history"]


@pytest.mark.parametrize(
    ("right", "mirrored", "same"),
    [
        ([100, 100], [91, 90], True),
        ([100, 100], [91, 88], False),  # under nine tenths of all
        ([1000, 10], [1000, 5], True),
        ([1000, 10], [1000, 4], False),  # under half of one class
        ([1000, 9], [1000, 0], True),  # of so few nothing can be said
        ([0, 0], [0, 0], True),
    ],
)
def test_mirrored_images_mean_the_same_in_every_class(right, mirrored, same) -> None:
    """Nine tenths of all right answers are kept, and half of those of each class."""
    assert means_the_same(right, mirrored) == same


def test_a_recipe_that_leaves_it_open_needs_an_answer() -> None:
    """True and false stay as they are, whatever was found."""
    assert settled(recipe(flip=False), {"flip": True}).flip is False
    assert settled(recipe(flip="auto"), {"flip": True}).flip is True
    with pytest.raises(LadderError, match="true or false"):
        settled(recipe(flip="auto"), None)


@pytest.mark.parametrize("shape", [(8, 5, 4), (8, 5, 4, 3)])
def test_flipped_mirrors_the_quarters_that_it_is_told(shape) -> None:
    """Left and right change, in greyscale and in colour; the other quarters stay."""
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator())
    done = flipped(images, torch.tensor([True, False, False, True]))
    for row in range(8):
        expected = images[row].flip(1) if row in (0, 1, 6, 7) else images[row]
        assert torch.equal(done[row], expected)
    assert [len(flipped(images[:n], torch.ones(4).bool())) for n in range(1, 9)] == [*range(1, 9)]


def test_a_course_mirrors_half_and_only_where_asked() -> None:
    """What else it draws is the same, so that a recipe without flips trains to the same bits."""
    ways = [
        course(torch.Generator().manual_seed(0), recipe(flip=flip), SCHEDULES["constant"], 9_999, 0)
        for flip in (False, True)
    ]
    assert not ways[0].flips.any()
    assert 0.3 < ways[1].flips.float().mean() < 0.7
    assert torch.equal(ways[0].shifts, ways[1].shifts)
    assert torch.equal(torch.cat([*ways[0].batches]), torch.cat([*ways[1].batches]))


@pytest.mark.parametrize("shape", [(1500, 6, 5), (1500, 6, 5, 3)])
def test_normalize_takes_each_channel_to_mean_0_and_deviation_1(shape) -> None:
    images = torch.randint(30, 90, shape, dtype=torch.uint8, generator=torch.Generator())
    layer = Normalize(1 if len(shape) == 3 else 3)
    layer.learn(images)
    pixels = layer(images / 255).reshape(-1, len(layer.mean))
    torch.testing.assert_close(pixels.mean(0), torch.zeros(len(layer.mean)), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels.std(0), torch.ones(len(layer.mean)), atol=1e-4, rtol=0)
    layer.learn(torch.full(shape, 7, dtype=torch.uint8))  # all alike: nothing is divided by 0
    assert torch.equal(layer(torch.full(shape, 7 / 255)), torch.zeros(shape))


def test_what_normalizes_comes_with_the_weights() -> None:
    """Learned from the images trained on alone, and there for whoever loads the weights."""
    training = digits()
    for each in training:
        each.digests[: len(each.digests) // 2, 0] = 0  # the first half is held out
        each.digests[len(each.digests) // 2 :, 0] = 255
    done = train.fn(training, [], CLASSES, recipe(epochs=1), 0.5)
    seen = torch.cat([each.images[len(each.images) // 2 :] for each in training])
    weights = done["weights"]
    assert weights.tensors["0.mean"].item() == pytest.approx(seen.double().mean().item() / 255)
    with torch.no_grad():
        said = load_model(*weights)(seen / 255)
    layer, inner = Normalize(1), MODELS["deep_convnet"]((8, 8), 3)
    layer.learn(seen)
    inner.load_state_dict({k[2:]: v for k, v in weights.tensors.items() if k.startswith("1.")})
    with torch.no_grad():
        torch.testing.assert_close(said, inner.eval()(layer(seen / 255)))


def test_every_rung_that_fits_starts_as_torch_does() -> None:
    """Their builders' own draws, under the recipe's seed, with the normalizing layer before."""
    for each in fitting_ladder((8, 8, 3), 100):
        build = MODELS[each.model]
        plain, wrapped = (
            new_model(build, (8, 8, 3), 4, torch.Generator().manual_seed(5), normalize=normalize)
            for normalize in (False, True)
        )
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, wrapped.state_dict()[f"1.{name}"]), name
