"""The report in a real browser: what a person sees, at a desk and on a phone, by day and night."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_publish import Stored
from test_report import HOSTILE, climb

from tasks.caching.refs import Outcome
from tasks.caching.stage import Run
from tasks.images.decode import decode
from tasks.images.fetch import fetch
from tasks.images.scan import scan
from tasks.report.page import report
from tasks.report.publish import place
from tasks.rungs.baseline import DISTANCES, baseline, mean
from tasks.rungs.ladders import cross, label
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

pytest.importorskip("playwright", reason="playwright, of the dev extras, is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
WATCH_SHIFTS = """
    window.shifted = 0;
    new PerformanceObserver(list => list.getEntries().forEach(e => window.shifted += e.value))
        .observe({type: "layout-shift", buffered: true});
"""
# Whether each packed picture decodes, and to the size that the page gives it.
PICTURES = """
    () => Promise.all([...document.querySelectorAll("image")].map(async shown => {
        const decoded = new Image();
        decoded.src = shown.getAttribute("href");
        await decoded.decode();
        return [shown.id, decoded.naturalWidth - shown.width.baseVal.value,
                decoded.naturalHeight - shown.height.baseVal.value, decoded.naturalWidth > 0];
    }))
"""
# Visible pictures with the width and height that they take.
SIZED = """
    () => [...document.querySelectorAll("svg[role=img]")].filter(each => each.checkVisibility())
        .map(each => each.getBoundingClientRect()).map(box => [box.width, box.height])
"""

# Words of a plot that stick out of it, and would be cut off.
CUT_OFF = """
    () => [...document.querySelectorAll("svg.plot text")].filter(each => {
        const text = each.getBoundingClientRect();
        const plot = each.closest("svg").getBoundingClientRect();
        return text.left < plot.left - 1 || text.right > plot.right + 1
            || text.top < plot.top - 1 || text.bottom > plot.bottom + 1;
    }).map(each => each.textContent)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests, with a fresh profile."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the second of two short climbs on the sample, so that no section is missing."""
    root = tmp_path_factory.mktemp("browser")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models: a second thread only gets in the way
    data = scan(fetch("sample", root), root)
    training = [decode.fn(each.load(root)) for each in data.training]
    testing = [decode.fn(each.load(root)) for each in data.testing]
    means = [mean.fn(stack) for stack in training]
    baselines = [baseline.fn(means, testing, data.classes, distance) for distance in DISTANCES]
    for epochs, started in ((1, "2024-01-01T00:00:00Z"), (3, "2024-01-02T00:00:00Z")):
        recipes = label(
            [
                *cross(["linear"], ["softmax_mse", "cross_entropy"], epochs=2),
                Recipe(model="mlp", loss="cross_entropy", epochs=8 * epochs),
                Recipe(model="convnet", loss="cross_entropy", epochs=1),
            ]
        )
        rungs = {
            name: train.fn(training, testing, data.classes, recipe)
            for name, recipe in recipes.items()
        }
        ran = {f"train[{name}]": Outcome("ran", ("epochs changed",), 1.5) for name in recipes}
        files = report.fn(
            "digits", data.classes, training, testing, means, baselines, rungs, recipes, 0.1,
            data.skipped, [],
            run=Run(outcomes=ran, started=started, command="stepladder run sample"),
        )  # fmt: skip
        made = place(Stored(files, started.replace("-", "")), ran, root / "cache")
    torch.set_num_threads(threads)
    return made


