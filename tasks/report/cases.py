"""Which testing images the page shows: those that rungs get wrong, and labels that may be wrong.

Probabilities are [N, C] float32 by rung, in the order of the testing stacks; truth is [N] int.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EACH = 96  # mistakes of one rung, at most
FIRST = 24  # of them the surest come first; the rest are spread over the pairs of classes
SUSPECTS, SURE = 24, 0.8


def suspects(
    probabilities: Mapping[str, np.ndarray], truth: np.ndarray, good: Sequence[str]
) -> list[int]:
    """Images whose label may be wrong: every good rung predicts the same other class.

    They come in the order of how sure the least sure of those rungs is, which is at least 0.8.
    """
    if not good:
        return []
    predicted = np.stack([probabilities[label].argmax(1) for label in good])
    sure = np.stack([probabilities[label].max(1) for label in good]).min(0)
    agreed = (predicted == predicted[0]).all(0) & (predicted[0] != truth)
    rows = np.flatnonzero(agreed & (sure >= SURE))
    return rows[np.argsort(-sure[rows], kind="stable")][:SUSPECTS].tolist()


def good_rungs(rungs: Sequence[dict[str, Any]]) -> list[str]:
    """The labels of the rungs that make at most twice the best one's mistakes on validation."""
    wrong = {rung["label"]: 1 - rung["validation_accuracy"] for rung in rungs}
    least = min(wrong.values(), default=0.0)
    return [label for label, share in wrong.items() if share <= 2 * least]


def mistakes(probabilities: np.ndarray, truth: np.ndarray) -> list[int]:
    """A rung's mistakes: its surest first, then the surest of each pair of classes in turn."""
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != truth)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    turns: dict[tuple[int, int], int] = {}
    rank = {}
    for row in wrong[FIRST:].tolist():
        pair = int(truth[row]), int(predicted[row])
        rank[row] = turns[pair] = turns.get(pair, 0) + 1
    return [*wrong[:FIRST].tolist(), *sorted(rank, key=rank.__getitem__)]


def choose(wanted: Sequence[Sequence[int]], most: int) -> list[int]:
    """At most so many of several lists' rows, each list's turn coming as often as another's."""
    longest = max(map(len, wanted), default=0)
    turns = [rows[turn] for turn in range(longest) for rows in wanted if turn < len(rows)]
    return [*dict.fromkeys(turns)][:most]


def confused(confusion: Sequence[Sequence[int]], most: int = 6) -> list[dict[str, Any]]:
    """The pairs of classes that are confused most: "truth", "predicted", "count" and "share"."""
    counts = np.array(confusion)
    images = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [tuple(map(int, np.unravel_index(each, counts.shape))) for each in order]
    return [
        {"truth": t, "predicted": p, "count": int(counts[t, p]), "share": counts[t, p] / images[t]}
        for t, p in pairs
        if counts[t, p]
    ]
