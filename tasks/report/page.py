"""The answer: is machine learning worth it here?  As a page, as Markdown and as tables."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from torch import Tensor

from tasks.caching.process import CORES
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
from tasks.report import pictures, words
from tasks.report.measures import (
    answer,
    compare,
    confusion_of,
    floor,
    health,
    leaks,
    packed,
    scores,
    wilson,
)
from tasks.report.words import NOTHING_SKIPPED, duration, escaped, percent, readable, span
from tasks.rungs.baseline import commonest

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

TEMPLATE = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
PACKAGES = (
    "stepladder",
    "torch",
    "numpy",
    "pillow",
    "pyarrow",
    "safetensors",
    "prefect",
    "matplotlib",
)


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
    shown = pictures.exhibits(training, testing, means, rungs)
    return {
        "report.html": page(results, shown).encode(),
        "report.md": markdown(results).encode(),
        "metrics.parquet": metrics(results),
        "results.json": json.dumps(results, indent=1, allow_nan=False).encode(),
    }


def findings(
    dataset: str,
    classes: list[str],
    training: list[Stack],
    testing: list[Stack],
    baselines: list[dict],
    rungs: dict[str, dict],
    recipes: dict[str, Recipe],
    validation: float | Literal["testing"],
    skipped: list[str],
    left_out: list[str],
    home: str,
    run: Run,
) -> dict[str, Any]:
    """What results.json holds: all numbers of the climb, and what they say."""
    truth = np.repeat(np.arange(len(testing)), [len(stack.names) for stack in testing])
    found = health(classes, training, testing, skipped, validation)
    nearest, sheets = floors(baselines, training, testing, classes, truth)
    for label, rung in rungs.items():
        sheets[label] = rung["probabilities"].numpy().argmax(1) == truth
    below = floor([each["label"] for each in nearest], sheets)
    images = {split: sum(counts) for split, counts in found["counts"].items()} | {"validation": 0}
    for rung in rungs.values():
        images = rung["images"]
    results: dict[str, Any] = {
        "dataset": {
            "name": dataset,
            "home": home,
            "classes": classes,
            "images": images,
            "shape": list(training[0].images.shape[1:]),
            "testing_digest": hashlib.sha256(
                b"".join(stack.digests.tobytes() for stack in testing)
            ).hexdigest(),
        },
        "validation": validation,
        "random_baseline": 1 / len(classes),
        "baselines": nearest,
        "rungs": measured(rungs, recipes, sheets, below, run),
        "health": found,
        "stages": [
            {"stage": name, "state": o.state, "why": list(o.why), "seconds": o.seconds}
            for name, o in run.outcomes.items()
        ],
        "environment": environment(run),
    }
    results["answer"] = answer(results, sheets, truth, leaks(training, testing), left_out)
    results["headline"] = words.headline(results)
    results["warnings"] = words.warnings(results)
    return results


def measured(
    rungs: dict[str, dict], recipes: dict[str, Recipe], sheets: dict[str, np.ndarray], below: str,
    run: Run,
) -> list[dict[str, Any]]:  # fmt: skip
    """Each rung's numbers, with its interval and the paired test against the rung below it.

    below: the label of what the lowest rung stands on, the best baseline.
    """
    found: list[dict[str, Any]] = []
    for label, rung in rungs.items():
        outcome = run.outcomes.get(f"train[{label}]")
        found.append(
            {
                "label": label,
                "recipe": recipes[label].model_dump(mode="json"),
                "testing_accuracy": rung["testing_accuracy"],
                "interval": wilson(rung["testing_accuracy"], rung["images"]["testing"]),
                "validation_accuracy": rung["history"][-1]["validation_accuracy"],
                **scores(rung["confusion"]),
                "against_below": {"below": below} | compare(sheets[label], sheets[below]),
                "right": packed(sheets[label]),
                "confusion": rung["confusion"],
                "history": rung["history"],
                "parameters": rung["parameters"],
                "seconds": outcome.seconds if outcome else 0.0,
                "cached": outcome is not None and outcome.state == "cached",
                "device": rung["device"],
            }
        )
        below = label
    return found


def floors(
    nearest: list[dict], training: list[Stack], testing: list[Stack], classes: list[str],
    truth: np.ndarray,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:  # fmt: skip
    """The baselines' numbers, the nearest average images and the commonest class.

    nearest: what `baseline` gave.  truth: [N] int.  Gives their answer sheets by label, too.
    """
    most, always = commonest(training, testing)
    said: list[tuple[str, str | None, Tensor]] = [
        (f"mean image, {each['distance']}", each["distance"], each["said"]) for each in nearest
    ]
    counts = [len(stack.names) for stack in training]
    found, sheets = [], {}
    for label, distance, answers in [*said, ("commonest class", None, always)]:
        sheets[label] = answers.numpy() == truth
        accuracy = sheets[label].sum().item() / len(truth)
        found.append(
            {
                "label": label,
                "distance": distance,
                "says": None if distance else classes[most],
                "tied": distance is None and counts.count(counts[most]) > 1,
                "accuracy": accuracy,
                "interval": wilson(accuracy, len(truth)),
                **scores(confusion_of(truth, answers.numpy(), len(classes))),
                "right": packed(sheets[label]),
            }
        )
    return found, sheets


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text()
        return re.search(r"model name\s*: (.+)", info)[1]  # type: ignore[index]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def environment(run: Run) -> dict[str, Any]:
    """Where and how this was computed."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": CORES.total,
        "device": run.device,
        **{package: version(package) for package in PACKAGES},
        "started": run.started,
        "command": run.command,
    }