def visit(browser: Browser, page: Path, size: str, scheme: Any) -> tuple[Tab, list[str]]:
    """Open a page with every section unfolded; gives what went wrong or left the file, too."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, offline=True)
    wrong: list[str] = []
    context.on("console", lambda message: wrong.append(f"console: {message.text}"))
    context.on("weberror", lambda error: wrong.append(f"error: {error.error}"))
    context.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    context.on("request", lambda request: wrong.append(request.url[:999]))
    context.add_init_script(WATCH_SHIFTS)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert wrong.pop(0) == page.as_uri(), "the page itself is the one request"
    wrong = [each for each in wrong if not each.startswith("data:")]
    assert tab.evaluate("window.shifted") == 0, "the page moved while it loaded"
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return tab, wrong


# No rule for a size speaks of colours, and none for a scheme of sizes: each is seen once.
@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_the_report_as_a_person_sees_it(
    browser: Browser, folder: Path, size: str, scheme: str
) -> None:
    """No console message, no request, pictures in their sizes, no sideways scroll, accessible."""
    tab, wrong = visit(browser, folder / "report.html", size, scheme)

    found = tab.evaluate(PICTURES)
    assert len(found) >= 6  # means, samples, weights of two rungs, mistakes
    assert [each[1:] for each in found] == [[0, 0, True]] * len(found), found
    sized = tab.evaluate(SIZED)
    assert len(sized) > 100
    assert min(min(box) for box in sized) >= 20
    assert tab.evaluate(CUT_OFF) == []

    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[size]["width"], "the page scrolls sideways"
    checked = Axe().run(tab)
    assert len(checked.response["passes"]) > 15, "the checker did check"
    assert checked.violations_count == 0, checked.generate_report()

    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].partition(",")[0]) < 60) == (scheme == "dark")
    assert wrong == []
    tab.context.close()


def test_key_numbers_are_those_of_results_json(browser: Browser, folder: Path) -> None:
    """The answer, the ladder's table and the comparison show what results.json holds."""
    results = json.loads((folder / "results.json").read_text())
    tab, _ = visit(browser, folder / "report.html", "desktop", "light")

    def percent(share: float) -> str:
        return f"{100 * share:.2f} %"

    def texts(selector: str) -> list[str]:
        shown = tab.locator(selector).all_inner_texts()
        return [text.replace("\N{NO-BREAK SPACE}", " ").strip() for text in shown]

    rungs = results["rungs"]
    best = max(rungs, key=lambda rung: rung["validation_accuracy"])
    floor = max(each["accuracy"] for each in results["baselines"])
    assert texts(".facts .big") == [
        percent(best["testing_accuracy"]), percent(floor), percent(0.1), "1.5 s",
    ]  # fmt: skip
    rows = texts("[aria-label='The ladder as a table'] tbody tr")
    for rung, row in zip(reversed(rungs), rows, strict=False):
        low, high = rung["interval"]
        assert row.split("\t")[1:4] == [
            rung["label"].removesuffix(", seed 0"),
            percent(rung["testing_accuracy"]),
            f"{100 * low:.2f} to {percent(high)}",
        ]
    moved = [row for row in results["compared"]["rows"] if row["test"]["p"] < 1 or row["why"]]
    shown = texts("[aria-label='Compared with the run before'] tbody tr")
    assert [row.split("\t")[:3] for row in shown][: len(moved)] == [
        [row["label"], percent(row["before"]), percent(row["now"])] for row in moved
    ]
    tab.context.close()


def test_tiles_show_what_the_pixels_are(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """The average 0 on the screen is the average of the training images of 0."""
    tab, _ = visit(browser, folder / "report.html", "desktop", "light")
    png = tab.get_by_role("img", name="average image of 0", exact=True).screenshot()
    shown = np.asarray(
        Image.open(io.BytesIO(png)).convert("L").resize((8, 8), Image.Resampling.BOX)
    )
    data = scan(fetch("sample", tmp_path), tmp_path)
    expected = 255 * mean.fn(decode.fn(data.training[0].load(tmp_path))).numpy()
    assert np.abs(shown - expected).mean() < 6  # edges blend and corners are rounded
    tab.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path, size: str) -> None:
    """No name from a folder runs, asks for anything, widens the page or pushes aside the rest."""
    page = tmp_path / "report.html"
    page.write_bytes(climb(HOSTILE, name="<script>alert(1)</script>")["report.html"])
    tab, wrong = visit(browser, page, size, "light")
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert tab.evaluate(CUT_OFF) == []
    captions = tab.locator(".mistakes figcaption").all_inner_texts()
    assert len(captions) > 40
    for caption in captions:
        assert re.fullmatch(r"saw .+\nsaid .+\n90.0 % sure", caption, re.DOTALL), caption
    assert (
        max(tab.locator(".grid tbody th").evaluate_all("all => all.map(h => h.clientHeight)")) < 99
    )
    checked = Axe().run(tab)
    assert checked.violations_count == 0, checked.generate_report()
    assert wrong == []
    tab.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_sixty_classes_in_colour(browser: Browser, tmp_path: Path, size: str) -> None:
    """Many long names fit, and each class keeps its row; a single rung stands alone."""
    page = tmp_path / "report.html"
    names = [f"species number {i}" for i in range(60)]
    page.write_bytes(climb(names, shape=(9, 12, 3), rights=(0.9,))["report.html"])
    tab, wrong = visit(browser, page, size, "dark")
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert tab.evaluate(CUT_OFF) == []
    assert tab.locator(".counts tbody tr").count() == 60
    assert tab.locator("[aria-label='The ladder as a table'] tbody tr").count() == 1 + 3 + 1
    assert wrong == []
    tab.context.close()


def test_printing_loses_nothing(browser: Browser, folder: Path) -> None:
    """On paper folded sections are open, so that their tables and pictures are there."""
    tab, _ = visit(browser, folder / "report.html", "desktop", "light")
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    closed = tab.locator("details table").evaluate_all("all => all.map(t => t.checkVisibility())")
    tab.emulate_media(media="print")
    printed = tab.locator("details table").evaluate_all("all => all.map(t => t.clientHeight > 9)")
    assert not any(closed)
    assert all(printed)
    tab.context.close()
