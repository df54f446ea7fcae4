"""What code a stage reaches: no more, so nothing is recomputed in vain, and never less."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.caching import fingerprint as fp
from tasks.caching.store import LadderError

HELPERS = '''
"""Helpers."""
import math
import numpy as np
from functools import partial, wraps

SCALE = 2.0
TABLE = {"a": [1, 2]}
TEXT = (lambda: "read when imported")()

def traced(fn):
    @wraps(fn)
    def call(*args):
        return fn(*args)
    return call

def low(x):
    """Below."""
    return x + 1  # a comment

def high(x, bias=SCALE):
    return low(x) * bias

@traced
def decorated(x):
    return x - 1

def unrelated(x):
    return x

def make(n):
    def inner(x):
        return x * n + len(TABLE)
    return inner

class Base:
    factor = 3
    def area(self, x: int) -> int:
        return self.factor * low(x)

class Shape(Base):
    def side(self, x):
        return math.sqrt(x)

class Settings:
    rate = 1
    @property
    def doubled(self):
        return twice(self.rate)
    def unused(self):
        return 0

def twice(x):
    return 2 * x

def l1(x): return abs(x)
def l2(x): return low(x) ** 2
def l3(x): return x ** 3
LOSSES = {"l1": l1, "l2": l2, "l3": partial(l3), "l4": lambda x: twice(x)}
LEVELS = (l1, l2)
MIXED = {}
MIXED["l1"] = l1
'''

CHAPTER = """
from __future__ import annotations
import fphelpers
import fphelpers as h
from fphelpers import LOSSES, Shape as Form, high as raised, make, MIXED
import numpy
from fphelpers import decorated, LEVELS

def plain(x):
    return x

def calls(x):
    return raised(x)

def by_attribute(x):
    return h.low(x) + fphelpers.TABLE["a"][0]

def chosen(x, name):
    return LOSSES[name](x)

def by_level(x, level):
    return LEVELS[level](x)

def whole(x, name):
    return MIXED[name](x)

def closure(x):
    return make(3)(x)

def klass(x):
    return Form().area(x)

def wrapped(x):
    def low(y):
        return decorated(y)
    return low(x)

def inside(x):
    from fphelpers import twice as double
    return double(x) + numpy.float64(1)

def text(x):
    return h.TEXT

def method(x, settings):
    return settings.doubled
"""

STAGES = {
    "plain": {},
    "calls": {},
    "by_attribute": {},
    "chosen l1": {"name": "l1"},
    "chosen l2": {"name": "l2"},
    "chosen l3": {"name": "l3"},
    "chosen l4": {"name": "l4"},
    "by_level 0": {"level": 0},
    "by_level 1": {"level": 1},
    "whole": {"name": "l1"},
    "closure": {},
    "klass": {},
    "wrapped": {},
    "inside": {},
    "text": {},
    "method": {},
}

# old text, new text, the stages that must run again
EDITS = [
    ("x + 1  # a comment", "x + 1  # another", ""),
    ('"""Below."""', '"""Above."""\n    # and more', ""),
    ("return x + 1 ", "return (x\n            + 1)", ""),
    ("(self, x: int) -> int", "(self, x: float) -> float", ""),
    ("def unrelated(x):\n    return x", "def unrelated(x):\n    return 2 * x", ""),
    ("import math\nimport numpy as np", "import numpy as np\nimport math", ""),
    ("def twice", "def new_one(x):\n    return x\n\ndef twice", ""),
    ('LOSSES = {"l1": l1,', 'LOSSES = {"l0": low, "l1": l1,', ""),
    ("def unused(self):\n        return 0", "def unused(self):\n        return 1", ""),
    ('"""Helpers."""', '"""The helpers."""', ""),
    ("return x + 1 ", "return x + 2 ", "calls by_attribute chosen_l2 by_level_1 klass"),
    ("return low(x) * bias", "return bias * low(x)", "calls"),
    ("SCALE = 2.0", "SCALE = 2.5", "calls"),
    ("bias=SCALE", "bias=3", "calls"),
    ('"a": [1, 2]', '"a": [1, 3]', "by_attribute closure"),
    ("return abs(x)", "return -abs(x)", "chosen_l1 by_level_0 whole"),
    ("low(x) ** 2", "low(x) ** 2.0", "chosen_l2 by_level_1"),
    ("x ** 3", "x ** 3.0", "chosen_l3"),
    ('partial(l3), "l4"', 'l3, "l4"', "chosen_l3"),
    ("twice(x)}", "twice(x) + 0}", "chosen_l4"),
    ("return 2 * x", "return x + x", "chosen_l4 inside method"),
    ("LEVELS = (l1, l2)", "LEVELS = (l1, l3)", "by_level_1"),
    ('MIXED["l1"] = l1', 'MIXED["l1"] = l2', "whole"),
    ("return x * n + len(TABLE)", "return n * x + len(TABLE)", "closure"),
    ("factor = 3", "factor = 4", "klass"),
    ("self.factor * low(x)", "low(x) * self.factor", "klass"),
    ("return math.sqrt(x)", "return math.sqrt(abs(x))", "klass"),
    ("class Shape(Base):", "class Shape(Base, object):", "klass"),
    ("return fn(*args)", "return fn(*args) + 0", "wrapped"),
    ("@traced\n", "", "wrapped"),
    ("return x - 1", "return x - 2", "wrapped"),
    ('"read when imported"', '"something else"', "text"),
    ("return twice(self.rate)", "return twice(self.rate) + 1", "method"),
]


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], dict]]:
    """A small project of two modules; give its sources, get each stage's code fingerprint."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(helpers: str, chapter: str) -> dict[str, dict[str, str]]:
        forget()
        (tmp_path / "fphelpers.py").write_text(helpers)
        (tmp_path / "fpchapter.py").write_text(chapter)
        importlib.invalidate_caches()
        module = importlib.import_module("fpchapter")
        settings = sys.modules["fphelpers"].Settings()
        found = {}
        for stage, arguments in STAGES.items():
            given = {"x": 1, **arguments, **({"settings": settings} if stage == "method" else {})}
            function = getattr(module, stage.split()[0])
            found[stage] = fp.fingerprint(function, given).code
        return found

    def forget() -> None:
        for name in ("fphelpers", "fpchapter"):
            sys.modules.pop(name, None)
        for cached in (fp._module, fp._reach, fp._is_ours, fp._is_module):
            cached.cache_clear()

    yield load
    forget()


