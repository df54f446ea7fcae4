"""The models: their sizes, their shapes, and the exactness of the small-map convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tasks.models import MODELS, Conv3x3, initialize

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
        ("convnet", 25 * 32 + 9 * 32 * 64 + 9 * 64 * 96 + 2 * (32 + 64 + 96) + 864 * 10 + 10),
        # torchvision's resnet18 has 11,689,512: less 512 x 990 + 990 for its 1,000 classes, and
        # less two input channels of its 7x7 stem.
        ("resnet18", 11_689_512 - 513 * 990 - 2 * 49 * 64),
    ],
)
def test_parameter_counts_are_the_known_ones(model, parameters) -> None:
    """At 28x28 and ten classes each model has the parameters its literature gives it."""
    built = MODELS[model]((28, 28), 10)
    assert sum(p.numel() for p in built.parameters()) == parameters


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_small_convolutions_are_exact(size, stride) -> None:
    """The matrix products equal torch's convolution to 1e-12 in fp64, forward and gradients."""
    generator = torch.Generator().manual_seed(0)
    layer = Conv3x3(5, 6, stride).double()
    weight = torch.randn(6, 5, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    layer.weight.data.copy_(weight.data)
    x = torch.randn(4, 5, size, size, generator=generator, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    here = layer(ours)
    there = F.conv2d(theirs, weight, stride=stride, padding=1)
    towards = torch.randn(there.shape, generator=generator, dtype=torch.float64)
    (here * towards).sum().backward()
    (there * towards).sum().backward()
    for a, b in [(here, there), (ours.grad, theirs.grad), (layer.weight.grad, weight.grad)]:
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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
    monkeypatch.setattr(Conv3x3, "forward", torch.nn.Conv2d.forward)
    for a, b in zip(ours, gradients(), strict=True):
        assert (a - b).norm() <= 1e-12 * b.norm()


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


def test_initialize_leaves_torchs_own_stream_alone() -> None:
    """Drawing a model's start moves no global random state."""
    model = MODELS["mlp"]((8, 8), 10)
    before = torch.get_rng_state()
    initialize(model, "default", torch.Generator().manual_seed(1))
    initialize(model, "randn", torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
