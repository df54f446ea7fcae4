"""The numbers of a report: what is right of what, which rung is best, and whether by luck.

An answer sheet says which testing images something gets right: [N] bool, in the order of the
testing stacks.  All of a climb, the baselines' too, come as a dict from label to sheet.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tasks.caching.values import Stack
from tasks.rungs.train import held_out_of

UNEQUAL = 1.5  # times the images of the smallest class: from here on every class counts alike too
ENOUGH = 6  # testing images, of which fewer could not rule luck out if all spoke for one side
SURE = 0.05  # p from which on a difference may be luck


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


# The answer


def choose(rungs: list[dict[str, Any]], validation: float | Literal["testing"]) -> dict[str, Any]:
    """The best rung, by the images held out of training; of equally good ones the lowest.

    The testing images are counted once, at the end: a choice made on them would flatter.  Only
    when they were asked for as validation do they choose.
    """
    key = "testing_accuracy" if validation == "testing" else "validation_accuracy"
    return max(rungs, key=lambda rung: rung[key])


def floor(labels: Sequence[str], sheets: Mapping[str, np.ndarray]) -> str:
    """The label of the best baseline, which machine learning has to beat."""
    return max(labels, key=lambda label: int(sheets[label].sum()))


def judge(
    best: str, baselines: list[dict[str, Any]], sheets: Mapping[str, np.ndarray],
    truth: np.ndarray, *, unequal: bool, tries: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Whether the best rung beats the best baseline beyond luck: "yes", "no" or "unclear".

    Where classes are unequal, accuracy alone would reward always saying the largest; so there it
    must be ahead of every baseline's balanced accuracy too for a "yes".  Ahead by nothing is "no",
    where there are enough images to tell.
    tries: how many rungs are tried on the same images, each of which has its luck.
    """
    lowest = floor([each["label"] for each in baselines], sheets)
    test = compare(sheets[best], sheets[lowest])
    gain = (test["won"] - test["lost"]) / max(1, len(truth))
    ahead = [(gain, test["p"])]
    balanced = None
    if unequal and len(truth):
        fair = max(baselines, key=lambda each: each["balanced_accuracy"])["label"]
        balanced = {"baseline": fair, **compare_classes(sheets[best], sheets[fair], truth)}
        ahead.append((balanced["gain"], balanced["p"]))
    if all(by > 0 and p * tries < SURE for by, p in ahead):
        verdict = "yes"
    elif len(truth) < ENOUGH or any(by > 0 for by, _ in ahead):
        verdict = "unclear"
    else:
        verdict = "no"
    return {
        "verdict": verdict,
        "baseline": lowest,
        "gain": gain,
        "against_baseline": test,
        "balanced": balanced,
    }


def answer(
    results: dict[str, Any],
    sheets: Mapping[str, np.ndarray],
    truth: np.ndarray,
    leaked: np.ndarray,
    left_out: list[str],
) -> dict[str, Any] | None:
    """The best rung against the best baseline, and the cheapest rung no worse than the best.

    truth: [N] int.  leaked: [N] bool, testing images that are in training too; what is found
    without them comes as "without_leaks", and a "yes" or "no" must hold there too.
    left_out: what of the default ladder did not run.
    """
    if not results["rungs"]:
        return None
    best = choose(results["rungs"], results["validation"])
    unequal = results["health"]["unequal"]
    found = judge(best["label"], results["baselines"], sheets, truth, unequal=unequal)
    without = _without(leaked, best["label"], found["verdict"], results, sheets, truth)
    if without and found["verdict"] != (without["verdict"] or "no"):
        found["verdict"] = "unclear"  # it may have been learned by heart, or wrongly so
    ahead: list[str] = []
    if found["verdict"] == "no":
        ahead = _others_ahead(results, sheets, truth)
        found["verdict"] = "unclear" if ahead else "no"
    others = [
        rung
        for rung in results["rungs"]
        if 0 < rung["seconds"] < best["seconds"] and found["verdict"] == "yes"
    ]
    return {
        "best": best["label"],
        "chosen_on": "testing" if results["validation"] == "testing" else "validation",
        **found,
        "without_leaks": without,
        "too_few": len(truth) < ENOUGH,
        "others_ahead": ahead,
        "left_out": left_out,
        "cheaper_and_as_good": _cheapest(best["label"], others, results, sheets, truth),
    }


def _others_ahead(
    results: dict[str, Any], sheets: Mapping[str, np.ndarray], truth: np.ndarray
) -> list[str]:
    """Rungs that beat the baselines, though not best on validation: without them "no" is untrue.

    They are found on the testing images, so that luck has as many tries as there are rungs.
    """
    rungs, unequal = results["rungs"], results["health"]["unequal"]
    return [
        rung["label"] for rung in rungs
        if judge(rung["label"], results["baselines"], sheets, truth, unequal=unequal,
                 tries=len(rungs))["verdict"] == "yes"
    ]  # fmt: skip


def _without(
    leaked: np.ndarray, best: str, verdict: str, results: dict[str, Any],
    sheets: Mapping[str, np.ndarray], truth: np.ndarray,
) -> dict[str, Any] | None:  # fmt: skip
    """The verdict, whether it stays, and both accuracies, on the images that are not leaked."""
    if not leaked.any():
        return None
    fresh = {label: sheet[~leaked] for label, sheet in sheets.items()}
    unequal = results["health"]["unequal"]
    found = judge(best, results["baselines"], fresh, truth[~leaked], unequal=unequal)
    n = len(fresh[best])
    told = found["verdict"] if n >= ENOUGH else None
    return {
        "images": n,
        "verdict": told,
        "same": told == verdict,
        "baseline": found["baseline"],
        "accuracy": fresh[best].sum().item() / n if n else None,
        "baseline_accuracy": fresh[found["baseline"]].sum().item() / n if n else None,
    }


def _cheapest(
    best: str, others: list[dict[str, Any]], results: dict[str, Any],
    sheets: Mapping[str, np.ndarray], truth: np.ndarray,
) -> dict[str, Any] | None:  # fmt: skip
    """The cheapest rung that beats the baselines and is not provably worse than the best one."""
    unequal = results["health"]["unequal"]
    for rung in sorted(others, key=lambda rung: rung["seconds"]):
        own = sheets[rung["label"]]
        beats = judge(rung["label"], results["baselines"], sheets, truth, unequal=unequal)
        test = compare(sheets[best], own)
        chances = [test["p"]]
        if unequal:
            chances.append(compare_classes(sheets[best], own, truth)["p"])
        if beats["verdict"] == "yes" and min(chances) >= SURE:
            return {"label": rung["label"], **test}
    return None


# The dataset


def health(
    classes: list[str],
    training: list[Stack],
    testing: list[Stack],
    skipped: list[str],
    validation: float | Literal["testing"] = "testing",
) -> dict[str, Any]:
    """What to know of a dataset: imbalance, duplicates, leaks, conflicting labels, skipped files.

    Images are equal when their pixels are: it is the pixel digests that are compared.
    """
    counts = {
        "training": [len(stack.names) for stack in training],
        "testing": [len(stack.names) for stack in testing],
    }
    held_out = None
    if validation != "testing":
        out = held_out_of([stack.digests for stack in training], validation)
        held_out = [int(each.sum()) for each in out]
    equal: dict[bytes, list[tuple[str, int, str]]] = defaultdict(list)
    for split, stacks in (("training", training), ("testing", testing)):
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
        "held_out": held_out,  # of each class's training images; None where none are
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
