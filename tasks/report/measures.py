"""The numbers of a report: what is right of what, and whether two differ by luck.

An answer sheet says which testing images something gets right: [N] bool, in the order of the
testing stacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def wilson(accuracy: float, n: int, z: float = 1.959963984540054) -> list[float]:
    """The 95 % interval of a share seen in n images, as fractions [low, high].

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if n == 0:
        return [0.0, 1.0]
    centre = accuracy + z * z / (2 * n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)]


def mcnemar(won: int, lost: int) -> float:
    """How often luck alone splits won + lost disagreements at least as unevenly, 0 to 1.

    The exact two-sided test of McNemar, "Note on the sampling error of the difference between
    correlated proportions or percentages" (1947): under luck each disagreement is a fair coin.
    """
    n, term, tail = won + lost, 1, 0
    for k in range(min(won, lost) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def compare(upper: np.ndarray, lower: np.ndarray) -> dict[str, Any]:
    """Two answer sheets on the same images: what the upper one won, lost, and whether by luck."""
    won, lost = int((upper & ~lower).sum()), int((lower & ~upper).sum())
    return {"won": won, "lost": lost, "p": mcnemar(won, lost)}


def compare_classes(
    upper: np.ndarray, lower: np.ndarray, truth: np.ndarray, draws: int = 20_000
) -> dict[str, float]:
    """`compare` where every class weighs alike: the gain in balanced accuracy, and p.

    McNemar's fair coin again, but here each disagreement weighs one over the images of its class,
    so p is counted in random draws, always the same ones.  truth: [N] int, the class of each.
    """
    images = np.bincount(truth)
    won, lost = np.bincount(truth, upper & ~lower), np.bincount(truth, lower & ~upper)
    here = np.flatnonzero(won + lost)  # classes on which the two differ
    seen = ((won - lost)[here] / images[here]).sum()
    coins, luck = np.random.default_rng(0), np.zeros(draws)
    for label in here:
        differing = int(won[label] + lost[label])
        luck += (2 * coins.binomial(differing, 0.5, draws) - differing) / images[label]
    as_uneven = int((abs(luck) >= abs(seen) - 1e-9).sum())
    return {
        "gain": round(seen / np.count_nonzero(images), 12),  # a tie is 0, and not 1e-17
        "p": (1 + as_uneven) / (1 + draws),
    }


def confusion_of(truth: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Counts [C, C]; rows are what it was, columns what was said."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (truth, said), 1)
    return counts


def scores(confusion: Sequence[Sequence[int]] | np.ndarray) -> dict[str, Any]:
    """What a confusion [C][C] says of each class, and of all when every class counts alike.

    "per_class": the share of each class that was read right (its recall), None without images;
    "balanced_accuracy": the mean of those; "macro_f1": the mean over the classes that have images
    or were said of F1, which is 2 hits / (images + times said).
    """
    counts = np.asarray(confusion)
    hits, images, times_said = counts.diagonal(), counts.sum(1), counts.sum(0)
    recalls = [int(h) / int(n) if n else None for h, n in zip(hits, images, strict=True)]
    known = [recall for recall in recalls if recall is not None]
    f1 = [2 * int(h) / int(n) for h, n in zip(hits, images + times_said, strict=True) if n]
    return {
        "per_class": recalls,
        "balanced_accuracy": sum(known) / len(known),
        "macro_f1": sum(f1) / len(f1),
    }


def packed(correct: np.ndarray) -> str:
    """An answer sheet as hex, eight images a byte, the first in the highest bit."""
    return np.packbits(correct).tobytes().hex()
