"""All kept runs of a dataset in one page: accuracy over time, what changed, how the data drifted.

It is made from the reports' own files alone, so it can be made again at any time; where a report
was deleted it has no point, where one is damaged a gap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.caching.basics import LadderError, entries, read_regular, write_atomic
from tasks.caching.differences import FIRST
from tasks.report import words
from tasks.report.drift import share_of_new
from tasks.report.templates import template

TEMPLATE = Path(__file__).with_name("history.html.j2").read_text(encoding="utf-8")
LARGEST = 1 << 28  # bytes of a results.json
REASONS = 6  # of what changed that are told of each run
CLASSES = 24  # of which the counts are shown: those that changed most
PICTURES = 12  # mean images that are shown


@dataclass(frozen=True)
class Kept:
    """A run whose report is kept; without an accuracy, one of which there is none to be read."""

    run: str  # the name of its report's folder
    started: str = ""
    dataset: str = ""
    rung: str = ""  # the best
    accuracy: float | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    images: dict[str, int] = field(default_factory=dict)  # of each side
    seconds: float = 0.0  # of computing, in that run
    changed: tuple[str, ...] = ()  # since the run before, in words
    promoted: bool = False
    regression: bool = False
    counts: dict[str, int] = field(default_factory=dict)  # training images of each class
    mean: str = ""  # image, as a data URI
    sketch: tuple[str, ...] = ()
    new: float | None = None  # share of the training images that the run before did not have

    @property
    def link(self) -> str:
        """Its report, beside the page."""
        return f"{quote(self.run)}/report.html"


def kept_runs(reports: Path) -> list[Kept]:
    """The runs whose reports lie in a dataset's folder of reports, the oldest first.

    Raises LadderError for a folder that cannot be looked into.
    """
    names = [each.name for each in entries(reports) if each.name[:1].isdecimal() and each.is_dir()]
    found: list[Kept] = []
    for run in sorted(names):
        each = _read(reports / run)
        before = next((one for one in reversed(found) if one.sketch), None)
        if each.sketch and before:
            each = replace(each, new=share_of_new(before.sketch, each.sketch))
        found.append(each)
    return found


def _read(folder: Path) -> Kept:
    """What a report's results.json says of its run."""
    try:
        results = json.loads(read_regular(folder / "results.json", LARGEST) or b"")
        best = words.rung_of(results, results["answer"]["best"])
        low, high = map(float, best["interval"])
        data, ran = results["dataset"], [s for s in results["stages"] if s["state"] == "ran"]
        picture = str(data.get("mean", ""))
        counts = zip(data["classes"], results["health"]["counts"]["training"], strict=True)
        judged = results.get("first_judged") or results.get("promotion") or {}
        return Kept(
            folder.name,
            str(results["environment"]["started"]),
            str(data["name"]),
            str(best["label"]),
            float(best["testing_accuracy"]),
            (low, high),
            {str(side): int(n) for side, n in data["images"].items()},
            sum(float(stage["seconds"]) for stage in ran),
            _changes(results, ran),
            bool(judged.get("promoted")),
            bool(judged.get("regression")),
            {str(name): int(n) for name, n in counts},
            picture if re.fullmatch(r"data:image/png;base64,[\w+/=]{1,20000}", picture) else "",
            tuple(map(str, data.get("sketch", ()))),
        )
    except (LadderError, ValueError, LookupError, TypeError, AttributeError, StopIteration,
            RecursionError):  # fmt: skip
        return Kept(folder.name)


def _changes(results: dict[str, Any], ran: list[dict[str, Any]]) -> tuple[str, ...]:
    """Why stages ran, and what else differs from the run before, each once.

    That what another stage gave had changed is no cause, but what followed from one.
    """
    stages = tuple(str(stage["stage"]) for stage in results["stages"])
    told = [str(reason) for stage in ran for reason in stage["why"]]
    causes = [each for each in told if each != FIRST and not each.startswith(stages)]
    compared = results.get("compared") or {}
    return tuple(dict.fromkeys([*causes, *map(str, compared.get("differs", []))]))


def place_history(reports: Path) -> list[Kept]:
    """Write history.html beside the reports that it tells of.  Gives its runs.

    Raises LadderError where it cannot be written.
    """
    runs = kept_runs(reports)
    write_atomic(reports / "history.html", history_page(runs).encode(), durable=False)
    return runs


def history_page(runs: Sequence[Kept]) -> str:
    """The page of some runs, the oldest first."""
    last = next((each for each in reversed(runs) if each.accuracy is not None), None)
    return template(TEMPLATE).render(
        runs=runs,
        last=last,
        gaps=sum(each.accuracy is None for each in runs),
        reasons=REASONS,
        charts={size: _charts(runs, width) for size, width in (("wide", 860), ("narrow", 350))},
        counts=_counts(runs),
        pictures=_pictures(runs),
    )


# What is drawn

LEFT, RIGHT, TOP, HEIGHT = 58, 14, 30, 96  # pixels around a chart, and of it


