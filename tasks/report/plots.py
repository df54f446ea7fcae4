"""The report's two plots, which follow the page's colours.

A plot is drawn by matplotlib in placeholder colours, which become the page's CSS variables in its
SVG: one picture then serves the light and the dark scheme.  No name of a class or file is drawn
into a plot; those stand in the page as text.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from tasks.report.words import duration, per_hundred

SERIES = 8  # line colours before they repeat, dashed
INK, MUTED, ACCENT, RULE, CARD = "#010101", "#020202", "#030303", "#040404", "#050505"
COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    ACCENT: "var(--accent)",
    RULE: "var(--rule)",
    CARD: "var(--card)",
} | {f"#0600{i:02x}": f"var(--series-{i})" for i in range(SERIES)}
LETTER = 6.4  # width of one in a plot, on average, in CSS pixels
PAPER = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5}  # behind words that cross a line


def ladder(
    rungs: Sequence[dict[str, Any]], floors: dict[str, float], best: int, n: int, width: int
) -> str:
    """Every rung's accuracy with its interval on a log-odds scale, its training time beside it.

    rungs: dicts with `label`, `testing_accuracy`, `interval` (fractions) and `seconds`, the first
    at the bottom.  floors: accuracies drawn as lines.  best: the rung in the accent colour.
    n: the number of testing images, which says how near to 0 and 1 the scale must reach.
    width: of the picture, in CSS pixels.
    """
    row, head, foot = 46, 20 * len(floors) + 40, 26
    height = head + row * len(rungs) + foot
    figure = _figure(width, height)
    bottom, share = foot / height, row * len(rungs) / height
    accuracy = figure.add_axes((0.01, bottom, 0.70, share))
    cost = figure.add_axes((0.77, bottom, 0.22, share))
    figure.text(0.01, 1 - 12 / height, "Accuracy on testing images", color=MUTED, va="center")
    figure.text(0.77, 1 - 12 / height, "Training time", color=MUTED, va="center")

    shown = [share for rung in rungs for share in rung["interval"]] + list(floors.values())
    low = min(_log_odds(share, n) for share in shown) - 0.4
    high = max(_log_odds(share, n) for share in shown) + 0.4
    accuracy.set(xlim=(low, high), ylim=(-0.5, len(rungs) - 0.5), yticks=[])
    ticks = _ticks(low, high, 52 * (high - low) / (0.7 * width))
    accuracy.set_xticks([_log_odds(t, 0) for t in ticks], [f"{100 * t:g} %" for t in ticks])
    cost.set(xlim=(0, max(r["seconds"] for r in rungs) or 1), ylim=accuracy.get_ylim())
    cost.set_axis_off()

    for k, (name, value) in enumerate(sorted(floors.items(), key=lambda floor: floor[1])):
        x, top = _log_odds(value, n), len(rungs) - 0.5 + (12 + 20 * k) / row
        text = f"{name} {per_hundred(value)} %"
        fits = 0.7 * width * (x - low) / (high - low) > LETTER * (len(text) + 2)
        _floor(accuracy, text, x, top, fits)
    letters = int(0.7 * width / LETTER) - 10  # that fit beside the accuracy
    for y, rung in enumerate(rungs):
        label = f"{y + 1}\u2002{rung['label']}"
        label = label if len(label) <= letters else label[: letters - 1] + "…"
        odds = [_log_odds(rung["testing_accuracy"], n)]
        odds += [_log_odds(share, n) for share in rung["interval"]]
        _rung(accuracy, cost, rung, label, odds, y, ACCENT if y == best else INK)
    told = [f"{rung['label']} {per_hundred(rung['testing_accuracy'])} %" for rung in rungs]
    told += [f"{name} {per_hundred(value)} %" for name, value in floors.items()]
    return _svg(figure, f"ladder-{width}", f"Accuracy of every rung: {'; '.join(told)}.")


def _floor(axes: Any, text: str, x: float, top: float, left: bool) -> None:
    """A dotted line across all rungs, its name at the top, to the left or right of it."""
    axes.plot([x, x], [-0.5, top], color=MUTED, lw=1, dashes=(2, 3), clip_on=False)
    axes.annotate(
        text,
        (x, top),
        (-6 if left else 6, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=MUTED,
        bbox=PAPER,
        annotation_clip=False,
    )


def _rung(
    accuracy: Any,
    cost: Any,
    rung: dict[str, Any],
    label: str,
    odds: list[float],
    y: int,
    colour: str,
) -> None:
    """One row: words above; below them the dot and interval, and the time as a bar.

    odds: the log-odds of the accuracy and of the ends of its interval.
    """
    low, high = accuracy.get_xlim()
    words, track = y + 0.26, y - 0.13
    style = {"color": colour, "va": "center", "parse_math": False, "bbox": PAPER}
    accuracy.text(low, words, label, **style)
    accuracy.text(high, words, f"{per_hundred(rung['testing_accuracy'])} %", ha="right", **style)
    accuracy.plot([low, high], [track, track], color=RULE, lw=1, zorder=0)
    accuracy.plot(odds[1:], [track, track], color=colour, lw=3)
    accuracy.plot(odds[:1], [track], "o", color=colour, ms=8)
    cost.text(0, words, duration(rung["seconds"]), **style)
    cost.plot([0, rung["seconds"]], [track] * 2, color=colour, lw=6, solid_capstyle="butt")


def curves(rungs: Sequence[dict[str, Any]], validation_images: int, width: int) -> str:
    """Validation error of every rung over its epochs, both axes logarithmic.

    rungs: dicts with `label` and `history`, a list of {"epoch", "validation_accuracy"}.
    validation_images: errors below half an image are drawn as half an image.  width: CSS pixels.
    """
    height = max(260, width // 2)
    figure = _figure(width, height)
    axes = figure.add_axes((52 / width, 42 / height, 1 - 84 / width, 1 - 62 / height))
    half = 0.5 / max(1, validation_images)
    lines = [
        [(point["epoch"], max(half, 1 - point["validation_accuracy"])) for point in rung["history"]]
        for rung in rungs
    ]
    for i, line in enumerate(lines):
        style = {"color": f"#0600{i % SERIES:02x}", "ls": "-" if i < SERIES else "--"}
        axes.plot(*zip(*line, strict=True), marker="o", ms=3, lw=1.8, **style)

    last = max(line[-1][0] for line in lines)
    low = min(error for line in lines for _, error in line) / 1.2
    high = max(error for line in lines for _, error in line) * 1.2
    axes.set(xscale="log", yscale="log", xlim=(0.93, 1.05 * last + 0.1), ylim=(low, high))
    axes.minorticks_off()
    digits = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    shares = [m * 10.0**p for p in range(-6, 1) for m in digits]
    rounds = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    epochs = sorted({1, *(epoch for epoch in rounds if epoch < 0.75 * last), last})
    axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
    errors = [error for error in shares if low <= error <= min(high, 1)]
    axes.set_yticks(errors, [f"{100 * error:g} %" for error in errors])
    axes.grid(axis="y", color=RULE, lw=1)
    figure.text(4 / width, 1 - 10 / height, "Validation error", color=MUTED, va="center")
    figure.text(1 - 32 / width, 8 / height, "epoch", color=MUTED, ha="right", va="center")
    gap = math.exp(15 * math.log(high / low) / (height - 62))  # 15 pixels between two numbers
    taken = dict.fromkeys(range(last + 1), low)
    for epoch, error, i in sorted((*line[-1], i) for i, line in enumerate(lines, 1)):
        taken[epoch] = max(error, taken[epoch] * gap)
        place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{i}", (epoch, taken[epoch]), color=INK, annotation_clip=False, **place)
    told = [
        f"{i}. {rung['label']} {per_hundred(1 - rung['history'][-1]['validation_accuracy'])} %"
        for i, rung in enumerate(rungs, 1)
    ]
    return _svg(
        figure, f"curves-{width}", f"Validation error after the last epoch: {'; '.join(told)}."
    )


def _log_odds(share: float, n: int) -> float:
    """log(p / (1 - p)), kept finite by half an image of n at either end."""
    edge = 0.5 / n if n else 1e-9
    share = min(max(share, edge), 1 - edge)
    return math.log(share / (1 - share))


def _ticks(low: float, high: float, apart: float) -> list[float]:
    """Round shares for a log-odds axis, the roundest first as long as they stand `apart`."""
    rounds = (0.5, 0.9, 0.99, 0.1, 0.999, 0.01, 0.9999, 0.001, 0.8, 0.95, 0.98, 0.995, 0.998, 0.2,
              0.3, 0.4, 0.6, 0.7)  # fmt: skip
    kept: list[float] = []
    for share in rounds:
        x = _log_odds(share, 0)
        if low <= x <= high and all(abs(x - _log_odds(k, 0)) >= apart for k in kept):
            kept.append(share)
    return sorted(kept)


def _figure(width: int, height: int) -> Any:
    """A figure of width x height CSS pixels, without matplotlib's global state."""
    from matplotlib.figure import Figure  # half a second that only a report spends

    return Figure(figsize=(width / 72, height / 72), dpi=72)


def _svg(figure: Any, name: str, alt: str) -> str:
    """The figure as inline SVG: equal bytes for equal figures, the page's colours and font."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.tick_params(length=0, colors=MUTED)
        axes.spines[:].set_visible(False)
        axes.patch.set_visible(False)
    for text in figure.findobj(Text):
        text.set_fontsize(13 if figure.get_figwidth() > 7 else 12)
    figure.patch.set_visible(False)
    drawn = io.StringIO()
    dateless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", metadata=dateless)
    body = drawn.getvalue().partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # would style the whole page
    body = re.sub(r' id="[A-Za-z0-9.]+_\d+"| transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = body.replace("xlink:href", "href")
    for placeholder, variable in COLOURS.items():
        body = body.replace(f": {placeholder}", f": {variable}")
    width, height = (round(72 * side) for side in figure.get_size_inches())
    return (
        f'<svg class="plot" role="img" aria-label="{html.escape(alt)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{body}'
    )
