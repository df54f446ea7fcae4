"""What a model says of images, how often that is right, and a stored model loaded again.

`measure` looks at the testing images once, when a training is over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tasks.caching.basics import LadderError
from tasks.caching.bodies import CORES
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.rungs.building import fill, new_model, seeded
from tasks.rungs.by_hand import Writable, WrittenOut
from tasks.rungs.calibrate import calibrated, calibration_error
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe
from tasks.rungs.rows import Images
from tasks.rungs.split import by_class, common_shape, everything

TOGETHER = 4_000_000  # places of a map of pixels at a time: a layer of 64 such maps takes 1 GB


@stage(
    cores=lambda given, device: threads(given["recipe"].model, CORES.total, device),
    apart=lambda: (threads,),  # the key holds how many
)
def measure(
    trained: dict[str, Any],
    calibration: dict[str, Any],
    testing: list[Stack],
    classes: list[str],
    recipe: Recipe,
    *,
    run: Run = Run(),
) -> dict[str, Any]:
    """Measure a trained model on the testing images.

    trained, calibration: what `train` and `calibrate` gave of `recipe`.  testing: one stack per
    class, in the order of `classes`.  Returns

    - "testing_accuracy" 0 to 1, "per_class" [C] (0 for a class without testing images),
      "confusion" [C][C] (rows what it was, columns what was said),
    - "probabilities" [N, C] float32, calibrated, in the order of the testing stacks,
    - "testing_calibration_error": {"before", "after"} calibration, 0 to 1,
    - "images": {"testing"}.

    Raises LadderError for images of another shape, for none, and where the model answers with what
    are no numbers.
    """
    build, (tensors, metadata) = MODELS[recipe.model], trained["weights"]
    shape = common_shape(by_class("testing", testing, classes))
    trained_on = json.loads(metadata["preprocessing"])["shape"]
    if list(shape) != trained_on:
        raise LadderError(
            f"the testing images are of shape {list(shape)}, those of training of {trained_on}: "
            "make them one size, or ask for one with --size"
        )
    tests = everything(testing, shape)
    model = rebuilt(build, tensors, metadata)
    if run.device == "cuda":
        model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
    with seeded(recipe.seed, run.device):
        logits = answers(model, tests.images, recipe.precision)
    said = calibrated(logits, calibration["temperature"])
    if not said.isfinite().all():
        raise LadderError(
            "the model gives no numbers for some testing images: lower lr, or look at what it "
            "does with them"
        )
    confusion = confusion_matrix(tests.labels, said.argmax(1), len(classes))
    return {
        "testing_accuracy": accuracy(said, tests.labels),
        "per_class": (confusion.diag().double() / confusion.sum(1).clamp(min=1)).tolist(),
        "confusion": confusion.tolist(),
        "probabilities": said,
        "testing_calibration_error": {
            "before": calibration_error(logits.softmax(1), tests.labels),
            "after": calibration_error(said, tests.labels),
        },
        "images": {"testing": len(tests.labels)},
    }


def forward(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """images[B, H, W(, 3)] uint8 -> logits[B, C] float32."""
    if in_float32(precision, images.device.type):
        return cast(Tensor, model(images.float().div_(255)))
    with torch.autocast(images.device.type, torch.bfloat16):
        return cast(Tensor, model(images.float().div_(255)).float())


def in_float32(precision: str, device: str) -> bool:
    """Whether a model computes in float32 there: on a CPU that is faster than bfloat16.

    Few have it in hardware, and none in `convolution.Conv`.
    """
    return precision == "float32" or (precision == "auto" and device != "cuda")


def by_hand(model: nn.Module, precision: str, device: str) -> WrittenOut | None:
    """The model written out, where it can be."""
    if device != "cpu" or not in_float32(precision, device) or not isinstance(model, Writable):
        return None
    return model.written_out()


def answers(model: nn.Module, images: Images, precision: str, *, mirrored: bool = False) -> Tensor:
    """What a model says.  images[N, H, W(, 3)] uint8 -> logits[N, C] float32, on the CPU.

    mirrored: of the images with left and right changed.  Takes some images at a time, so that
    memory depends on their size and not on their number.  Leaves the model in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    written = by_hand(model, precision, device.type)
    count = min(1000, max(1, TOGETHER // max(1, images.shape[1:3].numel())))
    logits, done = torch.empty(0), 0
    with torch.no_grad():
        for part in images.split(count):
            seen = part.flip(2) if mirrored else part
            said = written.answers(seen) if written else forward(model, seen.to(device), precision)
            if not done:  # all of it at once: small pieces among large ones take up the memory
                logits = said.new_empty(len(images), *said.shape[1:])
            logits[done : done + len(part)] = said
            done += len(part)
    return logits.cpu()


def accuracy(said: Tensor, labels: Tensor) -> float:
    """The share of images whose likeliest class is the right one.  said[N, C], labels[N]."""
    return (said.argmax(1) == labels).double().mean().item()


def confusion_matrix(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """How often each class (row) was called each (column).  labels[N], said[N] -> [C, C] int64."""
    return torch.bincount(labels * classes + said, minlength=classes**2).view(classes, classes)


def describe(
    recipe: Recipe,
    classes: list[str],
    shape: Sequence[int],
    validation: float | Literal["testing", "given"],
) -> dict[str, str]:
    """What `load_model` and whoever uses its model need to know, as safetensors metadata."""
    preprocessing = {"shape": shape, "mode": "L" if len(shape) == 2 else "RGB", "scale": 1 / 255}
    return {
        "model": recipe.model,
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(preprocessing),
        "recipe": recipe.model_dump_json(),
        "validation": json.dumps(validation),
        "torch": str(torch.__version__),
    }


def load_model(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> nn.Module:
    """The trained model of `Weights`: images[B, H, W(, 3)] float32, 0 to 1 -> logits[B, C].

    `forward` feeds it from uint8.  metadata["classes"] names the C classes (JSON list),
    metadata["preprocessing"] the shape and Pillow mode of an image.
    """
    return rebuilt(MODELS[metadata["model"]], tensors, metadata)


def rebuilt(
    build: Callable[[Sequence[int], int], nn.Module],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> nn.Module:
    """`load_model` for whoever knows the builder, and so reaches no other model's code."""
    shape = json.loads(metadata["preprocessing"])["shape"]
    recipe, classes = json.loads(metadata["recipe"]), json.loads(metadata["classes"])
    generator = torch.Generator().manual_seed(recipe["seed"])
    model = new_model(build, shape, len(classes), generator, normalize=recipe["normalize"])
    fill(model, tensors)
    return model.eval()


def threads(model: str, cores: int, device: str) -> int:
    """How many torch threads a model wants, to be trained or measured on `cores` cores.

    A small model's products are over before a second thread has woken up.  On a GPU the thread
    only hands out work: as many trainings share the GPU as there are cores.
    """
    if device == "cuda":
        return 1
    return min(cores, {"linear": 1, "mlp": 1, "convnet": 2, "deep_convnet": 2}.get(model, cores))
