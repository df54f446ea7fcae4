"""A model's card: what a stranger must know before using it, as Markdown.

After Mitchell et al., Model Cards for Model Reporting (2019), whose sections these are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tasks.report.markdown import table
from tasks.report.measures import wilson
from tasks.report.seeds import models_of
from tasks.report.words import count, escaped, percent, span

GONE = "The report of the run that made it is not at hand, so this card has no more of its figures."
USE = (
    "It tells the classes of images apart that were taken and prepared like those it was trained "
    "on. It always names one of its classes, for images of something else too, so whoever uses it "
    "elsewhere should measure it there. Nobody has looked at what it may do to people whom its "
    "answers are about."
)
GROUPS = (
    "The only groups that were looked at are the classes themselves. Whether it reads images of "
    "one origin, camera or writer worse than those of another, nobody has measured."
)
INTERVALS = (
    "Intervals are Wilson's, of 95 %: they speak of the luck in which images were tested, not of "
    "the luck of a seed, nor of images of another origin."
)


def card(metadata: Mapping[str, str], results: Mapping[str, Any] | None) -> str:
    """What is known of a model: what it is, its data, its figures, its limits, how it was made.

    metadata: of its weights, as `describe` writes them, and of its file, as far as there are.
    results: results.json of the run that made it, or None where that is gone.
    """
    rung = _rung(metadata, results)
    figures = rung or json.loads(metadata.get("figures", "null"))
    sections = {"Model": _model(metadata, rung), "Intended use": [USE]}
    if results and rung:
        sections["Data"] = _data(results)
    if figures:
        sections["Figures"] = _figures(figures, results["baselines"] if results and rung else [])
    if results and rung:
        sections["Class by class"] = _classes(results, rung)
    else:
        sections["Data, and class by class"] = [GONE]
    sections |= {
        "Calibration": _calibration(metadata, rung),
        "Limits": _limits(results if rung else None),
        "How it was made": _making(metadata, results if rung else None),
    }
    name = " ".join(filter(None, (metadata.get("dataset"), metadata["model"])))
    lines = [f"# Model card: {escaped(name)}"]
    for title, said in sections.items():
        lines += ["", f"## {title}", "", *said]
    return "\n".join(lines) + "\n"


def _rung(metadata: Mapping[str, str], results: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The rung of a run that a model is, by its recipe, with the figures of this model."""
    recipe = json.loads(metadata["recipe"])
    rungs = results["rungs"] if results else []
    rung = next((each for each in rungs if each["recipe"] == recipe), None)
    return rung and models_of([rung])[rung["chosen"]]


def _model(metadata: Mapping[str, str], rung: dict[str, Any] | None) -> list[str]:
    preprocessing, classes = (json.loads(metadata[key]) for key in ("preprocessing", "classes"))
    height, width = preprocessing["shape"][:2]
    kind = "greyscale" if preprocessing["mode"] == "L" else "RGB"
    axes = f"[N, {', '.join(map(str, preprocessing['shape']))}]"
    rows = [
        ["model", metadata["model"]],
        ["takes", f"{kind} images, {height} pixels high and {width} wide: {axes} uint8, 0 to 255"],
        ["gives", f"probabilities [N, {len(classes)}] float32, in the order of the classes"],
        ["classes", ", ".join(classes)],
    ]
    if rung:
        rows.insert(1, ["parameters", f"{rung['parameters']:,}"])
    rows += [
        [key, metadata[key]] for key in ("dataset", "run", "rung", "weights") if key in metadata
    ]
    return table(["", ""], rows)


def _data(results: Mapping[str, Any]) -> list[str]:
    images, validation = results["dataset"]["images"], results["validation"]
    how = (
        "whatever was chosen was chosen by the testing images, so the figures may flatter"
        if validation == "testing"
        else f"chosen on {count(images['validation'], 'image')} given for that, and the testing "
        "images chose nothing"
        if validation == "given"
        else f"chosen on {count(images['validation'], 'image')} held out of training by the digest "
        "of their pixels, and the testing images chose nothing"
    )
    return [
        f"Of {escaped(results['dataset']['name'])}: trained on "
        f"{count(images['training'], 'image')}, tested on {count(images['testing'], 'image')}; "
        f"{how}. Pixels are divided by 255, and nothing else is done to them.",
        "",
        f"Equal images within the dataset: {results['health']['duplicates']:,}; in both training "
        f"and testing: {results['health']['in_both']:,}; under two labels: "
        f"{results['health']['conflicts']:,}. sha256 over the testing images: "
        f"`{results['dataset']['testing_digest']}`.",
    ]


def _figures(figures: Mapping[str, Any], baselines: list[dict[str, Any]]) -> list[str]:
    rows = [
        ["testing accuracy", percent(figures["testing_accuracy"]), span(figures["interval"])],
        ["balanced accuracy", percent(figures["balanced_accuracy"]), "-"],
        ["validation accuracy", percent(figures["validation_accuracy"]), "-"],
    ]
    for floor in sorted(baselines, key=lambda each: -each["accuracy"])[:1]:
        rows.append(
            [f"to beat: {floor['label']}", percent(floor["accuracy"]), span(floor["interval"])]
        )
    head = ["", "share", "95 % interval"]
    return [*table(head, rows), "", f"Macro F1 is {figures['macro_f1']:.4f}. {INTERVALS}"]


def _classes(results: Mapping[str, Any], rung: dict[str, Any]) -> list[str]:
    """How each class is read, and what it is taken for most often."""
    names, counts, rows = results["dataset"]["classes"], results["health"]["counts"], []
    for label, (name, row) in enumerate(zip(names, rung["confusion"], strict=True)):
        n = sum(row)
        share = row[label] / n if n else None
        wrong = [0 if other == label else times for other, times in enumerate(row)]
        most = max(range(len(wrong)), key=wrong.__getitem__)
        taken = f"{names[most]} ({wrong[most]:,})" if wrong[most] else "-"
        interval = "-" if share is None else span(wilson(share, n))
        rows.append(
            [name, f"{counts['training'][label]:,}", f"{n:,}", percent(share), interval, taken]
        )
    head = [
        "class",
        "in training",
        "in testing",
        "correct",
        "95 % interval",
        "most often taken for",
    ]
    return table(head, rows)


def _calibration(metadata: Mapping[str, str], rung: Mapping[str, Any] | None) -> list[str]:
    if "temperature" not in metadata:
        return ["Its probabilities are as it was trained to give them; nothing was fitted to them."]
    errors = rung["calibration"]["testing"] if rung else None
    said = (
        f" On the testing images the expected calibration error is {errors['after']:.4f}, and was "
        f"{errors['before']:.4f} before."
        if errors
        else ""
    )
    return [
        f"Logits are divided by a temperature of {float(metadata['temperature']):.4g}, fitted on "
        "the images held out of training (Guo et al., On Calibration of Modern Neural Networks, "
        f"2017). That changes how sure it is, and never which class it names.{said}"
    ]


def _limits(results: Mapping[str, Any] | None) -> list[str]:
    """What the report warns of, and what it did not look at."""
    return [f"- {escaped(each)}" for each in [*(results["warnings"] if results else []), GROUPS]]


def _making(metadata: Mapping[str, str], results: Mapping[str, Any] | None) -> list[str]:
    """The recipe, and where it was followed."""
    rows = {
        **json.loads(metadata["recipe"]),
        **json.loads(metadata.get("versions", "{}")),
        **(results["environment"] if results else {}),
    }
    return table(["", ""], [[key, str(value)] for key, value in rows.items()])
