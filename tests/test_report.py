"""The report: right numbers, names that cannot break out, pictures everybody can read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tasks.caching.refs import Outcome
from tasks.caching.stage import Run
from tasks.caching.values import Stack, Weights
from tasks.report import cases, plots, tiles
from tasks.report.health import health
from tasks.report.markdown import markdown
from tasks.report.measures import (
    by_class,
    calibration_curve,
    compare,
    holm,
    mcnemar,
    wilson,
)
from tasks.report.page import report
from tasks.report.templates import STYLE
from tasks.report.words import luck, readable
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

TAME = ["apple", "brick", "candle"]
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><b>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "a&b &lt; &#60;i&#62;",
    "]]>",
    "<![CDATA[x",
    "<!-- c",
    "--> c",
    "$x$ $\\frac{1}{0}$",
    "a|b | c",
    "`code` ``",
    "[a](javascript:alert(1))",
    "{{ 7 * 7 }}{% raw %}",
    "line\nbreak\r\nand\ttab",
    "\u202eright to left\u202c",
    "\u2066isolate\u200f",
    "👩\u200d🔬 emoji",
    "\x1b[31mred\x07",
    "**bold** _it_ # ~",
    "</svg><svg onload=alert(1)>",
    "</title></summary></details>",
    "undecodable \udcff",
    "a" * 250,
    "\\| backslash \\",
    "=1+1",
]


def stack(count: int, seed: int, shape: tuple[int, ...] = (6, 5)) -> Stack:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    return Stack(
        torch.from_numpy(images),
        [f"{seed}-{i}.png" for i in range(count)],
        np.array([np.frombuffer(digest, np.uint8) for digest in digests]),
    )


def rung(classes: int, testing: list[Stack], right: float, shape: tuple[int, ...]) -> dict:
    """A rung that gets the first `right` of all testing images right."""
    truth = np.repeat(np.arange(classes), [len(s.names) for s in testing])
    said = np.where(np.arange(len(truth)) < right * len(truth), truth, (truth + 1) % classes)
    probabilities = torch.full((len(truth), classes), 0.1 / max(1, classes - 1))
    probabilities[range(len(truth)), said] = 0.9
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (truth, said), 1)
    pixels = int(np.prod(shape))
    return {
        "weights": Weights(
            {"weight": torch.ones(classes, pixels), "bias": torch.ones(classes)}, {}
        ),
        "history": [
            {
                "epoch": e,
                "training_loss": 1 / e,
                "validation_loss": 2 / e,
                "validation_accuracy": e * right / 2,
            }
            for e in (1, 2)
        ],
        "testing_accuracy": float((said == truth).mean()),
        "per_class": (confusion.diagonal() / confusion.sum(1)).tolist(),
        "confusion": confusion.tolist(),
        "probabilities": probabilities,
        "temperature": 1.5,
        "lowest_logit": 2.0,
        "calibration_error": {"before": 0.05, "after": 0.02},
        "testing_calibration_error": {"before": 0.06, "after": 0.03},
        "parameters": classes * pixels,
        "epoch": 2,
        "flip": False,
        "device": "cpu",
        "images": {"training": 10 * classes, "validation": 2 * classes, "testing": len(truth)},
    }


def climb(
    classes: list[str] = TAME,
    name: str = "shelf",
    shape: tuple[int, ...] = (6, 5),
    rights: tuple[float, ...] = (0.5, 0.9),
    **changes: object,
) -> dict[str, bytes]:
    """The report of a small climb."""
    training = [stack(12, i, shape) for i in range(len(classes))]
    testing = [stack(40, 1000 + i, shape) for i in range(len(classes))]
    rungs = {
        f"linear, cross_entropy, seed {i}": rung(len(classes), testing, right, shape)
        for i, right in enumerate(rights)
    }
    recipes = {
        label: Recipe(model="linear", loss="cross_entropy", epochs=2, seed=i, lr=1 / (1 + i))
        for i, label in enumerate(rungs)
    }
    outcomes = {
        f"decode[training/{classes[0]}]": Outcome("ran", (f"{classes[0]}: 1 added",), 0.5),
        "train[linear, cross_entropy, seed 0]": Outcome("cached", (), 7.25),
    }
    given = {
        "dataset": name,
        "classes": classes,
        "training": training,
        "testing": testing,
        "means": [
            torch.from_numpy(s.images.numpy().mean(0, dtype=np.float32) / 255) for s in training
        ],
        "baselines": [
            {
                "distance": d,
                "accuracy": 0.4,
                "per_class": [0.4] * len(classes),
                "said": torch.cat(
                    [
                        torch.tensor([i] * 16 + [(i + 1) % len(classes)] * 24)
                        for i in range(len(classes))
                    ]
                ).int(),
            }
            for d in ("mae", "mse")
        ],
        "rungs": {label: [parts] for label, parts in rungs.items()},
        "recipes": recipes,
        "validation": 0.1,
        "skipped": [f"{classes[0]}/notes.txt: not an image"],
        "left_out": [],
        "run": Run(outcomes=outcomes, started="2024-01-01T00:00:00Z", command=f"run '{name}'"),
    }
    return report.fn(**(given | changes))


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text outside style and script."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:  # noqa: D102
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.text += f" {data}"


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return climb()


@pytest.fixture(scope="module")
def results(made: dict[str, bytes]) -> dict:
    return json.loads(made["results.json"])


# Numbers


def test_wilson() -> None:
    """Wilson's interval is the textbook's: 8 of 10 is 0.4902 to 0.9433, and never leaves 0 to 1."""
    assert wilson(0.8, 10) == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx([0.72247, 1.0], abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx([0.0, 0.27753], abs=1e-5)
    assert wilson(0.0, 0) == [0.0, 1.0]


def test_mcnemar() -> None:
    """9 against 1 is 2 (1 + 10) / 2^10; an even split is no evidence; large counts stay exact."""
    assert mcnemar(9, 1) == mcnemar(1, 9) == 22 / 1024
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(0, 0) == mcnemar(5, 5) == mcnemar(5, 6) == 1.0
    assert 0 <= mcnemar(30_000, 100) < 1e-300


def test_holm() -> None:
    """Holm's: the least p times all of them, the next times one fewer, never out of their order."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_of_many_comparisons_is_believed_less() -> None:
    """With 20 steps of luck alone one seems real in 64 % of climbs by p, in 5 % by what is told."""
    draws, climbs = np.random.default_rng(0), 400
    alone = together = 0
    for _ in range(climbs):
        ps = draws.random(20).tolist()
        alone += min(ps) < 0.05
        together += min(holm(ps)) < 0.05
    assert alone / climbs > 0.5
    assert together / climbs < 0.08
    test = {"won": 15, "lost": 4, "p": 0.02}
    assert "a step up beyond the luck of images" in luck(test)
    assert "a real step up" in luck(test | {"seeds": [2, 2]})
    assert luck(test | {"p_adjusted": 0.12, "comparisons": 6}) == (
        "Among 6 such comparisons luck alone would split one at least this unevenly about 12 times "
        "in 100: no difference that can be told from luck."
    )


