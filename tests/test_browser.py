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
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_publish import Stored
from test_report import HOSTILE, climb

from flows.notebook import Report
from tasks.caching.refs import Outcome, Ref
from tasks.caching.stage import Run
from tasks.images.decode import decode
from tasks.images.fetch import fetch
from tasks.images.scan import scan
from tasks.report.history import place_history
from tasks.report.page import report
from tasks.report.publish import place
from tasks.rungs.baseline import DISTANCES, baseline, mean
from tasks.rungs.ladders import cross, label
from tasks.rungs.recipes import Recipe
from tests.climbing import climbed

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
    () => [...document.querySelectorAll("svg[role]")].filter(each => each.checkVisibility())
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
            name: climbed(recipe, training, testing, data.classes)
            for name, recipe in recipes.items()
        }
        ran = {f"train[{name}]": Outcome("ran", ("epochs changed",), 1.5) for name in recipes}
        stages = {name: Ref(name, outcome=outcome) for name, outcome in ran.items()}
        files = report.fn(
            "digits", data.classes, training, testing, means, baselines, rungs, recipes, 0.1,
            data.skipped, [],
            run=Run(outcomes=ran, started=started, command="stepladder run sample"),
        )  # fmt: skip
        made = place(Stored(files, started.replace("-", "")), stages, root / "cache")
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
    assert len(found) == 5  # means, samples, weights of two rungs, testing images
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
    png = tab.get_by_role("button", name="average image of 0", exact=True).first.screenshot()
    shown = np.asarray(
        Image.open(io.BytesIO(png)).convert("L").resize((8, 8), Image.Resampling.BOX)
    )
    data = scan(fetch("sample", tmp_path), tmp_path)
    expected = 255 * mean.fn(decode.fn(data.training[0].load(tmp_path))).numpy()
    assert np.abs(shown - expected).mean() < 6  # edges blend and corners are rounded
    tab.context.close()


def tip_of(tab: Tab) -> str:
    """What the page says of what is under the pointer or has the focus."""
    return tab.locator(".tip").inner_text().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("size", SIZES)
def test_every_mark_tells_its_figure(browser: Browser, folder: Path, size: str) -> None:
    """Dots, bars, points of a curve and cells: under the pointer, and by Tab and arrows."""
    rungs = json.loads((folder / "results.json").read_text())["rungs"]
    top, name = rungs[-1], rungs[-1]["label"].removesuffix(", seed 0")
    tab, wrong = visit(browser, folder / "report.html", size, "light")
    tab.locator(".step .dot").first.hover()
    assert tip_of(tab).startswith(f"{name}: {100 * top['testing_accuracy']:.2f} %, 95 % interval")
    tab.locator(".step .cost i").first.hover()
    assert tip_of(tab) == f"{name}: trained in 1.5 s"
    tab.locator(".step .dot").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tip_of(tab) == f"{name}: trained in 1.5 s"
    tab.keyboard.press("Escape")
    assert tip_of(tab) == ""

    point = tab.locator(".plot use[data-tip]:visible").nth(2)
    box = point.bounding_box()
    assert box
    tab.locator(".plot:visible").first.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box
    tab.mouse.move(box["x"] + 4, box["y"] + 6)  # not quite on it
    assert re.fullmatch(r"\d, epoch \d+: [\d.]+ %", tip_of(tab)), tip_of(tab)

    best = tab.locator("table.confusion").first
    best.locator("tbody tr").nth(3).locator("td").nth(3).hover()
    assert tip_of(tab) == f"true 3, predicted 3: {top['confusion'][3][3]}"
    tab.locator("table.named tbody tr").first.locator("td").nth(2).hover()
    assert tip_of(tab) == f"{name}, 2: {100 * top['per_class'][2]:.1f} % correct"
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    tab.get_by_role("region", name="The ladder as a table").get_by_role("link", name=name).click()
    assert tab.locator(f"#rung-{len(rungs)}").evaluate("each => each.open")
    assert wrong == []
    tab.context.close()


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "dark"), ("phone", "light")])
def test_an_image_is_enlarged_with_what_each_rung_predicts(
    browser: Browser, folder: Path, size: str, scheme: str
) -> None:
    """By a click and by the keyboard: file, true class, every rung's prediction and how sure."""
    results = json.loads((folder / "results.json").read_text())
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    wrong_ones = [row for row in table if not row["correct"]]
    surest = max(wrong_ones, key=lambda row: row["probability"])
    tab, wrong = visit(browser, folder / "report.html", size, scheme)
    best = [r["label"] for r in results["rungs"]].index(results["answer"]["best"])
    rung = tab.locator("#rungs > details").nth(len(results["rungs"]) - 1 - best)
    rung.locator(".mistakes .tile").first.click()
    dialog = tab.get_by_role("dialog")
    assert dialog.get_by_role("heading").inner_text() == surest["file"]
    rows = [row.split("\t") for row in dialog.locator("tr").all_inner_texts()]
    assert rows[0] == ["true class", surest["label"]]
    assert [row[0] for row in rows[1:]] == [
        each["label"].removesuffix(", seed 0") for each in results["rungs"]
    ]
    said = f"{surest['predicted']} {100 * surest['probability']:.1f} %"
    assert rows[1 + best][1].replace("\N{NO-BREAK SPACE}", " ") == said
    checked = Axe().run(tab)
    assert checked.violations_count == 0, checked.generate_report()
    for step, act in enumerate([
        lambda: tab.keyboard.press("ArrowRight"),
        lambda: dialog.get_by_role("button", name="Next").click(),
    ], 1):  # fmt: skip
        act()
        label = str(rung.locator(".mistakes .tile").nth(step).get_attribute("aria-label"))
        assert label.endswith(f": {dialog.get_by_role('heading').inner_text()}")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert dialog.get_by_role("heading").inner_text() == surest["file"]
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()

    tile = tab.get_by_role("button", name=re.compile("^training image of 4: ")).first
    tile.focus()
    tab.keyboard.press("Enter")
    assert dialog.get_by_role("heading").inner_text().startswith("training image of 4: ")
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    assert wrong == []
    tab.context.close()


