"""The models: their sizes, their shapes, and the exactness of layers that are our own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tasks.rungs.building import initialize
from tasks.rungs.convolution import Conv, Norm, bilinear
from tasks.rungs.models import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (19, 20), (32, 48, 3), (9, 64, 3)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_every_shape(model, shape) -> None:
    """Greyscale or RGB, square or not, 8x8 up: images[B, H, W(, 3)] give finite logits[B, C]."""
    built = MODELS[model](shape, 7)
    logits = built(torch.rand(3, *shape))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("linear", 784 * 10 + 10),
        ("mlp", 784 * 64 + 64 + 64 * 10 + 10),
        ("convnet", 25 * 16 + 9 * 16 * 32 + 9 * 32 * 128 + 2 * (16 + 32 + 128) + 1152 * 10 + 10),
        (
            "deep_convnet",
            16 * 32
            + 9 * (32 * 48 + 48 * 96 + 96 * 96 + 96 * 192)
            + 2 * (32 + 48 + 96 + 96 + 192)
            + 192 * 10
            + 10,
        ),
        # torchvision's resnet18 has 11,689,512: less 512 x 990 + 990 for its 1,000 classes, and
        # less two input channels of its 7x7 stem.
        ("resnet18", 11_689_512 - 513 * 990 - 2 * 49 * 64),
    ],
)
def test_parameter_counts_are_the_known_ones(model, parameters) -> None:
    """At 28x28 and ten classes each model has the parameters its literature gives it."""
    built = MODELS[model]((28, 28), 10)
    assert sum(p.numel() for p in built.parameters()) == parameters


@pytest.mark.parametrize("side", [8, 16, 20, 24, 28, 32, 64, 96, 224])
def test_a_deep_convnet_works_as_long_on_any_size(side) -> None:
    """From 12 to 23 pixels a side are left by its first convolution, of small images all."""
    model = MODELS["deep_convnet"]((side, side, 3), 10)
    left = model[1](model[0](torch.rand(1, side, side, 3))).shape[2]
    assert left == side if side < 24 else 12 <= left < 24


def lying(x: torch.Tensor, order: str) -> torch.Tensor:
    """The same maps[B, C, H, W] in another order of memory."""
    inside = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    last = x.contiguous(memory_format=torch.channels_last)
    return {"plain": x, "channels last": last, "batch inside": inside}[order]


ORDERS = ["plain", "channels last", "batch inside"]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 1, 0), (3, 2, 1), (1, 2, 0), (1, 1, 0)]
)
@pytest.mark.parametrize("height", range(1, 18))
def test_convolutions_are_exact(height, kernel, stride, padding) -> None:
    """What multiplies less equals torch's convolution to 1e-12 in fp64, gradients too, any size."""
    generator = torch.Generator().manual_seed(height)
    layer = Conv(5, 6, kernel, stride, padding=padding).double()
    for width in {height, 7}:
        if min(height, width) + 2 * padding < kernel:
            continue
        weight = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
        layer.weight.data.copy_(weight)
        x = torch.randn(4, 5, height, width, generator=generator, dtype=torch.float64)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight.requires_grad_()
        here = layer(ours)
        there = F.conv2d(theirs, weight, stride=stride, padding=padding)
        towards = torch.randn(there.shape, generator=generator, dtype=torch.float64)
        found = torch.autograd.grad((here * towards).sum(), (ours, layer.weight))
        expected = torch.autograd.grad((there * towards).sum(), (theirs, weight))
        for a, b in zip((here, *found), (there, *expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())


def test_a_convolution_of_a_7x7_map_multiplies_121_times() -> None:
    """Tiles of 4 and 3 outputs take 6 and 5 products along each axis, by definition 21."""
    along = bilinear(7, 3, 1, 1, torch.float32)
    assert along.a.shape == (7, 11)
    assert along.b.shape == (11, 7)
    assert [len(bilinear(size, 3, 1, 1, torch.float32).b) for size in (1, 2, 4)] == [1, 3, 6]


@pytest.mark.parametrize("order", ORDERS)
def test_norm_is_torchs_batch_norm_and_keeps_the_order(order) -> None:
    """The same numbers as BatchNorm2d, in training and after it, and no layer turns the maps."""
    generator = torch.Generator().manual_seed(0)
    x = lying(torch.randn(4, 5, 3, 2, generator=generator), order)
    ours, theirs = Norm(5), torch.nn.BatchNorm2d(5, momentum=0.3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert order == "plain" or ours(x).stride() == x.stride()


def test_resnet_gradients_are_those_of_plain_convolutions(monkeypatch) -> None:
    """A whole ResNet18 at 28x28 in fp64: same logits, same gradients as with torch's own."""
    generator = torch.Generator().manual_seed(0)
    model = MODELS["resnet18"]((28, 28), 10).double()
    initialize(model, "default", generator)
    x = torch.rand(4, 28, 28, generator=generator, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(x)
        logits.square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    ours = gradients()
    monkeypatch.setattr(Conv, "forward", torch.nn.Conv2d.forward)
    for a, b in zip(ours, gradients(), strict=True):
        # Twenty batch norms amplify what rounding differs with the number of threads.
        assert (a - b).norm() <= 1e-11 * b.norm()


def test_randn_draws_every_parameter_from_the_standard_normal() -> None:
    """The post's start: weights and biases exactly as torch.randn gives them."""
    model = MODELS["linear"]((28, 28), 10)
    initialize(model, "randn", torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(model[1].weight, torch.randn(10, 784, generator=generator))
    assert torch.equal(model[1].bias, torch.randn(10, generator=generator))


@pytest.mark.parametrize("model", MODELS)
def test_default_stays_within_torchs_bounds(model) -> None:
    """Each weight and bias lies within 1 / sqrt(fan in), and a good part of the range is used."""
    built = MODELS[model]((28, 28), 10)
    initialize(built, "default", torch.Generator().manual_seed(3))
    for layer in built.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound
