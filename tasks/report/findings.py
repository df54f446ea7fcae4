"""The findings: all numbers of a climb and what they say, as results.json holds them."""

from __future__ import annotations

import hashlib
import io
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from tasks.caching import machine
from tasks.caching.bodies import CORES
from tasks.caching.columns import numbers, texts
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.report import seeds, words
from tasks.report.beware import warnings
from tasks.report.health import health, leaks
from tasks.report.measures import (
    calibration_curve,
    compare,
    confusion_of,
    holm,
    packed,
    scores,
    wilson,
)
from tasks.report.verdict import answer, floor
from tasks.report.words import readable
from tasks.rungs.baseline import commonest

if TYPE_CHECKING:
    from tasks.rungs.recipes import Recipe

VERSION = 1  # of results.json: one more whenever a field goes or comes to mean something else
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
    failed: dict[str, str],
    validation: float | Literal["testing", "given"],
    skipped: list[str],
    left_out: list[str],
    home: str,
    converted: list[str],
    fit: str,
    usual: dict[str, list[float]],
    run: Run,
    watched: Sequence[Stack] = (),
    split: str = "",
    near: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What results.json holds: all numbers of the climb, and what they say."""
    truth = np.repeat(np.arange(len(testing)), [len(stack.names) for stack in testing])
    bad = [
        f"{split}/{name}/{line}"
        for split, stacks in (("training", training), ("validation", watched), ("testing", testing))
        if stacks
        for name, stack in zip(classes, stacks, strict=True)
        for line in stack.left_out
    ]
    found = health(classes, training, testing, [*skipped, *bad], validation, watched)
    found["near"] = {"testing": 0, "validation": 0, "examples": [], **near}
    nearest, sheets = floors(baselines, training, testing, classes, truth)
    rights = {
        label: rung["probabilities"].numpy().argmax(1) == truth for label, rung in rungs.items()
    }
    asked = seeds.alike(recipes)
    groups = {name: [each for each in group if each in rungs] for name, group in asked.items()}
    groups = {name: group for name, group in groups.items() if group}
    rung_of = {each: name for name, group in asked.items() for each in group}
    sheets |= {name: np.stack([rights[each] for each in group]) for name, group in groups.items()}
    below = floor([each["label"] for each in nearest], sheets)
    images = {side: sum(counts) for side, counts in found["counts"].items()} | {"validation": 0}
    for rung in rungs.values():
        images = rung["images"]
    results: dict[str, Any] = {
        "version": VERSION,
        "dataset": {
            "name": dataset,
            "home": home,
            "classes": classes,
            "images": images,
            "shape": list(training[0].images.shape[1:]),
            "converted": converted,
            "fit": fit,
            "familiar": usual,
            "split": words.split(split, images, validation),
            "testing_digest": hashlib.sha256(
                b"".join(stack.digests.tobytes() for stack in testing)
            ).hexdigest(),
        },
        "validation": validation,
        "random_baseline": 1 / len(classes),
        "baselines": nearest,
        "rungs": climbed(groups, measured(rungs, recipes, truth, run), sheets, below),
        "failed": [
            {
                "label": label,
                "rung": rung_of[label],
                "recipe": recipes[label].model_dump(mode="json"),
                "failed": why,
            }
            for label, why in failed.items()
        ],
        "health": found,
        "stages": [
            {"stage": name, "state": o.state, "why": list(o.why), "seconds": o.seconds}
            for name, o in run.outcomes.items()
        ],
        "environment": environment(run),
    }
    results["answer"] = answer(
        results, sheets, truth, leaks([*training, *watched], testing), left_out
    )
    results["headline"] = words.headline(results)
    results["warnings"] = warnings(results)
    return results


def together(parts: list[dict]) -> dict[str, Any]:
    """A rung: what `train`, `calibrate` and `measure` gave of it, in one."""
    rung: dict[str, Any] = {}
    for part in parts:
        rung |= part | {"images": rung.get("images", {}) | part.get("images", {})}
    return rung


def climbed(
    groups: dict[str, list[str]], runs: dict[str, dict[str, Any]], sheets: dict[str, np.ndarray],
    below: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rungs, each of one or several runs, and the paired test against the rung below it.

    There are as many of these tests as rungs, so that "p_adjusted" counts; see `measures.holm`.
    below: the label of what the lowest rung stands on, the best baseline.
    """
    found = []
    for label, group in groups.items():
        rung = seeds.together(label, [runs[each] for each in group])
        rung["interval"] = wilson(rung["testing_accuracy"], sheets[label].shape[-1])
        rung["against_below"] = {"below": below} | compare(sheets[label], sheets[below])
        found.append(rung)
        below = label
    tests = [rung["against_below"] for rung in found]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test |= {"p_adjusted": p, "comparisons": len(tests)}
    return found


