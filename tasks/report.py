"""The answer: is machine learning worth it here?  As a page, as Markdown and as tables."""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import os
import platform
import re
import unicodedata
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from torch import Tensor

from tasks import pictures
from tasks.caching.stage import Run, stage
from tasks.caching.store import Stack

if TYPE_CHECKING:
    from tasks.recipes import Recipe

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
JOINERS = "\u200c\u200d"  # harmless, and part of emoji and of several scripts


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
    home: str = "",
    *,
    run: Run = Run(),
) -> dict[str, bytes]:
    """Write the report of one climb.

    training, testing: a Stack per class, images[N, H, W(, 3)] uint8.  means: a tensor per class,
    [H, W(, 3)] float32, 0 to 1.  baselines, rungs: what `baseline` and `train` gave; recipes has
    the keys of rungs.  skipped: files that are no images, each with its reason.  home: what
    the dataset's history lies under, where that is not its name.

    Returns the bytes of report.html, report.md, metrics.parquet and results.json.
    """
    found = health(classes, training, testing, skipped)
    correct = right(rungs, baselines, testing)
    images = {split: sum(counts) for split, counts in found["counts"].items()} | {"validation": 0}
    for rung in rungs.values():
        images = rung["images"]
    results: dict[str, Any] = {
        "dataset": {
            "name": dataset,
            "home": home or dataset,
            "classes": classes,
            "images": images,
            "shape": list(training[0].images.shape[1:]),
            "testing_digest": hashlib.sha256(
                b"".join(stack.digests.tobytes() for stack in testing)
            ).hexdigest(),
        },
        "validation": validation,
        "random_baseline": 1 / len(classes),
        "baselines": [
            {key: item for key, item in baseline.items() if key != "said"}
            | {
                "interval": wilson(baseline["accuracy"], images["testing"]),
                "right": packed(correct[f"mean image, {baseline['distance']}"]),
            }
            for baseline in baselines
        ],
        "rungs": measure(rungs, recipes, correct, floor(baselines), run),
        "health": found,
        "stages": [
            {"stage": name, "state": o.state, "why": list(o.why), "seconds": o.seconds}
            for name, o in run.outcomes.items()
        ],
        "environment": environment(run),
    }
    results["answer"] = answer(results, correct)
    shown = pictures.exhibits(training, testing, means, rungs)
    return {
        "report.html": page(results, shown).encode(),
        "report.md": markdown(results).encode(),
        "metrics.parquet": metrics(results),
        "results.json": json.dumps(results, indent=1, allow_nan=False).encode(),
    }


# Numbers


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


def right(
    rungs: dict[str, dict], baselines: list[dict], testing: list[Stack]
) -> dict[str, np.ndarray]:
    """Which testing images each rung and baseline got right, in the order of the stacks.

    Gives its label -> [N] bool.
    """
    truth = np.repeat(np.arange(len(testing)), [len(stack.names) for stack in testing])
    said = {f"mean image, {each['distance']}": each["said"].numpy() for each in baselines}
    said |= {label: rung["probabilities"].numpy().argmax(1) for label, rung in rungs.items()}
    return {label: answers == truth for label, answers in said.items()}


def packed(correct: np.ndarray) -> str:
    """[N] bool as hex, eight images a byte, the first in the highest bit: for paired tests."""
    return np.packbits(correct).tobytes().hex()


def floor(baselines: list[dict]) -> str:
    """The label of the best baseline, which machine learning has to beat."""
    best = max(baselines, key=lambda baseline: baseline["accuracy"])
    return f"mean image, {best['distance']}"


def compare(upper: np.ndarray, lower: np.ndarray) -> dict[str, Any]:
    """Two rungs on the same images: what the upper one won, what it lost, and whether by luck."""
    won, lost = int((upper & ~lower).sum()), int((lower & ~upper).sum())
    return {"won": won, "lost": lost, "p": mcnemar(won, lost)}


def measure(
    rungs: dict[str, dict],
    recipes: dict[str, Recipe],
    correct: dict[str, np.ndarray],
    below: str,
    run: Run,
) -> list[dict[str, Any]]:
    """Each rung's numbers, with its interval and the paired test against the rung below it.

    below: the label of what the lowest rung stands on, the best baseline.
    """
    measured: list[dict[str, Any]] = []
    for label, rung in rungs.items():
        outcome = run.outcomes.get(f"train[{label}]")
        measured.append(
            {
                "label": label,
                "recipe": recipes[label].model_dump(mode="json"),
                "testing_accuracy": rung["testing_accuracy"],
                "interval": wilson(rung["testing_accuracy"], rung["images"]["testing"]),
                "against_below": {"below": below} | compare(correct[label], correct[below]),
                "right": packed(correct[label]),
                "per_class": rung["per_class"],
                "confusion": rung["confusion"],
                "history": rung["history"],
                "parameters": rung["parameters"],
                "seconds": outcome.seconds if outcome else 0.0,
                "cached": outcome is not None and outcome.state == "cached",
                "device": rung["device"],
            }
        )
        below = label
    return measured


