"""Train one recipe: the post's loop, from a shuffled batch to `p -= lr * p.grad`."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.random import SeedSequence
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tasks.caching.basics import LadderError, write_atomic
from tasks.caching.machine import insist_on_room
from tasks.caching.process import CORES
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack, Weights
from tasks.rungs.building import check_numbers, contents, fill, new_model, seeded, try_out
from tasks.rungs.losses import LOSSES
from tasks.rungs.models import MODELS, initialize
from tasks.rungs.recipes import Recipe


def threads(model: str, cores: int, device: str) -> int:
    """How many torch threads a training of `model` wants on a machine of `cores` cores.

    A small model's products are over before a second thread has woken up.  On a GPU the thread
    only hands out work: as many trainings share the GPU as there are cores.
    """
    if device == "cuda":
        return 1
    return min(cores, {"linear": 1, "mlp": 1, "convnet": 2}.get(model, cores))


class Labelled(NamedTuple):
    """Images and the index of each one's class."""

    images: Tensor  # [N, H, W] or [N, H, W, 3] uint8
    labels: Tensor  # [N] int64


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
    if run.device == "cuda":  # a CPU wants its weights as `models.Conv` lays them
        model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
    optimizer = optimize(list(model.parameters()), recipe.weight_decay)
    state = State(model, optimizer, generator, [])
    fit(state, seen, held_out, criterion=criterion, schedule=schedule, recipe=recipe, run=run)

    with seeded(recipe.seed, run.device):
        said = probabilities(model, tests.images, recipe.precision)
    if not said.isfinite().all():
        raise LadderError(
            f"train {recipe.model}, {recipe.loss}, seed {recipe.seed} gives no numbers for some "
            "testing images: lower lr, or look at what the model does with them"
        )
    confusion = confusion_matrix(tests.labels, said.argmax(1), len(classes))
    return {
        "weights": Weights(contents(model), describe(recipe, classes, shape)),
        "history": state.history,
        "testing_accuracy": accuracy(said, tests.labels),
        "per_class": (confusion.diag().double() / confusion.sum(1).clamp(min=1)).tolist(),
        "confusion": confusion.tolist(),
        "probabilities": said,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": run.device,
        "images": {
            "training": len(seen.labels),
            "validation": len(held_out.labels),
            "testing": len(tests.labels),
        },
        "resume": Weights(moving(state), {}) if recipe.schedule == "constant" else None,
    }


def common_shape(
    training: list[Stack], testing: list[Stack], classes: list[str]
) -> tuple[int, ...]:
    """The [H, W] or [H, W, 3] that all images share; LadderError names a stack that differs."""
    if not len(training) == len(testing) == len(classes) > 1:
        raise LadderError(
            f"train takes one training and one testing stack for each of two or more classes, "
            f"not {len(training)} and {len(testing)} for {len(classes)}"
        )
    names = [f"{side}/{name}" for side in ("training", "testing") for name in classes]
    shapes = {
        name: tuple(stack.images.shape[1:])
        for name, stack in zip(names, [*training, *testing], strict=True)
        if len(stack.images)
    }
    first, shape = next(iter(shapes.items()), ("", ()))
    for name, other in shapes.items():
        if other != shape:
            same_mode = len(other) == len(shape)
            raise LadderError(
                f"{name} has images of shape {list(other)}, {first} of {list(shape)}: "
                + ("make them one size, or ask for one with --size" if same_mode
                   else "save all images as RGB, or all as greyscale")
            )  # fmt: skip
    return shape


def split(
    training: list[Stack],
    testing: list[Stack],
    shape: Sequence[int],
    validation: float | Literal["testing"],
) -> tuple[Labelled, Labelled, Labelled]:
    """The images to train on, those to watch meanwhile, and those to test on.

    Equal images are always on the same side, see `held_out_of`.
    """
    tests = gather(testing, [np.full(len(stack.names), True) for stack in testing], shape)
    if validation == "testing":
        seen = gather(training, [np.full(len(stack.names), True) for stack in training], shape)
        held_out = tests
    else:
        if not 0 < validation < 1:
            raise LadderError(f"validation is a fraction between 0 and 1, not {validation}")
        out = held_out_of([stack.digests for stack in training], validation)
        seen, held_out = gather(training, [~o for o in out], shape), gather(training, out, shape)
    if len(seen.labels) < 2 or not len(held_out.labels) or not len(tests.labels):
        raise LadderError(
            f"{len(seen.labels)} images to train on, {len(held_out.labels)} for validation and "
            f"{len(tests.labels)} for testing are too few: add images or change validation"
        )
    return seen, held_out, tests