def test_a_cell_of_the_confusion_matrix_shows_its_mistakes(browser: Browser, folder: Path) -> None:
    """A click filters by true and predicted class; menus do the same, and sort."""
    results = json.loads((folder / "results.json").read_text())
    tab, wrong = visit(browser, folder / "report.html", "desktop", "light")
    rung = tab.locator("#rungs > details").nth(1)  # whose mistakes are all shown
    confusion = results["rungs"][-2]["confusion"]
    count, truth, predicted = max(
        (n, t, p) for t, row in enumerate(confusion) for p, n in enumerate(row) if t != p
    )
    rung.get_by_role("button", name=f"true {truth}, predicted {predicted}: {count}").click()
    shown = rung.locator(".mistakes figure:visible figcaption").all_inner_texts()
    assert len(shown) == count
    assert all(f"true {truth}\npredicted {predicted}\n" in each for each in shown)
    assert rung.locator(".tools output").inner_text() == f"{count} of {count} shown"

    menus = rung.get_by_role("combobox")
    menus.nth(0).select_option("")
    menus.nth(1).select_option("")
    menus.nth(2).select_option("0")
    whole = rung.get_by_role("button", name="Show all")
    if whole.is_visible():
        whole.click()
    order = re.findall(r"true (\d)", " ".join(rung.locator(".mistakes figure").all_inner_texts()))
    assert order == sorted(order)
    assert len(order) == sum(map(sum, confusion)) - sum(confusion[i][i] for i in range(10))

    cells = rung.locator("table.confusion button")
    cells.first.focus()
    tab.keyboard.press("ArrowRight")
    assert cells.nth(1).evaluate("each => each === document.activeElement")
    assert tip_of(tab).startswith("true ")
    tab.keyboard.press("Enter")
    assert rung.locator(".mistakes figure:visible").count() == int(cells.nth(1).inner_text())
    assert wrong == []
    tab.context.close()


def test_a_notebook_shows_the_page_and_its_script_works(browser: Browser, folder: Path) -> None:
    """In the frame that Jupyter is given, images can be enlarged and nothing is refused."""
    context = browser.new_context(viewport=SIZES["desktop"], offline=True)
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.set_content(Report(folder)._repr_html_())
    frame = tab.frame_locator("iframe")
    results = json.loads((folder / "results.json").read_text())
    assert frame.locator("h1").inner_text() == results["headline"]
    frame.get_by_role("button", name="average image of 0", exact=True).first.click()
    assert frame.get_by_role("dialog").is_visible()
    assert wrong == []
    context.close()


def test_without_its_script_the_page_is_whole(browser: Browser, folder: Path) -> None:
    """Every mistake, figure and answer stands in the page itself; nothing looks like a button."""
    context = browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.goto((folder / "report.html").as_uri())
    results = json.loads((folder / "results.json").read_text())
    assert tab.locator(".mistakes figure").count() > 24
    assert tab.locator("button, [role=button], select").count() == 0
    assert tab.locator(".answers tbody tr").count() > 24
    assert tab.locator("nav a").count() >= 10
    for link in tab.locator("nav a").all():
        assert tab.locator(str(link.get_attribute("href"))).count() == 1
    shown = tab.locator(".ladder").inner_text()
    for rung in results["rungs"]:
        assert f"{100 * rung['testing_accuracy']:.2f}\N{NO-BREAK SPACE}%" in shown
    context.close()