def _charts(runs: Sequence[Kept], width: int) -> list[dict[str, Any]]:
    """The charts below each other, their points in pixels."""
    step = (width - LEFT - RIGHT) / max(1, len(runs))
    xs = [LEFT + step * (i + 0.5) for i in range(len(runs))]
    best = [each.accuracy for each in runs]
    spans = [share for each in runs if each.accuracy is not None for share in each.interval]
    images = [each.images.get("training") for each in runs]
    new = [each.new for each in runs]
    new_ones = [share for share in new if share is not None] or [0.0]
    seconds = [None if each.accuracy is None else each.seconds for each in runs]
    charts = [
        _chart("Accuracy of the best rung", xs, best, _around(spans), words.percent)
        | {"height": 2 * HEIGHT},
        _chart("Training images", xs, images, _upto(images), "{:,.0f}".format),
        _chart("Computing", xs, seconds, _upto(seconds), words.duration),
        _chart("New images", xs, new, (0.0, min(1.0, 1.2 * max(0.04, *new_ones))), words.percent),
    ]
    for chart in charts:
        height = chart.setdefault("height", HEIGHT)
        low, high = chart["ends"]

        def y(value: float, low: float = low, high: float = high, height: int = height) -> float:
            return round(TOP + height * (1 - (value - low) / (high - low or 1)), 1)

        for point in chart["points"]:
            point["y"] = y(point["value"])
        chart["ticks"] = [(y(tick), _short(chart["said"], tick)) for tick in _ticks(low, high)]
        chart["line"] = _line(chart["points"])
        chart |= {"width": width, "size": round(min(4.5, max(1.6, step / 2.2)), 1)}
    for point in charts[0]["points"]:
        low, high = charts[0]["ends"]
        ends = [(share - low) / (high - low or 1) for share in runs[point["at"]].interval]
        point["bar"] = [round(TOP + 2 * HEIGHT * (1 - share), 1) for share in ends]
    parts = 4 if width > 500 else 2
    marks = sorted({round(i * (len(runs) - 1) / parts) for i in range(parts + 1)} if runs else ())
    days = {run.started[:10] for run in runs if run.started}
    part = slice(10) if len(days) > 1 else slice(11, 16)  # of one day the times
    charts[-1]["dates"] = [(round(xs[i], 1), runs[i].started[part]) for i in marks]
    return charts


def _chart(
    title: str,
    xs: list[float],
    values: Sequence[float | None],
    ends: tuple[float, float],
    said: Any,
) -> dict[str, Any]:
    points = [
        {"at": i, "x": round(x, 1), "value": value, "said": said(value), "bar": None}
        for i, (x, value) in enumerate(zip(xs, values, strict=True))
        if value is not None
    ]
    return {"title": title, "points": points, "ends": ends, "said": said, "dates": []}


def _short(said: Any, tick: float) -> str:
    """What a tick is called: a share without the digits that are all 0."""
    return f"{100 * tick:.4g} %" if said is words.percent else str(said(tick))


def _line(points: list[dict[str, Any]]) -> str:
    """The path from each run to the next, which leaves gaps out."""
    parts, before = [], -2
    for point in points:
        parts.append(f"{'L' if point['at'] == before + 1 else 'M'}{point['x']} {point['y']}")
        before = point["at"]
    return "".join(parts)


def _around(shares: list[float]) -> tuple[float, float]:
    """The ends of a scale for shares: all of them, and a little room."""
    low, high = min(shares, default=0.0), max(shares, default=1.0)
    room = max(0.005, 0.08 * (high - low))
    return max(0.0, low - room), min(1.0, high + room)


def _upto(values: Sequence[float | None]) -> tuple[float, float]:
    return 0.0, 1.05 * max((value for value in values if value is not None), default=0.0) or 1.0


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers between two others."""
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _counts(runs: Sequence[Kept]) -> list[dict[str, Any]]:
    """How the classes grew: those that changed most, with their line over all runs."""
    known = [each for each in runs if each.counts]
    names = dict.fromkeys(name for each in known for name in each.counts)
    found: list[dict[str, Any]] = []
    for name in names:
        series = [each.counts.get(name, 0) for each in known]
        most, step = max(*series, 1), 120 / max(1, len(series) - 1)
        line = [f"{step * i:.1f} {24 - 22 * n / most:.1f}" for i, n in enumerate(series)]
        moved = abs(math.log((series[-1] + 1) / (series[0] + 1)))
        found.append({"name": name, "first": series[0], "last": series[-1], "moved": moved,
                      "line": f"M{'L'.join(line)}"})  # fmt: skip
    return sorted(found, key=lambda each: each["moved"], reverse=True)[:CLASSES]


def _pictures(runs: Sequence[Kept]) -> list[Kept]:
    """The runs in which the mean image changed: the first, the last, and some between."""
    found: list[Kept] = []
    for each in runs:
        if each.mean and (not found or found[-1].mean != each.mean):
            found.append(each)
    if len(found) <= PICTURES:
        return found
    return [found[round(i * (len(found) - 1) / (PICTURES - 1))] for i in range(PICTURES)]
