"""The words of a report: numbers as a person says them, the verdict, and what to beware of.

Page, Markdown, terminal and Prefect all take their sentences from here, so that they agree.  The
sentences are plain text; whoever shows one escapes it.  Nothing here takes long to import.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

FEW_TO_CHOOSE = 100  # validation images that can hardly tell rungs apart
JOINERS = "\u200c\u200d"  # harmless, and part of emoji and of several scripts


def per_hundred(share: float, digits: int = 2) -> str:
    """0.99412 -> "99.41".  Only all is 100.00 and only nothing 0.00, however near others come."""
    least = 10.0**-digits
    near = 1e-9 < share < 1 - 1e-9  # what is calculated may miss 0 and 1 by a hair
    value = 100 * share + 1e-9  # halves go up: 66.85 to 66.9
    return f"{min(max(value, least), 100 - least) if near else value:.{digits}f}"


def percent(share: float | None) -> str:
    """0.99412 -> "99.41 %", with a space that does not break; a dash when there is no number."""
    return "-" if share is None else f"{per_hundred(share)}\N{NO-BREAK SPACE}%"


def span(interval: list[float]) -> str:
    """[0.9445, 0.9531] -> "94.45 to 95.31 %"."""
    return f"{per_hundred(interval[0])} to {percent(interval[1])}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them; a dash where they are not known."""
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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


def quoted(name: str) -> str:
    """A class's name inside a sentence, cut where it is very long."""
    return f'"{name if len(name) <= 60 else name[:57] + "..."}"'


