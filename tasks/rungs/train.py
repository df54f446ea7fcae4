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
from tasks.rungs.augmentations import AUGMENTATIONS, check_augmentation
from tasks.rungs.building import (
    Normalize,
    check_answers,
    check_numbers,
    contents,
    fill,
    initialize,
    new_model,
    seeded,
    try_out,
)
from tasks.rungs.checkpoint import State, go_on, identity, moving, restore, save
from tasks.rungs.course import course, flipped, shifted
from tasks.rungs.losses import LOSSES, check_loss
from tasks.rungs.measure import accuracy, answers, by_hand, describe, forward, rebuilt, threads
from tasks.rungs.mirror import settled
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import OPTIMIZERS, SCHEDULES, check_optimizer, check_schedule
from tasks.rungs.recipes import Recipe
from tasks.rungs.recording import Legs
from tasks.rungs.split import Labelled, by_class, common_shape, split
from tasks.rungs.start import start_from


@stage(
    cores=lambda given, device: threads(given["recipe"].model, CORES.total, device),
    about=lambda given: expected(given["recipe"]),
    # How many cores and how long it takes, who looks on, what a kill may cost
    apart=lambda: (threads, expected, seldom, save),
)
def train(
    training: list[Stack],
    watched: list[Stack],
    classes: list[str],
    recipe: Recipe,
    validation: float | Literal["testing", "given"] = 0.1,
    mirrored: dict[str, Any] | None = None,
    *,
    run: Run = Run(),
) -> dict[str, Any]:
    """Train one recipe.  What it says of testing is measured by another stage, `measure`.

    `training` holds one stack per class, in the order of `classes`.  `validation` is the share of
    it to hold out (0 to 1, exclusive), or says to train on all of it and watch `watched`: "given",
    stacks for just that, "testing", the testing stacks, as the post does; else `watched` is empty.
    `mirrored` is what the stage `mirror` found, for a recipe that leaves it to that whether to flip
    images.  Accuracies are 0 to 1 and count every image once.  Returns

    - "weights": Weights, for `load_model`,
    - "history": per epoch {"epoch" from 1, "training_loss", "validation_loss",
      "validation_accuracy"}; both losses are the recipe's, its label smoothing included,
      its class weights not; fewer than the recipe's epochs where its patience ended,
    - "held_out": {"logits" [M, C] float32, "labels" [M] int64} of the images watched,
    - "epoch", the one whose weights these are,
    - "flip", whether images were mirrored,
    - "parameters", "device", "images" {"training", "validation"},
    - "resume": Weights, what a training with more epochs goes on from; None under a schedule that
      depends on the number of epochs, and where the best epoch was kept.

    Raises LadderError for stacks that do not fit together, an empty side of the split, or a
    training that diverges.
    """
    build, criterion = MODELS[recipe.model], LOSSES[recipe.loss]
    optimize, schedule = OPTIMIZERS[recipe.optimizer], SCHEDULES[recipe.schedule]
    augment = AUGMENTATIONS[recipe.augment]
    decided = settled(recipe, mirrored)

    shape = common_shape(by_class("training", training, classes)
                         | (by_class("watched", watched, classes) if watched else {}))  # fmt: skip
    seen, held_out = split(training, watched, shape, validation)

    generator = torch.Generator().manual_seed(recipe.seed)
    model = new_model(build, shape, len(classes), generator, normalize=recipe.normalize)
    if isinstance(first := next(model.children(), None), Normalize):
        first.learn(seen.images)
    initialize(model, recipe.init, generator)
    if recipe.weights != "none":
        start_from(model, recipe.weights)
    check_numbers(model)
    try_out(model, seen.images[:2], len(classes))
    check_loss(criterion, len(classes), recipe.label_smoothing)
    check_schedule(schedule)
    with seeded(recipe.seed):
        check_augmentation(seen.images[:2], augment(seen.images[:2]))
    if run.device == "cuda":  # a CPU wants its weights as `convolution.Conv` lays them
        model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
    optimizer = optimize(list(model.parameters()), recipe.weight_decay)
    check_optimizer(optimizer)
    state = State(model, optimizer, generator, [], {})
    fit(
        state, seen, held_out, criterion=criterion, schedule=schedule, augment=augment,
        recipe=decided, run=run,
    )  # fmt: skip

    epoch = len(state.history)
    if recipe.keep == "best":
        epoch = best_epoch(state.history)
        fill(model, state.best)
    weights = Weights(contents(model), describe(decided, classes, shape, validation))
    check_answers(model, rebuilt(build, *weights), held_out.images[:2], run.device)
    with seeded(stream(recipe.seed, epoch - 1), run.device):
        logits = answers(model, held_out.images, recipe.precision)
    return {
        "weights": weights,
        "history": state.history,
        "held_out": {"logits": logits, "labels": held_out.labels},
        "epoch": epoch,
        "flip": decided.flip,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": run.device,
        "images": {"training": len(seen.labels), "validation": len(held_out.labels)},
        "resume": Weights(moving(state), {}) if goes_on(recipe) else None,
    }


