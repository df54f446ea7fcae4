"""Several seeds of one recipe, which are one rung: its figures are means over them.

The model that the rung stands for, and of which the report shows curve, confusion and mistakes, is
that of the seed which validation likes best.  Testing has no say in that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

MEANS = ("testing_accuracy", "validation_accuracy", "balanced_accuracy", "macro_f1", "seconds")
OWN = ("label", "seed", *MEANS, "interval", "right", "calibration", "epoch")  # kept of each seed


def alike(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Which recipes, by their labels, differ in their seed alone, by the label of their rung."""
    groups: dict[Any, list[str]] = {}
    for label, recipe in recipes.items():
        groups.setdefault(recipe.model_copy(update={"seed": 0}), []).append(label)
    return {
        named(group, [recipes[each].seed for each in group]): group for group in groups.values()
    }


def named(labels: Sequence[str], seeds: Sequence[int]) -> str:
    """What a rung is called: as its one recipe, or "mlp, cross_entropy, seeds 0 to 2"."""
    if len(labels) == 1:
        return labels[0]
    first, last = min(seeds), max(seeds)
    row = sorted(seeds) == [*range(first, last + 1)] and len(seeds) > 2
    told = f"{first} to {last}" if row else " and ".join(map(str, sorted(seeds)))
    parts = labels[0].split(", ")
    parts[parts.index(f"seed {seeds[0]}")] = f"seeds {told}"
    return ", ".join(parts)


def together(label: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One rung of what was measured of each seed of a recipe.

    "chosen" is the label of the run whose model it stands for; of equals that of the first.
    """
    best = max(runs, key=lambda run: run["validation_accuracy"])
    shares = [run["testing_accuracy"] for run in runs]
    classes = [run["per_class"] for run in runs]
    return {
        **best,
        "label": label,
        "seeds": [run["seed"] for run in runs],
        "chosen": best["label"],
        **{name: float(np.mean([run[name] for run in runs])) for name in MEANS},
        "testing_accuracy_sd": float(np.std(shares, ddof=1)) if len(runs) > 1 else None,
        "per_class": [
            None if each[0] is None else float(np.mean(each)) for each in zip(*classes, strict=True)
        ],
        "cached": all(run["cached"] for run in runs),
        "runs": [{name: run[name] for name in OWN} for run in runs],
    }


def models_of(rungs: Collection[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every trained model by its label, as its rung with the figures of this seed alone.

    A rung's own label stands for the model that was chosen.
    """
    models = {run["label"]: {**rung, **run} for rung in rungs for run in rung["runs"]}
    return {rung["label"]: models[rung["chosen"]] for rung in rungs} | models
