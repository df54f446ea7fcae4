"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from tasks.report import words
from tasks.report.words import NOTHING_SKIPPED, duration, escaped, mark, percent, readable, span


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
    ladder = ladder_table(results)
    lines += [
        f"{data['images']['testing']:,} testing images, {len(data['classes'])} classes. "
        f"{escaped(skipped or NOTHING_SKIPPED)}",
        "",
        *[f"- Split: {escaped(data['split'])}."] * bool(data["split"]),
        *(f"- Images: {escaped(line)}." for line in data["converted"]),
        *[""] * bool(data["converted"] or data["split"]),
        *table([*ladder[0]], [[*row.values()] for row in ladder]),
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


def ladder_table(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each rung, from the top of the ladder down, for each baseline, for guessing."""
    rungs = [each | {"accuracy": each["testing_accuracy"]} for each in reversed(results["rungs"])]
    floors = sorted(results["baselines"], key=lambda each: -each["accuracy"])
    fallen = [{"label": each["label"], "note": "failed"} for each in words.without_a_seed(results)]
    guessing = {"label": "guessing", "accuracy": results["random_baseline"]}
    return [
        {
            "rung": readable(each["label"]),
            "testing accuracy": percent(each.get("accuracy")) + words.give_or_take(each),
            "95 % interval": span(each["interval"]) if "interval" in each else "-",
            "balanced accuracy": percent(each.get("balanced_accuracy")),
            "macro F1": f"{each['macro_f1']:.4f}" if "macro_f1" in each else "-",
            "validation": percent(each.get("validation_accuracy")),
            "training time": duration(each.get("seconds")),
            "note": each.get("note") or mark(results, each["label"]),
        }
        for each in (*rungs, *fallen, *floors, guessing)
    ]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, whatever its cells hold."""
    return [
        "| " + " | ".join(map(escaped, head)) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(map(escaped, row)) + " |" for row in rows),
    ]
