"""What a person sees at the terminal while stages run, and the ladder at the end."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, OverflowMethod
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from tasks.caching.basics import printable
from tasks.report.words import (
    evidence,
    give_or_take,
    mark,
    per_hundred,
    skipped_in_brief,
    without_a_seed,
)

if TYPE_CHECKING:
    from flows.quick import Cached
    from tasks.caching.plan import Planned
    from tasks.caching.upkeep import Held


def plain(text: str) -> str:
    """Text from outside as the terminal can show it; what it has no letters for, in escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


class Terminal(Console):
    """Rich's console for texts that are to be shown as they are, brackets and colons too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        self.width = self.width or 80  # COLUMNS=0 would show nothing at all

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which knows how to end."""
        raise  # noqa: PLE0704 - rich calls this where it has caught the error


NAME = 12  # columns that a name keeps in a table, however narrow the terminal


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], best: int = -1) -> None:
    """A table of names, numbers and notes: where it is too wide names are cut, numbers never.

    The first column holds names, the last notes; between them are numbers.  `best` is the row to
    show in bold.
    """
    console = Terminal(soft_wrap=True)
    lines = [[plain(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    room = max(NAME, console.width - sum(width + 2 for width in widths[1:]))
    for number, (name, *numbers, note) in enumerate(lines, -1):
        cells = [set_cell_size(cut(name, room), min(widths[0], room))]
        for cell, width in zip(numbers, widths[1:-1], strict=True):
            cells.append(" " * (width - cell_len(cell)) + cell)
        style = "bold" if number in (-1, best) else ""
        console.print("  ".join([*cells, note]).rstrip(), style=style)


def padded(name: str, width: int) -> str:
    """A name filled up to so many columns; a longer one stays whole."""
    name = plain(name)
    return name + " " * (width - cell_len(name))


def cut(text: str, width: int) -> str:
    """Text of at most so many columns; what goes is its middle, for names differ at their ends."""
    if cell_len(text) <= width:
        return text
    tail = (width - 3) // 2
    start, end = set_cell_size(text, width - 3 - tail), set_cell_size(text[::-1], tail)[::-1]
    return f"{start}...{end}"


PAUSE = 10  # seconds between two lines about a training, where there are no bars
WIDE = 110  # columns of a terminal from which there is room for what a stage notes


class Words(ProgressColumn):
    """A text that is cut rather than wrapped when the terminal is narrow."""

    def __init__(self, note: bool = False) -> None:
        super().__init__(Column(ratio=1))
        self._note = note

    def render(self, task: Task) -> Text:
        """The name of what is done, or its note."""
        words = task.fields["note"] if self._note else task.description
        # Where there are ASCII letters only, the ellipsis is none of them.
        overflow: OverflowMethod = "ellipsis" if plain("…") == "…" else "crop"
        return Text(plain(words), no_wrap=True, overflow=overflow)


class Pace(ProgressColumn):
    """How much is done, how fast it goes and how long it will still take."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        """One text of a fixed width, so that bars stand below each other."""
        if not task.total:
            return Text(f"{clock(task.elapsed):>28}")
        share, rate = (
            int(100 * task.completed / task.total),
            pace(task.finished_speed or task.speed),
        )
        left = f"{clock(task.time_remaining)} left" if task.time_remaining else ""
        return Text(f"{share:3} % {rate:>8} {left:>13}")


def pace(speed: float | None) -> str:
    """How much is done in a second: 8.1/s, 12k/s, 3.4M/s; nothing where that is not known yet."""
    if not speed:
        return ""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if speed >= limit:
            return f"{speed / limit:.{int(speed < 10 * limit)}f}{letter}/s"
    return f"{speed:.{int(speed < 100)}f}/s"


def clock(seconds: float | None) -> str:
    """Seconds as minutes:seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds or 0), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


class Display:
    """Shows stages as they run: bars on a terminal, a line per finished stage elsewhere.

    Standard error only, so that standard output stays clean for results.
    """

    shown: Display | None = None  # the one that is on the terminal now

    def __init__(self, *, quiet: bool = False) -> None:
        self.states: dict[str, str] = {}  # stage -> "ran", "cached" or "failed"
        self.audited: list[str] = []  # stages that were computed again and came out the same
        self._told: dict[str, float] = {}  # training -> when a line last told of it
        self._said: dict[str, str] = {}  # a reason too long to repeat -> the stage it stands at
        self._console = Terminal(stderr=True, quiet=quiet)
        bars = self._console.is_terminal and not self._console.is_dumb_terminal
        if bars:  # a terminal that echoes Ctrl-C as ^C must not break a bar's line with it
            self._console.width -= len("^C")
        self._progress = Progress(
            SpinnerColumn("line" if self._console.options.ascii_only else "dots"),
            Words(),
            BarColumn(bar_width=10),
            Pace(),
            *([Words(note=True)] if self._console.width >= WIDE else []),
            console=self._console,
            expand=True,
            transient=True,
            disable=not (bars and sys.stderr.isatty()),  # FORCE_COLOR makes no terminal of a file
        )
        self._bars: dict[str, TaskID] = {}
        self._waiting: TaskID | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Display:
        self._progress.start()
        Display.shown = self
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the terminal, and give it its cursor back."""
        Display.shown = None
        self._progress.stop()

    def wait(self, what: str) -> None:
        """Show what is being waited for, until something else is shown."""
        if self._waiting is not None:
            self._progress.remove_task(self._waiting)
        self._waiting = self._progress.add_task(what, total=None, note="") if what else None

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        with contextlib.suppress(OSError):  # nobody looks on any more; the work goes on
            self._console.print(plain(text), soft_wrap=True)

    def __call__(self, event: str, name: str, **facts: Any) -> None:
        """Take what `tasks.caching.call` tells its observer."""
        with self._lock:
            self.wait("")
            match event:
                case "runs":
                    self._bars[name] = self._progress.add_task(name, total=None, note="")
                    if name.startswith("train[") and self._progress.disable:
                        self._told[name] = time.monotonic()
                        self.say(f"starts     {name}")
                case "progress":
                    done, total, note = (*facts["at"], "")[:3]
                    self._tell_epoch(name, note)
                    self._progress.update(self._bars[name], completed=done, total=total, note=note)
                case "audited":
                    self.audited.append(name)
                case "warning":
                    self.say(f"warning: {name}: {facts['text']}")
                case "ran" | "cached" | "failed":
                    self.states[name] = event
                    if name in self._bars:
                        self._progress.remove_task(self._bars.pop(name))
                    if event == "ran":
                        from tasks.caching.differences import FIRST

                        why = "; ".join(reason for reason in facts["why"] if reason != FIRST)
                        first = self._said.setdefault(why, name)
                        if first != name and len(why) > 40:
                            why = f"as {first}"
                        if why or facts["seconds"] >= 0.05:  # else there is nothing to tell
                            self.say(f"{facts['seconds']:7.1f} s  {name}  {why}".rstrip())

    def _tell_epoch(self, name: str, note: str) -> None:
        """Without bars, a line for each epoch of a long training, one in ten seconds at most."""
        now = time.monotonic()
        if ": " in note and now - self._told.get(name, now) > PAUSE:
            self._told[name] = now
            self.say(f"           {name}  {note}")

    def progress(self, name: str) -> _Bar:
        """A bar of its own for work that is no stage, such as a download."""
        return _Bar(self, name)


class _Bar:
    """A progress callback `(done, total, note)` that shows as one bar and ends by itself."""

    def __init__(self, display: Display, name: str) -> None:
        self._display = display
        self._name = name
        self._next = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + 0.1
        if self._name not in self._display._bars:
            self._display("runs", self._name)
        self._display("progress", self._name, at=(done, total, note))


def print_plan(planned: Sequence[Planned | Cached]) -> None:
    """Each stage, what would become of it, what it took the last time, and why."""
    console = Terminal(soft_wrap=True)
    width = min(60, max(cell_len(plain(each.stage)) for each in planned))
    for each in planned:
        seconds = "" if each.seconds is None else f"{each.seconds:.1f} s"
        line = f"{each.state:8}  {padded(each.stage, width)}  {seconds:>8}  {'; '.join(each.why)}"
        console.print(plain(line.rstrip()), style="dim" if each.state == "cached" else "")
    cached = [each for each in planned if each.state == "cached"]
    saved = sum(each.seconds or 0 for each in cached)
    needed = sum(each.seconds or 0 for each in planned) - saved
    console.print(
        f"\n{len(planned) - len(cached)} to run, {needed:.0f} s if they take what they took last; "
        f"{len(cached)} cached, which saves {saved:.0f} s"
    )


def print_graph(planned: list[Planned]) -> None:
    """Which stage depends on which: on a terminal a tree; then Mermaid, which alone goes to files.

    Red would run, amber may.
    """
    from tasks.report.graph import brief, mermaid, of_plan, tree

    found = of_plan(planned)
    if sys.stdout.isatty():
        console = Terminal(soft_wrap=True)
        for before, node in tree(found):
            style = {"run": "red", "may": "yellow", "cached": "dim"}[node.tone] * bool(node.names)
            line = Text(plain(before)).append(plain(f"{node.name}  {node.said}"), style=style)
            console.print(line.append(plain(f"  {brief(node.reasons)}").rstrip(), style="dim"))
        console.print()
    print(mermaid(found), end="")


def print_why(planned: Planned) -> None:
    """All ingredients of a stage's key, each with what it was the last time if it differs."""
    console = Terminal(soft_wrap=True)
    look, last = planned.look, planned.last
    if look is None:
        return
    console.print(plain(f"{planned.stage}  {planned.state}  key {look.key[:12]}"), style="bold")
    before = _ingredients(last["ingredients"], last["names"]) if last else {}
    for group, items in _ingredients(look.ingredients, look.names).items():
        if items:
            console.print(group)
        for name, value in items.items():
            was = before.get(group, {}).get(name)
            note = f"  (was {was or 'not there'})" if last and value and was != value else ""
            console.print(
                plain(f"  {name}  {value or 'not known yet'}{note}"),
                style="yellow" if note else "",
            )
    reasons = list(dict.fromkeys((*planned.changes, *planned.why)))
    console.print(plain("\n" + "\n".join(reasons or ["nothing differs from the last time"])))


def _ingredients(
    ingredients: dict[str, Any], names: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """A key's ingredients as group -> name -> short text."""
    parameters: dict[str, Any] = {}
    for name, value in ingredients["parameters"].items():
        if isinstance(value, dict):
            parameters |= {f"{name}.{field}": item for field, item in value.items()
                           if not field.startswith("$")}  # fmt: skip
        elif not names.get(name):
            parameters[name] = value
    return {
        "code": ingredients["code"],
        "versions": ingredients["versions"],
        "machine": {name: str(each) for name, each in ingredients.get("machine", {}).items()},
        "parameters": {
            name: json.dumps(value, ensure_ascii=False) for name, value in parameters.items()
        },
        "inputs": {
            f"{name}: {label}": digest[:12]
            for name, digests in ingredients["inputs"].items()
            for label, digest in zip(names[name], digests, strict=True)
        },
    }


def print_store(records: list[Held], users: dict[str, list[str]]) -> None:
    """Each stored result: key, size, seconds it took, last use, and whose latest run it is of."""
    console = Terminal(soft_wrap=True)
    width = min(60, max((cell_len(plain(each.name)) for each in records), default=0))
    for each in records:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        size, seconds = f"{each.total / 1e6:.1f} MB", f"{each.record.seconds:.1f} s"
        line = (
            f"{padded(each.name, width)}  {each.record.key[:8]}  {size:>10}  {seconds:>9}  {used}  "
            f"{', '.join(users.get(each.record.key, ['-']))}"
        )
        console.print(plain(line))
    files = {name: sign[0] for each in records for name, sign in each.record.files.items()}
    total = (sum(files.values()) + sum(each.size for each in records)) / 1e6
    console.print(f"{len(records)} results, {total:.1f} MB")


def print_ladder(folder: Path, *, reused: bool) -> None:
    """The ladder of a finished run as a small table, its verdict, and where its report is.

    reused: no stage ran, which a report that cannot be written may not say.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    unequal = results["health"]["unequal"]
    head = ["rung", "accuracy", "95 % interval", *(["balanced"] if unequal else []), "seconds", ""]

    def row(label: str, entry: dict[str, Any], accuracy: float) -> list[str]:
        low, high = entry["interval"]
        even = [f"{per_hundred(entry['balanced_accuracy'])}%"] if unequal else []
        seconds = f"{entry['seconds']:.1f}" if "seconds" in entry else ""
        note = ", ".join(filter(None, [mark(results, label), "cached" * entry.get("cached", 0)]))
        span = f"{per_hundred(low, 1)}% to {per_hundred(high, 1)}%"
        share = f"{per_hundred(accuracy)}%{give_or_take(entry)}".replace("\N{NO-BREAK SPACE}", " ")
        return [label, share, span, *even, seconds, note]

    if split := results["dataset"].get("split"):
        Terminal(soft_wrap=True).print(plain(f"split: {split}"))
    guessing = ["guessing", f"{results['random_baseline']:.2%}", *[""] * (len(head) - 2)]
    baselines = [row(each["label"], each, each["accuracy"]) for each in results["baselines"]]
    rungs = [
        row(each["label"], each | {"cached": reused or each["cached"]}, each["testing_accuracy"])
        for each in results["rungs"]
    ]
    fallen = [
        [each["label"], *[""] * (len(head) - 2), "failed"] for each in without_a_seed(results)
    ]
    rows = [guessing, *baselines, *fallen, *rungs]
    best = (results["answer"] or {}).get("best")
    print_table(head, rows, next((n for n, each in enumerate(rows) if each[0] == best), -1))
    console = Terminal(soft_wrap=True)
    console.print()
    for line in (*verdict(results), *model_in_use(results), f"report: {folder / 'report.html'}"):
        console.print(plain(line))


def model_in_use(results: dict[str, Any]) -> list[str]:
    """Which of the dataset's models is in use, and why, unless that has changed since the run."""
    from tasks.serving.registry import Registry

    judged = results.get("promotion")
    if not judged:
        return []
    used = Registry(results["dataset"]["home"]).current()
    if (used and used["number"]) == judged["number"]:
        return [judged["said"]]
    return [f"Model {used['number']} is in use now."] if used else []


def verdict(results: dict[str, Any]) -> list[str]:
    """What the numbers say, and all that is to be known before they are believed, line by line."""
    left = skipped_in_brief(results["health"]["skipped"])
    said = [results["headline"], *evidence(results), *results["dataset"]["converted"]]
    said += [f"warning: {each}" for each in results["warnings"]] + [left] * bool(left)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in said]
