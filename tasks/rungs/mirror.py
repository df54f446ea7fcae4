"""Whether an image and its mirror image mean the same: asked of a model that has seen no mirror.

Photographs may be mirrored in training, and digits must not be.  A model trained on images as they
are recognises mirrored photographs of the validation images about as well, mirrored digits hardly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from tasks.caching.basics import LadderError
from tasks.caching.bodies import CORES
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.rungs.building import seeded
from tasks.rungs.measure import answers, rebuilt, threads
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe
from tasks.rungs.split import by_class, common_shape, split

KEPT = 0.9  # of all right answers: photographs keep all but noise, digits a third
CLASS_KEPT = 0.5  # of those of each class: an arrow to the left becomes one to the right
ENOUGH = 10  # right answers, of which a share can be told


@stage(
    cores=lambda given, device: threads(given["recipe"].model, CORES.total, device),
    apart=lambda: (threads,),  # the key holds how many
)
def mirror(
    trained: dict[str, Any],
    training: list[Stack],
    watched: list[Stack],
    classes: list[str],
    recipe: Recipe,
    validation: float | Literal["testing", "given"] = 0.1,
    *,
    run: Run = Run(),
) -> dict[str, Any]:
    """Measure a model on its validation images as they are and mirrored, left and right changed.

    trained: what `train` gave of `recipe`, which flips nothing; training, watched, validation: as
    it got them.  Returns "right" and "mirrored_right" [C], how many images of each class were
    recognised, of how many "images", and whether to "flip".
    """
    shape = common_shape(by_class("training", training, classes))
    _seen, held_out = split(training, watched, shape, validation)
    model = rebuilt(MODELS[recipe.model], *trained["weights"])
    model.to(run.device)
    counts = []
    for mirrored in (False, True):
        with seeded(recipe.seed, run.device):
            said = answers(model, held_out.images, recipe.precision, mirrored=mirrored).argmax(1)
        hits = held_out.labels[said == held_out.labels]
        counts.append(torch.bincount(hits, minlength=len(classes)).tolist())
    right, mirrored_right = counts
    return {
        "right": right,
        "mirrored_right": mirrored_right,
        "images": len(held_out.labels),
        "flip": means_the_same(right, mirrored_right),
    }


def means_the_same(right: Sequence[int], mirrored_right: Sequence[int]) -> bool:
    """Whether mirrored images of each class are recognised about as often as they were before."""
    return sum(mirrored_right) >= KEPT * sum(right) and all(
        mirrored >= CLASS_KEPT * plain
        for plain, mirrored in zip(right, mirrored_right, strict=True)
        if plain >= ENOUGH
    )


def settled(recipe: Recipe, mirrored: dict[str, Any] | None) -> Recipe:
    """The recipe with true or false for a `flip` of "auto", as `mirror` found it.

    Raises LadderError where it has not been asked.
    """
    if recipe.flip != "auto":
        return recipe
    if mirrored is None:
        raise LadderError('flip "auto" needs what the stage mirror found: give true or false')
    return recipe.model_copy(update={"flip": mirrored["flip"]})
