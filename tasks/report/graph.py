"""Which stage depends on which, as a picture: what runs or ran, and the reason beside its edge.

Stages of one kind that are equally far from the images are one node.  Of the edges those are drawn
that no longer way implies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.caching.differences import FIRST
from tasks.caching.refs import Ref
from tasks.caching.store import Store
from tasks.report.templates import template
from tasks.report.words import readable, several

if TYPE_CHECKING:
    from tasks.caching.plan import Planned

TEMPLATE = Path(__file__).with_name("graph.html.j2").read_text(encoding="utf-8")
TONES = {"will run": "run", "ran": "run", "failed": "run", "may run": "may", "cached": "cached"}
COLOURS = {"run": "#f4b5a8,stroke:#b3341b", "may": "#ffe0a3,stroke:#a86a00",
           "cached": "#d5ebe9,stroke:#0b6b6b"}  # fmt: skip
IMAGES = "images"
REASONS = 2  # told of each edge


class Told(NamedTuple):
    """What is known of one stage."""

    name: str
    state: str  # of a plan or of a run
    why: Sequence[str]
    inputs: Sequence[str]  # what the results that it is given are called


@dataclass
class Node:
    """Stages of one kind; the first node of all stands for the images' folders."""

    names: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    parents: dict[int, list[str]] = field(default_factory=dict)  # node -> the reasons it gives
    changed: list[str] = field(default_factory=list)  # reasons that come from no node
    place: int = 0  # in the tree: how many stand above it

    @property
    def name(self) -> str:
        """The name of its one stage, or of its kind."""
        kind = self.names[0].partition("[")[0] if self.names else IMAGES
        return self.names[0] if len(self.names) == 1 else kind

    @property
    def said(self) -> str:
        """How many are in which state."""
        return ", ".join(f"{n} {state}" for state, n in self.states.items())

    @property
    def tone(self) -> str:
        """Whether any runs, else whether any may, else that all are cached."""
        tones = {TONES.get(state, "run") for state in self.states}
        return next((each for each in COLOURS if each in tones), "cached")

    @property
    def reasons(self) -> list[str]:
        """All reasons, each once."""
        return list(dict.fromkeys([*self.changed, *(r for each in self.parents.values()
                                                    for r in each)]))  # fmt: skip


def of_plan(planned: Iterable[Planned]) -> list[Node]:
    """The nodes of a plan."""
    return nodes(
        Told(each.stage, each.state, each.why, [*_labels(each.look.names)] if each.look else [])
        for each in planned
    )


def of_run(stages: Mapping[str, Ref], store: Store, home: str) -> list[Node]:
    """The nodes of a run, from what its stages left to remember."""
    last = {name: store.last(home, name) or {} for name in stages}
    return nodes(
        Told(name, ref.outcome.state, ref.outcome.why, [*_labels(last[name].get("names", {}))])
        for name, ref in stages.items()
    )


def _labels(names: Mapping[str, Sequence[str]]) -> Iterable[str]:
    return dict.fromkeys(label for labels in names.values() for label in labels)


def nodes(stages: Iterable[Told]) -> list[Node]:
    """The nodes, the images' first, each below one that it depends on: a tree from its root down.

    stages: in an order in which each comes after what it is given.
    """
    depth: dict[str, int] = {}
    kinds: dict[tuple[int, str], list[Told]] = {}
    for each in stages:
        depth[each.name] = 1 + max((depth.get(label, 0) for label in each.inputs), default=0)
        kinds.setdefault((depth[each.name], each.name.partition("[")[0]), []).append(each)
    found, home = [Node()], dict[str, int]()
    for _, group in sorted(kinds.items(), key=lambda item: item[0][0]):
        node = Node([each.name for each in group], Counter(each.state for each in group))
        for each in group:
            node.parents |= {home.get(label, 0): [] for label in each.inputs}
        for each in group:
            _attribute(each, node, home)
        home |= dict.fromkeys(node.names, len(found))
        found.append(node)
    return _as_tree(_reduced(found))


def _attribute(told: Told, node: Node, home: Mapping[str, int]) -> None:
    """Note each reason beside the edge that it comes by."""
    for reason in told.why:
        text = reason.removeprefix("waits for ")
        source = [home.get(label, 0) for label in told.inputs if text.startswith(label)]
        if reason != FIRST:
            reasons = node.parents[source[-1]] if source else node.changed
            reasons.append(reason)


