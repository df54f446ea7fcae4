"""The numbers of a report: what is right of what, and whether two differ by luck.

An answer sheet says which testing images something gets right: [N] bool, in the order of the
testing stacks.  Of a recipe that was trained from several seeds it has a row for each: [S, N].
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


def holm(ps: Sequence[float]) -> list[float]:
    """Each p of several tests, raised so that all together are rarely wrong, 0 to 1.

    Holm, "A simple sequentially rejective multiple test procedure" (1979): where luck alone is at
    work in all of them, one or more falls below a level no more often than a single p would.
    """
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = least
    return adjusted


def compare(upper: np.ndarray, lower: np.ndarray) -> dict[str, Any]:
    """Two answer sheets on the same images: what the upper one won, lost, and whether by luck.

    By McNemar's test; where there are several seeds, by `seeded`, "won" and "lost" being means over
    all pairs of theirs, and "seeds" how many each has.
    """
    seeds = [1 if sheet.ndim == 1 else len(sheet) for sheet in (upper, lower)]
    if seeds == [1, 1] or np.array_equal(upper, lower):
        won, lost = int((upper & ~lower).sum()), int((lower & ~upper).sum())
        return {"won": won, "lost": lost, "p": mcnemar(won, lost)}
    ours, theirs = (np.atleast_2d(sheet).mean(0) for sheet in (upper, lower))
    return {
        "won": round((ours * (1 - theirs)).sum(), 1),
        "lost": round((theirs * (1 - ours)).sum(), 1),
        "p": seeded(upper, lower, np.full(upper.shape[-1], 1 / max(1, upper.shape[-1]))),
        "seeds": seeds,
    }


def seeded(upper: np.ndarray, lower: np.ndarray, weights: np.ndarray) -> float:
    """How often the luck of images and of seeds parts two recipes at least as far, 0 to 1.

    upper, lower: answer sheets [S, N], [T, N], S + T > 2; [N] of what knows no seed.  weights: [N],
    what each image counts, 1 in all.

    Images and seeds are both drawn, as cases and readers are in Obuchowski and Rockette,
    "Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests" (1995).
    The difference of the means over seeds varies by its images, of which the part that comes from
    seed and image together is counted but once, and by its seeds, never by less than that part.
    Of these two variances, the second known from few seeds, the degrees of freedom are those of
    Satterthwaite, "An approximate distribution of estimates of variance components" (1946).
    A single seed beside several is taken to have the luck of those.
    """
    sheets = [np.atleast_2d(sheet).astype(float) for sheet in (upper, lower)]
    difference = (sheets[0].mean(0) - sheets[1].mean(0)) * weights
    free = sum(len(sheet) - 1 for sheet in sheets)
    count = sum(1 / sheet.shape[0] for sheet in (upper, lower) if sheet.ndim > 1)
    apart = [sheet - sheet.mean(0) for sheet in sheets]
    both = sum(((each * weights) ** 2).sum() for each in apart) * count / free
    seeds = max(both, sum(((each @ weights) ** 2).sum() for each in apart) * count / free)
    images = max(0.0, (difference**2).sum() - both)
    if seeds + images == 0:
        return 1.0
    freedom = (seeds + images) ** 2 / (seeds**2 / free + images**2 / max(1, len(weights) - 1))
    return student(difference.sum() / math.sqrt(seeds + images), freedom)


def student(t: float, freedom: float) -> float:
    """How much of Student's distribution lies beyond t to both sides, 0 to 1.

    Its density is that of cos(x) ** (freedom - 1) at t = sqrt(freedom) tan(x).
    """
    freedom = min(freedom, 10_000.0)  # where it is the normal one to four digits

    def area(start: float) -> float:
        angles = np.linspace(start, math.pi / 2, 20_001)
        return float(np.trapezoid(np.cos(angles).clip(0) ** (freedom - 1), angles))

    return min(1.0, area(math.atan(abs(t) / math.sqrt(freedom))) / area(0.0))


def compare_classes(
    upper: np.ndarray, lower: np.ndarray, truth: np.ndarray, draws: int = 20_000
) -> dict[str, float]:
    """`compare` where every class weighs alike: the gain in balanced accuracy, and p.

    McNemar's fair coin again, but here each disagreement weighs one over the images of its class,
    so p is counted in random draws, always the same ones.  Where there are several seeds, p is that
    of `seeded`.  truth: [N] int, the class of each.
    """
    images = np.bincount(truth)
    weights = 1 / (np.count_nonzero(images) * images[truth])
    if max(sheet.size for sheet in (upper, lower)) > len(truth):
        gain = sum(s * (np.atleast_2d(e).mean(0) @ weights) for s, e in ((1, upper), (-1, lower)))
        return {"gain": round(gain, 12), "p": seeded(upper, lower, weights)}
    upper, lower = upper.reshape(-1), lower.reshape(-1)
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


def by_class(confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Of each class "images", "recall", "precision" and "f1"; None where there is nothing to count.

    Recall is the share of its images that are predicted to be it, precision the share of what is
    predicted to be it that is, F1 is 2 hits / (images + times predicted).
    """
    counts = np.asarray(confusion)
    found = []
    for hits, images, times in zip(
        counts.diagonal().tolist(), counts.sum(1).tolist(), counts.sum(0).tolist(), strict=True
    ):
        found.append(
            {
                "images": images,
                "recall": hits / images if images else None,
                "precision": hits / times if times else None,
                "f1": 2 * hits / (images + times) if images + times else None,
            }
        )
    return found


def calibration_curve(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> list[Any]:
    """How sure on average, the share that is correct and the number of images, of each full bin.

    probabilities: [N, C], truth: [N] int.  Bins of confidence are equally wide.
    """
    sure, correct = probabilities.max(1).astype(float), probabilities.argmax(1) == truth
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return [
        [round(float(sure[here].mean()), 6), float(correct[here].mean()), int(here.sum())]
        for here in (places == each for each in range(bins))
        if here.any()
    ]


def packed(correct: np.ndarray) -> str:
    """An answer sheet as hex, eight images a byte, the first in the highest bit."""
    return np.packbits(correct).tobytes().hex()


def unpacked(right: str, n: int) -> np.ndarray:
    """What `packed` packed.  [n] bool."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(right), np.uint8))
    return bits[:n].astype(bool)