def several(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first of many: a, b, c and 34 more."""
    shown = between.join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def count(number: int, what: str, many: str = "") -> str:
    """1 image, 2 images."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def luck(test: dict[str, Any]) -> str:
    """What a paired test says, in words: one of several by its p as raised for their number."""
    if test["won"] + test["lost"] == 0:
        return "Both are correct on the same images."
    p, several = test.get("p_adjusted", test["p"]), test.get("comparisons", 1)
    if p < 0.001:
        chance = "less than once in 1,000 times"
    elif p < 0.01:
        chance = f"about {_times(1000 * p)} in 1,000"
    else:
        chance = f"about {_times(100 * p)} in 100"
    among = f"Among {several} such comparisons luck alone" if several > 1 else "Luck alone"
    of = ", of images and of seeds," if "seeds" in test else ""
    which = "one" if several > 1 else "them"
    far = f"part {which} at least this far" if of else f"split {which} at least this unevenly"
    odds = f"{among}{of} would {far} {chance}"
    if p >= 0.05:
        return f"{odds}: no difference that can be told from luck."
    way = "up" if test["won"] > test["lost"] else "down"
    return f"{odds}: {f'a real step {way}' if of else f'a step {way} beyond the luck of images'}."


def _times(number: float) -> str:
    return "once" if round(number) == 1 else f"{round(number)} times"


def spread(counts: dict[str, list[int]]) -> str:
    """How unequal the classes are, in training and in testing.  counts: split -> images [C]."""
    said = []
    for split, each in counts.items():
        least, most = min(each), max(each)
        if most == least:
            said.append(f"{count(most, f'{split} image')} in each class")
        else:
            said.append(f"{least:,} to {count(most, f'{split} image')} in a class")
    return f"{', '.join(said)}."


NOTHING_SKIPPED = "Nothing in the dataset's folder was skipped."


def skipped_in_brief(skipped: list[str]) -> str:
    """What of a dataset's folder was not taken, by reason, in one line; nothing where all was.

    skipped: "training/7/notes.txt: reason" for one thing, "training/7: reason (12: a, b, ...)" for
    several.
    """
    kinds: dict[str, list[tuple[int, str]]] = {}
    for line in skipped:
        if found := re.fullmatch(r"(.*): ([^:]*) \(([\d,]+): (.*)\)", line, re.DOTALL):
            place, reason, number, names = found.groups()
            first = names.split(", ")[0]
            kinds.setdefault(reason, []).append((int(number.replace(",", "")), f"{place}/{first}"))
        else:
            place, _, reason = line.rpartition(": ")
            kinds.setdefault(reason, []).append((1, place))
    counts = {reason: sum(n for n, _ in things) for reason, things in kinds.items()}
    parts = [
        f"{kinds[reason][0][1]}{f' and {n - 1:,} more' if n > 1 else ''} ({reason})"
        for reason, n in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return f"Skipped {sum(counts.values()):,}: {several(parts, 8, '; ')}." if skipped else ""


def split(how: str, images: dict[str, int], validation: float | str) -> str:
    """How many images are on which side, and how they came there: "train 80, val 10, test 10 ...".

    images: of each side.  validation: as of a run; "testing" leaves none for it alone.
    """
    sides = {"train": images["training"], "val": images["validation"], "test": images["testing"]}
    if validation == "testing" or not images["validation"]:
        del sides["val"]
    counts = ", ".join(f"{side} {n:,}" for side, n in sides.items())
    if how.startswith("by pixels"):
        shares = " / ".join(f"{100 * n / sum(sides.values()):.0f}" for n in sides.values())
        how = how.replace("by pixels", f"by pixels: {shares}")
    return f"{counts} {how}".strip()


def nearly(near: dict[str, Any]) -> str:
    """How many images look like one of another side."""
    said = [
        f"{count(near[side], f'{side} image')} {'looks' if near[side] == 1 else 'look'} much like "
        "one in training"
        for side in ("testing", "validation")
        if near[side]
    ]
    return f"{'; '.join(said)}." if said else "No testing image looks much like one in training."


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, and that cannot leave its line or table cell."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html.escape(readable(text), quote=False))


# The verdict


def headline(results: dict[str, Any]) -> str:
    """Whether machine learning is worth it here; of a part of the ladder, only what it showed."""
    found = results["answer"]
    if found is None:
        return "Every rung failed." if results["failed"] else "No rung was trained."
    if found["too_few"]:
        return "Too few testing images to tell."
    if found["left_out"]:
        return {
            "yes": "What ran beats the baselines; it was not the whole ladder.",
            "unclear": "What ran does not clearly beat the baselines; it was not the whole ladder.",
            "no": "What ran does not beat the baselines; it was not the whole ladder.",
        }[found["verdict"]]
    if found["others_ahead"]:
        return (
            "Perhaps: not the rung that is best on validation, but another seems to beat the "
            "baselines."
        )
    return {
        "yes": "Yes, machine learning is worth it here.",
        "unclear": f"Perhaps: machine learning is ahead {_how_far(found)}.",
        "no": "No, machine learning is not worth it here.",
    }[found["verdict"]]


def _how_far(found: dict[str, Any]) -> str:
    fair = found["balanced"]["gain"] if found["balanced"] else found["gain"]
    if max(found["gain"], fair) <= 0:
        return "only on the testing images that are not in training too"
    if found["gain"] <= 0:
        return "by balanced accuracy, but not by accuracy"
    if fair <= 0:
        return "by accuracy, but not by balanced accuracy"
    return "here, but not beyond doubt"


def lead(results: dict[str, Any]) -> str:
    """What the verdict rests on: the best rung's accuracy against the best baseline's."""
    found = results["answer"]
    if found is None:
        return "Only the baselines were measured; there is nothing to compare them with yet."
    best, floor = rung_of(results, found["best"]), baseline_of(results, found["baseline"])
    n = results["dataset"]["images"]["testing"]
    wrong = [round((1 - share) * n) for share in (best["testing_accuracy"], floor["accuracy"])]
    return (
        f"{_the_rung(results)}, {found['best']}, is correct on "
        f"{percent(best['testing_accuracy'])} of {count(n, 'testing image')}{_on_average(best)}. "
        f"Simply {doing(floor)} is correct on {percent(floor['accuracy'])}. "
        f"That is {count(wrong[0], 'mistake')} instead of "
        f"{wrong[1]:,}."
    )


def _on_average(rung: dict[str, Any]) -> str:
    """What a mean over several seeds is: how many, and how far they lie apart."""
    if (spread := rung["testing_accuracy_sd"]) is None:
        return ""
    return f" on average over {len(rung['seeds'])} seeds, give or take {points(spread)}"


def points(share: float) -> str:
    """A difference of two shares, such as a standard deviation: 0.0012 -> "0.12 points"."""
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}points"


def give_or_take(rung: dict[str, Any]) -> str:
    """What stands after the mean over several seeds: their standard deviation, "± 0.12"."""
    spread = rung.get("testing_accuracy_sd")
    return "" if spread is None else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{100 * spread:.2f}"


def sureness(rung: dict[str, Any]) -> str:
    """How far the probabilities of a rung's model can be believed."""
    found = rung["calibration"]
    before, after = found["testing"]["before"], found["testing"]["after"]
    return (
        "Calibration: on testing images, how sure it is and how often it is correct lie "
        f"{percent(after)} apart on average. Without the temperature of "
        f"{found['temperature']:.3g}, fitted on the images that validated it, that would be "
        f"{percent(before)}."
    )


def _the_rung(results: dict[str, Any]) -> str:
    if len(results["rungs"]) > 1:
        return "The best rung"
    return f"The one rung {'that did not fail' if without_a_seed(results) else 'of this run'}"


def evidence(results: dict[str, Any]) -> list[str]:
    """What the accuracies alone do not say: what ran, unequal classes, how the rung was chosen."""
    found = results["answer"]
    if found is None:
        return []
    said = [_scope(found), _balance(results), _choice(results), _seeds(results)]
    return [sentence for sentence in said if sentence]


def _scope(found: dict[str, Any]) -> str:
    if not found["left_out"]:
        return ""
    missing = several(found["left_out"], 6, "; ")
    return f"This speaks only of what ran. Of the default ladder there were left out: {missing}."


def _balance(results: dict[str, Any]) -> str:
    """Where classes are unequal: the figures in which each class counts alike."""
    tested = results["answer"]["balanced"]
    if tested is None:
        return ""
    best = rung_of(results, results["answer"]["best"])
    fair = baseline_of(results, tested["baseline"])
    if tested["gain"] <= 0:
        step = "not ahead"
    else:
        step = "ahead beyond luck" if tested["p"] < 0.05 else "ahead, but that could be luck"
    return (
        "The classes are unequal, so the verdict asks for balanced accuracy too, in which each "
        f"class counts alike: {percent(best['balanced_accuracy'])} against "
        f"{percent(fair['balanced_accuracy'])} by {doing(fair).rstrip(',')}; {step}."
    )


def _choice(results: dict[str, Any]) -> str:
    """How the best rung came to be called that; in `--validation testing` a warning says it."""
    rungs, found = results["rungs"], results["answer"]
    if found["chosen_on"] == "testing":
        return ""
    if len(rungs) == 1:
        return "The testing images were looked at once, at the end."
    best, n = rung_of(results, found["best"]), results["dataset"]["images"]["validation"]
    of_them = "for validation" if results["validation"] == "given" else "held out of training"
    said = (
        f"{best['label']} was chosen as the best of {len(rungs)} rungs on {count(n, 'image')} "
        f"{of_them}, on {percent(best['validation_accuracy'])} of which it is correct"
        f"{'; so few can hardly tell rungs apart' if n < FEW_TO_CHOOSE else ''}."
    )
    tied = [r for r in rungs if r["validation_accuracy"] == best["validation_accuracy"]]
    if len(tied) > 1:
        said += f" {_as_good(len(tied) - 1)} correct on as many; of equals the lowest is taken."
    said += " The testing images were looked at once, at the end."
    better = [r for r in rungs if r["testing_accuracy"] > best["testing_accuracy"]]
    if better:
        said += (
            f" On those {several([r['label'] for r in better], 2, ' and ')} "
            f"{'is' if len(better) == 1 else 'are'} correct on more; to choose by that "
            "would flatter."
        )
    return said


def _seeds(results: dict[str, Any]) -> str:
    """Which of several seeds the best rung stands for."""
    best = rung_of(results, results["answer"]["best"])
    if len(best["seeds"]) == 1:
        return ""
    chosen = next(run for run in best["runs"] if run["label"] == best["chosen"])
    return (
        f"Of its {len(best['seeds'])} seeds, seed {chosen['seed']} is the best on validation, "
        f"{percent(chosen['validation_accuracy'])}, so its model is the one to use; it is "
        f"correct on {percent(chosen['testing_accuracy'])} of the testing images."
    )


def _as_good(others: int) -> str:
    return "Another rung is" if others == 1 else f"{others} other rungs are"


def mark(results: dict[str, Any], label: str) -> str:
    """What a table says beside the rung that the verdict speaks of, and the best baseline."""
    found = results["answer"]
    if found is None:
        return ""
    best = "best" if len(results["rungs"]) > 1 else ""
    notes = [{found["best"]: best, found["baseline"]: "to beat"}.get(label, "")]
    if fallen := sum(each["rung"] == label for each in results["failed"]):
        notes.append(f"{count(fallen, 'seed')} failed")
    return ", ".join(filter(None, notes))


def without_a_seed(results: dict[str, Any]) -> list[dict[str, str]]:
    """The rungs of which every training failed: "label" and "failed", why the first of them did."""
    stand = {rung["label"] for rung in results["rungs"]}
    first = {each["rung"]: each["failed"] for each in reversed(results["failed"])}
    labels = dict.fromkeys(each["rung"] for each in results["failed"])
    return [{"label": each, "failed": first[each]} for each in labels if each not in stand]


def doing(baseline: dict[str, Any]) -> str:
    """What a baseline does, as in "simply ... reads 90 %"."""
    if baseline["distance"]:
        return f"picking the nearest average image ({baseline['distance']})"
    which = "one of the commonest classes" if baseline["tied"] else "the commonest class"
    return f"always predicting {quoted(baseline['says'])}, {which} in training,"


def rung_of(results: dict[str, Any], label: str) -> dict[str, Any]:
    """The numbers of the rung of this label."""
    return next(rung for rung in results["rungs"] if rung["label"] == label)


def baseline_of(results: dict[str, Any], label: str) -> dict[str, Any]:
    """The numbers of the baseline of this label."""
    return next(each for each in results["baselines"] if each["label"] == label)
