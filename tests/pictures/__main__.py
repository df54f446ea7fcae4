"""`python -m tests.pictures [RUN]`: the README's pictures, cut out of a run's report by a browser.

Nothing is drawn here: what the report shows is what the README shows.  RUN is named as for
`stepladder open`; without one it is the latest run of all.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from flows.reports import find_report

HERE = Path(__file__).parent
WIDTH = 940  # of the page, in CSS pixels: README columns are about as wide
# Picture -> what of the page it shows.
PICTURES = {
    "ladder": "#ladder .card",
    "averages": ".tiles",
}


def main() -> None:
    """Write every picture next to this file."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed: it cuts the pictures out of the report")
    page = find_report(*sys.argv[1:2]) / "report.html"
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": WIDTH, "height": 900}, color_scheme="light", offline=True
        )
        tab = context.new_page()
        tab.goto(page.as_uri())
        for name, selector in PICTURES.items():
            small(tab.locator(selector).first.screenshot(), HERE / f"{name}.png")
            print(HERE / f"{name}.png")
        browser.close()


def small(png: bytes, path: Path) -> None:
    """Write a screenshot in 64 colours, which these need no more than: a fifth of the bytes."""
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
