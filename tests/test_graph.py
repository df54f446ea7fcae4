"""Which stage depends on which, as Mermaid, as a tree and as a picture."""

from __future__ import annotations

import re

import pytest
from test_report import Page

from flows.console import print_graph
from tasks.caching.cues import Look
from tasks.caching.differences import FIRST
from tasks.caching.plan import Planned
from tasks.report.graph import Told, brief, drawn, mermaid, nodes, of_plan, tree

STAGES = [
    Told("decode[a]", "will run", ["training/a: 1 added"], ["training/a"]),
    Told("decode[b]", "cached", [], ["training/b"]),
    Told("train[trial]", "cached", [], ["decode[a]", "decode[b]"]),
    Told("train[x]", "will run", ["lr 1.0 -> 0.5"], ["decode[a]", "decode[b]", "train[trial]"]),
    Told("mean[a]", "may run", ["waits for decode[a]"], ["decode[a]"]),
    Told("measure[x]", "may run", ["waits for train[x]"], ["train[x]", "decode[b]"]),
]


def edges(text: str) -> dict[tuple[str, str], str]:
    """The edges of a Mermaid text by the names of their nodes, and what is written on each."""
    names = dict(re.findall(r'^  (\w+)\(?\["(.*?)(?:<br>.*)?"\]', text, re.MULTILINE))
    found = re.findall(r'^  (\w+) -->(?:\|"(.*)"\|)? (\w+)$', text, re.MULTILINE)
    return {(names[source], names[target]): label for source, label, target in found}


def test_stages_of_one_kind_are_one_node_with_counts() -> None:
    """A stage that a later one of its kind is given is a node of its own, so nothing goes round."""
    told = [(node.name, node.said, node.tone) for node in nodes(STAGES)]
    assert told == [
        ("images", "", "cached"),
        ("decode", "1 will run, 1 cached", "run"),
        ("mean[a]", "1 may run", "may"),
        ("train[trial]", "1 cached", "cached"),
        ("train[x]", "1 will run", "run"),
        ("measure[x]", "1 may run", "may"),
    ]


def test_each_reason_is_on_the_edge_that_it_comes_by() -> None:
    """Of images on theirs, of waiting on that of the other stage, of code and parameters apart."""
    assert edges(mermaid(nodes(STAGES))) == {
        ("images", "decode"): "training/a: 1 added",
        ("decode", "train[trial]"): "",
        ("train[trial]", "train[x]"): "",
        ("what changed", "train[x]"): "lr 1.0 → 0.5",
        ("decode", "mean[a]"): "waits for decode[a]",
        ("train[x]", "measure[x]"): "waits for train[x]",
    }
    first = nodes([Told("decode[a]", "will run", [FIRST], ["training/a"])])
    assert first[1].reasons == []  # that it never ran is no change


def test_the_tree_has_each_node_below_what_it_depends_on() -> None:
    lines = [f"{before}{node.name}" for before, node in tree(nodes(STAGES))]
    assert lines == [
        "images",
        "└─ decode",
        "   ├─ mean[a]",
        "   └─ train[trial]",
        "      └─ train[x]",
        "         └─ measure[x]",
    ]


@pytest.mark.parametrize("hostile", ['a"]; click n1 "javascript:1"', "<script>x</script>", "`*#|"])
def test_no_name_leaves_its_place(hostile: str) -> None:
    """Whatever a class is called, it is a text of the picture and of Mermaid."""
    stages = [Told(f"decode[{hostile}]", "ran", [f"{hostile}: 1 added"], [hostile])]
    text = mermaid(nodes(stages))
    assert all(re.fullmatch(r'[^"]*(\|?"[^"]*"\|?)?[^"]*', line) for line in text.splitlines())
    assert not set('<>"`*|') & set(re.findall(r'\["(.*)<br>', text)[0])
    page = Page(drawn(nodes(stages)).encode())
    assert {tag for tag, _ in page.tags} <= {"h3", "p", "div", "svg", "path", "circle", "text"}
    assert hostile in page.text


def test_a_pipe_gets_mermaid_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed to a file is a picture's text and nothing else, the plan's own stages."""
    look = Look([], {"files": ["training/a"]})
    planned = [Planned("decode[a]", "will run", ("training/a: 1 added",), None, look=look)]
    print_graph(planned)
    printed = capsys.readouterr().out
    assert printed == mermaid(of_plan(planned))
    assert printed.startswith("flowchart TD\n")
    assert brief(["one", "one", "two", "three"]) == "one; two and 1 more"