def metrics(results: dict[str, Any]) -> bytes:
    """Every number as one row: recipe, epoch (null at the end), split, metric, value.  Parquet."""
    classes = results["dataset"]["classes"]
    rows: list[tuple[str, int | None, str, str, float | None]] = [
        ("random", None, "testing", "accuracy", results["random_baseline"])
    ]
    for entry in results["baselines"] + results["rungs"]:
        name = entry["label"]
        for point in entry.get("history", []):
            rows.append((name, point["epoch"], "training", "loss", point["training_loss"]))
            validated = point["validation_accuracy"]
            rows.append((name, point["epoch"], "validation", "accuracy", validated))
        final = entry.get("testing_accuracy", entry.get("accuracy"))
        rows.append((name, None, "testing", "accuracy", final))
        rows.append((name, None, "testing", "balanced accuracy", entry["balanced_accuracy"]))
        rows.append((name, None, "testing", "macro F1", entry["macro_f1"]))
        for label, share in zip(classes, entry["per_class"], strict=True):
            rows.append((name, None, "testing", f"accuracy of {readable(label)}", share))
    columns = zip(*(row for row in rows if row[-1] is not None), strict=True)
    table = pa.table(
        dict(zip(("recipe", "epoch", "split", "metric", "value"), columns, strict=True)),
        pa.schema(
            [
                ("recipe", pa.string()),
                ("epoch", pa.int32()),
                ("split", pa.string()),
                ("metric", pa.string()),
                ("value", pa.float64()),
            ]
        ),
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


# Markdown


def markdown(results: dict[str, Any]) -> str:
    """The answer, the ladder, the baselines class by class and what ran, as Markdown tables."""
    data, found = results["dataset"], results["answer"]
    lines = [f"# {escaped(data['name'])}: {results['headline']}", ""]
    for each in results["warnings"]:
        lines += [f"**Beware:** {escaped(each)}", ""]
    lines += [escaped(words.lead(results)), ""]
    if found:
        against = words.doing(words.baseline_of(results, found["baseline"]))
        test = found["against_baseline"]
        lines += [
            escaped(
                f"Image by image against {against} it wins {test['won']:,} and loses "
                f"{test['lost']:,}. {words.luck(test)}"
            ),
            "",
        ]
    for sentence in words.evidence(results):
        lines += [escaped(sentence), ""]
    skipped = words.skipped_in_brief(results["health"]["skipped"])
    lines += [
        f"{data['images']['testing']:,} testing images, {len(data['classes'])} classes. "
        f"{escaped(skipped or NOTHING_SKIPPED)}",
        "",
        *table(*_ladder(results)),
    ]
    nearest = [b for b in results["baselines"] if b["distance"]]
    shares = zip(*(b["per_class"] for b in nearest), strict=True)
    lines += ["", "## Nearest mean image, class by class", ""]
    lines += table(
        ["class", *(b["distance"] for b in nearest)],
        [[name, *map(percent, row)] for name, row in zip(data["classes"], shares, strict=True)],
    )
    lines += ["", "## What ran", ""]
    lines += table(
        ["stage", "state", "why", "time"],
        [
            [s["stage"], s["state"], "; ".join(s["why"]), duration(s["seconds"])]
            for s in results["stages"]
        ],
    )
    return "\n".join(lines) + "\n"


def _ladder(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the ladder's table."""
    head = ["rung", "testing accuracy", "95 % interval", "balanced accuracy", "macro F1",
            "validation", "training time"]  # fmt: skip
    rows = [["guessing", percent(results["random_baseline"]), "", "", "", "", ""]]
    rows += [
        [b["label"], percent(b["accuracy"]), span(b["interval"]),
         percent(b["balanced_accuracy"]), f"{b['macro_f1']:.4f}", "", ""]
        for b in results["baselines"]
    ]  # fmt: skip
    rows += [
        [r["label"], percent(r["testing_accuracy"]), span(r["interval"]),
         percent(r["balanced_accuracy"]), f"{r['macro_f1']:.4f}", percent(r["validation_accuracy"]),
         duration(r["seconds"]) + (" (cached)" if r["cached"] else "")]
        for r in results["rungs"]
    ]  # fmt: skip
    return head, rows


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, whatever its cells hold."""
    return [
        "| " + " | ".join(map(escaped, head)) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(map(escaped, row)) + " |" for row in rows),
    ]


# The page


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
                "ladder": Markup(pictures.ladder(brief, lines, best, images["testing"], width)),
                "curves": Markup(pictures.curves(rungs, images["validation"], width)),
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
        heat=_heat,
        spread=words.spread,
        moment=words.moment,
    )
    return environment.from_string(text)


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