def test_no_other_script_runs(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """Whatever else would come into the page is refused by its own policy."""
    page = tmp_path / "report.html"
    other = "<script>window.other = 1</script><img src=x onerror='window.other = 1'>"
    page.write_text((folder / "report.html").read_text().replace("</main>", f"{other}</main>"))
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.evaluate("window.other") is None
    assert tab.locator("button").count() > 0, "its own script runs"
    context.close()


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path, size: str) -> None:
    """No name from a folder runs, asks for anything, widens the page or pushes aside the rest."""
    page = tmp_path / "report.html"
    page.write_bytes(climb(HOSTILE, name="<script>alert(1)</script>")["report.html"])
    tab, wrong = visit(browser, page, size, "light")
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert tab.evaluate(CUT_OFF) == []
    captions = tab.locator(".mistakes figure[data-pair] figcaption:visible").all_inner_texts()
    assert len(captions) > 40
    for caption in captions:
        assert re.fullmatch(r"true .+\npredicted .+\n90.0\s% sure", caption, re.DOTALL), caption
    assert (
        max(tab.locator(".grid tbody th").evaluate_all("all => all.map(h => h.clientHeight)")) < 99
    )
    checked = Axe().run(tab)
    assert checked.violations_count == 0, checked.generate_report()
    assert wrong == []
    tab.context.close()


def test_a_phone_shows_what_belongs_together(browser: Browser, tmp_path: Path) -> None:
    """Ten classes' confusion matrix but for its end, which looks cut; words that are whole."""
    page = tmp_path / "report.html"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    page.write_bytes(climb([f"{i}" for i in range(10)])["report.html"])
    tab, _ = visit(browser, page, "phone", "light")
    holder = tab.locator(".scroll:has(> .confusion)").first
    box = holder.bounding_box()
    assert box
    cells = holder.locator("thead th").all()
    ends = [cell.bounding_box() for cell in cells]
    whole = sum(
        end is not None and end["x"] + end["width"] <= box["x"] + box["width"] for end in ends
    )
    assert whole >= 9  # the true class, and eight predicted ones
    cut = holder.evaluate("each => each.classList.contains('cut')")
    assert cut == (whole < len(cells))
    page.write_bytes(climb(names)["report.html"])
    tab.reload()
    heights = tab.locator("#averages figcaption").evaluate_all(
        "all => all.map(e => e.clientHeight)"
    )
    assert len(heights) == 9
    assert max(heights) < 24, "a word is broken"
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


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "dark"), ("phone", "light")])
def test_the_history_as_a_person_sees_it(
    browser: Browser, folder: Path, size: str, scheme: str
) -> None:
    """Forty runs: the pointer and the keyboard give each one's figures, and open its report."""
    results = json.loads((folder / "results.json").read_text())
    reports = folder.parent / f"many-{size}"
    for number in range(40):
        results["environment"]["started"] = f"2024-{number // 20 + 1:02}-{number % 20 + 1:02}T00:00"
        results["first_judged"] = {"promoted": number % 9 == 0, "regression": number % 11 == 5}
        run = reports / f"{20240101000000 + number}-abc"
        run.mkdir(parents=True)
        (run / "results.json").write_text("{" if number == 17 else json.dumps(results))
        shutil.copy(folder / "report.html", run)
    place_history(reports)
    tab, wrong = visit(browser, reports / "history.html", size, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert tab.evaluate(CUT_OFF) == []
    checked = Axe().run(tab)
    assert checked.violations_count == 0, checked.generate_report()

    chart = tab.get_by_role("group", name="Accuracy of the best rung").locator("visible=true")
    points = chart.locator("a")
    assert points.count() == 39
    best = max(results["rungs"], key=lambda rung: rung["validation_accuracy"])
    points.nth(5).hover(force=True)
    tip = tab.get_by_role("status").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert tip.startswith(f"2024-01-06 00:00 UTC: {100 * best['testing_accuracy']:.2f} %")
    assert tip.endswith("worse than the model in use; epochs changed")
    points.last.focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.get_by_role("status").inner_text().startswith("2024-02-19")
    assert wrong == []
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/{20240101000000 + 38}-abc/report.html")
    tab.context.close()
