"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from tasks.report import words
from tasks.report.words import NOTHING_SKIPPED, duration, escaped, percent, span


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