def held_out_of(classes: list[np.ndarray], validation: float) -> list[np.ndarray]:
    """Which images of each class are held out: those whose own number is below `validation`.

    So an image stays on its side when others come or go, but for one case: a class that would be
    held out whole keeps its image with the highest number, and training keeps what equals it.
    classes: an array of digests [N, 32] uint8 each; gives [N] bool for each.
    """
    out = [draw(digests) < validation for digests in classes]
    last = [
        digests[draw(digests).argmax()].tobytes()
        for digests, held in zip(classes, out, strict=True)
        if held.size and held.all()
    ]
    for digest in last:
        kept = [(digests == np.frombuffer(digest, np.uint8)).all(axis=1) for digests in classes]
        out = [held & ~keep for held, keep in zip(out, kept, strict=True)]
    return out


def draw(digests: np.ndarray) -> np.ndarray:
    """Each image's own number, 0 to 1, from its digest's first 8 bytes.  [N, 32] -> [N]."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] / 2.0**64


def gather(stacks: list[Stack], chosen: list[np.ndarray], shape: Sequence[int]) -> Labelled:
    """The chosen rows of all stacks, copied once; an image's label is its stack's index."""
    rows = [torch.from_numpy(mask).nonzero()[:, 0] for mask in chosen]
    insist_on_room("to train and measure", sum(map(len, rows)), shape)
    images = torch.empty(sum(map(len, rows)), *shape, dtype=torch.uint8)
    for part, stack, index in zip(images.split([*map(len, rows)]), stacks, rows, strict=True):
        if len(index):
            torch.index_select(stack.images, 0, index, out=part)
    labels = [torch.full((len(index),), label) for label, index in enumerate(rows)]
    return Labelled(images, torch.cat(labels))


class State(NamedTuple):
    """All that changes while a model trains, and so all that a checkpoint keeps."""

    model: nn.Module
    optimizer: SGD | AdamW
    generator: torch.Generator
    history: list[dict[str, float]]


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
    model, history = state.model, state.history
    origin = identity(seen, held_out, recipe)
    restore(run.scratch, origin, state)
    if not history and recipe.schedule == "constant":
        go_on(state, recipe, run)
    descent = Descent(state, seen, criterion, recipe, run.device)
    watched = held_out.images.to(run.device)
    tell = seldom(run.progress)
    for epoch in range(len(history), recipe.epochs):
        note = f"epoch {epoch + 1} of {recipe.epochs}"
        way = course(state.generator, recipe, schedule, len(seen.labels), epoch)
        steps = len(way.rates)
        with seeded(stream(recipe.seed, epoch), run.device):
            for taken in descent.go(way):
                tell(epoch * steps + taken, recipe.epochs * steps, note)
            loss_mean = descent.loss_sum.item() / len(seen.labels)
            said = probabilities(model, watched, recipe.precision)
        if not math.isfinite(loss_mean) or not said.isfinite().all():
            raise LadderError(
                f"train {recipe.model}, {recipe.loss}, seed {recipe.seed} diverged in epoch "
                f"{epoch + 1} (loss {loss_mean:.4g}): lower lr"
            )
        right = accuracy(said, held_out.labels)
        history.append(
            {"epoch": epoch + 1, "training_loss": loss_mean, "validation_accuracy": right}
        )
        save(run.scratch, origin, state)
        note += f": loss {loss_mean:.4f}, validation {right:.2%}"
        run.progress((epoch + 1) * steps, recipe.epochs * steps, note)


def stream(seed: int, epoch: int) -> int:
    """The seed of what a model itself draws in an epoch, counted from 0: 32 bits.

    Its own for each, so that a training that goes on needs to remember no more.
    """
    return int(SeedSequence((seed, epoch)).generate_state(1)[0])


class Course(NamedTuple):
    """What the steps of an epoch, or some of them, go by."""

    order: Tensor  # [N] int64, the images as they come
    shifts: Tensor  # [steps, 4, 2] int64, by how much each quarter of a batch moves, see `shifted`
    rates: Tensor  # [steps] float64, learning rates


def course(
    generator: torch.Generator,
    recipe: Recipe,
    schedule: Callable[[float], float],
    images: int,
    epoch: int,
) -> Course:
    """Draw the course of an epoch, counted from 0, before its first step."""
    order = torch.randperm(images, generator=generator)
    steps = len(batches(order, recipe.batch(images)))
    shifts = torch.zeros(steps, 4, 2, dtype=torch.int64)
    if recipe.shift:
        shifts = torch.randint(2 * recipe.shift + 1, shifts.shape, generator=generator)
    done = [(epoch + (step + 0.5) / steps) / recipe.epochs for step in range(steps)]
    rates = [recipe.lr * schedule(share) for share in done]
    return Course(order, shifts, torch.tensor(rates, dtype=torch.float64))


class Descent:
    """Goes down the loss by a course, LEG steps at a time, as a GPU can repeat them."""

    def __init__(
        self,
        state: State,
        seen: Labelled,
        criterion: Callable[[Tensor, Tensor, float], Tensor],
        recipe: Recipe,
        device: str,
    ) -> None:
        self.model, self.optimizer, self.criterion = state.model, state.optimizer, criterion
        self.recipe, self.device = recipe, device
        # A GPU keeps all pixels as bytes: they cross to it once, not every epoch.
        self.images, self.labels = seen.images.to(device), seen.labels.to(device)
        self.loss_sum = torch.zeros((), device=device)  # over the images of an epoch
        self._legs: dict[tuple[int, ...], tuple[Course, Iterator[None]]] = {}

    def go(self, way: Course) -> Iterator[int]:
        """Take an epoch's steps; tells before each leg how many are taken."""
        self.model.train()
        self.loss_sum.zero_()
        order, shifts, rates = (each.to(self.device) for each in way)
        parts = batches(order, self.recipe.batch(len(order)))
        for first in range(0, len(parts), LEG):
            yield first
            some = slice(first, first + LEG)
            given = Course(torch.cat(parts[some]), shifts[some], rates[some])
            sizes = tuple(map(len, parts[some]))
            if sizes not in self._legs:
                self._legs[sizes] = self._leg(sizes, given)
            leg, descents = self._legs[sizes]
            for here, there in zip(leg, given, strict=True):
                here.copy_(there)
            next(descents)

    def _leg(self, sizes: tuple[int, ...], like: Course) -> tuple[Course, Iterator[None]]:
        """Room for the course of batches of these sizes, and the steps by what is in it."""
        leg = Course(*map(torch.empty_like, like))

        def take() -> None:
            for given in zip(leg.order.split(sizes), leg.shifts, leg.rates, strict=True):
                self.step(*given)

        return leg, repeated(take, self.device)

    def step(self, batch: Tensor, shifts: Tensor, rate: Tensor) -> None:
        """One step, by the images of batch[B] int64, moved by shifts[4, 2], at rate[] float64."""
        x = shifted(self.images.index_select(0, batch), self.recipe.shift, shifts)
        logits = forward(self.model, x, self.recipe.precision)
        labels = self.labels.index_select(0, batch)
        loss = self.criterion(logits, labels, self.recipe.label_smoothing)
        loss.backward()
        self.optimizer.step(rate)
        self.loss_sum += loss.detach() * len(batch)


