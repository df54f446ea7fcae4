"""The findings: all numbers of a climb and what they say, as results.json holds them."""

from __future__ import annotations

import hashlib
import io
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from tasks.caching.bodies import CORES
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.report import words
from tasks.report.beware import warnings
from tasks.report.health import health, leaks
from tasks.report.measures import compare, confusion_of, packed, scores, wilson
from tasks.report.verdict import answer, floor
from tasks.report.words import readable
from tasks.rungs.baseline import commonest

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

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
    results["warnings"] = warnings(results)
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