def test_compare_in_words() -> None:
    """Only images on which two rungs differ count; the words say which way and how surely."""
    upper = np.array([1] * 15 + [0] * 5, bool)
    lower = np.array([1] * 3 + [0] * 17, bool)
    assert compare(upper, lower) == {"won": 12, "lost": 0, "p": 2 / 2**12}
    assert "less than once in 1,000 times: a step up beyond" in luck(compare(upper, lower))
    assert "a step down beyond" in luck(compare(lower, upper))
    assert "told from luck" in luck(compare(upper, ~lower))
    assert luck(compare(upper, upper)) == "Both are correct on the same images."


def test_results(results: dict) -> None:
    """results.json holds the documented fields; times and cached come from the run."""
    assert results["version"] == 1
    assert results["dataset"] == {
        "name": "shelf",
        "home": "shelf",
        "classes": TAME,
        "images": {"training": 30, "validation": 6, "testing": 120},
        "shape": [6, 5],
        "converted": [],
        "fit": "crop",
        "familiar": {},
        "split": "train 30, val 6, test 120",
        "testing_digest": results["dataset"]["testing_digest"],
        "sketch": results["dataset"]["sketch"],
        "mean": results["dataset"]["mean"],
    }
    assert results["random_baseline"] == 1 / 3
    assert [(b["label"], b["distance"], b["says"]) for b in results["baselines"]] == [
        ("mean image, mae", "mae", None),
        ("mean image, mse", "mse", None),
        ("commonest class", None, "apple"),
    ]
    first, second = results["rungs"]
    assert (first["seconds"], first["cached"]) == (7.25, True)
    assert (second["seconds"], second["cached"]) == (0.0, False)  # nothing is known of it
    assert first["recipe"]["model"] == "linear"
    assert first["recipe"]["seed"] == 0
    assert first["against_below"]["below"] == "mean image, mae"
    assert (first["against_below"]["won"], first["against_below"]["lost"]) == (28, 16)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(second["right"]), np.uint8))
    assert bits.sum() == 108
    assert (second["against_below"]["won"], second["against_below"]["lost"]) == (48, 0)
    tests = [rung["against_below"] for rung in results["rungs"]]
    assert [test["p_adjusted"] for test in tests] == holm([test["p"] for test in tests])
    assert results["answer"]["best"] == second["label"]
    assert results["answer"]["verdict"] == "yes"
    assert results["stages"][1]["state"] == "cached"
    assert {"python", "platform", "cpu", "cores", "torch", "numpy", "prefect"} <= set(
        results["environment"]
    )
    known = (Path(__file__).parents[1] / ".git").exists()
    code = results["environment"]["code"]
    assert re.fullmatch("[0-9a-f]{12}(, edited since)?", code) if known else code is None


