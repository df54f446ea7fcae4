"""How a step moves the parameters, and how long a step is: optimizers and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from tasks.caching.basics import LadderError, shown
from tasks.caching.own import Registry


@runtime_checkable
class Optimizer(Protocol):
    """Moves parameters; made of them and the recipe's weight decay."""

    def step(self, lr: Tensor) -> None:
        """Move every parameter by its gradient, and forget the gradient.  lr[] float64."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers from one step to the next, for a training that goes on."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""


class SGD:
    """Plain gradient descent, written out as in the post."""

    def __init__(self, parameters: list[Tensor], weight_decay: float) -> None:
        self.parameters = parameters
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Move every parameter against its gradient, and forget the gradient.  lr[] float64."""
        lr = lr.float()  # once, and not in each product
        for p in self.parameters:
            if p.grad is None:  # a parameter the model did not use
                continue
            if self.weight_decay:
                p.grad = p.grad + self.weight_decay * p
            p -= lr * p.grad  # noqa: PLW2901 - in place
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Nothing is remembered from one step to the next."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take back."""


class AdamW:
    """torch's AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization).

    By its function: to make torch's class of that name imports a compiler, for more than a second.
    """

    def __init__(self, parameters: list[Tensor], weight_decay: float) -> None:
        self.parameters = parameters
        self.weight_decay = weight_decay
        self.slots = [
            {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in parameters
        ]

    @torch.no_grad()
    def step(self, lr: Tensor) -> None:
        """Move every parameter, and forget its gradient.  lr[] float64."""
        on_gpu = lr.is_cuda
        used = [
            (p, p.grad, slots["exp_avg"], slots["exp_avg_sq"], slots["step"])
            for p, slots in zip(self.parameters, self.slots, strict=True)
            if p.grad is not None
        ]
        if any(gradient.is_sparse for _, gradient, *_ in used):
            raise LadderError("adamw takes no sparse gradients: train by sgd, or build "
                              "nn.Embedding with sparse=False")  # fmt: skip
        parameters, gradients, means, squares, steps = map(list, zip(*used, strict=True))
        adamw(
            parameters, gradients, means, squares, [], steps,
            lr=lr.float() if on_gpu else lr,  # as the kernels of a GPU read it
            beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=self.weight_decay,
            amsgrad=False, maximize=False, fused=True, capturable=on_gpu,
        )  # fmt: skip
        for p in parameters:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """The running moments of each parameter, as "0.exp_avg"."""
        return {
            f"{i}.{name}": kept
            for i, slots in enumerate(self.slots)
            for name, kept in slots.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from moments that `state` gave."""
        for key, kept in state.items():
            index, name = key.split(".")
            self.slots[int(index)][name].copy_(kept)


def constant(done: float) -> float:
    """The same learning rate throughout.  `done` is the share of all steps, 0 to 1."""
    return 1.0


def triangular(done: float) -> float:
    """Up in a line over the first fifth, down in a line to nothing.  0 to 1 -> 0 to 1."""
    return done / 0.2 if done < 0.2 else (1 - done) / 0.8


def one_cycle(done: float) -> float:
    """Up from 1/25 along a cosine over the first quarter, down along another.  0 to 1 -> 0 to 1.

    Smith, Super-Convergence, with the cosines of fastai's fit_one_cycle.
    """
    if done < 0.25:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * done / 0.25)) / 2
    return (1 + math.cos(math.pi * (done - 0.25) / 0.75)) / 2


def check_optimizer(optimizer: object) -> None:
    """Raise LadderError for an optimizer without one of the methods that a training calls."""
    if not isinstance(optimizer, Optimizer):
        raise LadderError(f"the optimizer, a {type(optimizer).__name__}, lacks step(lr), state() "
                          "or restore(state): write its class as SGD of "
                          "tasks/rungs/optimizers.py")  # fmt: skip


def check_schedule(schedule: Callable[[float], float]) -> None:
    """Raise LadderError unless a schedule gives numbers from 0 up."""
    for done in (0.0, 0.5, 1.0):
        share = schedule(done)
        if not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise LadderError(f"the schedule gives {shown(share)} for {done}, not a number from 0 "
                              "up, by which lr is multiplied")  # fmt: skip


OPTIMIZERS: Registry[Callable[[list[Tensor], float], Optimizer]] = Registry(
    {"sgd": SGD, "adamw": AdamW}
)
SCHEDULES = Registry({"constant": constant, "one_cycle": one_cycle, "triangular": triangular})
