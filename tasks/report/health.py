"""The health of a dataset: imbalance, duplicates, leaks, conflicting labels, what was skipped.

Images are equal when their pixels are: it is the pixel digests that are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tasks.caching.values import Stack
from tasks.images.drawing import held_out_of

UNEQUAL = 1.5  # times the images of the smallest class: from here on every class counts alike too


def health(
    classes: list[str],
    training: list[Stack],
    testing: list[Stack],
    skipped: list[str],
    validation: float | Literal["testing", "given"] = "testing",
    watched: Sequence[Stack] = (),
) -> dict[str, Any]:
    """What to know of a dataset: imbalance, duplicates, leaks, conflicting labels, skipped files.

    Images are equal when their pixels are: it is the pixel digests that are compared.  watched: the
    images given for validation, of each class.
    """
    counts = {
        "training": [len(stack.names) for stack in training],
        "testing": [len(stack.names) for stack in testing],
    }
    held_out = [len(stack.names) for stack in watched] or None
    if not isinstance(validation, str):
        out = held_out_of([stack.digests for stack in training], validation)
        held_out = [int(each.sum()) for each in out]
    equal: dict[bytes, list[tuple[str, int, str]]] = defaultdict(list)
    sides = (("training", training), ("validation", watched), ("testing", testing))
    for split, stacks in sides:
        for label, stack in enumerate(stacks):
            for name, digest in zip(stack.names, stack.digests, strict=True):
                equal[digest.tobytes()].append((split, label, name))
    groups = [group for group in equal.values() if len(group) > 1]
    conflicts = [group for group in groups if len({label for _, label, _ in group}) > 1]
    shared = [group for group in groups if len({split for split, _, _ in group}) > 1]
    examples = {id(group): group for group in (*conflicts, *shared, *groups)}

    def shown(group: list[tuple[str, int, str]]) -> list[str]:
        return [f"{split}/{classes[label]}/{name}" for split, label, name in group]

    return {
        "counts": counts,
        "held_out": held_out,  # for validation, of each class; None where none are
        "imbalance": max(counts["training"]) / max(1, min(counts["training"])),
        "unequal": any(max(each) > UNEQUAL * min(each) for each in counts.values()),
        "duplicates": sum(len(group) - 1 for group in groups),
        "in_both": sum(split == "testing" for group in shared for split, _, _ in group),
        "conflicts": sum(len(group) for group in conflicts),
        "examples": [shown(group[:8]) for group in list(examples.values())[:12]],
        "first": {  # a pair of each kind that matters most, for the warnings
            "in_both": [shown([group[0], group[-1]]) for group in shared[:1]],
            "conflicts": [
                shown([group[0], next(each for each in group if each[1] != group[0][1])])
                for group in conflicts[:1]
            ],
        },
        "skipped": skipped,
    }


def leaks(training: list[Stack], testing: list[Stack]) -> np.ndarray:
    """Which testing images have the pixels of one in training.  [N] bool."""
    known = {digest.tobytes() for stack in training for digest in stack.digests}
    return np.array([d.tobytes() in known for stack in testing for d in stack.digests], bool)