def measured(
    rungs: dict[str, dict], recipes: dict[str, Recipe], truth: np.ndarray, run: Run
) -> dict[str, dict[str, Any]]:
    """The numbers of each training, by its recipe's label, with the interval of its accuracy."""
    found = {}
    for label, rung in rungs.items():
        outcome = run.outcomes.get(f"train[{label}]")
        said = rung["probabilities"].numpy()
        found[label] = {
            "label": label,
            "seed": recipes[label].seed,
            "recipe": recipes[label].model_dump(mode="json") | {"flip": rung["flip"]},
            "testing_accuracy": rung["testing_accuracy"],
            "interval": wilson(rung["testing_accuracy"], rung["images"]["testing"]),
            "validation_accuracy": rung["history"][rung["epoch"] - 1]["validation_accuracy"],
            **scores(rung["confusion"]),
            "right": packed(said.argmax(1) == truth),
            "confusion": rung["confusion"],
            "history": rung["history"],
            "epoch": rung["epoch"],
            "calibration": {
                "temperature": rung["temperature"],
                "lowest_logit": rung["lowest_logit"],
                "validation": rung["calibration_error"],
                "testing": rung["testing_calibration_error"],
                "curve": calibration_curve(said, truth),
            },
            "parameters": rung["parameters"],
            "seconds": outcome.seconds if outcome else 0.0,
            "cached": outcome is not None and outcome.state == "cached",
            "device": rung["device"],
        }
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
        "code": machine.code(),
        "started": run.started,
        "command": run.command,
    }


def _calibrations(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[str, float]]]:
    """How far a rung's probabilities can be believed: by split, what it is and how much."""
    if "calibration" not in entry:  # a baseline has none
        return
    yield "validation", ("temperature", entry["calibration"]["temperature"])
    for split in ("validation", "testing"):
        for when, error in entry["calibration"][split].items():
            yield split, (f"calibration error, {when}", error)


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
            rows.append((name, point["epoch"], "validation", "loss", point["validation_loss"]))
            validated = point["validation_accuracy"]
            rows.append((name, point["epoch"], "validation", "accuracy", validated))
        final = entry.get("testing_accuracy", entry.get("accuracy"))
        rows.append((name, None, "testing", "accuracy", final))
        rows.append((name, None, "testing", "balanced accuracy", entry["balanced_accuracy"]))
        rows.append((name, None, "testing", "macro F1", entry["macro_f1"]))
        for split, each in _calibrations(entry):
            rows.append((name, None, split, *each))
        for label, share in zip(classes, entry["per_class"], strict=True):
            rows.append((name, None, "testing", f"accuracy of {readable(label)}", share))
    names, epochs, splits, kinds, values = zip(
        *(row for row in rows if row[-1] is not None), strict=True
    )
    table = pa.table(
        {
            "recipe": texts(names),
            "epoch": numbers(
                np.array([each or 0 for each in epochs], np.int32),
                np.array([each is None for each in epochs]),
            ),
            "split": texts(splits),
            "metric": texts(kinds),
            "value": numbers(np.array(values, np.float64)),
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
