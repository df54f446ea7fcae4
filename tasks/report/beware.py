"""What to beware of: what a reader of the verdict must know before believing it."""

from __future__ import annotations

from typing import Any

from tasks.report.words import (
    count,
    nearly,
    percent,
    quoted,
    rung_of,
    several,
    span,
    without_a_seed,
)

FEW = 10  # training images that a class should have
FEW_TO_TEST = 50  # testing images, of which so few leave an accuracy wide open


def warnings(results: dict[str, Any]) -> list[str]:
    """What a reader of the verdict must know before believing it, the gravest first."""
    said = [
        *_failures(results),
        *([SHORTCUT] if results["validation"] == "testing" else []),
        *_leaks(results),
        *_twins(results),
        *_conflicts(results),
    ]
    if results["answer"]:
        said += [*_unheard(results), *_worse_than_guessing(results), *_wide_open(results)]
    return [*said, *_few(results), *_unvalidated(results), *_untested(results)]


def _failures(results: dict[str, Any]) -> list[str]:
    """What failed and why: a rung, or where it stands nevertheless, those of its seeds that did."""
    fallen = {rung["label"] for rung in without_a_seed(results)}
    said = [
        f"{each['rung'] if each['rung'] in fallen else each['label']} failed: {each['failed']}"
        for each in results["failed"]
    ]
    return [*dict.fromkeys(said)]


SHORTCUT = (
    "Validated on the testing images: the best rung, and whatever was chosen while training, "
    "was chosen by the very images that are counted here, so these accuracies may flatter. Leave "
    "out --validation testing for a figure to rely on."
)


def _leaks(results: dict[str, Any]) -> list[str]:
    health = results["health"]
    if not health["in_both"]:
        return []
    here, there = health["first"]["in_both"][0]
    n = results["dataset"]["images"]["testing"]
    said = (
        f"{count(health['in_both'], 'testing image')} of {n:,} "
        f"{'is' if health['in_both'] == 1 else 'are'} in training too, such as {there}, which "
        f"equals {here}: what was learned by heart is counted as understood. Remove them from "
        "one side."
    )
    if results["answer"] and (without := results["answer"]["without_leaks"]):
        said += " " + _without(results, without)
    return [said]


def _twins(results: dict[str, Any]) -> list[str]:
    near, how = results["health"]["near"], results["dataset"]["split"]
    if not near["testing"] + near["validation"]:
        return []
    here, there = near["examples"][0]
    advice = "--keep-together draws them for one side" if "by pixels" in how else (
        "keep them on one side"
    )  # fmt: skip
    return [
        f"{nearly(near)[:-1]}, such as {there} and {here}: what was learned by heart may be "
        f"counted as understood. Look at them; if they are the same, {advice}."
    ]


def _without(results: dict[str, Any], without: dict[str, Any]) -> str:
    if not without["images"]:
        return "Without them no testing image is left, so nothing here tells what was understood."
    best = results["answer"]["best"]
    said = (
        f"Without them {best} is correct on {percent(without['accuracy'])} and the best baseline "
        f"{percent(without['baseline_accuracy'])} of {without['images']:,}"
    )
    if without["verdict"] is None:
        return f"{said}: too few to tell."
    if without["same"] and not results["answer"]["others_ahead"]:
        return f"{said}, and the verdict is the same."
    verdict = {
        "yes": "beats the baselines",
        "unclear": "is ahead of the baselines, but not beyond doubt",
        "no": "does not beat the baselines",
    }[without["verdict"]]
    return f"{said}: on those it {verdict}."


def _conflicts(results: dict[str, Any]) -> list[str]:
    health = results["health"]
    if not health["conflicts"]:
        return []
    one, other = health["first"]["conflicts"][0]
    return [
        f"{count(health['conflicts'], 'image')} {'has' if health['conflicts'] == 1 else 'have'} a "
        f"twin under another label, such as {one} and {other}: no model can get both right. Keep "
        "the one whose label is right, and remove the other."
    ]


def _unheard(results: dict[str, Any]) -> list[str]:
    """Classes that the best rung never says, or says but never rightly."""
    rung, names = rung_of(results, results["answer"]["best"]), results["dataset"]["classes"]
    best, confusion = rung["chosen"], rung["confusion"]
    images = [sum(row) for row in confusion]
    heard = [sum(column) for column in zip(*confusion, strict=True)]
    never = [i for i, n in enumerate(images) if n and not heard[i]]
    missed = [i for i, n in enumerate(images) if n and heard[i] and not confusion[i][i]]
    said = []
    for labels, what in ((never, "never predicts"), (missed, "never recognises")):
        if labels:
            n = sum(images[i] for i in labels)
            theirs = f"{count(n, 'testing image')} of {'it' if len(labels) == 1 else 'them'}"
            wrong = (
                "is predicted as something else"
                if n == 1
                else "are all predicted as something else"
            )
            shown = several([quoted(names[i]) for i in labels])
            said.append(f"{best} {what} {shown}: {theirs} {wrong}.")
    if never and sum(map(bool, heard)) == 1:
        said[0] += (
            f" It predicts {quoted(names[heard.index(sum(images))])} whatever an image shows."
        )
    return said


def _worse_than_guessing(results: dict[str, Any]) -> list[str]:
    best = rung_of(results, results["answer"]["best"])
    if best["interval"][1] >= results["random_baseline"]:
        return []
    return [
        f"{best['label']} is correct on fewer images than guessing would be "
        f"({percent(results['random_baseline'])}): look at its learning rate, and whether training "
        "and testing mean the same by each class."
    ]


def _wide_open(results: dict[str, Any]) -> list[str]:
    n = results["dataset"]["images"]["testing"]
    if n >= FEW_TO_TEST:
        return []
    best = rung_of(results, results["answer"]["best"])
    return [
        f"There {'is' if n == 1 else 'are'} only {count(n, 'testing image')}: of many more of the "
        f"kind, {best['label']} may be correct on {span(best['interval'])}. Add some."
    ]


def _unvalidated(results: dict[str, Any]) -> list[str]:
    """Classes without a held-out image, where those chose among several rungs."""
    held_out, names = results["health"]["held_out"], results["dataset"]["classes"]
    if len(results["rungs"]) < 2 or not held_out:
        return []
    none = [quoted(name) for name, n in zip(names, held_out, strict=True) if not n]
    if not none:
        return []
    return [
        f"No image of {several(none)} was held out for validation, so how {_they(none)} "
        "predicted had no say in which rung is best. Add images, or hold out a larger share."
    ]


def _few(results: dict[str, Any]) -> list[str]:
    names, counts = results["dataset"]["classes"], results["health"]["counts"]["training"]
    few = sorted((n, i) for i, n in enumerate(counts) if n < FEW)
    if not few:
        return []
    shown = several([f"{quoted(names[i])} ({n})" for n, i in few], 5)
    which = "has" if len(few) == 1 else "have"
    return [
        f"{count(len(few), 'class', 'classes')} of {len(names)} {which} under {FEW} training "
        f"images: {shown}. What is learned and chosen from so few is chance: add some."
    ]


def _untested(results: dict[str, Any]) -> list[str]:
    names, counts = results["dataset"]["classes"], results["health"]["counts"]["testing"]
    none = [quoted(name) for name, n in zip(names, counts, strict=True) if not n]
    if not none:
        return []
    return [
        f"No testing image is of {several(none)}, so nothing here tells how {_they(none)} "
        "predicted."
    ]


def _they(names: list[str]) -> str:
    return "that is" if len(names) == 1 else "they are"