LEG = 16  # steps: enough to hide Python from a GPU, and few enough to be recorded of any model


def repeated(work: Callable[[], None], device: str) -> Iterator[None]:
    """Does `work` at each step of the iterator, on a GPU without Python between its kernels.

    There, the first time is as usual and leaves nothing to be set up; the second is recorded as a
    CUDA graph, which is what runs from then on.  So `work` may read and change only tensors that
    stay where they are, and wait for no number.
    """
    while device != "cuda":
        work()
        yield
    stream = torch.cuda.Stream()  # nothing can be recorded on the usual one
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    yield
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, stream=stream):
        work()
    while True:
        recording.replay()
        yield


def batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut order[N] into batches; the last is as short as it comes out.

    Only a last batch under an eighth of `size`, or of one image, joins the one before it: batch
    norm cannot make a statistic of one image and makes a bad one of a few.
    """
    parts = order.split(size)
    if len(parts) > 1 and len(parts[-1]) < max(2, size / 8):
        return (*parts[:-2], torch.cat(parts[-2:]))
    return parts


def shifted(images: Tensor, pixels: int, shifts: Tensor) -> Tensor:
    """Each quarter of a batch moved by up to `pixels` along H and W, black flowing in.

    images[B, H, W(, 3)] uint8, shifts[4, 2] int64 from 0 (down, right) to 2 pixels (up, left) ->
    the same shape as images.
    """
    if not pixels:
        return images
    height, width = images.shape[1:3]
    around = (0, 0) * (images.ndim - 3) + (pixels,) * 4
    windows = F.pad(images, around).unfold(1, height, 1).unfold(2, width, 1)
    rows = torch.arange(len(images), device=images.device)
    down, across = shifts[rows // -(-len(images) // 4)].unbind(1)
    moved = windows[rows, down, across]  # [B(, 3), H, W]
    return moved if images.ndim == 3 else moved.movedim(1, 3)


def forward(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """images[B, H, W(, 3)] uint8 -> logits[B, C] float32."""
    pixels = images.float().div_(255)
    # On a CPU float32 is the faster one: few have bfloat16 in hardware, and none in `models.Conv`.
    if precision == "float32" or (precision == "auto" and not images.is_cuda):
        return cast(Tensor, model(pixels))
    with torch.autocast(images.device.type, torch.bfloat16):
        return cast(Tensor, model(pixels).float())


def probabilities(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """The softmax of what a model says.  images[N, H, W(, 3)] uint8 -> [N, C] float32, on the CPU.

    Leaves the model in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [forward(model, part.to(device), precision) for part in images.split(1000)]
    return torch.cat(parts).softmax(1).cpu()


