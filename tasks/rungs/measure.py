"""What a model says of images, how often that is right, and a stored model loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tasks.caching.basics import LadderError
from tasks.rungs.building import fill, new_model, seeded
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe
from tasks.rungs.split import Labelled


def forward(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    """images[B, H, W(, 3)] uint8 -> logits[B, C] float32."""
    pixels = images.float().div_(255)
    # On a CPU float32 is faster: few have bfloat16 in hardware, and none in `convolution.Conv`.
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


def measured(model: nn.Module, tests: Labelled, recipe: Recipe, classes: int) -> dict[str, Any]:
    """A trained model's figures on the testing images, as the stage `train` gives them.

    Raises LadderError where the model answers with what are no numbers.
    """
    with seeded(recipe.seed, next(model.parameters()).device.type):
        said = probabilities(model, tests.images, recipe.precision)
    if not said.isfinite().all():
        raise LadderError(
            f"train {recipe.model}, {recipe.loss}, seed {recipe.seed} gives no numbers for some "
            "testing images: lower lr, or look at what the model does with them"
        )
    confusion = confusion_matrix(tests.labels, said.argmax(1), classes)
    return {
        "testing_accuracy": accuracy(said, tests.labels),
        "per_class": (confusion.diag().double() / confusion.sum(1).clamp(min=1)).tolist(),
        "confusion": confusion.tolist(),
        "probabilities": said,
    }


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
    return rebuilt(MODELS[metadata["model"]], tensors, metadata)


def rebuilt(
    build: Callable[[Sequence[int], int], nn.Module],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> nn.Module:
    """`load_model` for whoever knows the builder, and so reaches no other model's code."""
    shape = json.loads(metadata["preprocessing"])["shape"]
    generator = torch.Generator().manual_seed(json.loads(metadata["recipe"])["seed"])
    classes = json.loads(metadata["classes"])
    model = new_model(build, shape, len(classes), generator)
    fill(model, tensors)
    return model.eval()
