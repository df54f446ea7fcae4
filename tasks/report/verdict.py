"""The answer: which rung is best, and whether it beats the baselines, by luck or beyond it.

All answer sheets of a climb, the baselines' too, come as a dict from label to sheet: [N] bool of a
baseline, [S, N] of a rung of S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.report.measures import compare, compare_classes

ENOUGH = 6  # testing images, of which fewer could not rule luck out if all spoke for one side
SURE = 0.05  # p from which on a difference may be luck


def choose(rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best rung, by the images that validated it; of equally good ones the lowest.

    The testing images are counted once, at the end: a choice made on them would flatter.
    """
    return max(rungs, key=lambda rung: rung["validation_accuracy"])


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
    gain = sheets[best].mean().item() - sheets[lowest].mean().item() if len(truth) else 0.0
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
    best = choose(results["rungs"])
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
    fresh = {label: sheet[..., ~leaked] for label, sheet in sheets.items()}
    unequal = results["health"]["unequal"]
    found = judge(best, results["baselines"], fresh, truth[~leaked], unequal=unequal)
    n = fresh[best].shape[-1]
    told = found["verdict"] if n >= ENOUGH else None
    return {
        "images": n,
        "verdict": told,
        "same": told == verdict,
        "baseline": found["baseline"],
        "accuracy": fresh[best].mean().item() if n else None,
        "baseline_accuracy": fresh[found["baseline"]].mean().item() if n else None,
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