@pytest.mark.parametrize(("right", "verdict"), [(0.3, "no"), (0.45, "unclear"), (0.9, "yes")])
def test_verdict(right: float, verdict: str) -> None:
    """Machine learning is worth it when luck can be ruled out, not when a rung is just ahead."""
    made = climb(rights=(right,))
    assert json.loads(made["results.json"])["answer"]["verdict"] == verdict
    headline = {"no": "No, ", "unclear": "Perhaps: ", "yes": "Yes, "}[verdict]
    assert f"<h1>{headline}" in made["report.html"].decode()
    assert made["report.md"].decode().startswith(f"# shelf: {headline}")


def test_page_and_results_agree(made: dict[str, bytes], results: dict) -> None:
    """Every accuracy and interval of results.json is on the page, and in the Markdown."""
    page, text = Page(made["report.html"]).text, made["report.md"].decode()
    for entry in results["rungs"] + results["baselines"]:
        accuracy = entry.get("testing_accuracy", entry.get("accuracy"))
        low, high = entry["interval"]
        for number in (f"{100 * accuracy:.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"):
            assert number in page.replace("\xa0", " ")
            assert number in text.replace("\xa0", " ")


def test_metrics(made: dict[str, bytes], results: dict) -> None:
    """metrics.parquet is a tidy table with every number of every recipe and baseline, once."""
    table = pq.read_table(io.BytesIO(made["metrics.parquet"]))
    assert table.schema.names == ["recipe", "epoch", "split", "metric", "value"]
    assert table.schema.field("epoch").type == pa.int32()
    assert table.schema.field("value").type == pa.float64()
    rows = table.to_pylist()
    keys = [tuple(row[key] for key in ("recipe", "epoch", "split", "metric")) for row in rows]
    assert len(keys) == len(set(keys)) == 1 + 3 * 6 + 2 * (2 * 3 + 6 + 5)
    values = dict(zip(keys, (row["value"] for row in rows), strict=True))
    label = results["rungs"][1]["label"]
    assert values[label, None, "testing", "accuracy"] == results["rungs"][1]["testing_accuracy"]
    assert values[label, 2, "training", "loss"] == 0.5
    assert values[label, 1, "validation", "accuracy"] == 0.45
    assert values[label, None, "testing", "balanced accuracy"] == pytest.approx(0.9)
    assert values["commonest class", None, "testing", "macro F1"] == pytest.approx(0.5 / 3)
    assert values["mean image, mse", None, "testing", "accuracy of brick"] == 0.4
    assert values["random", None, "testing", "accuracy"] == 1 / 3
    assert values[label, None, "testing", "calibration error, before"] == 0.06
    assert values[label, None, "validation", "temperature"] == 1.5


