"""The report: right numbers, names that cannot break out, pictures everybody can read."""

from __future__ import annotations

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

from tasks.caching.refs import Outcome
from tasks.caching.stage import Run
from tasks.caching.values import Stack, Weights
from tasks.report import plots, tiles
from tasks.report.health import health
from tasks.report.markdown import markdown
from tasks.report.measures import compare, mcnemar, wilson
from tasks.report.page import STYLE, report
from tasks.report.words import luck, readable
from tasks.rungs.recipes import Recipe

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
            {"epoch": e, "training_loss": 1 / e, "validation_accuracy": e * right / 2}
            for e in (1, 2)
        ],
        "testing_accuracy": float((said == truth).mean()),
        "per_class": (confusion.diagonal() / confusion.sum(1)).tolist(),
        "confusion": confusion.tolist(),
        "probabilities": probabilities,
        "parameters": classes * pixels,
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
        label: Recipe(model="linear", loss="cross_entropy", epochs=2, seed=i)
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
        "rungs": rungs,
        "recipes": recipes,
        "validation": 0.1,
        "skipped": [f"{classes[0]}/notes.txt: not an image"],
        "left_out": [],
        "run": Run(outcomes=outcomes, started="2024-01-01T00:00:00Z", command=f"run '{name}'"),
    }
    return report.fn(**(given | changes))


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text outside style."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.decode())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:  # noqa: D102
        if self.tags and self.tags[-1][0] != "style":
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


def test_compare_in_words() -> None:
    """Only images on which two rungs differ count; the words say which way and how surely."""
    upper = np.array([1] * 15 + [0] * 5, bool)
    lower = np.array([1] * 3 + [0] * 17, bool)
    assert compare(upper, lower) == {"won": 12, "lost": 0, "p": 2 / 2**12}
    assert "less than once in 1,000 times: a real step up" in luck(compare(upper, lower))
    assert "a real step down" in luck(compare(lower, upper))
    assert "told from luck" in luck(compare(upper, ~lower))
    assert luck(compare(upper, upper)) == "Both get the same images right."


def test_results(results: dict) -> None:
    """results.json holds the documented fields; times and cached come from the run."""
    assert results["dataset"] == {
        "name": "shelf",
        "home": "shelf",
        "classes": TAME,
        "images": {"training": 30, "validation": 6, "testing": 120},
        "shape": [6, 5],
        "testing_digest": results["dataset"]["testing_digest"],
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
    assert results["answer"]["best"] == second["label"]
    assert results["answer"]["verdict"] == "yes"
    assert results["stages"][1]["state"] == "cached"
    assert {"python", "platform", "cpu", "cores", "torch", "numpy", "prefect"} <= set(
        results["environment"]
    )


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
    assert len(keys) == len(set(keys)) == 1 + 3 * 6 + 2 * (2 * 2 + 6)
    values = dict(zip(keys, (row["value"] for row in rows), strict=True))
    label = results["rungs"][1]["label"]
    assert values[label, None, "testing", "accuracy"] == results["rungs"][1]["testing_accuracy"]
    assert values[label, 2, "training", "loss"] == 0.5
    assert values[label, 1, "validation", "accuracy"] == 0.45
    assert values[label, None, "testing", "balanced accuracy"] == pytest.approx(0.9)
    assert values["commonest class", None, "testing", "macro F1"] == pytest.approx(0.5 / 3)
    assert values["mean image, mse", None, "testing", "accuracy of brick"] == 0.4
    assert values["random", None, "testing", "accuracy"] == 1 / 3


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


def test_dollars_are_text_in_plots() -> None:
    """A label with dollar signs is drawn as it is, not parsed as mathematics."""
    drawn = plots.ladder(
        [
            {
                "label": "$x$ <b> $\\frac{",
                "testing_accuracy": 0.5,
                "interval": [0.4, 0.6],
                "seconds": 0.0,
            }
        ],
        {"guessing": 0.1},
        0,
        100,
        860,
    )
    assert "$x$ &lt;b&gt; $\\frac{" in drawn
    assert "<b>" not in drawn


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
    """The page asks for nothing outside itself: no script, no link, only data and fragments."""
    text, page = made["report.html"].decode(), Page(made["report.html"])
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "base", "form"}
    for _, attributes in page.tags:
        for key in {"src", "href", "xlink:href", "srcset", "action", "data"} & set(attributes):
            assert str(attributes[key]).startswith(("data:image/png;base64,", "#"))
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


def test_mistakes() -> None:
    """The mistakes shown are wrong ones, the surest first, each with its own file and picture."""
    testing = [stack(3, 1), stack(2, 2)]
    sure = [[0.9, 0.1], [0.3, 0.7], [0.05, 0.95], [0.2, 0.8], [0.6, 0.4]]
    found = tiles.mistakes({"probabilities": torch.tensor(sure)}, testing)
    assert [(c["name"], c["truth"], c["said"]) for c in found["cases"]] == [
        ("1-2.png", 0, 1),
        ("1-1.png", 0, 1),
        ("2-1.png", 1, 0),
    ]
    assert found["cases"][0]["sure"] == pytest.approx(0.95)
    assert tiles.mistakes({"probabilities": torch.eye(2)[[0, 0, 0, 1, 1]]}, testing) == {
        "sheet": None,
        "cases": [],
    }


@pytest.mark.parametrize("turned", [False, True])
def test_linear_weights(turned: bool) -> None:
    """A weight is drawn at its pixel, whichever way round the matrix lies; a network has none."""
    matrix = torch.zeros(3, 30)
    matrix[1, 7] = 1.0  # class 1, row 1, column 2 of a 6x5 image
    found = tiles._linear({"weight": matrix.T if turned else matrix}, (6, 5))
    assert found is not None
    assert found.shape == (3, 6, 5)
    assert found[1, 1, 2] == 1
    assert found.sum() == 1
    assert tiles._linear({"a": torch.ones(30, 8), "b": torch.ones(8, 3)}, (6, 5)) is None


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
