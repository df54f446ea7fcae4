"""The gradients of the post's models written out, and what they say of images as they are stored.

Autograd finds the same gradients by skinny products that take twice the time: weights[units, N]
by pixels[N, B] is half the work for a processor of pixels[B, N] by weights[N, units].  So all
that is between the layers is [units, B] here, and 1/255 is in the weights, which are fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

SCALE = 1 / 255


class WrittenOut:
    """Linear layers with sigmoids between them, on a CPU, in float32.

    parameters: weight[units, inputs] and bias[units] of each layer.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.weights, self.biases = parameters[::2], parameters[1::2]

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """images[B, H, W(, 3)] uint8 -> logits[B, C] float32."""
        return self._through(images.flatten(1).float())[-1].t()

    @torch.no_grad()
    def descend(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Give each parameter its gradient of loss(logits[B, C]), a scalar, which is returned.

        images[B, H, W(, 3)] uint8.  Through y = sigmoid(x), a slope is multiplied by y (1 - y).
        """
        pixels = images.flatten(1).float()
        *inputs, outputs = self._through(pixels)
        value, slope = _slope(loss, outputs)
        for i in range(len(inputs) - 1, 0, -1):
            self._set(i, slope @ inputs[i].t(), slope)
            slope = (self.weights[i].t() @ slope).mul_(inputs[i] * (1 - inputs[i]))
        self._set(0, slope.mul(SCALE) @ pixels, slope)
        return value

    def _through(self, pixels: Tensor) -> list[Tensor]:
        """What goes into each layer and comes out of the last: pixels[B, N] -> [units, B] each."""
        found, weight = [pixels.t()], self.weights[0] * SCALE
        for i, bias in enumerate(self.biases):
            x = found[-1].sigmoid_() if i else found[0]
            found.append(torch.addmm(bias[:, None], self.weights[i] if i else weight, x))
        return found

    def _set(self, layer: int, gradient: Tensor, slope: Tensor) -> None:
        self.weights[layer].grad, self.biases[layer].grad = gradient, slope.sum(1)


def _slope(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """A loss of logits, outputs[C, B], and its gradient by them, [C, B]."""
    value = loss(outputs.t())
    slope = getattr(value, "slope", None)  # as our own losses carry along
    if slope is None:
        with torch.enable_grad():
            logits = outputs.t().requires_grad_()
            value = loss(logits)
            slope = torch.autograd.grad(value, logits)[0].t().contiguous()
    return value.detach(), slope


@runtime_checkable
class Writable(Protocol):
    """A model that may be written out."""

    def written_out(self) -> WrittenOut | None:
        """It, with the same parameters; None where it is no more as its class made it."""


class Dense(nn.Sequential):
    """All pixels of an image, then layers of so many units, sigmoids between them.

    images[B, H, W(, 3)] float32, 0 to 1 -> logits[B, sizes[-1]], for sizes[0] = H x W (x 3).
    """

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
        super().__init__(*layers[:-1])

    def written_out(self) -> WrittenOut | None:
        """It, unless a layer was put in place of another, hooked, frozen, or parametrized."""
        kinds = [type(layer) for layer in self]
        parameters = [*self.parameters()]
        as_made = (
            kinds == [nn.Flatten, *(nn.Linear, nn.Sigmoid) * (len(kinds) // 2)][: len(kinds)]
            and type(self).forward is nn.Sequential.forward
            and len(parameters) == len(kinds) // 2 * 2
            and all(p.requires_grad and not p._backward_hooks for p in parameters)
            and not any(map(is_hooked, self.modules()))
        )
        return WrittenOut(parameters) if as_made else None


def is_hooked(layer: Any) -> bool:
    """Whether something else is called when a layer is, or when its gradient is known."""
    before, after = layer._forward_pre_hooks, layer._forward_hooks
    return bool(before or after or layer._backward_pre_hooks or layer._backward_hooks)