def test_shortcut_is_not_hidden(made: dict[str, bytes]) -> None:
    """Validating on the testing images puts a warning on the page and in the Markdown."""
    warned = climb(validation="testing")
    assert "Validated on the testing images" in Page(warned["report.html"]).text
    assert "Validated on the testing images" in warned["report.md"].decode()
    assert "Validated on the testing images" not in Page(made["report.html"]).text


def test_health() -> None:
    """Twins are counted where they matter: within training, across the splits, across labels."""
    one, two, test = stack(3, 1), stack(2, 2), stack(2, 3)
    one.digests[1] = one.digests[0]  # a duplicate
    test.digests[0] = one.digests[2]  # a leak
    two.digests[0] = one.digests[0]  # a third copy, under another label
    found = health(["one", "two"], [one, two], [test, stack(2, 4)], ["x: not an image"])
    assert found["counts"] == {"training": [3, 2], "testing": [2, 2]}
    assert found["imbalance"] == 1.5
    assert (found["duplicates"], found["in_both"], found["conflicts"]) == (3, 1, 3)
    assert found["examples"] == [
        ["training/one/1-0.png", "training/one/1-1.png", "training/two/2-0.png"],
        ["training/one/1-2.png", "testing/one/3-0.png"],
    ]
    assert found["skipped"] == ["x: not an image"]


# Names


def shape_of(page: Page) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attributes)) for tag, attributes in page.tags]


def test_hostile_names() -> None:
    """Names from folders make no tag and no attribute, wherever they stand, and remain readable."""
    assert len(HOSTILE) >= 23
    tame = [f"class {i:03}" for i in range(len(HOSTILE))]
    expected = Page(climb(tame, name="shelf")["report.html"])
    made = climb(HOSTILE, name="<i>$&\"'</i>")
    page = Page(made["report.html"])
    assert shape_of(page) == shape_of(expected)
    for name in HOSTILE:
        assert " ".join(readable(name).split()) in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", made["report.html"].decode())
    assert json.loads(made["results.json"])["dataset"]["classes"] == HOSTILE


def test_hostile_names_in_markdown() -> None:
    """No name leaves its table cell or becomes markup; every row keeps its columns."""
    made = climb(HOSTILE, name="# <b>|")
    text = made["report.md"].decode()
    assert "<" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows]
    assert set(columns) == {9, 4, 5}  # the ladder; class, mae, mse; the stages
    assert columns.count(4) == 2 + len(HOSTILE)
    assert "\\[a\\]\\(javascript:alert\\(1\\)\\)" in text
    assert "`" not in text.replace("\\`", "")


def test_a_name_from_right_to_left_turns_nothing_but_itself() -> None:
    """A number behind such a name stays behind it; a quote in a name opens no tag."""
    names, rights = ["apple", 'b"<i>"', "שלום"], (0.3, 0.6)
    text = climb(names, rights=rights)["report.html"].decode()
    assert "never recognises &#34;<bdi>שלום</bdi>&#34;: 40 testing images" in text
    assert "<i>" not in text


