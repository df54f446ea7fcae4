"""The report's plots, which follow the page's colours.

Curves are drawn by matplotlib in placeholder colours, which become the page's CSS variables in its
SVG: one picture then serves the light and the dark scheme.  The ladder is made of the page's own
boxes, in which names wrap; here are only the places of what lies in them.  No name of a class or
file is drawn into a plot; those stand in the page as text.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from tasks.report.words import give_or_take, per_hundred

SERIES = 8  # line colours before they repeat, dashed
INK, MUTED, ACCENT, RULE, CARD = "#010101", "#020202", "#030303", "#040404", "#050505"
COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    ACCENT: "var(--accent)",
    RULE: "var(--rule)",
    CARD: "var(--card)",
} | {f"#0600{i:02x}": f"var(--series-{i})" for i in range(SERIES)}


def ladder(
    rungs: Sequence[dict[str, Any]], floors: Sequence[dict[str, Any]], n: int
) -> dict[str, Any]:
    """Where every rung's accuracy and its interval lie on a log-odds scale, in percent of it.

    rungs: dicts with `label`, `testing_accuracy`, `interval` (fractions), `seconds` and `runs`, of
    which each of several is a tick; the first at the bottom.  floors: baselines, dicts with
    `label`, `accuracy` and, where it has one, `interval`.
    n: the number of testing images, which says how near to 0 and 1 the scale must reach.
    Gives "rows", from the top of the ladder down, and "ticks" of the scale.
    """
    rows = [_row(rung["testing_accuracy"], rung) | {"number": number}
            for number, rung in enumerate(rungs, 1)][::-1]  # fmt: skip
    rows += [_row(each["accuracy"], each) for each in sorted(floors, key=lambda e: -e["accuracy"])]
    shown = [_log_odds(share, n) for row in rows for share in row["shares"]]
    low, high = min(shown) - 0.4, max(shown) + 0.4

    def at(share: float, edge: int = n) -> float:
        return round(100 * (_log_odds(share, edge) - low) / (high - low), 2)

    slowest = max((row["seconds"] or 0 for row in rows), default=0) or 1
    for row in rows:
        row["dot"], *row["span"] = map(at, row["shares"][:3])
        row["seeds"] = [at(share) for share in row["shares"][3:]]
        row["time"] = round(100 * (row["seconds"] or 0) / slowest, 1)
    few = _ticks(low, high, 0.25 * (high - low))
    many = _ticks(low, high, 0.12 * (high - low))
    ticks = [{"at": at(t, 0), "said": f"{100 * t:g} %", "few": t in few} for t in many]
    return {"rows": rows, "ticks": ticks}


def _row(accuracy: float, entry: dict[str, Any]) -> dict[str, Any]:
    """One row of the ladder.  "shares": the accuracy, its interval, and each of several seeds'."""
    runs = entry.get("runs", [])
    interval = entry.get("interval", [accuracy, accuracy])
    seeds = [run["testing_accuracy"] for run in runs] if len(runs) > 1 else []
    return {
        "label": entry["label"],
        "number": None,
        "said": f"{per_hundred(accuracy)}\N{NO-BREAK SPACE}%{give_or_take(entry)}",
        "interval": entry.get("interval"),
        "shares": [accuracy, *interval, *seeds],
        "seconds": entry.get("seconds"),
    }


def calibration(curve: Sequence[Sequence[float]], size: int = 220) -> list[dict[str, float]]:
    """The points of a calibration curve in a square of so many pixels, larger for more images.

    curve: [how sure on average, share that is correct, images] of each bin.
    """
    most = max((n for *_, n in curve), default=1)
    return [
        {"x": round(size * sure, 1), "y": round(size * (1 - right), 1), "sure": sure,
         "right": right, "n": int(n), "r": round(3 + 6 * math.sqrt(n / most), 1)}
        for sure, right, n in curve
    ]  # fmt: skip


