"""The answer: is machine learning worth it here?  As a page, as Markdown and as tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from torch import Tensor

from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.report import plots, tiles, words
from tasks.report.cases import confused, good_rungs
from tasks.report.drift import kept_of
from tasks.report.findings import findings, metrics, together
from tasks.report.markdown import markdown
from tasks.report.measures import by_class
from tasks.report.predictions import predictions
from tasks.report.templates import template
from tasks.report.words import NOTHING_SKIPPED

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

TEMPLATE = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")


@stage
def report(
    dataset: str,
    classes: list[str],
    training: list[Stack],
    testing: list[Stack],
    means: list[Tensor],
    baselines: list[dict],
    rungs: dict[str, list[dict]],
    recipes: dict[str, Recipe],
    validation: float | Literal["testing", "given"],
    skipped: list[str],
    left_out: list[str],
    home: str = "",
    watched: list[Stack] = [],  # noqa: B006 - nothing changes it
    split: str = "",
    near: dict[str, Any] = {},  # noqa: B006 - nor this
    converted: list[str] = [],  # noqa: B006 - nor this
    failed: dict[str, str] = {},  # noqa: B006 - nor this
    fit: str = "crop",
    usual: dict[str, list[float]] = {},  # noqa: B006 - nor this
    *,
    run: Run = Run(),
) -> dict[str, bytes]:
    """Write the report of one climb.

    training, testing: a Stack per class, images[N, H, W(, 3)] uint8.  means: a tensor per class,
    [H, W(, 3)] float32, 0 to 1.  baselines: what `baseline` gave.  rungs: what `train`,
    `calibrate` and `measure` gave of each.  failed: of the other recipes, why they failed.
    skipped: "place: reason" of what in the dataset's folder was not taken.
    left_out: what of the default ladder is not among the rungs, as `ladders.left_out` says it.
    converted: what was made of the images, a line for each rule.  fit: how they were resized.
    usual: what `familiar` gave.
    watched: a Stack per class of images given for validation.  split: in words, how the sides came
    about.  near: what `twins` gave.
    home: what the dataset's history lies under, where that is not its name.

    Returns the bytes of report.html, report.md, metrics.parquet, results.json and, where there is
    a rung, predictions.parquet.
    """
    whole = {label: together(parts) for label, parts in rungs.items()}
    results = findings(
        dataset, classes, training, testing, baselines, whole, recipes, failed, validation, skipped,
        left_out, home or dataset, converted, fit, usual, run,
        watched, split, near,
    )  # fmt: skip
    results["dataset"] |= kept_of(training, means)
    models = {rung["label"]: whole[rung["chosen"]] for rung in results["rungs"]}
    sides = {"training": training, "validation": watched, "testing": testing}
    shown = tiles.exhibits(sides, classes, means, models, results)
    files = {
        "report.html": page(results, shown).encode(),
        "report.md": markdown(results).encode(),
        "metrics.parquet": metrics(results),
        "results.json": json.dumps(results, indent=1, allow_nan=False).encode(),
    }
    if rungs:
        best = words.rung_of(results, results["answer"]["best"])["chosen"]
        names = {"testing": [stack.names for stack in testing]}
        said = {"testing": whole[best]["probabilities"].numpy()}
        files["predictions.parquet"] = predictions(classes, best, names, said)
    return files


def page(results: dict[str, Any], shown: dict[str, Any]) -> str:
    """The whole report as one HTML file: no request, every name in it escaped."""
    rungs, data = results["rungs"], results["dataset"]
    guessing = {"label": "guessing", "accuracy": results["random_baseline"]}
    best = [r["label"] for r in rungs].index(results["answer"]["best"]) if rungs else 0
    images = data["images"]
    fallen = words.without_a_seed(results)
    short = _short([each["label"] for each in (*rungs, *fallen)])
    hardest = _hardest(rungs)
    letters = [len(data["classes"][label]) for label in hardest]
    brief = [rung | {"label": short[rung["label"]]} for rung in rungs]
    epochs = max((len(rung["history"]) for rung in rungs), default=0)
    return template(TEMPLATE).render(
        results,
        lead=words.lead(results),
        evidence=words.evidence(results),
        fallen=fallen,
        skipped=words.skipped_in_brief(results["health"]["skipped"]) or NOTHING_SKIPPED,
        floor=words.baseline_of(results, results["answer"]["baseline"]) if rungs else None,
        shown=shown,
        short=short,
        several=any(len(rung["seeds"]) > 1 for rung in rungs),
        best=best,
        hardest=hardest,
        heat=_heat,
        shade=_shade(rungs + results["baselines"], hardest),
        by_class=by_class,
        confused=confused,
        calibration=plots.calibration,
        good=[short[label] for label in good_rungs(rungs)],
        hits=lambda confusion: sum(row[i] for i, row in enumerate(confusion)),
        tall=max(letters, default=0) > 4 and sum(letters) > 60,  # more than fits side by side
        ladder=plots.ladder(brief, [*results["baselines"], guessing], images["testing"]),
        epochs=epochs,
        plots={
            size: {
                "errors": Markup(plots.errors(rungs, images["validation"], width)),
                "losses": Markup(plots.losses(rungs, width)),
            }
            for size, width in (("wide", 860), ("narrow", 350))
            if epochs > 1
        },
    )


def _short(labels: list[str]) -> dict[str, str]:
    """Labels without their last part where all share it: one seed for all tells nothing apart."""
    parts = [label.rpartition(", ") for label in labels]
    shared = len({end for _, _, end in parts}) == 1 and all(start for start, _, _ in parts)
    return {
        label: start if shared else label
        for label, (start, _, _) in zip(labels, parts, strict=True)
    }


def _heat(confusion: list[list[int]]) -> list[list[int]]:
    """How glaring each confusion is, 1 to 4, against the most frequent one of the matrix."""
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    return np.ceil(4 * wrong / max(1, wrong.max())).astype(int).tolist()


def _shade(entries: list[dict[str, Any]], hardest: list[int]) -> Callable[[float], int]:
    """How strongly a share of a class is coloured, 0 to 52 percent: from the best to the worst.

    What always predicts one class has no say in what the worst is.
    """
    shares = [each["per_class"][c] for each in entries if not each.get("says") for c in hardest]
    known = [share for share in shares if share is not None]
    best, worst = max(known, default=1.0), min(known, default=0.0)
    return lambda share: min(52, round(52 * (best - share) / (best - worst or 1)))


def _hardest(rungs: list[dict[str, Any]]) -> list[int]:
    """The classes that tables show: all of a few, of many the 24 with the most mistakes."""
    if not rungs:
        return []
    total = np.sum([rung["confusion"] for rung in rungs], axis=0)
    mistakes = total.sum(1) - total.diagonal()
    return sorted(np.argsort(-mistakes, kind="stable")[:24].tolist())