def accuracy(said: Tensor, labels: Tensor) -> float:
    """The share of images whose likeliest class is the right one.  said[N, C], labels[N]."""
    return (said.argmax(1) == labels).double().mean().item()


def confusion_matrix(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """How often each class (row) was called each (column).  labels[N], said[N] -> [C, C] int64."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes)


def describe(recipe: Recipe, classes: list[str], shape: Sequence[int]) -> dict[str, str]:
    """What `load_model` and whoever uses its model need to know, as safetensors metadata."""
    preprocessing = {"shape": shape, "mode": "L" if len(shape) == 2 else "RGB", "scale": 1 / 255}
    return {
        "model": recipe.model,
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(preprocessing),
        "recipe": recipe.model_dump_json(),
    }


def load_model(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> nn.Module:
    """The trained model of `Weights`: images[B, H, W(, 3)] float32, 0 to 1 -> logits[B, C].

    `probabilities` feeds it from uint8.  metadata["classes"] names the C classes (JSON list),
    metadata["preprocessing"] the shape and Pillow mode of an image.
    """
    shape = json.loads(metadata["preprocessing"])["shape"]
    generator = torch.Generator().manual_seed(json.loads(metadata["recipe"])["seed"])
    classes = json.loads(metadata["classes"])
    model = new_model(MODELS[metadata["model"]], shape, len(classes), generator)
    fill(model, tensors)
    return model.eval()


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
            grad = p.grad
            if grad is None:  # a parameter the model did not use
                continue
            if self.weight_decay:
                grad = grad + self.weight_decay * p
            p -= lr * grad  # noqa: PLW2901 - in place
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


def seldom(progress: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """`progress`, at most once a second."""
    last = time.monotonic()

    def tell(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            progress(done, total, note)

    return tell


def identity(seen: Labelled, held_out: Labelled, recipe: Recipe) -> str:
    """Hex sha256 over the images, the labels and the recipe: what a checkpoint is good for."""
    sha = hashlib.sha256(recipe.model_dump_json().encode())
    for tensor in (*seen, *held_out):
        sha.update(f"{tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().data)
    return sha.hexdigest()


def moving(state: State) -> dict[str, Tensor]:
    """What changes while a model trains, besides its weights: the optimizer and the generator."""
    slots = {f"optimizer.{name}": tensor for name, tensor in state.optimizer.state().items()}
    slots["generator"] = state.generator.get_state()
    return {name: tensor.cpu().contiguous() for name, tensor in slots.items()}


def put_back(
    state: State, weights: Mapping[str, Tensor], slots: Mapping[str, Tensor], history: list[Any]
) -> None:
    """Bring a fresh state to where a training was."""
    fill(state.model, weights)
    prefix = "optimizer."
    state.optimizer.restore(
        {name.removeprefix(prefix): each for name, each in slots.items() if name != "generator"}
    )
    state.generator.set_state(slots["generator"])
    state.history.extend(history)


def go_on(state: State, recipe: Recipe, run: Run) -> None:
    """Start where the longest shorter training ended, if one is stored.

    Under a constant learning rate its steps are the first steps of this one, to the bit.
    """
    earlier = run.earlier("parameters", "recipe", "epochs")
    shorter = [(epochs, result) for epochs, result in earlier if epochs < recipe.epochs]
    if shorter:
        _epochs, result = max(shorter, key=lambda each: each[0])
        resume = result["resume"].tensors
        put_back(state, result["weights"].tensors, resume, result["history"])


def save(scratch: Path | None, origin: str, state: State) -> None:
    """Put a checkpoint into `scratch`, whole or not at all.  Raises LadderError on a full disk."""
    if scratch is None:
        return
    tensors = {f"model.{name}": tensor for name, tensor in contents(state.model).items()}
    tensors |= moving(state)
    metadata = {"origin": origin, "history": json.dumps(state.history)}
    metadata["digest"] = digest(tensors, metadata)
    write_atomic(scratch / "checkpoint.safetensors", safetensors.torch.save(tensors, metadata))


def restore(scratch: Path | None, origin: str, state: State) -> None:
    """Take back the checkpoint in `scratch`; a damaged one, or another training's, is ignored."""
    path = scratch / "checkpoint.safetensors" if scratch else None
    if path is None or not path.is_file():
        return
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return
    if metadata.pop("digest", "") != digest(tensors, metadata) or metadata["origin"] != origin:
        return
    prefix = "model."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    slots = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    put_back(state, weights, slots, json.loads(metadata["history"]))


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex sha256 over names, shapes and values: safetensors itself does not notice a lost bit."""
    sha = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}
SCHEDULES = {"constant": constant, "one_cycle": one_cycle, "triangular": triangular}