def test_the_ladder_has_each_rung_at_its_place() -> None:
    """Better is further right, the interval around the dot, time in proportion."""
    rungs = json.loads(climb(rights=(0.5, 0.9))["results.json"])["rungs"]
    drawn = plots.ladder(rungs, [{"label": "guessing", "accuracy": 1 / 3}], 120)
    top, below, guessing = drawn["rows"]
    assert (top["label"], top["number"]) == (rungs[1]["label"], 2)
    assert 0 < guessing["dot"] < below["span"][0] < below["dot"] < below["span"][1] < top["dot"]
    assert top["dot"] < top["span"][1] < 100
    assert (top["time"], below["time"]) == (0, 100)
    assert [tick["said"] for tick in drawn["ticks"] if tick["few"]] == ["50 %", "90 %"]


def test_readable() -> None:
    """Control and direction characters are shown, joiners of emoji and scripts are kept."""
    assert readable("a\nb\u202e\udcff") == "a\\u000ab\\u202e\\udcff"
    assert readable("👩\u200d🔬 ß") == "👩\u200d🔬 ß"


# The page


@pytest.mark.parametrize("shape", [(6, 5), (7, 9, 3), (80, 200)])
def test_pictures(shape: tuple[int, ...]) -> None:
    """Every picture has a size and a text that stands for it, grey or in colour, of any size."""
    page = Page(climb(shape=shape)["report.html"])
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    shown = [attributes for attributes in svgs if attributes.get("role") == "img"]
    assert len(shown) > 3 * 12
    assert all(attributes["aria-label"] for attributes in shown)
    assert all(
        int(attributes["width"] or 0) and int(attributes["height"] or 0) for attributes in shown
    )
    assert all(attributes.get("aria-hidden") for attributes in svgs if attributes not in shown)
    assert not [tag for tag, _ in page.tags if tag in ("img", "canvas", "object")]


