"""Train one recipe: the post's loop.

`train` sets it up, `fit` goes through the epochs, `Descent.step` takes a batch from its images to
the gradients, and `optimizers.SGD` moves by them: `p -= lr * p.grad`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from numpy.random import SeedSequence
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.bodies import CORES
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack, Weights
from tasks.rungs.building import (
    check_answers,
    check_numbers,
    contents,
    initialize,
    new_model,
    seeded,
    try_out,
)
from tasks.rungs.checkpoint import State, go_on, identity, moving, restore, save
from tasks.rungs.course import course, shifted
from tasks.rungs.losses import LOSSES
from tasks.rungs.measure import accuracy, describe, forward, measured, probabilities, rebuilt
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import OPTIMIZERS, SCHEDULES
from tasks.rungs.recipes import Recipe
from tasks.rungs.recording import Legs
from tasks.rungs.split import Labelled, common_shape, split


@stage(cores=lambda given, device: threads(given["recipe"].model, CORES.total, device))
def train(
    training: list[Stack],
    testing: list[Stack],
    classes: list[str],
    recipe: Recipe,
    validation: float | Literal["testing"] = 0.1,
    *,
    run: Run = Run(),
) -> dict[str, Any]:
    """Train one recipe and, at the end, measure it once on testing.

    `training` and `testing` hold one stack per class, in the order of `classes`.  `validation`
    is the share of training to hold out (0 to 1, exclusive), or "testing" to train on all of
    training and watch testing instead, as the post does.  Accuracies are 0 to 1 and count every
    image once.  Returns

    - "weights": Weights, for `load_model`,
    - "history": per epoch {"epoch" from 1, "training_loss", "validation_accuracy"},
    - "testing_accuracy", "per_class" [C] (0 for a class without testing images),
      "confusion" [C][C] (rows what it was, columns what was said),
    - "probabilities" [N, C] float32, on testing in the order of its stacks,
    - "parameters", "device", "images" {"training", "validation", "testing"},
    - "resume": Weights, what a training with more epochs goes on from; None under a schedule that
      depends on the number of epochs.

    Raises LadderError for stacks that do not fit together, an empty side of the split, or a
    training that diverges.
    """
    build, criterion = MODELS[recipe.model], LOSSES[recipe.loss]
    optimize, schedule = OPTIMIZERS[recipe.optimizer], SCHEDULES[recipe.schedule]

    shape = common_shape(training, testing, classes)
    seen, held_out, tests = split(training, testing, shape, validation)

    generator = torch.Generator().manual_seed(recipe.seed)
    model = new_model(build, shape, len(classes), generator)
    initialize(model, recipe.init, generator)
    check_numbers(model)
    try_out(model, seen.images[:2], len(classes))
    if run.device == "cuda":  # a CPU wants its weights as `convolution.Conv` lays them
        model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
    optimizer = optimize(list(model.parameters()), recipe.weight_decay)
    state = State(model, optimizer, generator, [])
    fit(state, seen, held_out, criterion=criterion, schedule=schedule, recipe=recipe, run=run)

    weights = Weights(contents(model), describe(recipe, classes, shape))
    check_answers(model, rebuilt(build, *weights), tests.images[:2], run.device)
    return {
        "weights": weights,
        "history": state.history,
        **measured(model, tests, recipe, len(classes)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": run.device,
        "images": {
            "training": len(seen.labels),
            "validation": len(held_out.labels),
            "testing": len(tests.labels),
        },
        "resume": Weights(moving(state), {}) if recipe.schedule == "constant" else None,
    }


def fit(
    state: State,
    seen: Labelled,
    held_out: Labelled,
    *,
    criterion: Callable[[Tensor, Tensor, float], Tensor],
    schedule: Callable[[float], float],
    recipe: Recipe,
    run: Run,
) -> None:
    """Train in place, going on from the last checkpoint of this training in run.scratch.

    Without one, go on from the longest stored training that differs in its epochs alone.
    """
    origin = identity(seen, held_out, recipe)
    restore(run.scratch, origin, state)
    if not state.history and recipe.schedule == "constant":
        go_on(state, recipe.epochs, run.earlier)
    descent = Descent(state, seen, criterion, recipe, run.device)
    legs = Legs(descent.step, run.device)
    watched = held_out.images.to(run.device)
    tell = seldom(run.progress)
    for epoch in range(len(state.history), recipe.epochs):
        note = f"epoch {epoch + 1} of {recipe.epochs}"
        way = course(state.generator, recipe, schedule, len(seen.labels), epoch)
        steps = len(way.rates)
        with seeded(stream(recipe.seed, epoch), run.device):
            state.model.train()
            for taken in legs.take(way):
                tell(epoch * steps + taken, recipe.epochs * steps, note)
            loss = descent.loss()
            said = probabilities(state.model, watched, recipe.precision)
        if not math.isfinite(loss) or not said.isfinite().all():
            raise LadderError(
                f"train {recipe.model}, {recipe.loss}, seed {recipe.seed} diverged in epoch "
                f"{epoch + 1} (loss {loss:.4g}): lower lr"
            )
        right = accuracy(said, held_out.labels)
        state.history.append(
            {"epoch": epoch + 1, "training_loss": loss, "validation_accuracy": right}
        )
        save(run.scratch, origin, state)
        note += f": loss {loss:.4f}, validation {right:.2%}"
        run.progress((epoch + 1) * steps, recipe.epochs * steps, note)


class Descent:
    """Goes down the loss, a step for each batch of the images to train on."""

    def __init__(
        self,
        state: State,
        seen: Labelled,
        criterion: Callable[[Tensor, Tensor, float], Tensor],
        recipe: Recipe,
        device: str,
    ) -> None:
        self.model, self.optimizer, self.criterion = state.model, state.optimizer, criterion
        self.recipe = recipe
        # A GPU keeps all pixels as bytes: they cross to it once, not every epoch.
        self.images, self.labels = seen.images.to(device), seen.labels.to(device)
        self.loss_sum = torch.zeros((), device=device)  # over the images of an epoch

    def step(self, batch: Tensor, shifts: Tensor, rate: Tensor) -> None:
        """One step, by the images of batch[B] int64, moved by shifts[4, 2], at rate[] float64."""
        x = shifted(self.images.index_select(0, batch), self.recipe.shift, shifts)
        logits = forward(self.model, x, self.recipe.precision)
        labels = self.labels.index_select(0, batch)
        loss = self.criterion(logits, labels, self.recipe.label_smoothing)
        loss.backward()
        self.optimizer.step(rate)
        self.loss_sum += loss.detach() * len(batch)

    def loss(self) -> float:
        """The mean over the images of an epoch, when its last step is taken."""
        mean = self.loss_sum.item() / len(self.labels)
        self.loss_sum.zero_()
        return mean


def stream(seed: int, epoch: int) -> int:
    """The seed of what a model itself draws in an epoch, counted from 0: 32 bits.

    Its own for each, so that a training that goes on needs to remember no more.
    """
    return int(SeedSequence((seed, epoch)).generate_state(1)[0])


def seldom(progress: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """`progress`, at most once a second."""
    last = time.monotonic()

    def tell(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            progress(done, total, note)

    return tell


def threads(model: str, cores: int, device: str) -> int:
    """How many torch threads a training of `model` wants on a machine of `cores` cores.

    A small model's products are over before a second thread has woken up.  On a GPU the thread
    only hands out work: as many trainings share the GPU as there are cores.
    """
    if device == "cuda":
        return 1
    return min(cores, {"linear": 1, "mlp": 1, "convnet": 2}.get(model, cores))