def fit(
    state: State,
    seen: Labelled,
    held_out: Labelled,
    *,
    criterion: Callable[[Tensor, Tensor, float], Tensor],
    schedule: Callable[[float], float],
    augment: Callable[[Tensor], Tensor],
    recipe: Recipe,
    run: Run,
) -> None:
    """Train in place, going on from the last checkpoint of this training in run.scratch.

    Without one, go on from the longest stored training that differs in its epochs alone.
    """
    origin = identity(seen, held_out, recipe)
    restore(run.scratch, origin, state)
    if not state.history and goes_on(recipe):
        go_on(state, recipe.epochs, run.earlier)
    descent = Descent(state, seen, criterion, augment, recipe, run.device)
    legs = Legs(descent.step, run.device)
    watched = held_out.images.to(run.device)
    tell = seldom(run.progress)
    while (epoch := len(state.history)) < recipe.epochs and not is_over(state.history, recipe):
        note = f"epoch {epoch + 1} of {recipe.epochs}"
        way = course(state.generator, recipe, schedule, len(seen.labels), epoch)
        steps = len(way.rates)
        with seeded(stream(recipe.seed, epoch), run.device):
            state.model.train()
            for taken in legs.take(way):
                tell(epoch * steps + taken, recipe.epochs * steps, note)
            loss = descent.loss()
            logits = answers(state.model, watched, recipe.precision)
        missed = criterion(logits, held_out.labels, recipe.label_smoothing).item()
        if not (math.isfinite(loss) and math.isfinite(missed) and logits.isfinite().all()):
            raise LadderError(f"diverged in epoch {epoch + 1} (loss {loss:.4g}): lower lr")
        right = accuracy(logits, held_out.labels)
        state.history.append(
            {
                "epoch": epoch + 1,
                "training_loss": loss,
                "validation_loss": missed,
                "validation_accuracy": right,
            }
        )
        if recipe.keep == "best" and best_epoch(state.history) == epoch + 1:
            state.best.update(contents(state.model))
        save(run.scratch, origin, state)
        note += f": loss {loss:.4f}, validation {right:.2%}"
        run.progress((epoch + 1) * steps, recipe.epochs * steps, note)


def expected(recipe: Recipe) -> float:
    """The seconds that a training takes for the post's images on one core, roughly."""
    return recipe.epochs * {"linear": 0.1, "mlp": 0.3, "resnet18": 60.0}.get(recipe.model, 2.0)


def goes_on(recipe: Recipe) -> bool:
    """Whether more epochs may start from the end of fewer, its steps being the first of theirs."""
    return recipe.schedule == "constant" and recipe.keep == "last"


def is_over(history: list[dict[str, float]], recipe: Recipe) -> bool:
    """Whether the recipe's patience is at its end: so many epochs after the best one so far."""
    return 0 < recipe.patience <= len(history) - (best_epoch(history) if history else 0)


def best_epoch(history: list[dict[str, float]]) -> int:
    """The epoch, from 1, of the best validation accuracy; of equals, the one of the lowest loss."""
    best = max(history, key=lambda each: (each["validation_accuracy"], -each["validation_loss"]))
    return int(best["epoch"])


class Descent:
    """Goes down the loss, a step for each batch of the images to train on."""

    def __init__(
        self,
        state: State,
        seen: Labelled,
        criterion: Callable[[Tensor, Tensor, float], Tensor],
        augment: Callable[[Tensor], Tensor],
        recipe: Recipe,
        device: str,
    ) -> None:
        self.model, self.optimizer, self.criterion = state.model, state.optimizer, criterion
        self.augment, self.recipe = augment, recipe
        self.written = by_hand(state.model, recipe.precision, device)
        # A GPU keeps all pixels as bytes: they cross to it once, not every epoch.
        self.images, self.labels = seen.images.to(device), seen.labels.to(device)
        if recipe.class_weights == "balanced":
            self.criterion = weighed(criterion, balanced(seen.labels).to(device))
        self.loss_sum = torch.zeros((), device=device)  # over the images of an epoch

    def step(self, batch: Tensor, shifts: Tensor, flips: Tensor, rate: Tensor) -> None:
        """One step, at rate[] float64, by the images of batch[B] int64.

        They are moved by shifts[4, 2] and, where flips[4] says so, mirrored.
        """
        x = shifted(self.images.index_select(0, batch), self.recipe.shift, shifts)
        if self.recipe.flip:
            x = flipped(x, flips)
        x = self.augment(x)
        labels = self.labels.index_select(0, batch)

        def loss(logits: Tensor) -> Tensor:
            return self.criterion(logits, labels, self.recipe.label_smoothing)

        if self.written:
            value = self.written.descend(x, loss)
        else:
            value = loss(forward(self.model, x, self.recipe.precision))
            value.backward()
        self.optimizer.step(rate)
        self.loss_sum += value.detach() * len(batch)

    def loss(self) -> float:
        """The mean over the images of an epoch, when its last step is taken."""
        mean = self.loss_sum.item() / len(self.labels)
        self.loss_sum.zero_()
        return mean


def weighed(
    criterion: Callable[[Tensor, Tensor, float], Tensor], weights: Tensor
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Any loss that is a mean over images, in whose gradient each counts by weights[C]."""

    def loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        factor = weights.index_select(0, labels)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * factor[:, None])
        value = criterion(logits, labels, smoothing)
        if (slope := getattr(value, "slope", None)) is not None:
            value.slope = slope * factor  # type: ignore[attr-defined] # see `losses.sloped`
        return value

    return loss


def balanced(labels: Tensor) -> Tensor:
    """How much an image of each class counts, so that all classes count alike, and images 1 in all.

    labels[N] int64 -> [C] float32.
    """
    counts = labels.bincount()
    return len(labels) / (len(counts) * counts.clamp(min=1))


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
