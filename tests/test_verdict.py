"""The verdict: what the report says is true, and what it keeps from being believed is said."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.console import verdict
from tasks.caching.refs import Outcome
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.report import words
from tasks.report.artifacts import ladder_table
from tasks.report.findings import findings
from tasks.report.markdown import markdown
from tasks.report.measures import compare_classes, mcnemar, scores
from tasks.rungs.recipes import Recipe


def stack(count: int, seed: int) -> Stack:
    """Images of one pixel row, all different."""
    images = np.arange(seed * 1000, seed * 1000 + count, dtype=np.uint32).view(np.uint8)
    images = images.reshape(count, 1, 4)
    digests = [list(hashlib.sha256(image.tobytes()).digest()) for image in images]
    names = [f"{seed}-{i}.png" for i in range(count)]
    return Stack(torch.from_numpy(images), names, np.array(digests, np.uint8).reshape(-1, 32))


def rung(said: np.ndarray, truth: np.ndarray, classes: int, validated: float, n: int) -> dict:
    """What `train` gives for a model that says this of the testing images."""
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (truth, said), 1)
    return {
        "history": [
            {
                "epoch": 1,
                "training_loss": 1.0,
                "validation_loss": 1.0,
                "validation_accuracy": validated,
            }
        ],
        "testing_accuracy": float((said == truth).mean()),
        "confusion": confusion.tolist(),
        "probabilities": torch.eye(classes)[said],
        "temperature": 1.5,
        "lowest_logit": 2.0,
        "calibration_error": {"before": 0.05, "after": 0.02},
        "testing_calibration_error": {"before": 0.06, "after": 0.03},
        "parameters": 9,
        "epoch": 1,
        "flip": False,
        "device": "cpu",
        "images": {"training": 100, "validation": n, "testing": len(truth)},
    }


def climbed(
    said: dict[str, tuple[float, Any]],
    training: list[int],
    testing: list[int],
    nearest: Any = None,
    names: list[str] | None = None,
    seconds: dict[str, float] | None = None,
    stacks: tuple[list[Stack], list[Stack]] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """results.json of rungs that say this: name -> validation accuracy, answers [N] to testing.

    An answer may be a function of the truth [N].  nearest: answers of the nearest mean images.
    """
    truth = np.repeat(np.arange(len(testing)), testing)
    classes = names or ["cat", "other", "third"][: len(testing)]
    answers = {name: (v, a(truth) if callable(a) else np.array(a)) for name, (v, a) in said.items()}
    nearest = np.zeros_like(truth) if nearest is None else nearest(truth)
    given: dict[str, Any] = {
        "dataset": "shelf",
        "classes": classes,
        "training": stacks[0] if stacks else [stack(n, i) for i, n in enumerate(training)],
        "testing": stacks[1] if stacks else [stack(n, 500 + i) for i, n in enumerate(testing)],
        "baselines": [{"distance": "mse", "said": torch.from_numpy(nearest)}],
        "rungs": {
            name: rung(each, truth, len(testing), v, 200) for name, (v, each) in answers.items()
        },
        "recipes": {
            name: Recipe(model="linear", loss="cross_entropy", lr=1 / (1 + i))
            for i, name in enumerate(said)
        },
        "failed": {},
        "validation": 0.1,
        "skipped": [],
        "left_out": [],
        "home": "shelf",
        "converted": [],
        "fit": "crop",
        "usual": {},
        "watched": [],
        "split": "",
        "run": Run(
            outcomes={f"train[{n}]": Outcome("ran", (), s) for n, s in (seconds or {}).items()}
        ),
    }
    return findings(**(given | changes))


def mostly(share: float) -> Any:
    """Answers of which a share is right, evenly over the classes; the rest says the next class."""
    return lambda truth: np.where(
        np.arange(len(truth)) % 100 < 100 * share, truth, (truth + 1) % (truth.max() + 1)
    )


def says(label: int) -> Any:
    return lambda truth: np.full_like(truth, label)


def everything(results: dict[str, Any]) -> str:
    """All that Markdown and terminal say of a climb."""
    return markdown(results) + "\n".join(verdict(results))


# Unequal classes


def test_a_model_that_never_says_cat_is_no_success() -> None:
    """At 10 : 90 saying "other" is right nine times in ten: no gain, and a warning at the top."""
    results = climbed({"mlp": (0.9, says(1))}, [20, 180], [10, 90], nearest=mostly(0.7))
    floors = {each["label"]: each for each in results["baselines"]}
    assert floors["commonest class"]["accuracy"] == 0.9
    assert floors["commonest class"]["says"] == "other"
    assert results["answer"]["baseline"] == "commonest class"
    assert results["answer"]["verdict"] == "no"
    assert results["headline"] == "No, machine learning is not worth it here."
    assert results["warnings"] == [
        'mlp never predicts "cat": 10 testing images of it are all predicted as something else. '
        'It predicts "other" whatever an image shows.'
    ]
    text = markdown(results)
    assert text.index('mlp never predicts "cat"') < text.index("| rung |")
    assert 'warning: mlp never predicts "cat"' in "\n".join(verdict(results))


def test_unequal_classes_ask_for_balanced_accuracy_too() -> None:
    """Ahead by accuracy alone, or by balanced accuracy alone, is "Perhaps", with the figures."""

    def few_cats(truth: np.ndarray) -> np.ndarray:  # all of other, a third of cat
        return np.where((truth == 0) & (np.arange(len(truth)) % 3 > 0), 1, truth)

    def many_cats(truth: np.ndarray) -> np.ndarray:  # all of cat, five in six of other
        return np.where((truth == 1) & (np.arange(len(truth)) % 6 == 0), 0, truth)

    def both(truth: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(truth)) % 25 == 0, 1 - truth, truth)

    sizes = {"training": [20, 180], "testing": [60, 540]}
    one = climbed({"mlp": (0.9, few_cats)}, **sizes, nearest=many_cats)
    assert (one["answer"]["gain"] > 0, one["answer"]["against_baseline"]["p"] < 0.05) == (
        True,
        True,
    )
    assert one["answer"]["balanced"]["baseline"] == "mean image, mse"
    assert one["headline"].startswith(
        "Perhaps: machine learning is ahead by accuracy, but not by b"
    )
    two = climbed({"mlp": (0.9, many_cats)}, **sizes)
    assert (two["answer"]["gain"] < 0, two["answer"]["balanced"]["p"] < 0.05) == (True, True)
    assert "ahead by balanced accuracy, but not by accuracy" in two["headline"]
    assert "91.67\xa0% against 50.00\xa0% by picking the nearest" in everything(two)
    assert climbed({"mlp": (0.9, both)}, **sizes)["answer"]["verdict"] == "yes"


def test_equal_classes_are_judged_by_accuracy_alone() -> None:
    """Up to one and a half times the smallest class, in training and in testing."""
    for training, testing, unequal in (
        ([100, 150], [100, 150], False),
        ([100, 151], [100, 100], True),
        ([100, 100], [10, 16], True),
    ):
        results = climbed({"mlp": (0.9, mostly(0.9))}, training, testing)
        assert (results["answer"]["balanced"] is not None) is unequal
        assert results["health"]["unequal"] is unequal


def test_scores() -> None:
    """Recall of each class, their mean, and F1's mean, by their definitions on small matrices."""
    found = scores([[8, 2, 0, 0], [10, 80, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert found["per_class"] == [0.8, 80 / 90, None, None]
    assert found["balanced_accuracy"] == pytest.approx(0.844444, abs=1e-6)
    assert found["macro_f1"] == pytest.approx((16 / 28 + 160 / 172) / 2)
    # A class that is said although there is none of it counts in F1.
    assert scores([[1, 1], [0, 0]])["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores([[0, 5], [0, 5]]) == {
        "per_class": [0.0, 1.0], "balanced_accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)
    }  # fmt: skip


def test_a_balanced_comparison_is_mcnemars_where_classes_are_equal() -> None:
    """One weight for all: the random draws come out at the exact p; a tie is a gain of 0."""
    truth = np.repeat([0, 1], 50)
    lower = np.zeros(100, bool)
    upper = lower.copy()
    upper[[3, 4, 5, 6, 60, 61, 62, 63]] = True
    found = compare_classes(upper, lower, truth)
    assert found["gain"] == pytest.approx(0.08)
    assert found["p"] == pytest.approx(mcnemar(8, 0), abs=0.004)
    assert compare_classes(upper, upper, truth) == {"gain": 0.0, "p": 1.0}
    assert compare_classes(upper, lower, truth) == found


# What ran


@pytest.mark.parametrize("right", [0.2, 0.55, 0.95])
def test_a_part_of_the_ladder_speaks_only_of_what_ran(right: float) -> None:
    """One rung, or one epoch, says nothing of machine learning; the rest is named."""
    missing = ["linear, sigmoid_mse", "mlp, cross_entropy (1 of 41 epochs)"]
    part = climbed({"mlp": (0.9, mostly(right))}, [50, 50], [50, 50], left_out=missing)
    text = everything(part)
    assert "machine learning" not in text
    assert "left out: linear, sigmoid_mse; mlp, cross_entropy (1 of 41 epochs)." in " ".join(
        verdict(part)
    )
    assert "held out" not in text, "nothing was chosen"
    whole = climbed({"mlp": (0.9, mostly(right))}, [50, 50], [50, 50])
    assert "machine learning" in everything(whole)


# The choice


accuracies = st.integers(0, 20).map(lambda n: n / 20)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(accuracies, accuracies, accuracies), min_size=1, max_size=5))
def test_the_testing_images_have_no_say_in_which_rung_is_best(
    rungs: list[tuple[float, float, float]],
) -> None:
    """Whatever they are read like, the headline's rung is that of the best validation."""
    chosen = []
    for column in (1, 2):
        said = {f"r{i}": (each[0], mostly(each[column])) for i, each in enumerate(rungs)}
        results = climbed(said, [20, 20], [20, 20])
        chosen.append(results["answer"]["best"])
        best = max(each[0] for each in rungs)
        assert chosen[-1] == f"r{[each[0] for each in rungs].index(best)}", "of equals the lowest"
        assert words.lead(results).startswith("The ")
        assert f", {chosen[-1]}, is correct on" in words.lead(results)
        marked = [row["rung"] for row in ladder_table(results) if row["note"] == "best"]
        assert marked == ([chosen[-1]] if len(rungs) > 1 else [])
    assert chosen[0] == chosen[1]


def test_a_poor_choice_of_rung_is_no_verdict_on_machine_learning() -> None:
    """Where validation chose a rung that buys nothing and another beats the baselines: no "no"."""
    said = {"a": (1.0, mostly(0.5)), "b": (0.9, mostly(0.99))}
    results = climbed(said, [50, 50], [50, 50])
    assert (results["answer"]["best"], results["answer"]["others_ahead"]) == ("a", ["b"])
    assert results["headline"].startswith("Perhaps: not the rung that is best on validation")
    assert "On those b is correct on more" in everything(results)
    results = climbed({"a": said["a"], "b": (0.9, mostly(0.55))}, [50, 50], [50, 50])
    assert results["headline"].startswith("No, "), "a little ahead is luck among many"


def test_a_class_that_had_no_say_in_the_choice_is_named() -> None:
    """How many of each class are held out is in the results; of none, a warning, if it mattered."""
    said = {"a": (1.0, mostly(0.9)), "b": (0.9, mostly(0.9))}
    results = climbed(said, [60, 1], [50, 50])
    held_out = results["health"]["held_out"]
    assert held_out[1] == 0 < held_out[0]
    assert 'No image of "other" was held out for validation' in results["warnings"][-1]
    alone = climbed({"a": said["a"]}, [60, 1], [50, 50])
    shortcut = climbed(said, [60, 1], [50, 50], validation="testing")
    assert "held out for validation" not in everything(alone) + everything(shortcut)
    assert shortcut["health"]["held_out"] is None


def test_the_choice_is_told_as_it_was_made() -> None:
    """By validation: how many images, ties, and a rung that testing likes better; no flattery."""
    said = {"a": (0.8, mostly(0.99)), "b": (0.95, mostly(0.9)), "c": (0.95, mostly(0.95))}
    results = climbed(said, [500, 500], [100, 100])
    assert results["answer"]["best"] == "b"
    text = everything(results)
    assert "b was chosen as the best of 3 rungs on 200 images held out of training, on " in text
    assert "Another rung is correct on as many; of equals the lowest is taken." in text
    assert "On those a and c are correct on more; to choose by that would flatter." in text
    assert "looked at once" in text

    seen = {name: (share, answers) for share, (name, (_, answers)) in
            zip((0.99, 0.9, 0.95), said.items(), strict=True)}  # fmt: skip
    shortcut = climbed(seen, [500, 500], [100, 100], validation="testing")
    assert shortcut["answer"]["best"] == "a"
    assert "looked at once" not in everything(shortcut)
    assert shortcut["warnings"][0].startswith("Validated on the testing images")


def test_cheaper_is_only_what_beats_the_baseline_too() -> None:
    """On few images much is not provably worse; what is no better than a baseline stays unnamed."""
    said = {"a": (0.7, mostly(0.52)), "b": (0.8, mostly(0.96)), "c": (0.9, mostly(0.97))}
    results = climbed(said, [50, 50], [50, 50], seconds={"a": 1.0, "b": 2.0, "c": 9.0})
    assert results["answer"]["cheaper_and_as_good"]["label"] == "b"
    sizes = {"training": [100, 1000], "testing": [100, 1000]}
    fair = np.where(np.arange(1100) < 50, 1, np.repeat([0, 1], [100, 1000]))  # half of cat
    said = {"a": (0.9, fair), "b": (0.95, mostly(0.96))}
    results = climbed(said, **sizes, seconds={"a": 1.0, "b": 2.0})
    assert results["answer"]["verdict"] == "yes"
    assert results["answer"]["cheaper_and_as_good"] is None, "worse where classes count alike"
    worthless = {name: (v, mostly(0.5)) for name, (v, _) in said.items()}
    results = climbed(worthless, [50, 50], [50, 50], seconds={"a": 1.0, "b": 2.0, "c": 9.0})
    assert results["answer"]["cheaper_and_as_good"] is None


# Warnings


def test_classes_that_are_never_said_or_never_right_are_named() -> None:
    """Three of 150 by name, the others by number; letters of any script, and long names, too."""

    def two_kinds(truth: np.ndarray) -> np.ndarray:
        return np.select([truth == 0, truth == 1, truth == 2], [1, 2, 2], truth)

    names = ["кошка", "b" * 300, "c", "d"]
    results = climbed({"mlp": (0.9, two_kinds)}, [20] * 4, [10, 1, 10, 10], names=names)
    never, missed, _ = results["warnings"]
    assert never == (
        'mlp never predicts "кошка": 10 testing images of it are all predicted as something else.'
    )
    assert re.fullmatch('mlp never recognises "b{57}\\.{3}": 1 testing image of it is .*', missed)

    many = [f"class {i:03}" for i in range(150)]
    results = climbed(
        {"mlp": (0.9, lambda truth: truth - truth % 2)}, [20] * 150, [2] * 150, names=many
    )
    assert results["warnings"] == [
        'mlp never predicts "class 001", "class 003", "class 005" and 72 more: 150 testing images '
        "of them are all predicted as something else."
    ]


def read_by_heart(training: list[Stack], testing: list[Stack]) -> dict[str, Any]:
    """A rung that reads the first 45 of 50 images of a class right and none of the other."""
    right = lambda truth: np.where(np.arange(100) < 45, 0, 1 - truth)  # noqa: E731
    sizes, stacks = [50, 50], (training, testing)
    return climbed({"mlp": (0.9, right)}, sizes, sizes, nearest=says(1), stacks=stacks)


def test_leaks_and_conflicting_labels_stand_beside_the_verdict() -> None:
    """With counts, an example, what to do, and the accuracy that is left without the leaks."""
    training, testing = [stack(50, 0), stack(50, 1)], [stack(50, 500), stack(50, 501)]
    testing[0].digests[:40] = training[0].digests[:40]
    training[1].digests[49] = training[0].digests[49]
    results = read_by_heart(training, testing)
    leak, conflict = results["warnings"][:2]
    assert leak.startswith(
        "40 testing images of 100 are in training too, such as testing/cat/500-0.png, which equals "
        "training/cat/0-0.png: "
    )
    assert "Remove them" in leak
    assert "Without them mlp is correct on 8.33\xa0% and the best baseline 83.33\xa0% of 60" in leak
    assert conflict.startswith(
        "2 images have a twin under another label, such as training/cat/0-49.png and "
        "training/other/1-49.png: "
    )
    text, told = markdown(results), "\n".join(verdict(results))
    for words_of in ("are in training too", "twin under another label"):
        assert text.index(words_of) < text.index("| rung |")
        assert words_of in told


def test_where_all_of_testing_is_known_nothing_is_left_to_tell() -> None:
    """No division by nothing, and a plain word."""
    same = [stack(50, 0), stack(50, 1)]
    results = read_by_heart(same, same)
    assert results["answer"]["without_leaks"]["verdict"] is None
    assert "Without them no testing image is left" in results["warnings"][0]


def test_few_images_are_warned_of() -> None:
    """A class of under ten to train on, or of none to test on; a single one to test is judged."""
    results = climbed({"mlp": (0.9, lambda truth: truth)}, [2, 9, 10], [1, 1, 0], nearest=says(2))
    assert results["warnings"] == [
        "There are only 2 testing images: of many more of the kind, mlp may be correct "
        "on 34.24 to 100.00\xa0%. Add some.",
        '2 classes of 3 have under 10 training images: "cat" (2), "other" (9). What is learned and '
        "chosen from so few is chance: add some.",
        'No testing image is of "third", so nothing here tells how that is predicted.',
    ]
    assert results["headline"] == "Too few testing images to tell."
    assert results["rungs"][0]["per_class"] == [1.0, 1.0, None]
    assert climbed({"mlp": (0.9, mostly(0.9))}, [50, 50], [50, 50])["warnings"] == []


def test_worse_than_guessing_is_said() -> None:
    results = climbed({"mlp": (0.9, mostly(0.1))}, [50, 50], [50, 50])
    assert results["answer"]["verdict"] == "no"
    assert (
        "mlp is correct on fewer images than guessing would be (50.00\xa0%)"
        in results["warnings"][1]
    )


def test_a_perfect_baseline_leaves_nothing_to_gain() -> None:
    """Both make no mistake: no, and the lead says why."""
    results = climbed({"mlp": (1.0, lambda t: t)}, [50, 50], [50, 50], nearest=lambda t: t)
    assert results["answer"]["verdict"] == "no"
    assert "That is 0 mistakes instead of 0." in words.lead(results)


def test_one_class_alone_in_testing() -> None:
    """All images of one class: its figures, no crash, and what is not known."""
    results = climbed({"mlp": (0.9, says(1))}, [50, 50], [0, 40], nearest=says(1))
    assert results["answer"]["verdict"] == "no"
    assert results["rungs"][0]["balanced_accuracy"] == 1.0
    assert 'No testing image is of "cat"' in results["warnings"][-1]


def test_only_baselines_say_so() -> None:
    results = climbed({}, [50, 5], [50, 50])
    assert results["answer"] is None
    assert "there is nothing to compare them with yet" in everything(results)
    assert [row["note"] for row in ladder_table(results)] == ["", "", ""]


def test_what_was_skipped_is_told_with_count_and_examples() -> None:
    """By reason, in one line at the terminal and in the report; where nothing was, that."""
    lines = [
        "training/7: not .png, .jpg or .jpeg (1,011: a (1).txt, b: c.csv, ...)",
        "training/8/Thumbs.db: not .png, .jpg or .jpeg",
        "pets/val: a folder beside training and testing, not used",
    ]
    told = (
        "Skipped 1,013: training/7/a (1).txt and 1,011 more (not .png, .jpg or .jpeg); "
        "pets/val (a folder beside training and testing, not used)."
    )
    results = climbed({"mlp": (0.9, mostly(0.9))}, [50, 50], [50, 50], skipped=lines)
    assert verdict(results)[-1] == told
    assert words.escaped(told) in markdown(results)
    results = climbed({"mlp": (0.9, mostly(0.9))}, [50, 50], [50, 50])
    assert "Nothing in the dataset's folder was skipped." in markdown(results)


def test_what_may_be_learned_by_heart_is_no_yes() -> None:
    """Ahead on leaked images alone: the verdict falls to "Perhaps", and the warning says why."""
    training, testing = [stack(50, 0), stack(50, 1)], [stack(50, 500), stack(50, 501)]
    for known, tested in zip(training, testing, strict=True):
        tested.digests[:40] = known.digests[:40]
    learned = lambda truth: np.where(np.arange(100) % 50 < 40, truth, 1 - truth)  # noqa: E731
    stacks = training, testing
    results = climbed({"mlp": (0.9, learned)}, [50, 50], [50, 50], stacks=stacks)
    assert results["answer"]["against_baseline"]["p"] < 0.05
    assert results["headline"].startswith("Perhaps: ")
    assert "on those it does not beat the baselines." in results["warnings"][0]


@pytest.mark.parametrize(
    ("known", "rungs", "headline", "warning"),
    [
        (45, {"a": (0.9, "wrong")}, "Perhaps: machine learning is ahead only on the testing images "
         "that are not in training too.", "on those it is ahead of the baselines, but not beyond"),
        (49, {"a": (0.9, "right")}, "Perhaps: machine learning is ahead here, but not beyond doubt",
         "Without them a is correct on 0.00\xa0% and the best baseline 50.00\xa0% of 2: too few "
         "to tell."),
        (45, {"a": (0.9, "nothing"), "b": (0.8, "right")}, "Perhaps: not the rung that is best on "
         "validation, but another seems to beat", "on those it does not beat the baselines."),
        (45, {"a": (0.9, "nothing")}, "No, ", "and the verdict is the same."),
    ],
)  # fmt: skip
def test_known_images_speak_neither_for_nor_against(
    known: int, rungs: dict[str, Any], headline: str, warning: str
) -> None:
    """Headline and warning agree, whatever was learned of the images that are in training too."""
    training, testing = [stack(50, 0), stack(50, 1)], [stack(50, 500), stack(50, 501)]
    for ours, theirs in zip(training, testing, strict=True):
        theirs.digests[:known] = ours.digests[:known]

    def answers(kind: str) -> Any:
        by_heart = np.arange(100) % 50 < known
        right = {"right": by_heart, "wrong": ~by_heart, "nothing": np.arange(100) % 2 < 1}[kind]
        return lambda truth: np.where(right, truth, 1 - truth)

    said = {name: (validated, answers(kind)) for name, (validated, kind) in rungs.items()}
    results = climbed(said, [50, 50], [50, 50], stacks=(training, testing))
    assert results["headline"].startswith(headline)
    assert warning in results["warnings"][0]


def test_only_all_is_a_hundred_percent() -> None:
    """One mistake among 40,000 is seen, as is one hit; a calculated 1 that misses it is all."""
    shares = [1, 1 - 1e-16, 1 - 1 / 40_000, 0.99994, 1 / 40_000, 1e-18, 0]
    said = ["100.00", "100.00", "99.99", "99.99", "0.01", "0.00", "0.00"]
    assert [words.per_hundred(share) for share in shares] == said
    assert [words.per_hundred(share, 1) for share in (0.9996, 0.6685)] == ["99.9", "66.9"]
    assert words.span([0.99999, 1 - 1e-16]) == "99.99 to 100.00\xa0%"


def test_sentences_agree_with_how_many_they_speak_of() -> None:
    """One or several: commonest classes, classes without images; and no two stops in a row."""
    results = climbed(
        {"a": (0.9, mostly(0.9)), "b": (0.8, says(1))}, [1, 1, 1], [60, 0, 0], says(1)
    )
    told = everything(results)
    assert 'predicting "cat", one of the commonest classes in training,' in told
    assert (
        'No testing image is of "other", "third", so nothing here tells how they are predicted.'
        in told
    )
    assert (
        '"other", "third" was held out for validation, so how they are predicted had no say' in told
    )
    assert ",;" not in told
    assert words.spread({"training": [1, 300], "testing": [1, 1]}) == (
        "1 to 300 training images in a class, 1 testing image in each class."
    )