def errors(rungs: Sequence[dict[str, Any]], validation_images: int, width: int) -> str:
    """Validation error of every rung over its epochs, both axes logarithmic.

    rungs: dicts with `label` and `history`, a list of {"epoch", "validation_accuracy"}.
    validation_images: errors below half an image are drawn as half an image.  width: CSS pixels.
    """
    half = 0.5 / max(1, validation_images)
    lines = [
        [(point["epoch"], max(half, 1 - point["validation_accuracy"])) for point in rung["history"]]
        for rung in rungs
    ]
    told = [
        f"{i}. {rung['label']} {per_hundred(1 - rung['history'][-1]['validation_accuracy'])} %"
        for i, rung in enumerate(rungs, 1)
    ]
    alt = f"Validation error after the last epoch: {'; '.join(told)}."
    return _curves(lines, "Validation error", width, f"errors-{width}", alt, most=1, percent=True)


def losses(rungs: Sequence[dict[str, Any]], width: int) -> str:
    """Validation loss of every rung over its epochs, as `errors`.

    rungs: dicts with `label` and `history`, a list of {"epoch", "validation_loss"}, 0 or more.
    """
    lines = [
        [(point["epoch"], max(1e-6, point["validation_loss"])) for point in rung["history"]]
        for rung in rungs
    ]
    told = [f"{i}. {rung['label']} {rung['history'][-1]['validation_loss']:.3g}"
            for i, rung in enumerate(rungs, 1)]  # fmt: skip
    alt = f"Validation loss after the last epoch: {'; '.join(told)}."
    return _curves(lines, "Validation loss", width, f"losses-{width}", alt)


def _curves(
    lines: Sequence[Sequence[tuple[int, float]]], what: str, width: int, name: str, alt: str, *,
    most: float = math.inf, percent: bool = False,
) -> str:  # fmt: skip
    """A line of (epoch, value) for each rung, both axes logarithmic.

    most: no tick stands above it.  percent: whether values are shares.
    """
    height = max(260, width // 2)
    figure = _figure(width, height)
    axes = figure.add_axes((52 / width, 42 / height, 1 - 84 / width, 1 - 62 / height))
    for i, line in enumerate(lines):
        style = {"color": f"#0600{i % SERIES:02x}", "ls": "-" if i < SERIES else "--"}
        axes.plot(*zip(*line, strict=True), marker="o", ms=3, lw=1.8, gid=f"line-{i}", **style)

    last = max(line[-1][0] for line in lines)
    low = min(value for line in lines for _, value in line) / 1.2
    high = max(value for line in lines for _, value in line) * 1.2
    axes.set(xscale="log", yscale="log", xlim=(0.93, 1.05 * last + 0.1), ylim=(low, high))
    axes.minorticks_off()
    digits = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    marks = [m * 10.0**p for p in range(-6, 7) for m in digits]
    rounds = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    epochs = sorted({1, *(epoch for epoch in rounds if epoch < 0.75 * last), last})
    axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
    marks = [mark for mark in marks if low <= mark <= min(high, most)]
    axes.set_yticks(marks, [f"{100 * mark:g} %" if percent else f"{mark:g}" for mark in marks])
    axes.grid(axis="y", color=RULE, lw=1)
    figure.text(4 / width, 1 - 10 / height, what, color=MUTED, va="center")
    figure.text(1 - 32 / width, 8 / height, "epoch", color=MUTED, ha="right", va="center")
    gap = math.exp(15 * math.log(high / low) / (height - 62))  # 15 pixels between two numbers
    taken = dict.fromkeys(range(last + 1), low)
    for epoch, value, i in sorted((*line[-1], i) for i, line in enumerate(lines, 1)):
        taken[epoch] = max(value, taken[epoch] * gap)
        place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{i}", (epoch, taken[epoch]), color=INK, annotation_clip=False, **place)
    drawn = _svg(figure, name, alt)
    for i, line in enumerate(lines):
        said = [f"{100 * value:.3g} %" if percent else f"{value:.3g}" for _, value in line]
        tips = [
            f"{i + 1}, epoch {epoch}: {text}" for (epoch, _), text in zip(line, said, strict=True)
        ]
        drawn = _with_tips(drawn, f"line-{i}", tips)
    return drawn


def _with_tips(drawn: str, gid: str, tips: Sequence[str]) -> str:
    """A picture in which the marks of one line tell their figures."""
    before, _, rest = drawn.partition(f'<g id="{gid}">')
    marks, end, after = rest.partition("</g>\n   </g>")
    told = iter(tips)
    marks = re.sub(r"<use ", lambda _: f'<use data-tip="{html.escape(next(told))}" ', marks)
    return f"{before}<g>{marks}{end}{after}"


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