@pytest.mark.parametrize("edit", EDITS, ids=[f"{old[:24]}->{new[:24]}" for old, new, _ in EDITS])
def test_an_edit_reaches_exactly_the_stages_it_can(project, edit) -> None:
    old, new, expected = edit
    assert old in HELPERS
    before = project(HELPERS, CHAPTER)
    after = project(HELPERS.replace(old, new), CHAPTER)
    changed = {name.replace(" ", "_") for name in STAGES if before[name] != after[name]}
    assert changed == set(expected.split())


def test_reordering_the_imports_of_a_stage_changes_nothing(project) -> None:
    lines = CHAPTER.replace("import numpy\nfrom fphelpers import decorated, LEVELS\n", "")
    swapped = lines.replace(
        "import fphelpers\n",
        "from fphelpers import LEVELS, decorated\nimport numpy\nimport fphelpers\n",
    )
    assert project(HELPERS, swapped) == project(HELPERS, CHAPTER)


def test_versions_enter_only_where_the_code_imports_the_distribution(project) -> None:
    project(HELPERS, CHAPTER)
    module = sys.modules["fpchapter"]
    assert set(fp.fingerprint(module.plain, {"x": 1}).versions) == {"python"}
    assert set(fp.fingerprint(module.inside, {"x": 1}).versions) == {"python", "numpy"}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return getattr(h, x)()", "fpchapter.py:{line}: `getattr(h, x)` cannot be followed"),
        ("return eval('x')", "fpchapter.py:{line}: `eval` cannot be followed"),
        ("import importlib\n    return importlib.import_module(x)", "cannot be followed"),
        ("return globals()[x]", "fpchapter.py:{line}: `globals` cannot be followed"),
        ("return h", "used as a value"),
        ("return nowhere(x)", "names `nowhere`, which the module does not define"),
        ("return h.nowhere(x)", "`nowhere` is not defined there"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_line(project, body, complaint) -> None:
    source = CHAPTER + f"\ndef opaque(x):\n    {body}\n"
    project(HELPERS, source)
    line = source.split("\n").index("def opaque(x):") + 2
    with pytest.raises(LadderError) as caught:
        fp.check(sys.modules["fpchapter"].opaque)
    assert complaint.format(line=line) in str(caught.value)


def test_an_edit_after_the_import_is_never_given_to_old_code(project, tmp_path: Path) -> None:
    project(HELPERS, CHAPTER)
    module = sys.modules["fpchapter"]
    for cached in (fp._module, fp._reach):
        cached.cache_clear()
    (tmp_path / "fphelpers.py").write_text(HELPERS.replace("return x + 1 ", "return x + 2 "))
    with pytest.raises(LadderError, match=r"fphelpers.py changed after it was imported \(low\)"):
        fp.fingerprint(module.calls, {"x": 1})


def test_a_registry_filled_at_run_time_is_refused(project) -> None:
    project(HELPERS, CHAPTER)
    sys.modules["fphelpers"].LOSSES["late"] = abs
    with pytest.raises(LadderError, match="LOSSES was changed at run time"):
        fp.fingerprint(sys.modules["fpchapter"].chosen, {"x": 1, "name": "l1"})


def test_an_unknown_registry_entry_is_named_with_what_there_is(project) -> None:
    project(HELPERS, CHAPTER)
    with pytest.raises(LadderError, match=r"unknown name 'l9'.*l1, l2, l3, l4"):
        fp.fingerprint(sys.modules["fpchapter"].chosen, {"x": 1, "name": "l9"})