def _reduced(found: list[Node]) -> list[Node]:
    """Without the edges that a longer way implies and that have no reason."""
    above: list[set[int]] = []  # of each node, all that it depends on; parents come first
    for node in found:
        above.append(set(node.parents).union(*(above[parent] for parent in node.parents)))
    for node in found:
        implied = set().union(*(above[parent] for parent in node.parents))
        node.parents = {
            parent: reasons for parent, reasons in node.parents.items()
            if reasons or parent not in implied
        }  # fmt: skip
    return found


def _as_tree(found: list[Node]) -> list[Node]:
    """The nodes in the order of a tree in which each stands below the deepest of its parents."""
    children: dict[int, list[int]] = {}
    for number, node in enumerate(found[1:], 1):
        depth = {parent: found[parent].place for parent in node.parents}
        parent = max(depth, key=lambda each: (depth[each], each), default=0)
        node.place = found[parent].place + 1
        children.setdefault(parent, []).append(number)

    def below(number: int) -> list[int]:  # the longest branch last: what all lead to ends it
        branches = sorted(map(below, children.get(number, [])), key=len)
        return [number, *(each for branch in branches for each in branch)]

    order = below(0)
    at = {number: row for row, number in enumerate(order)}
    for node in found:
        node.parents = {at[parent]: reasons for parent, reasons in node.parents.items()}
    return [found[number] for number in order]


# As text


def mermaid(found: Sequence[Node]) -> str:
    """The nodes in the language of Mermaid, which many pages and editors draw."""
    lines = ["flowchart TD"]
    lines += [f"  classDef {tone} fill:{colour},color:#1d1f21" for tone, colour in COLOURS.items()]
    for number, node in enumerate(found):
        text = _quoted(node.name) + (f"<br>{_quoted(node.said)}" if node.said else "")
        lines.append(f'  n{number}["{text}"]{f":::{node.tone}" if number else ""}')
    if any(node.changed for node in found):
        lines.append('  changed(["what changed"])')
    for number, node in enumerate(found):
        edges = [(f"n{parent}", reasons) for parent, reasons in node.parents.items()]
        for source, reasons in [*edges, *([("changed", node.changed)] if node.changed else [])]:
            label = f'|"{_quoted(brief(reasons))}"|' if reasons else ""
            lines.append(f"  {source} -->{label} n{number}")
    return "\n".join(lines) + "\n"


def brief(reasons: Sequence[str]) -> str:
    """The first of some reasons, each once, and how many more there are."""
    return readable(several(list(dict.fromkeys(reasons)), REASONS, "; "))


def _quoted(text: str) -> str:
    """Text inside Mermaid's quotes: what could end or style it stands as an entity."""
    text = text.replace("->", "→")
    return "".join(c if c.isalnum() or c in " ,.;:()[]/_-→" else f"#{ord(c)};" for c in text)


def tree(found: Sequence[Node]) -> list[tuple[str, Node]]:
    """The nodes as a tree of lines: what stands before each, and the node."""
    lines, open_at = [], set[int]()
    for number in reversed(range(len(found))):
        place = found[number].place
        bars = ["│  " if level in open_at else "   " for level in range(1, place)]
        elbow = ["├─ " if place in open_at else "└─ "] if place else []
        lines.append(("".join(bars + elbow), found[number]))
        open_at = {level for level in open_at if level < place} | {place}
    return lines[::-1]


# As a picture of the page

ROW, STEP = 34, 22  # pixels from row to row, and from parent to child


def drawn(found: Sequence[Node]) -> str:
    """The nodes as SVG for the page, wide and narrow: a row each, below what it depends on."""
    rows = []
    for number, node in enumerate(found):
        x, y = 8 + STEP * node.place, ROW * number + ROW // 2
        edges = [
            (f"M{14 + STEP * place} {ROW * parent + ROW // 2}V{y}H{x}", place == node.place - 1)
            for parent in node.parents
            for place in [found[parent].place]
        ]
        rows.append({"node": node, "x": x, "y": y, "edges": edges, "why": brief(node.reasons)})
    return template(TEMPLATE).render(rows=rows, height=ROW * len(found))