def test_nothing_leaves_the_file(made: dict[str, bytes]) -> None:
    """The page asks for nothing outside itself, and leads to no more than a file beside it."""
    text, page = made["report.html"].decode(), Page(made["report.html"])
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "base", "form"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    for tag, attributes in page.tags:
        for key in {"src", "href", "xlink:href", "srcset", "action", "data"} & set(attributes):
            beside = tag == "a" and attributes[key] in (*made, "../history.html")
            assert beside or str(attributes[key]).startswith(("data:image/png;base64,", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\([\"']?([^)]*)", text))
    assert "@import" not in text
    assert "default-src 'none'; img-src data:" in text


def test_fragments_have_one_target(made: dict[str, bytes]) -> None:
    """Ids are unique, and every reference within the page finds its target."""
    page = Page(made["report.html"])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [a["href"] for _, a in page.tags if str(a.get("href")).startswith("#")]
    wanted += re.findall(r"url\((#[^)]*)\)", made["report.html"].decode())
    assert {str(target)[1:] for target in wanted} <= set(ids)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """Words reach WCAG's 4.5 to 1 on every ground in both schemes, lines in plots 3 to 1."""
    block = re.findall(r":root \{(.*?)\n\s*\}", STYLE, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for ground in ("paper", "card", "accent-soft"):
        for words in ("ink", "muted", "accent"):
            assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    assert contrast(colours["warn-ink"], colours["warn"]) >= 4.5
    for i in range(plots.SERIES):
        assert contrast(colours[f"series-{i}"], colours["card"]) >= 3, i
    bad, card = ([int(colours[c][i : i + 2], 16) for i in (1, 3, 5)] for c in ("bad", "card"))
    mixed = [round(0.52 * b + 0.48 * c) for b, c in zip(bad, card, strict=True)]
    assert contrast(colours["ink"], "#{:02x}{:02x}{:02x}".format(*mixed)) >= 4.5


def test_mistakes_are_the_surest_and_of_every_pair() -> None:
    """Of many mistakes the surest come first; then each pair of classes has its turn."""
    truth = np.array([0] * 40 + [1] * 3 + [2])
    probabilities = np.zeros((len(truth), 3), np.float32)
    probabilities[:40] = [[0.1 - i / 1000, 0.9 + i / 1000, 0] for i in range(40)]
    probabilities[40:43] = [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.45, 0.4, 0.15]]
    probabilities[43] = [0.1, 0.5, 0.4]
    found = cases.mistakes(probabilities, truth)
    assert found[:24] == [*range(39, 15, -1)]
    assert found[24:27] == [15, 40, 43]  # the first of each pair
    assert {*found} == {*range(41), 42, 43}  # 41 is correct
    assert cases.choose([[1, 2, 3], [2, 4]], 3) == [1, 2, 4]
    assert cases.confused([[5, 2, 0], [1, 5, 0], [0, 0, 0]]) == [
        {"truth": 0, "predicted": 1, "count": 2, "share": 2 / 7},
        {"truth": 1, "predicted": 0, "count": 1, "share": 1 / 6},
    ]


def test_labels_that_may_be_wrong_are_where_all_good_rungs_agree() -> None:
    """All are sure of the same other class; a poor rung has no say, nor have unsure ones."""
    truth = np.zeros(5, int)
    one = np.array([[0.1, 0.9, 0], [0.05, 0.95, 0], [0.9, 0.1, 0], [0.1, 0.9, 0], [0.4, 0.6, 0]])
    two = np.array([[0.1, 0.9, 0], [0.02, 0.98, 0], [0.1, 0.9, 0], [0.1, 0, 0.9], [0.1, 0.9, 0]])
    poor = np.tile([0.0, 0.0, 1.0], (5, 1))
    rungs = [{"label": name, "validation_accuracy": share}
             for name, share in (("one", 0.9), ("two", 0.85), ("poor", 0.2))]  # fmt: skip
    assert cases.good_rungs(rungs) == ["one", "two"]
    said = {"one": one, "two": two, "poor": poor}
    assert cases.suspects(said, truth, ["one", "two"]) == [1, 0]
    assert cases.suspects(said, truth, []) == []


def test_every_picture_shown_is_of_the_file_that_it_names() -> None:
    """The tile that a mistake shows has the pixels of its file, and answers those of its rung."""
    testing = [stack(3, 1), stack(2, 2)]
    sure = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.05, 0.95], [0.2, 0.8], [0.6, 0.4]])
    results = {"rungs": [{"label": "a", "validation_accuracy": 0.5}]}
    found = tiles._wrong(testing, {"a": {"probabilities": sure}}, results)
    cases_ = [found["said"][at] for at in found["mistakes"]["a"]]
    assert [(c["name"], c["truth"], c["answers"][0][0]) for c in cases_] == [
        ("1-2.png", 0, 1), ("1-1.png", 0, 1), ("2-1.png", 1, 0)
    ]  # fmt: skip
    assert cases_[0]["answers"][0][1] == pytest.approx(0.95)
    coded = base64.b64decode(found["pictures"].uri.partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(coded)))
    for at, row in zip(found["mistakes"]["a"], (2, 1), strict=False):
        assert (shown[:6, 5 * at : 5 * at + 5] == testing[0].images[row].numpy()).all()
    right = {"a": {"probabilities": torch.eye(2)[[0, 0, 0, 1, 1]]}}
    assert tiles._wrong(testing, right, results)["pictures"] is None


def test_photographs_are_shown_large_and_stay_small_files() -> None:
    """An image of 300 pixels is shown with 112, as JPEG; one of 56 as it is."""
    photo = np.tile(np.linspace(0, 255, 300, dtype=np.uint8)[:, None, None], (1, 200, 3))
    large, small = tiles.sheet([photo]), tiles.sheet([photo[:56, :40]])
    assert (large.width, large.height) == (75, 112)
    assert large.uri.startswith("data:image/jpeg;base64,")
    assert (small.width, small.height) == (40, 56)
    assert small.uri.startswith("data:image/png;base64,")


@pytest.mark.parametrize("turned", [False, True])
def test_linear_weights(turned: bool) -> None:
    """A weight is drawn at its pixel, whichever way round the matrix lies; a network has none."""
    matrix = torch.zeros(3, 30)
    matrix[1, 7] = 1.0  # class 1, row 1, column 2 of a 6x5 image
    recipe = {"init": "default", "seed": 0}
    found = tiles.learned({"weight": matrix.T if turned else matrix}, recipe, (6, 5))
    assert found is not None
    assert found.shape == (3, 6, 5)
    assert found[1, 1, 2] == 1
    assert found.sum() == 1
    assert tiles.learned({"a": torch.ones(30, 8), "b": torch.ones(8, 3)}, recipe, (6, 5)) is None


