"""The answer: is machine learning worth it here?  As a page, as Markdown and as tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
from markupsafe import Markup, escape
from torch import Tensor

from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.report import plots, tiles, words
from tasks.report.findings import findings, metrics
from tasks.report.markdown import markdown
from tasks.report.words import NOTHING_SKIPPED, duration, percent, readable, span

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

TEMPLATE = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


@stage
def report(
    dataset: str,
    classes: list[str],
    training: list[Stack],
    testing: list[Stack],
    means: list[Tensor],
    baselines: list[dict],
    rungs: dict[str, dict],
    recipes: dict[str, Recipe],
    validation: float | Literal["testing"],
    skipped: list[str],
    left_out: list[str],
    home: str = "",
    *,
    run: Run = Run(),
) -> dict[str, bytes]:
    """Write the report of one climb.

    training, testing: a Stack per class, images[N, H, W(, 3)] uint8.  means: a tensor per class,
    [H, W(, 3)] float32, 0 to 1.  baselines, rungs: what `baseline` and `train` gave; recipes has
    the keys of rungs.  skipped: "place: reason" of what in the dataset's folder was not taken.
    left_out: what of the default ladder is not among the rungs, as `recipes.left_out` says it.
    home: what the dataset's history lies under, where that is not its name.

    Returns the bytes of report.html, report.md, metrics.parquet and results.json.
    """
    results = findings(
        dataset, classes, training, testing, baselines, rungs, recipes, validation, skipped,
        left_out, home or dataset, run,
    )  # fmt: skip
    shown = tiles.exhibits(training, testing, means, rungs)
    return {
        "report.html": page(results, shown).encode(),
        "report.md": markdown(results).encode(),
        "metrics.parquet": metrics(results),
        "results.json": json.dumps(results, indent=1, allow_nan=False).encode(),
    }


def page(results: dict[str, Any], shown: dict[str, Any]) -> str:
    """The whole report as one HTML file: no script, no request, every name in it escaped."""
    rungs, data = results["rungs"], results["dataset"]
    lines = {"guessing": results["random_baseline"]}
    lines |= {b["label"]: b["accuracy"] for b in results["baselines"]}
    best = [r["label"] for r in rungs].index(results["answer"]["best"]) if rungs else 0
    images = data["images"]
    short = _short([rung["label"] for rung in rungs])
    hardest = _hardest(rungs)
    letters = [len(data["classes"][label]) for label in hardest]
    brief = [rung | {"label": short[rung["label"]]} for rung in rungs]
    return template(TEMPLATE).render(
        results,
        style=Markup(STYLE),
        lead=words.lead(results),
        evidence=words.evidence(results),
        skipped=words.skipped_in_brief(results["health"]["skipped"]) or NOTHING_SKIPPED,
        floor=words.baseline_of(results, results["answer"]["baseline"]) if rungs else None,
        shown=shown,
        short=short,
        best=best,
        hardest=hardest,
        tall=max(letters, default=0) > 4 and sum(letters) > 60,  # more than fits side by side
        plots={
            size: {
                "ladder": Markup(plots.ladder(brief, lines, best, images["testing"], width)),
                "curves": Markup(plots.curves(rungs, images["validation"], width)),
            }
            for size, width in (("wide", 860), ("narrow", 350))
            if rungs
        },
    )


def template(text: str) -> jinja2.Template:
    """A template of HTML: whatever is put into it is escaped, `|name` for names from outside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        name=readable,
        per_hundred=words.per_hundred,
        percent=percent,
        interval=span,
        duration=duration,
        luck=words.luck,
        doing=words.doing,
        said=_said,
        heat=_heat,
        spread=words.spread,
        moment=words.moment,
    )
    return environment.from_string(text)


def _said(sentence: str) -> Markup:
    """A sentence in which a class's name from right to left turns nothing but itself."""
    text = str(escape(readable(sentence)))
    return Markup(re.sub("&#34;(.*?)&#34;", r"&#34;<bdi>\1</bdi>&#34;", text))


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


def _hardest(rungs: list[dict[str, Any]]) -> list[int]:
    """The classes that tables show: all of a few, of many the 24 with the most mistakes."""
    if not rungs:
        return []
    total = np.sum([rung["confusion"] for rung in rungs], axis=0)
    mistakes = total.sum(1) - total.diagonal()
    return sorted(np.argsort(-mistakes, kind="stable")[:24].tolist())