def answer(results: dict[str, Any], correct: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The best rung against the best baseline, and the cheapest rung no worse than the best."""
    if not results["rungs"]:
        return None
    best = max(results["rungs"], key=lambda rung: rung["testing_accuracy"])
    lowest = floor(results["baselines"])
    test = compare(correct[best["label"]], correct[lowest])
    gain = (test["won"] - test["lost"]) / len(correct[lowest])
    as_good = [
        rung | compare(correct[best["label"]], correct[rung["label"]])
        for rung in results["rungs"]
        if 0 < rung["seconds"] < best["seconds"]
    ]
    cheapest = min(
        (rung for rung in as_good if rung["p"] >= 0.05), key=lambda r: r["seconds"], default=None
    )
    verdict = "yes" if test["p"] < 0.05 else "unclear"
    return {
        "verdict": verdict if gain > 0 else "no",
        "best": best["label"],
        "baseline": lowest.removeprefix("mean image, "),
        "gain": gain,
        "against_baseline": test,
        "cheaper_and_as_good": cheapest and {k: cheapest[k] for k in ("label", "won", "lost", "p")},
    }


def health(
    classes: list[str], training: list[Stack], testing: list[Stack], skipped: list[str]
) -> dict[str, Any]:
    """What to know of a dataset: imbalance, duplicates, leaks, conflicting labels, skipped files.

    Images are equal when their pixels are: it is the pixel digests that are compared.
    """
    counts = {
        "training": [len(stack.names) for stack in training],
        "testing": [len(stack.names) for stack in testing],
    }
    equal: dict[bytes, list[tuple[str, int, str]]] = defaultdict(list)
    for split, stacks in (("training", training), ("testing", testing)):
        for label, stack in enumerate(stacks):
            for name, digest in zip(stack.names, stack.digests, strict=True):
                equal[digest.tobytes()].append((split, label, name))
    groups = [group for group in equal.values() if len(group) > 1]
    conflicts = [group for group in groups if len({label for _, label, _ in group}) > 1]
    shared = [group for group in groups if len({split for split, _, _ in group}) > 1]
    examples = {id(group): group for group in (*conflicts, *shared, *groups)}
    return {
        "counts": counts,
        "imbalance": max(counts["training"]) / max(1, min(counts["training"])),
        "duplicates": sum(len(group) - 1 for group in groups),
        "in_both": sum(split == "testing" for group in shared for split, _, _ in group),
        "conflicts": sum(len(group) for group in conflicts),
        "examples": [
            [f"{split}/{classes[label]}/{name}" for split, label, name in group[:8]]
            for group in list(examples.values())[:12]
        ],
        "skipped": skipped,
    }


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
        "cores": os.cpu_count(),
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
        name = entry["label"] if "label" in entry else f"mean image, {entry['distance']}"
        for point in entry.get("history", []):
            rows.append((name, point["epoch"], "training", "loss", point["training_loss"]))
            validated = point["validation_accuracy"]
            rows.append((name, point["epoch"], "validation", "accuracy", validated))
        final = entry.get("testing_accuracy", entry.get("accuracy"))
        rows.append((name, None, "testing", "accuracy", final))
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


# Words


def percent(share: float | None) -> str:
    """0.99412 -> "99.41 %", with a space that does not break; a dash when there is no number."""
    return "-" if share is None else f"{100 * share:.2f}\N{NO-BREAK SPACE}%"


def readable(text: str) -> str:
    r"""Text from outside on one line; control, direction and broken characters as \u escapes."""
    return "".join(
        f"\\u{ord(c):04x}"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in JOINERS
        else c
        for c in text
    )


def moment(started: str) -> str:
    """2026-11-23T16:21:46+00:00 -> "2026-11-23 16:21 UTC"."""
    return readable(f"{started[:16].replace('T', ' ')} UTC")


def luck(test: dict[str, Any]) -> str:
    """What a paired test says, in words."""
    if test["won"] + test["lost"] == 0:
        return "Both answer every image alike."
    if test["p"] < 0.001:
        chance = "less than once in 1,000 times"
    elif test["p"] < 0.01:
        chance = f"about {_times(1000 * test['p'])} in 1,000"
    else:
        chance = f"about {_times(100 * test['p'])} in 100"
    odds = f"Luck alone would split them at least this unevenly {chance}"
    if test["p"] >= 0.05:
        return f"{odds}: no difference that can be told from luck."
    return f"{odds}: a real step {'up' if test['won'] > test['lost'] else 'down'}."


def _times(number: float) -> str:
    return "once" if round(number) == 1 else f"{round(number)} times"


def verdict(answer: dict[str, Any] | None) -> str:
    """Whether machine learning is worth it here, as a headline."""
    if answer is None:
        return "No rung was trained."
    return {
        "yes": "Yes, machine learning is worth it here.",
        "unclear": "Perhaps: machine learning is ahead here, but not beyond doubt.",
        "no": "No, machine learning buys nothing here.",
    }[answer["verdict"]]


def markdown(results: dict[str, Any]) -> str:
    """The answer, the ladder, the baselines class by class and what ran, as Markdown tables."""
    data, found = results["dataset"], results["answer"]
    lines = [f"# {_cell(data['name'])}: {verdict(found)}", ""]
    if found:
        top = next(rung for rung in results["rungs"] if rung["label"] == found["best"])
        test = found["against_baseline"]
        lines += [
            f"The best rung, **{_cell(top['label'])}**, reads "
            f"**{percent(top['testing_accuracy'])}** right. It wins {test['won']:,} images "
            f"from the nearest average image ({found['baseline']}) and loses {test['lost']:,}. "
            f"{luck(test)}",
            "",
        ]
    lines += [
        f"{data['images']['testing']:,} testing images, {len(data['classes'])} classes.",
        "",
    ]
    if results["validation"] == "testing":
        lines += ["**Validated on the testing images: the accuracies may flatter.**", ""]
    ladder = [["random", percent(results["random_baseline"]), "", ""]]
    ladder += [
        [f"mean image, {b['distance']}", percent(b["accuracy"]), span(b["interval"]), ""]
        for b in results["baselines"]
    ]
    ladder += [
        [
            r["label"],
            percent(r["testing_accuracy"]),
            span(r["interval"]),
            pictures.duration(r["seconds"]) + (" (cached)" if r["cached"] else ""),
        ]
        for r in results["rungs"]
    ]
    lines += table(["rung", "testing accuracy", "95 % interval", "training time"], ladder)
    distances = [b["distance"] for b in results["baselines"]]
    shares = zip(*(b["per_class"] for b in results["baselines"]), strict=True)
    lines += ["", "## Nearest mean image, class by class", ""]
    lines += table(
        ["class", *distances],
        [[name, *map(percent, row)] for name, row in zip(data["classes"], shares, strict=True)],
    )
    lines += ["", "## What ran", ""]
    lines += table(
        ["stage", "state", "why", "time"],
        [
            [s["stage"], s["state"], "; ".join(s["why"]), pictures.duration(s["seconds"])]
            for s in results["stages"]
        ],
    )
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, whatever its cells hold."""
    rule = "|" + " --- |" * len(head)
    return (
        ["| " + " | ".join(map(_cell, row)) + " |" for row in [head]]
        + [rule]
        + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    )


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, and that cannot leave its table cell."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(readable(text)))


def span(interval: list[float]) -> str:
    """[0.9445, 0.9531] -> "94.45 to 95.31 %"."""
    return f"{100 * interval[0]:.2f} to {percent(interval[1])}"


# The page


def page(results: dict[str, Any], shown: dict[str, Any]) -> str:
    """The whole report as one HTML file: no script, no request, every name in it escaped."""
    rungs, data = results["rungs"], results["dataset"]
    floors = {"guessing": results["random_baseline"]}
    floors |= {f"mean image, {b['distance']}": b["accuracy"] for b in results["baselines"]}
    best = [r["label"] for r in rungs].index(results["answer"]["best"]) if rungs else 0
    images = data["images"]
    short = _short([rung["label"] for rung in rungs])
    hardest = _hardest(rungs)
    letters = [len(data["classes"][label]) for label in hardest]
    brief = [rung | {"label": short[rung["label"]]} for rung in rungs]
    return template(TEMPLATE).render(
        results,
        shown=shown,
        short=short,
        best=best,
        hardest=hardest,
        tall=max(letters, default=0) > 4 and sum(letters) > 60,  # more than fits side by side
        plots={
            size: {
                "ladder": Markup(pictures.ladder(brief, floors, best, images["testing"], width)),
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
        percent=percent,
        interval=span,
        duration=pictures.duration,
        luck=luck,
        verdict=verdict,
        heat=_heat,
        moment=moment,
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