def test_of_random_weights_what_training_moved_is_shown() -> None:
    """The start that is taken off is the one that a training of this recipe has."""
    recipe = Recipe(model="linear", loss="cross_entropy", epochs=1, seed=3, lr=1e-9)
    training = [stack(12, i) for i in range(2)]
    trained = train.fn(training, training, ["a", "b"], recipe, "testing")
    dumped = recipe.model_dump(mode="json")
    assert dumped["init"] == "randn"
    left = tiles.learned(trained["weights"].tensors, dumped, (6, 5))
    assert left is not None
    assert np.abs(left).max() < 1e-6


def test_the_calibration_curve_counts_every_image() -> None:
    """A bin holds how sure, how often correct, and how many; dots are where they belong."""
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.6, 0.4], [1.0, 0.0]])
    curve = calibration_curve(probabilities, np.array([0, 1, 0, 0]))
    assert curve == [[0.6, 1.0, 1], [pytest.approx(2.86 / 3), pytest.approx(2 / 3), 3]]
    dots = plots.calibration(curve, 100)
    assert [(dot["x"], dot["y"], dot["n"]) for dot in dots] == [(60, 0, 1), (95.3, 33.3, 3)]
    assert dots[1]["r"] > dots[0]["r"]


def test_precision_recall_and_f1_of_each_class() -> None:
    assert by_class([[8, 2, 0], [4, 6, 0], [0, 0, 0]]) == [
        {"images": 10, "recall": 0.8, "precision": 8 / 12, "f1": pytest.approx(16 / 22)},
        {"images": 10, "recall": 0.6, "precision": 6 / 8, "f1": pytest.approx(12 / 18)},
        {"images": 0, "recall": None, "precision": None, "f1": None},
    ]


def test_one_epoch_is_told_and_not_drawn() -> None:
    """A course of one point is no picture: the figures stand there instead."""
    parts = rung(3, [stack(40, 1000 + i) for i in range(3)], 0.9, (6, 5))
    label = "linear, cross_entropy, seed 0"
    made = climb(
        rungs={label: [parts | {"history": parts["history"][:1], "epoch": 1}]},
        recipes={label: Recipe(model="linear", loss="cross_entropy", epochs=1)},
    )
    page = made["report.html"].decode()
    assert "trained for one epoch, so there is no course to draw" in page
    assert f"{label}: 55.00\N{NO-BREAK SPACE}%, a loss of 2" in page
    assert "Validation error after the last epoch" not in page


def test_many_classes_stay_small() -> None:
    """With 200 classes the page shows the hardest and stays small enough to send."""
    made = climb([f"class {i:03}" for i in range(200)], shape=(40, 40, 3))
    assert len(made["report.html"]) < 3_000_000
    assert "The first 48 of 200 classes." in Page(made["report.html"]).text


def test_without_rungs() -> None:
    """Baselines alone still make a report."""
    made = climb(rungs={}, recipes={})
    assert "No rung was trained." in Page(made["report.html"]).text
    assert json.loads(made["results.json"])["answer"] is None


def digests() -> str:
    return json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in climb().items()})


def test_same_inputs_same_bytes() -> None:
    """Another process with another hash seed writes the same bytes."""
    here = Path(__file__)
    other = subprocess.run(
        [sys.executable, "-c", f"import {here.stem}; print({here.stem}.digests())"],
        env=os.environ
        | {"PYTHONHASHSEED": "7", "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digests()


def test_markdown_lists_what_ran(results: dict) -> None:
    """The Markdown names each stage, its state and why."""
    assert "| decode\\[training/apple\\] | ran | apple: 1 added | 0.50 s |" in markdown(results)
