"""What code a stage reaches: no more, so nothing is recomputed in vain, and never less."""

from __future__ import annotations

import contextlib
import decimal
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tasks.caching import fingerprint as fp
from tasks.caching import origins, reach, source
from tasks.caching.basics import LadderError
from tasks.caching.machine import arithmetic
from tasks.caching.records import digest_of
from tasks.caching.stage import stage
from tasks.caching.values import Stack

ROOT = Path(__file__).resolve().parents[1]
CACHES = (
    source.read,
    source.statements,
    source.codes,
    source.changers,
    origins.distributions,
    origins.installed,
    origins.is_ours,
    origins.is_module,
    origins.is_brought,
    origins.version,
    reach.reach,
    fp.storing,
)
SLOW = (origins.distributions, fp.storing)  # what is installed, and the engine


def forget_sources(prefix: str, path: list[str]) -> None:
    """Forget the modules with this prefix, and what is known of sources.

    And what is known of what is installed, where a test has added to this path: else that is always
    the same, and slow to find again for hundreds of tests.
    """
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        del sys.modules[name]
    for cached in CACHES:
        if cached not in SLOW:
            cached.cache_clear()
    if sys.path != path:
        origins.distributions.cache_clear()


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
    ("rate = 1", "rate = 2", "method"),
    ("return self.factor", "name: str\n        return self.factor", ""),
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

    path = [*sys.path]

    def load(helpers: str, chapter: str) -> dict[str, dict[str, str]]:
        forget_sources("fp", path)
        (tmp_path / "fphelpers.py").write_text(helpers)
        (tmp_path / "fpchapter.py").write_text(chapter)
        importlib.invalidate_caches()
        module = importlib.import_module("fpchapter")
        settings = sys.modules["fphelpers"].Settings()
        found = {}
        for name, arguments in STAGES.items():
            given = {"x": 1, **arguments, **({"settings": settings} if name == "method" else {})}
            function = getattr(module, name.split()[0])
            found[name] = fp.fingerprint(function, given).code
        return found

    yield load
    forget_sources("fp", path)


@pytest.mark.parametrize("edit", EDITS, ids=[f"{old[:24]}->{new[:24]}" for old, new, _ in EDITS])
def test_an_edit_reaches_exactly_the_stages_it_can(project, edit) -> None:
    old, new, expected = edit
    assert old in HELPERS
    before = project(HELPERS, CHAPTER)
    after = project(HELPERS.replace(old, new), CHAPTER)
    changed = {name.replace(" ", "_") for name in STAGES if before[name] != after[name]}
    assert changed == set(expected.split())


PACKAGE = {
    "__init__.py": "from .a import low as relow\nfrom fpp import sub\n",
    "a.py": "def low(x): return x + 1\n\ndef other(x): return x - 1\n\nK = 3\nFAST = True\n",
    "sub/__init__.py": "from ..a import low\nfrom .deep import f as ref\n",
    "sub/deep.py": """
from . import low
from ..a import K
def f(x): return low(x) + K
class C:
    @staticmethod
    def s(x): return f(x)
""",
}

# the stage's module, and whether an edit of fpp.a.low reaches the stage `go(x)`
ODD = {
    "a name re-exported by a package": "from fpp import relow\ndef go(x): return relow(x)",
    "an attribute of a package": "import fpp\ndef go(x): return fpp.relow(x)",
    "a chain of packages": "import fpp.sub.deep\ndef go(x): return fpp.sub.deep.C.s(x)",
    "a package's own relative import": "from fpp.sub import ref\ndef go(x): return ref(x)",
    "a submodule's alias": "from fpp.sub import deep as d\ndef go(x): return d.f(x)",
    "an import in a function": "def go(x):\n    from fpp.sub.deep import f\n    return f(x)",
    "a module imported in a function": "def go(x):\n    import fpp.a as m\n    return m.low(x)",
    "a lambda as default": "from fpp.a import low\ndef go(x, g=lambda y: low(y)): return g(x)",
    "a keyword's default": "from fpp.a import low\ndef go(x, *, y=low(1)): return y",
    "a partial": (
        "import functools\nfrom fpp.a import low\n"
        "P = functools.partial(low, 2)\ndef go(x): return P()"
    ),
    "a closure made at module level": (
        "from fpp.a import low\ndef make(n):\n    def inner(x): return low(x) * n\n"
        "    return inner\nP = make(3)\ndef go(x): return P(x)"
    ),
    "a class decorator": (
        "from fpp.a import low\ndef deco(cls):\n    cls.z = low(1)\n    return cls\n"
        "@deco\nclass C:\n    pass\ndef go(x): return C().z"
    ),
    "a method overridden in a subclass": (
        "from fpp.a import low\nclass B:\n    def run(self): return self.hook()\n"
        "class S(B):\n    def hook(self): return low(1)\nOBJ = S()\ndef go(x): return OBJ.run()"
    ),
    "an instance's special method": (
        "from fpp.a import low\nclass V:\n    def __add__(self, x): return low(x)\n"
        "x = V()\ndef go(x): return x + 1"
    ),
    "a property by getattr": (
        "from fpp.a import low\nclass V:\n    @property\n    def p(self): return low(1)\n"
        "x = V()\ndef go(x): return getattr(x, 'p')"
    ),
    "a class body that shadows a name": (
        "from fpp.a import low\nclass C:\n    low = staticmethod(low)\ndef go(x): return C.low(x)"
    ),
    "either import of a condition": (
        "from fpp.a import FAST\nif FAST:\n    from fpp.a import low as f\n"
        "else:\n    from fpp.a import other as f\ndef go(x): return f(x)"
    ),
    "the first import that works": (
        "try:\n    from fpp.a import low as f\nexcept ImportError:\n    from math import log as f\n"
        "def go(x): return f(x)"
    ),
    "a name bound in an expression": (
        "from fpp.a import low\nA = (B := low)\ndef go(x): return B(x)"
    ),
    "names unpacked": ("from fpp.a import low, other\nA, B = low, other\ndef go(x): return A(x)"),
    "an object in a match": (
        "from fpp.a import low\nclass C:\n    k = low(1)\n"
        "def go(x):\n    match x:\n        case C(): return 1"
    ),
    "a cached function": (
        "import functools\nfrom fpp.a import low\n@functools.cache\ndef c(x): return low(x)\n"
        "def go(x): return c(x)"
    ),
    "a comprehension": "from fpp.a import low\ndef go(x): return [low(i) for i in range(x)]",
    "a dict filled by a decorator": (
        "from fpp.a import low\nREG = {}\ndef register(name):\n    def add(fn):\n"
        "        REG[name] = fn\n        return fn\n    return add\n"
        "@register('a')\ndef f(x): return low(x)\ndef go(x): return REG['a'](x)"
    ),
    "a list filled by what an assignment calls": (
        "from fpp.a import low\nL = []\n_ = L.append(low)\ndef go(x): return L[0](x)"
    ),
    "a dispatch by type": (
        "import functools\nfrom fpp.a import low\n@functools.singledispatch\n"
        "def f(x): return 0\n@f.register(int)\ndef whole(x): return low(x)\n"
        "def go(x): return f(x)"
    ),
    "one lambda of several": (
        "from fpp.a import low\nA = lambda x: low(x)\nB = lambda x: x\ndef go(x): return A(x)"
    ),
    "the first branch of a condition": (
        "from fpp.a import low, FAST\nif FAST:\n    def f(x): return low(x)\n"
        "else:\n    def f(x): return x\ndef go(x): return f(x)"
    ),
    "a bound method as a constant": (
        "from fpp.a import low\nclass C:\n    def run(self, x): return low(x)\n"
        "M = C().run\ndef go(x): return M(x)"
    ),
    "a base class in another module": (
        "from fpp.sub.deep import C as B\nclass S(B): pass\ndef go(x): return S.s(x)"
    ),
    "super": (
        "from fpp.a import low\nclass B:\n    def r(self): return low(1)\nclass S(B):\n"
        "    def r(self): return super().r()\ndef go(x): return S().r()"
    ),
    "a metaclass": (
        "from fpp.a import low\nclass M(type):\n    def __call__(cls): return low(1)\n"
        "class C(metaclass=M): pass\ndef go(x): return C()"
    ),
    "a decorator's argument": (
        "from fpp.a import low\ndef times(n):\n    def deco(fn): return lambda x: n * fn(x)\n"
        "    return deco\n@times(low(1))\ndef f(x): return x\ndef go(x): return f(x)"
    ),
    "a field's factory": (
        "from dataclasses import dataclass, field\nfrom fpp.a import low\n@dataclass\nclass D:\n"
        "    v: int = field(default_factory=lambda: low(1))\ndef go(x): return D().v"
    ),
    "a context manager": (
        "import contextlib\nfrom fpp.a import low\n@contextlib.contextmanager\n"
        "def c(): yield low(1)\ndef go(x):\n    with c() as y: return y"
    ),
    "an async function": (
        "from fpp.a import low\nasync def f(x): return low(x)\ndef go(x): return f(x).send(None)"
    ),
    "a property by attrgetter": (
        "import operator\nfrom fpp.a import low\nclass V:\n    @property\n"
        "    def p(self): return low(1)\nx = V()\ndef go(x): return operator.attrgetter('p')(x)"
    ),
    "a property in a format": (
        "from fpp.a import low\nclass V:\n    @property\n    def p(self): return low(1)\n"
        "x = V()\ndef go(x): return '{0.p}'.format(x)"
    ),
    "a class attribute of an argument": (
        "from fpp.a import low\nclass V:\n    k = low(1)\nx = V()\ndef go(x): return x.k"
    ),
    "what loads an input": (
        "from fpp.a import low\nclass V:\n    digest = label = ''\n"
        "    def load(self, root): return self._inner()\n    def _inner(self): return low(1)\n"
        "x = V()\ndef go(x): return x"
    ),
    "a parameter bound anew": (
        "from fpp.a import low, other\nR = {'a': other, 'b': low}\nx = 'a'\n"
        "def go(x):\n    x = 'b'\n    return R[x](1)"
    ),
    "a parameter hidden by a comprehension": (
        "from fpp.a import low, other\nR = {'a': other, 'b': low}\nx = 'a'\n"
        "def go(x): return [R[x](1) for x in ('b',)]"
    ),
    "a parameter hidden by a lambda": (
        "from fpp.a import low, other\nR = {'a': other, 'b': low}\nx = 'a'\n"
        "def go(x): return (lambda x: R[x](1))('b')"
    ),
    "an attribute that is not frozen": (
        "import pydantic\nfrom fpp.a import low, other\nR = {'a': other, 'b': low}\n"
        "class P(pydantic.BaseModel):\n    k: str = 'a'\nx = P()\n"
        "def change(x): x.k = 'b'\ndef go(x):\n    change(x)\n    return R[x.k](1)"
    ),
    "one method's own import of a name": (
        "from fpp.a import low as f\nclass C:\n    def a(self):\n"
        "        from fpp.a import other as f\n        return f(1)\n"
        "    def b(self): return f(1)\ndef go(x): return C().b()"
    ),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict]]:
    """A package `fpp`, edited, and a stage's module; gives the code its `go` reaches."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    paths = [*sys.path]

    def load(stage: str, old: str = "", new: str = "", *, check: bool = True) -> dict[str, str]:
        forget_sources("fp", paths)
        for name, text in PACKAGE.items():
            path = tmp_path / "fpp" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace(old, new) if old else text)
        (tmp_path / "fpstage.py").write_text(stage)
        importlib.invalidate_caches()
        module = importlib.import_module("fpstage")
        if not check:
            return {}
        fp.check(module.go)
        return fp.fingerprint(module.go, {"x": getattr(module, "x", 1)}).code

    yield load
    forget_sources("fp", paths)


PASSING = """import os, random, sys, time, torch
import numpy as np
from numpy.random import default_rng
from datetime import datetime, timezone
"""
APART = """
from fpp.a import low, other
from tasks.caching.stage import stage
def told(x): return low(x) + other(x)
@stage(apart=lambda: (told, low))
def go(x): return told(x)
@stage(apart=lambda: (told,))
def beside(x): return told(x) + low(x)
"""


def test_what_a_stage_says_cannot_change_its_result_is_no_part_of_its_key(package) -> None:
    """Neither is what that alone reaches; for any other stage it all counts."""

    def keys(old: str = "", new: str = "") -> list[str]:
        package(APART, old, new)
        module = sys.modules["fpstage"]
        return [each.look({"x": 1}).key for each in (module.go, module.beside)]

    go, beside = keys()
    assert keys("return x - 1", "return x - 2") == [go, beside]
    assert keys("return x + 1", "return x + 2")[0] == go
    assert keys("return x + 1", "return x + 2")[1] != beside


@pytest.mark.parametrize("kind", ODD)
def test_a_helper_is_reached_through(package, kind: str) -> None:
    """Whatever way its name took, an edit of `low` changes the key, and one beside it does not."""
    source = ODD[kind]
    before = package(source)
    assert package(source, "return x + 1", "return x + 2") != before
    assert package(source, "K = 3", "K = 3  # and no more") == before
    assert package(source, "FAST = True", "FAST = True\nUNUSED = 1") == before


def test_the_condition_of_an_import_counts(package) -> None:
    source = ODD["either import of a condition"]
    assert package(source) != package(source, "FAST = True", "FAST = False")


def test_a_package_leads_to_the_distributions_that_python_itself_finds() -> None:
    theirs = importlib.metadata.packages_distributions()
    ours = origins.distributions()
    assert {top: {each.name for each in found} for top, found in ours.items()} == {
        top: set(names)
        for top, names in theirs.items()
        if top != "__pycache__"  # of single files, as Python 3.12 and later count it
    }


def test_the_versions_of_either_import_count(package) -> None:
    package("try:\n    import numpy as xp\nexcept ImportError:\n    import math as xp\n"
            "def go(x): return xp.sqrt(x)")  # fmt: skip
    found = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1})
    assert set(found.versions) == {"python", "numpy"}


def test_a_function_replaced_at_run_time_is_refused(package, monkeypatch) -> None:
    package("def low(x): return x\ndef go(x): return low(x)")
    module = sys.modules["fpstage"]
    monkeypatch.setattr(module, "low", sys.modules["fpstage"].__loader__.get_code)
    with pytest.raises(LadderError, match=r"fpstage\.low was replaced at run time"):
        fp.fingerprint(module.go, {"x": 1})


def test_a_constant_replaced_at_run_time_has_another_key(package, monkeypatch) -> None:
    before = package("K = 1\ndef go(x): return K")
    module = sys.modules["fpstage"]
    monkeypatch.setattr(module, "K", 2)
    assert fp.fingerprint(module.go, {"x": 1}).code != before


@pytest.mark.parametrize(
    "constant",
    [
        "K = READ\ndef go(x): return K",
        "K = READ.encode()\ndef go(x): return K",
        "K = {'a': len, 'b': (READ,)}\ndef go(x): return K['b']",
        "K = {'a': READ, 'b': 1}\nx = 'a'\ndef go(x): return K[x]",
        "K = frozenset(READ.split())\ndef go(x): return K",
        "import re\nK = re.compile(READ)\ndef go(x): return K",
        "import numpy\nK = numpy.array([len(READ)])\ndef go(x): return K",
        "class C:\n    k = READ\ndef go(x): return C.k",
        "class C:\n    def __init__(self, k): self.k = k\nK = C(READ)\ndef go(x): return K.k",
        "def go(x, k=READ): return k",
        "def f(*, k=READ): return k\ndef go(x): return f()",
        "def make(k):\n    def f(): return k\n    return f\nF = make(READ)\ndef go(x): return F()",
        "import functools\nF = functools.partial(len, READ)\ndef go(x): return F()",
    ],
)
def test_what_a_constant_read_from_a_file_counts(package, tmp_path: Path, constant: str) -> None:
    """Wherever it is kept: its source is the same, its value is not."""
    source = constant.replace("READ", "open(__file__ + '.txt').read()")
    (tmp_path / "fpstage.py.txt").write_text("some")
    before = package(source)
    assert package(source) == before
    (tmp_path / "fpstage.py.txt").write_text("some more")
    assert package(source) != before


def test_a_namespace_package_is_followed_too(package, tmp_path: Path) -> None:
    """A folder without __init__.py is no installed distribution, whose version would count."""
    (tmp_path / "fpn").mkdir()
    (tmp_path / "fpn" / "m.py").write_text("def f(x): return x")
    before = package("from fpn.m import f\ndef go(x): return f(x)")
    assert "fpn.m.f" in before
    sys.modules.pop("fpn.m")
    (tmp_path / "fpn" / "m.py").write_text("def f(x): return 2 * x")
    assert package("from fpn.m import f\ndef go(x): return f(x)") != before
    sys.modules.pop("fpn.m")


def test_what_is_imported_while_it_runs_is_read_when_it_is_keyed(package, tmp_path: Path) -> None:
    """A module that a function imports is imported with its key, so none can be edited between."""
    package("def go(x):\n    from fpp.a import low\n    return low(x)")
    for name in [name for name in sys.modules if name.startswith("fpp")]:
        del sys.modules[name]
    path = tmp_path / "fpp" / "a.py"
    path.write_text(path.read_text().replace("x + 1", "x + 1.0"))
    with pytest.raises(LadderError, match=r"a.py changed after it was imported \(low\)"):
        fp.fingerprint(sys.modules["fpstage"].go, {"x": 1})


@pytest.mark.parametrize(
    ("source", "patch"),
    [
        (
            "def low(x): return x\ndef high(x): return -x\ndef go(x): return low(x)",
            "M.low = M.high",
        ),
        (
            "class C:\n    def r(self): return 1\ndef go(x): return C().r()",
            "M.C.r = lambda self: 2",
        ),
        ("class C: pass\nclass D: pass\ndef go(x): return C()", "M.C = M.D"),
        ("L = []\ndef go(x): return L[0](x)", "M.L.append(eval('lambda x: x', vars(M)))"),
    ],
)
def test_code_replaced_at_run_time_is_refused(package, source: str, patch: str) -> None:
    package(source)
    exec(patch, {"M": sys.modules["fpstage"], "__name__": "fpstage"})
    with pytest.raises(LadderError, match=r"replaced at run time|changed after it was imported"):
        fp.fingerprint(sys.modules["fpstage"].go, {"x": 1})


def test_an_entry_replaced_at_run_time_has_another_key(package) -> None:
    """And what it was replaced by is followed."""
    source = "from fpp.a import low, other\nR = {'a': other}\nx = 'a'\ndef go(x): return R[x](1)"
    before = package(source)
    assert "fpp.a.low" not in before
    module = sys.modules["fpstage"]
    module.R["a"] = module.low
    after = fp.fingerprint(module.go, {"x": "a"}).code
    assert "fpp.a.low" in after
    assert before != after


# What a module changes of others

MODEL = """
import click, functools
class Model:
    def forward(self): return 0
@functools.singledispatch
def size(x): return 0
@click.group()
def main(): pass
"""
EFFECT = "import fpeffects\n"
DTYPE = "import torch\ntorch.set_default_dtype(torch.float64)\n"
METHOD = "def f(self): return 1\n"
KERNEL = "from torch.library import custom_op\nfrom torch import Tensor\n"
AT = "def h(x): return x\n"

# A module's text, a stage's, what is edited in the first; and whether the stage must run again
CHANGES = [
    ("def f(x): return 1\nimport torch\ntorch.Tensor.relu = f\n", EFFECT, "return 1", True),
    ("import torch\ntorch.Tensor.relu = lambda x: 1\n", EFFECT, "x: 1", True),
    ("from torch import Tensor as T\nU = T\nU.relu = lambda x: 1\n", EFFECT, "x: 1", True),
    ("import numpy as np\nnp.random.seed(1)\n", EFFECT, "seed(1", True),
    (DTYPE + "K = 1\n", "from fpeffects import K\n", "float64", True),
    (DTYPE + AT, "from fpeffects import h\ndef go(x): return h(x)\n", "float64", True),
    (DTYPE, "def go(x):\n    import fpeffects\n    return x\n", "float64", True),
    ("import torch\nwas = torch.set_default_dtype(torch.float64)\n", EFFECT, "float64", True),
    ("import torch\nif torch:\n    torch.set_default_dtype(torch.float64)\n", EFFECT, "float64",
     True),
    ("import torch\ndef set_up(): torch.set_default_dtype(torch.float64)\nset_up()\n", EFFECT,
     "float64", True),
    ("import torch\ndef up(): torch.set_default_dtype(torch.float64)\nX = up()\n", EFFECT,
     "float64", True),
    ("import torch\nclass C:\n    torch.set_default_dtype(torch.float64)\n", EFFECT, "float64",
     True),
    ("from fpmodel import Model\n" + METHOD + "Model.more = f\n", EFFECT, "return 1", True),
    ("from fpmodel import Model\ndef f(c):\n    c.more = lambda self: 1\nf(Model)\n", EFFECT,
     "self: 1", True),
    ("import functools\nfrom fpmodel import Model\ndef wrap(f):\n    @functools.wraps(f)\n"
     "    def call(self): return f(self) + 1\n    return call\n"
     "Model.forward = wrap(Model.forward)\n", EFFECT, "+ 1", True),
    ("import torch\n" + METHOD + "torch.nn.Linear.forward = f\n", EFFECT, "return 1", True),
    ("import decimal\ndecimal.getcontext().prec = 11\n", EFFECT, "= 1", True),
    (KERNEL + "@custom_op('fpns::a', mutates_args=())\ndef a(x: Tensor) -> Tensor: return x + 1\n",
     EFFECT, "x + 1", True),
    (KERNEL + "@custom_op('fpns::b', mutates_args=())\ndef b(x: Tensor) -> Tensor: return x\n"
     "@b.register_kernel('cpu')\ndef k(x): return x + 1\n",
     "from fpeffects import b\ndef go(x): return b(x)\n", "x + 1", True),
    ("from fpmodel import main\n@main.command()\ndef sub(): return 1\n", EFFECT, "return 1", True),
    ("from fpmodel import size\n@size.register(int)\ndef f(x): return 1\n", EFFECT, "return 1",
     True),
    (AT + "from fpmaker import make\nX = make(1)\n", EFFECT, "(1)", True),
    (AT + "import fpmaker\nX = fpmaker.remake(1)\n", EFFECT, "(1)", True),
    (AT + "from fpmaker import Maker\nX = [Maker(1)]\n", EFFECT, "(1)", True),
    (AT + "from fpmaker import plain\nX = plain(1)\n", EFFECT, "(1)", False),
    (AT + "import math\n", EFFECT, "import math", False),
    (DTYPE + "def f(): return 1\n", EFFECT, "return 1", False),
    (DTYPE + "K = 1\n", EFFECT, "K = 1", False),
    (AT + "L = []\nL.append(1)\n", "from fpeffects import h\ndef go(x): return h(x)\n", "(1)",
     False),
    (AT + "R = {}\nfor n in (3, 4): R[n] = 1\n",
     "from fpeffects import h\ndef go(x): return h(x)\n", "= 1", False),
    (AT + "import functools, torch\n@torch.no_grad()\n@functools.cache\ndef f(x): return 1\n",
     "from fpeffects import h\ndef go(x): return h(x)\n", "return 1", False),
    (AT + "if __name__ == '__main__':\n    print(1)\n", EFFECT, "print(1", False),
    (AT + "import logging\nLOG = logging.getLogger('1')\n", EFFECT, "'1", False),
]  # fmt: skip


# What a module is given by these, when it is imported, may have changed others on the way
MAKER = """
import decimal
def make(x):
    decimal.getcontext().prec = 10 + x
    return x
def remake(x):
    made = make(x)
    return made
class Maker:
    def __init__(self, x):
        self.made = remake(x)
def plain(x):
    found = {}
    found["x"] = x
    return found
"""


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What these modules change of torch is as it was, afterwards."""
    monkeypatch.setattr(torch.Tensor, "relu", torch.Tensor.relu)
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)
    yield
    torch.set_default_dtype(torch.float32)
    decimal.getcontext().prec = 28


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("module", "stage", "edited", "seen"), CHANGES)
def test_what_a_module_changes_of_others_counts_for_all_that_import_it(
    package, tmp_path: Path, module: str, stage: str, edited: str, seen: bool
) -> None:
    """And no other edit of it does."""
    (tmp_path / "fpmodel.py").write_text(MODEL)
    (tmp_path / "fpmaker.py").write_text(MAKER)
    uses = "from fpmodel import Model, main, size\ndef go(x): return [Model(), main(), size(x)]"
    stage = stage if "def go" in stage else f"{stage}{uses}"
    assert edited in module
    found = []
    other = edited.replace("1", "2").replace("64", "32").replace("math", "cmath")
    for new in (edited, edited, other):
        (tmp_path / "fpeffects.py").write_text(module.replace(edited, new))
        found.append(package(stage))
    assert found[0] == found[1]
    assert (found[1] != found[2]) == seen


def test_a_package_that_is_imported_for_its_effect_has_a_version(package, tmp_path: Path) -> None:
    folder = install(tmp_path / "vendor", "fpvendor")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    (tmp_path / "fpeffects.py").write_text("import fpvendor\nimport numpy\nX = numpy.pi\n")
    package("import fpeffects\ndef go(x): return x")
    versions = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1}).versions
    assert versions.keys() == {"python", "fpvendor"}


def test_a_method_replaced_elsewhere_is_refused_with_its_line(package, tmp_path: Path) -> None:
    (tmp_path / "fpmodel.py").write_text(MODEL)
    (tmp_path / "fpeffects.py").write_text(
        "from fpmodel import Model\ndef other(self): return 1\nModel.forward = other\n"
    )
    with pytest.raises(LadderError, match=r"Model.forward was replaced .* by .*fpeffects.py:2"):
        package("import fpeffects\nfrom fpmodel import Model\ndef go(x): return Model()")


@pytest.mark.parametrize(
    "line",
    ["time.perf_counter()", "time.monotonic_ns()", "time.tzname", "time.strftime('%H')",
     "os.getpid()", "sys.argv", "id(x)", "np.random.default_rng()", "default_rng(None)",
     "np.random.RandomState()", "random.Random()", "random.seed()", "torch.seed()",
     "torch.Generator().seed()", "datetime.fromtimestamp(x)", "datetime.min.astimezone()",
     "type(datetime.min).now()", "np.datetime64('now')", "time.clock_gettime(0)",
     "map(time.strftime, x)", "os.statvfs(x)", "list(map(datetime.now, x))"],
)  # fmt: skip
def test_what_is_another_each_time_is_refused_with_its_line(package, line: str) -> None:
    with pytest.raises(LadderError, match=r"fpstage.py:6: `.*is another each time or elsewhere"):
        package(f"{PASSING}def go(x):\n    return {line}")


@pytest.mark.parametrize(
    "line",
    ["np.random.default_rng(x)", "random.Random(1)", "torch.Generator().manual_seed(1)",
     "{id(x): x}", "id(x) in {}", "time.strftime('%H', x)", "datetime.min.astimezone(timezone.utc)",
     "datetime.fromtimestamp(x, tz=timezone.utc)", "isinstance(x, random.Random)",
     "isinstance(x, datetime)", "(lambda xp: xp.sqrt(x))(np)", "time.sleep(x)",
     "map(np.random.default_rng, [x])"],
)  # fmt: skip
def test_what_is_the_same_each_time_is_not_refused(package, line: str) -> None:
    assert package(f"{PASSING}def go(x):\n    return {line}")


@pytest.mark.parametrize(
    "text",
    ["def go(x):\n    t = time\n    return t.time()", "def go(x): return getattr(time, 'time')()",
     "t = time\ndef go(x): return t.time()", "class C:\n    t = time\ndef go(x): return C.t.time()",
     "M = {'o': os}\ndef go(x): return M['o'].getpid()"],
)  # fmt: skip
def test_a_module_with_clocks_is_handed_on_by_no_other_name(package, text: str) -> None:
    with pytest.raises(LadderError, match=r"fpstage.py:\d+: `(time|os)` cannot be followed"):
        package(f"{PASSING}{text}")


@pytest.mark.parametrize(
    "use",
    ["from fpclock import now\ndef go(x): return now()",
     "from fpclock import time as t\ndef go(x): return t.time()",
     "import fpclock\nfrom fpclock import later\ndef go(x): return later()"],
)  # fmt: skip
def test_a_clock_is_refused_that_another_module_exports_again(package, tmp_path, use) -> None:
    (tmp_path / "fpclock.py").write_text("import time\nfrom time import time as now\nlater = now")
    with pytest.raises(LadderError, match="is another each time or elsewhere"):
        package(use)


def test_what_python_s_own_modules_hold_counts_by_its_value(package, monkeypatch) -> None:
    sources = [f"import os\ndef go(x): return os.{name}" for name in ("linesep", "path.join")]
    before = [package(each) for each in sources]
    assert [package(each) for each in sources] == before
    monkeypatch.setattr(os, "linesep", "another")
    assert [package(each) == was for each, was in zip(sources, before, strict=True)] == [
        False,
        True,
    ]


def test_a_name_in_the_text_of_an_annotation_is_followed(package) -> None:
    """As pydantic does, which makes the field of what it names."""
    source = "import pydantic\nclass M(pydantic.BaseModel):\n    n: 'list[N]'\n"
    assert "fpstage.N" in package(f"{source}class N(pydantic.BaseModel): pass\ndef go(x): return M")


def test_a_generic_model_counts_as_what_it_is_made_of(package) -> None:
    source = ("import pydantic\nfrom typing import Generic, TypeVar\nT = TypeVar('T')\n"
              "class M(pydantic.BaseModel, Generic[T]):\n    n: T\n    def f(self): return 1\n"
              "N = M[int]\nx = N(n=1)\ndef go(x): return N(n=1), x.f()")  # fmt: skip
    assert {"fpstage.N", "fpstage.M", "fpstage.M.f"} <= package(source).keys()


def test_what_stands_apart_may_look_at_the_clock(package) -> None:
    """It tells how far a stage has come; and where it is followed, it is refused."""
    told = "def told(x): return time.perf_counter()\n"
    stage = "from tasks.caching.stage import stage\n@stage{}\ndef go(x): return told(x)\n"
    package(f"{PASSING}{told}{stage.format('(apart=lambda: (told,))')}go = go.fn", check=False)
    with pytest.raises(LadderError, match="perf_counter"):
        package(f"{PASSING}{told}{stage.format('')}go = go.fn")


# Annotations and docstrings

# What looks at them, or not; an edit; whether the stage must run again
READ = {
    "singledispatch": (
        """
import functools
@functools.singledispatch
def f(x): return 0
@f.register
def _(x: int): return 1
def go(x): return f(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "singledispatch call": (
        """
import functools
@functools.singledispatch
def f(x): return 0
def g(x: int): return 1
f.register(g)
def go(x): return f(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "validate_call": (
        """
from pydantic import validate_call
@validate_call
def f(x: int): return x
def go(x): return f(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "validate_call return": (
        """
import pydantic
@pydantic.validate_call(validate_return=True)
def f(x) -> int: return x
def go(x): return f(x)
""",
        "-> int",
        "-> float",
        True,
    ),
    "validate_call applied": (
        """
from pydantic import validate_call
def f(x: int): return x
g=validate_call(f)
def go(x): return g(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "validate_call local alias": (
        """
from pydantic import validate_call
v=validate_call(validate_return=True)
@v
def f(x) -> int: return x
def go(x): return f(x)
""",
        "-> int",
        "-> float",
        True,
    ),
    "pydantic dataclass": (
        """
from pydantic.dataclasses import dataclass
@dataclass
class D:
    x: int
def go(x): return D(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "pydantic dataclass alias type": (
        """
from typing import Annotated
from pydantic import Field
from pydantic.dataclasses import dataclass
S=Annotated[int,Field(gt=0)]
@dataclass
class D:
    x: S
def go(x): return D(x)
""",
        "gt=0",
        "gt=1",
        True,
    ),
    "pydantic dc qualified": (
        """
import pydantic.dataclasses
S=int
@pydantic.dataclasses.dataclass
class D:
    x: S
def go(x): return D(x)
""",
        "S=int",
        "S=float",
        True,
    ),
    "pydantic model": (
        """
from pydantic import BaseModel
class D(BaseModel):
    x: int
def go(x): return D(x=x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "model docstring": (
        """
from pydantic import BaseModel
class D(BaseModel):
    '''Aa'''
    x: int
def go(x): return D.model_json_schema()
""",
        "Aa",
        "Bb",
        True,
    ),
    "get_type_hints": (
        """
from typing import get_type_hints
def f(x: int): return x
def go(x): return get_type_hints(f)
""",
        "x: int",
        "x: float",
        True,
    ),
    "get_type_hints dc": (
        """
import typing
from dataclasses import dataclass
class T:
    def r(self): return 1
@dataclass
class D:
    t: T
def go(x): return typing.get_type_hints(D)['t']().r()
""",
        "return 1",
        "return 2",
        True,
    ),
    "getdoc": (
        """
import inspect
def f(x):
    '''Aa'''
    return x
def go(x): return inspect.getdoc(f)
""",
        "Aa",
        "Bb",
        True,
    ),
    "getdoc from": (
        """
from inspect import getdoc as g
class C:
    '''Aa'''
def go(x): return g(C)
""",
        "Aa",
        "Bb",
        True,
    ),
    "signature": (
        """
import inspect
def f(x: int): return x
def go(x): return str(inspect.signature(f))
""",
        "x: int",
        "x: float",
        True,
    ),
    "decorator of others": (
        """
import click
@click.command()
def f(x):
    '''Aa'''
def go(x): return f
""",
        "Aa",
        "Bb",
        True,
    ),
    "decorator of ours": (
        """
import inspect
def d(f):
    t=inspect.signature(f)
    return lambda x: str(t)
@d
def f(x: int): return x
def go(x): return f(x)
""",
        "x: int",
        "x: float",
        True,
    ),
    "computed_field": (
        """
import pydantic
class M(pydantic.BaseModel):
    @pydantic.computed_field
    @property
    def f(self) -> int: return 1.5
def go(x): return M().model_dump_json()
""",
        "-> int",
        "-> float",
        True,
    ),
    "help": (
        """
import pydoc
def f(x):
    '''Aa'''
    return x
def go(x): return pydoc.render_doc(f)
""",
        "Aa",
        "Bb",
        True,
    ),
    "not annotation": (
        """
def f(x: int) -> int:
    '''Aa'''
    y: int = 1
    return x
def go(x): return f(x)
""",
        "int",
        "float",
        False,
    ),
    "not doc": (
        """
def f(x: int) -> int:
    '''Aa'''
    return x
def go(x): return f(x)
""",
        "Aa",
        "Bb",
        False,
    ),
    "not cached": (
        """
import functools
@functools.cache
def f(x: int): return x
def go(x): return f(x)
""",
        "int",
        "float",
        False,
    ),
    "not nograd": (
        """
import torch
@torch.no_grad()
def f(x: int):
    '''Aa'''
    return x
def go(x): return f(x)
""",
        "int",
        "float",
        False,
    ),
    "not own deco": (
        """
def d(f): return f
@d
def f(x: int): return x
def go(x): return f(x)
""",
        "x: int",
        "x: float",
        False,
    ),
    "not property": (
        """
class C:
    @property
    def f(self) -> int: return 1
    @f.setter
    def f(self, x: int): pass
def go(x): return C().f
""",
        "int",
        "float",
        False,
    ),
    "not contextmanager": (
        """
import contextlib
@contextlib.contextmanager
def f(x: int):
    yield x
def go(x): return f(x)
""",
        "int",
        "float",
        False,
    ),
    "not validator": (
        """
from pydantic import BaseModel, field_validator
class M(BaseModel):
    x: int
    @field_validator('x')
    def c(cls, v: int): return v
def go(x): return M(x=1)
""",
        "v: int",
        "v: float",
        False,
    ),
    "not method doc": (
        """
class C:
    '''Aa'''
    def f(self):
        '''Aa'''
        return 1
def go(x): return C().f()
""",
        "Aa",
        "Bb",
        False,
    ),
    "not class docs model": (
        """
from pydantic import BaseModel
class D(BaseModel):
    '''Aa'''
    x: int
def go(x): return D(x=x)
""",
        "Aa",
        "Bb",
        False,
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_annotations_and_docstrings_count_where_something_may_look_at_them(
    package, kind: str
) -> None:
    text, old, new, seen = READ[kind]
    assert old in text
    before = package(text)
    assert (package(text.replace(old, new)) != before) == seen


# One key


@pytest.mark.parametrize(
    "kind", ["REG.append(wrapped)", "REG[fn] = wrapped", "REG[fn] = [wrapped]"]
)
def test_no_entry_of_a_registry_is_lost(package, kind: str) -> None:
    """Each is wrapped by others, so that only memory leads to it."""
    lines = [
        "import contextlib",
        f"REG = {[] if 'append' in kind else {}}",
        "def register(fn):\n    wrapped = contextlib.contextmanager(fn)",
        f"    {kind}\n    return fn",
        *(f"@register\ndef f{number}(x): yield x + {number}" for number in range(12)),
        "def go(x): return list(REG)",
    ]
    before = package("\n".join(lines))
    assert {f"fpstage.f{number}" for number in range(12)} <= before.keys()


MANY = """
import contextlib, functools, dataclasses, enum
class Kind(enum.Enum):
    A = 1
    B = {"x", "y", "z"}
@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    words: frozenset
    size: float = 0.1
def make(n):
    @functools.wraps(len)
    def inner(x): return x * n + len(WORDS)
    return inner
WORDS = {"cat", "dog", "fox", "hen", "owl", ("a", "b"), 1.5, None}
ONE = Slotted(frozenset(map(str, range(50))))
SAME = ([1, 2], [1, 2], *[["shared"]] * 3)
TABLE = {name: contextlib.contextmanager(make(i)) for i, name in enumerate("abcdefgh")}
LIST = []
def register(fn): LIST.append(contextlib.contextmanager(fn))
@register
def f0(x): yield 0
@register
def f1(x): yield 1
@register
def f2(x): yield 2
@register
def f3(x): yield 3
@register
def f4(x): yield 4
@register
def f5(x): yield 5
def cycle(): return [TABLE, Kind]
LOOP = [1, cycle]
LOOP.append(LOOP)
def go(x): return [TABLE, LIST, ONE, SAME, LOOP, Kind.B, x in {"p", "q", "r"}]
"""


def test_many_threads_and_processes_agree_on_one_key(
    package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 fingerprints of one function, in threads and under other seeds of Python's hashes."""
    package(MANY)
    go = sys.modules["fpstage"].go
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(fp.fingerprint, go, {"x": {"names": ["a"]}}) for _ in range(300)]
    found = {json.dumps(each.result()) for each in asked}
    script = (
        "import sys, json, types\n"
        "sys.modules['torch'] = types.SimpleNamespace(Tensor=type('Tensor', (), {}))\n"
        "sys.modules['tasks.caching.store'] = types.SimpleNamespace(Store=None)\n"
        "from tasks.caching.fingerprint import fingerprint\nimport fpstage\n"
        "print(json.dumps(fingerprint(fpstage.go, {'x': {'names': ['a']}})))"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    for seed in "12":
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        found.add(run.stdout.decode().strip())
    assert len(found) == 1


@pytest.mark.parametrize(
    "constant",
    [
        "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass S:\n    k: int\nK = S(READ)",
        "class S:\n    def __init__(self, k): self.k = k\nclass C:\n    s = S(READ)\nK = C",
        "import collections\nK = collections.deque([READ])",
        "import numpy\nK = numpy.float32(READ)",
        "K = complex(READ)",
        "K = range(READ)",
        "import numpy\nK = numpy.array([object, READ], object)",
        "K = ((1, 2), (1, 2), (READ, 2))",
        "import numpy\nK = numpy.dtype(['int8', 'int16'][READ - 1])",
        "import torch\nK = [torch.float32, torch.float64][READ - 1]",
        "import torch\nK = [torch.nn.Linear, torch.nn.Conv2d][READ - 1]",
        "import numpy\nK = [numpy.sum, numpy.mean][READ - 1]",
        "K = [len, sum][READ - 1]",
        "import pathlib\nK = pathlib.Path(str(READ))",
        "import decimal\nK = decimal.Decimal(READ)",
        "import fractions\nK = [fractions.Fraction(READ, 7)]",
        "import datetime\nK = datetime.timedelta(READ)",
        "import types\nK = types.SimpleNamespace(k=[READ])",
        "import pyarrow\nK = pyarrow.table({'k': [READ]})",
        "import torch\nK = torch.nn.BatchNorm1d(READ)",
        "import collections\nK = collections.OrderedDict(k=READ)",
        "import collections\nK = collections.Counter({'k': READ})",
        "import array\nK = array.array('i', [READ])",
        "import uuid\nK = uuid.UUID(int=READ)",
        "import random\nK = random.Random(READ)",
        "import re\nK = re.compile('k', [0, re.I][READ - 1])",
        "import torch\nclass C:\n    t = torch.tensor([READ])\nK = C()",
        "def K(): return 1\nK.table = [READ]",
        "def K(k=READ): return k",
        "if READ == 1:\n    def K(): return 1\nelse:\n    def K(): return 2",
        "import functools\ndef f(k=READ): return k\nK = [functools.lru_cache(f)]",
        "import numpy\ndef f(k=READ): return k\nK = [numpy.vectorize(f)]",
        "def f(k=READ): return k\nK = [staticmethod(f)]",
        "K = [list, tuple][READ - 1]([1])",
        "K = [set, frozenset][READ - 1]([1])",
        "import collections\nK = [dict, collections.OrderedDict][READ - 1]()",
        "import collections\nK = collections.deque([1], READ)",
        "import collections\nK = collections.defaultdict([list, dict][READ - 1])",
        "import torch\nK = torch.zeros(0, READ)",
        "import torch\nK = torch.ones(2).requires_grad_(READ == 1)",
        "import torch\nK = [torch.zeros(2, 2), torch.zeros(2, 2).t()][READ - 1]",
        "import numpy\nK = numpy.ones((2, 2), order='CF'[READ - 1])",
        "import cmath, math\nK = [math, cmath][READ - 1]",
    ],
)
def test_whatever_holds_a_value_shows_it(package, tmp_path: Path, constant: str) -> None:
    """The same source, another value read when it is imported; the same value, the same key."""
    text = constant.replace("READ", "int(open(__file__ + '.txt').read())")
    found = []
    for value in "112":
        (tmp_path / "fpstage.py.txt").write_text(value)
        found.append(package(f"{text}\ndef go(x): return K"))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("constant", "refused"),
    [
        ("K = open(__file__)", True),
        ("K = [iter([1])]", False),
        ("K = {'k': (x for x in [1])}", True),
        ("K = memoryview(b'k')", True),
        ("import threading\nK = threading.Lock()", False),
        ("import logging\nK = logging.getLogger('k')", False),
        ("import contextvars\nK = contextvars.ContextVar('k')", False),
        ("import typing\nK = typing.TypeVar('K')", False),
        ("import abc\nclass K(abc.ABC):\n    k = 1", False),
        ("import enum\nclass K(enum.Enum):\n    k = 1", False),
        ("import pydantic\nclass K(pydantic.BaseModel):\n    k: int = 1", False),
        ("import pydantic\nclass C(pydantic.BaseModel):\n    k: int = 1\nK = C()", False),
    ],
)
def test_what_cannot_be_told_apart_is_refused(package, constant: str, refused: bool) -> None:
    """With its line; what can hold nothing of interest is not."""
    text = f"{constant}\ndef go(x): return K"
    if refused:
        with pytest.raises(LadderError, match=r"fpstage.py:1: the \S+ in K cannot be followed"):
            package(text)
    else:
        assert package(text)


def test_equal_constants_may_be_one_object_or_two(package) -> None:
    """Python merges those of one piece of code, and those of another not."""
    package("ONE = [1, 2]\nK = [ONE, ONE]\ndef go(x): return K")
    module = sys.modules["fpstage"]
    merged = fp.fingerprint(module.go, {"x": 1})
    module.K[1] = [1, 2]
    assert fp.fingerprint(module.go, {"x": 1}) == merged


# Other people's packages


def install(folder: Path, name: str, version: str = "1.0", **texts: str) -> Path:
    """A distribution with one package of code that cannot be followed."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("from .inner import *\n")
    (folder / name / "inner.py").write_text("def work(x): return eval('x')\n")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}/inner.py,,\n")
    for file, text in texts.items():
        (info / file.replace("_json", ".json")).write_text(text)
    return folder


USES = "import fpvendor\ndef go(x): return fpvendor.work(x)"


def zipped(folder: Path) -> Path:
    shutil.make_archive(str(folder), "zip", folder)
    return folder.with_suffix(".zip")


def linked(folder: Path) -> Path:
    """As `uv` does it, each file is a link; and the folder's own name is one."""
    for file in (folder / "fpvendor").iterdir():
        (folder.parent / "store").mkdir(exist_ok=True)
        file.rename(folder.parent / "store" / file.name)
        file.symlink_to(folder.parent / "store" / file.name)
    (folder.parent / "alias").symlink_to(folder)
    return folder.parent / "alias"


def linked_whole(folder: Path) -> Path:
    """The package alone, from a folder without distributions that comes first."""
    (folder.parent / "first").mkdir()
    (folder.parent / "first" / "fpvendor").symlink_to(folder / "fpvendor")
    sys.path.insert(0, str(folder))
    return folder.parent / "first"


def bare(folder: Path) -> Path:
    """As Linux distributions leave it: without a list of files."""
    (folder / "fpvendor-1.0.dist-info" / "RECORD").unlink()
    return folder


def egg_info(folder: Path) -> Path:
    """As `setup.py install` left it in the system's site folder."""
    shutil.rmtree(folder / "fpvendor-1.0.dist-info")
    info = folder / "fpvendor-1.0.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: fpvendor\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("fpvendor\n")
    return folder.rename(folder.parent / "dist-packages")


def as_it_is(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize("way", [as_it_is, zipped, linked, linked_whole, bare, egg_info])
def test_what_is_installed_in_any_folder_counts_by_its_version(package, tmp_path, way) -> None:
    """For the user, by the system, in a vendor's folder; and a project beside it is ours."""
    folder = install(tmp_path / "vendor", "fpvendor")
    sys.path.insert(0, str(way(folder)))
    importlib.invalidate_caches()
    assert package(USES).keys() == {"fpstage.go"}
    found = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1})
    assert found.versions["fpvendor"].startswith("1.0")


@pytest.mark.parametrize("nested", ["project/.venv/lib/site-packages", "."])
def test_a_project_around_or_below_a_site_folder_is_still_ours(
    package, tmp_path: Path, nested: str
) -> None:
    sys.path.insert(0, str(install((tmp_path / nested).resolve(), "fpvendor")))
    (tmp_path / "project").mkdir(exist_ok=True)
    (tmp_path / "project" / "fpown.py").write_text("def own(x): return x")
    sys.path.insert(0, str(tmp_path / "project"))
    importlib.invalidate_caches()
    source = "import fpown, fpvendor\ndef go(x): return fpown.own(fpvendor.work(x))"
    assert package(source).keys() == {"fpstage.go", "fpown.own"}


def test_a_package_without_its_distribution_is_told(package, tmp_path: Path) -> None:
    """As when torch's folder alone was copied."""
    folder = install(tmp_path / "vendor", "fpvendor")
    shutil.rmtree(folder / "fpvendor-1.0.dist-info")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    with pytest.raises(LadderError, match=r"import \*` in fpvendor, .*dist-info is missing"):
        package(USES)


def test_what_an_import_requires_counts_with_it_and_so_does_a_local_version(
    package, tmp_path: Path
) -> None:
    """`1.0+g1 -> 1.0+g2` of what it requires; of torch, that names a build of the same release."""
    site = install(tmp_path / "vendor", "fpvendor")
    info = site / "fpvendor-1.0.dist-info" / "METADATA"
    info.write_text(
        "Metadata-Version: 2.1\nName: fpvendor\nVersion: 1.0\nRequires-Dist: fpbelow>=1\n"
    )
    sys.path.insert(0, str(site))
    seen = []
    for version in ("1.0+g1", "1.0+g2"):
        below = site / "fpbelow-1.0.dist-info"
        below.mkdir(exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: fpbelow\nVersion: {version}\n"
        (below / "METADATA").write_text(text)
        importlib.invalidate_caches()
        package(USES)
        seen.append(fp.fingerprint(sys.modules["fpstage"].go, {"x": 1}).versions["fpbelow"])
    assert seen == ["1.0+g1", "1.0+g2"]
    assert origins.versions(["torch"])["torch"] == torch.__version__.partition("+")[0]


def test_the_first_of_two_versions_counts(package, tmp_path: Path) -> None:
    """As in an environment over the system's packages."""
    for version in ("1.0", "2.0"):
        sys.path.insert(0, str(install(tmp_path / version, "fpvendor", version)))
    importlib.invalidate_caches()
    package(USES)
    found = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1})
    assert found.versions["fpvendor"].startswith("2.0 (")


EDITABLE = '{"url": "file:///x", "dir_info": {"editable": true}}'
LOCAL = '{"url": "file:///x", "dir_info": {}}'


@pytest.mark.parametrize("info", ["dist-info", "egg-info"])
def test_what_is_installed_to_be_edited_is_followed(package, tmp_path: Path, info: str) -> None:
    """Its distribution may lie beside its sources, or among other people's."""
    folder = install(tmp_path / "vendor", "fpvendor", direct_url_json=EDITABLE)
    (folder / "fpvendor" / "__init__.py").write_text("from .inner import work\n")
    (folder / "fpvendor" / "inner.py").write_text("def work(x): return x\n")
    if info == "egg-info":
        egg_info(folder).rename(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    assert "fpvendor.inner.work" in package(USES)


@pytest.mark.parametrize("origin", [{}, {"direct_url_json": LOCAL}])
def test_what_is_installed_again_has_another_version(package, tmp_path, origin) -> None:
    """From anywhere, with other files, it is called 1.0 as before."""
    folder = install(tmp_path / "vendor", "fpvendor", **origin)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    package(USES)
    versions = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1}).versions
    record = folder / "fpvendor-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text().replace("inner.py,", "inner.py,sha256=ab"))
    package(USES)
    again = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1}).versions
    assert versions["fpvendor"].startswith("1.0 (")
    assert versions["fpvendor"] != again["fpvendor"]


@pytest.mark.parametrize("use", ["fpshared.mine.f(fpshared.theirs.g(x))", "f(g(x))"])
def test_a_namespace_may_be_ours_and_theirs(package, tmp_path: Path, use: str) -> None:
    """Each module in it counts as what it is."""
    theirs = install(tmp_path / "vendor", "fpshared")
    (theirs / "fpshared" / "__init__.py").unlink()
    (theirs / "fpshared" / "theirs.py").write_text("def g(x): return eval('x')\n")
    mine = tmp_path / "mine" / "fpshared"
    mine.mkdir(parents=True)
    (mine / "mine.py").write_text("def f(x): return x\n")
    sys.path[:0] = [str(theirs), str(tmp_path / "mine")]
    importlib.invalidate_caches()
    found = package(
        "import fpshared.mine, fpshared.theirs\n"
        "from fpshared.mine import f\nfrom fpshared.theirs import g\n"
        f"def go(x): return {use}"
    )
    assert found.keys() == {"fpstage.go", "fpshared.mine.f"}


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="runs the Python below an environment")
def test_the_stages_start_where_torch_lies_elsewhere(tmp_path: Path) -> None:
    """Another Python, which finds all it needs through a .pth file."""
    (tmp_path / "vendor.pth").write_text(str(Path(torch.__file__).parents[1]))
    script = (
        f"import site, sys\nsite.addsitedir({str(tmp_path)!r})\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import tasks.rungs.baseline as b\nfrom tasks.caching.fingerprint import fingerprint\n"
        "print(fingerprint(b.mean.fn, {'stack': 1}).versions['torch'])"
    )
    run = subprocess.run(
        [sys._base_executable, "-c", script], capture_output=True, check=False, cwd=tmp_path
    )
    assert torch.__version__.startswith(run.stdout.decode().strip() or run.stderr.decode())


def test_a_project_module_may_lie_in_an_archive(package, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "fpown.py").write_text("def own(x): return x")
    sys.path.insert(0, str(zipped(tmp_path / "lib")))
    importlib.invalidate_caches()
    assert "fpown.own" in package("from fpown import own\ndef go(x): return own(x)")


# The engine's own code

USES_ENGINE = """
from tasks.caching import machine as m
from tasks.caching.bodies import CORES
from tasks.caching.basics import spelled, write_atomic
from tasks.caching.stage import Run, stage
from tasks.caching.values import Stack
def go(x, run=Run()):
    write_atomic(run.scratch, spelled(x))
    return m.threads() + CORES.total + len(Stack(*x).names)
"""


@pytest.fixture
def edit_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Let a module of the engine say something else where it is read; what runs is as it was."""

    def edit(file: str, old: str, new: str) -> None:
        edited = ROOT / "tasks/caching" / f"{file}.py"
        text = edited.read_text()
        assert old in text

        def read(_name: str, path: str) -> bytes:
            changed = Path(path) == edited
            return text.replace(old, new).encode() if changed else Path(path).read_bytes()

        monkeypatch.setattr(source, "_insist_on_bytecode", lambda *_: None)
        monkeypatch.setattr(source, "_bytes", read)
        forget()

    def forget() -> None:
        for cached in (source.read, source.statements, source.codes, reach.reach, fp.storing):
            cached.cache_clear()

    yield edit
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("basics", 'return f"{seconds // size}', 'return f"{1 + seconds // size}', True),
        ("basics", "write(data)", "write(data * 2)", True),
        ("basics", "os.fsync(file.fileno())", "pass", True),
        ("machine", "max(16, ", "max(1, ", True),
        ("machine", "_MOST = 65_536", "_MOST = 65_537", True),
        ("values", "images: Tensor", "pictures: Tensor", True),
        ("basics", "MOST = 20", "MOST = 21", False),
        ("basics", "secrets.token_hex(4)", "secrets.token_hex(8)[:8]", False),
        ("machine", "quota > 0", "quota > 1", False),
        ("stage", '"cpu" or "cuda"', '"cpu", "cuda"', False),
        ("stage", 'device: str = "cpu"', 'device: str = "cuda"', False),
        ("bodies", "_PATIENCE = 5.0", "_PATIENCE = 6.0", False),
    ],
)
def test_helpers_of_the_engine_are_followed_and_its_machinery_is_not(
    package, edit_engine, file: str, old: str, new: str, seen: bool
) -> None:
    """An edit that is seen is of code that was imported before, and refused therefore."""
    before = package(USES_ENGINE)
    edit_engine(file, old, new)
    after: object = None
    with contextlib.suppress(LadderError):
        after = fp.fingerprint(sys.modules["fpstage"].go, {"x": 1}).code
    assert (after != before) == seen


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("values", "_tensor_bytes(value.detach())", "_tensor_bytes(value.detach() + 1)", True),
        ("values", "_AS_BYTES = {torch.bool: torch.uint8,", "_AS_BYTES = {", True),
        ("values", "offset = values", "offset = 8 + values", True),
        ("values", "tensor.contiguous().numpy()", "tensor.flip(0).contiguous().numpy()", True),
        ("values", "dict(file.metadata() or {})", "{}", True),
        ("files", "write_atomic(path, data)", "write_atomic(path, data[:-1])", True),
        ("store", "values.encode(value, save)", "values.encode([value], save)", True),
        ("refs", "return parts\n", "return dict(sorted(parts.items()))\n", True),
        ("compute", "torch.manual_seed(0)", "torch.manual_seed(1)", True),
        ("compute", "stage.fn(**loaded)", "stage.fn(**loaded, twice=True)", True),
        ("values", "    name: which part", "    which part", False),
        ("files", "yield complaint", 'yield f"{complaint}."', False),
        ("files", "_YOUNG_NS = 50_000_000", "_YOUNG_NS = 60_000_000", False),
        ("store", "86_400 * 10**9", "86_401 * 10**9", False),
        ("call", "its record vanished", "its record is gone", False),
        ("bodies", "waiting for cores that", "waiting for cores which", False),
    ],
)
def test_how_results_are_stored_is_in_each_key_and_what_else_the_engine_does_is_not(
    edit_engine, file: str, old: str, new: str, seen: bool
) -> None:
    before = golden.look(GOLDEN)
    edit_engine(file, old, new)
    after = golden.look(GOLDEN)
    why = ("how results are stored changed",) if seen else ()
    assert after.differences(before.to_remember(), ROOT) == why
    assert (after.key != before.key) == seen


# Golden keys


@stage
def golden(stack: Stack, rate: float, names: list[str], table: dict[str, int]) -> float:
    """Any docstring."""
    return halved(rate)  # any comment


def halved(rate: float) -> float:
    return rate / 2


class Pixels:
    """A reference, as decode's."""

    digest = "12" * 32
    label = "decode[training/7]"

    def load(self, root: Path) -> None:
        """Nothing."""


def test_the_format_of_keys_is_as_it_was() -> None:
    """Change it on purpose only: all that anyone has stored is computed again.

    The key holds Python's version, so that the one written out here is for 3.11's.
    """
    look = golden.look(GOLDEN)
    assert look.names == {"stack": ["decode[training/7]"], "rate": [], "names": [], "table": []}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    expected = {
        "format": 1,
        "stage": "golden",
        "code": GOLDEN_CODE,
        "versions": {"python": python},
        "parameters": {
            "stack": None,
            "rate": 0.1,
            "names": ["ü"],
            "table": [["b", 1], ["a", 2]],
        },
        "inputs": {"stack": ["12" * 32], "rate": [], "names": [], "table": []},
    }
    machine = {"processor": arithmetic(), "threads": 1}
    stored = f"1 ({fp.storing()})"
    assert look.ingredients == {**expected, "machine": machine, "format": stored}
    assert look.key == digest_of(look.ingredients)
    assert digest_of({**expected, "versions": {"python": "3.11"}}) == GOLDEN_KEY


GOLDEN = {"stack": Pixels(), "rate": 0.1, "names": ["ü"], "table": {"b": 1, "a": 2}}
GOLDEN_CODE = {
    "test_fingerprint.Pixels.load": "c9ccf4b7a4f9f861",
    "test_fingerprint.golden": "f347b939164edee3",
    "test_fingerprint.halved": "de4ae3820361ae19",
}
GOLDEN_KEY = "79d290e55d536be324a6356a782c9fb2051a5f7a0dcf72e19de6259a7e2b6776"


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
        ("global TEXT\n    return 1", "fpchapter.py:{line}: `global TEXT` cannot be followed"),
        ("return map(getattr, x)", "fpchapter.py:{line}: `getattr` cannot be followed"),
        ("return plain.__globals__[x]", "`plain.__globals__` cannot be followed"),
        ("return plain.__doc__", "`plain.__doc__` cannot be followed"),
        ("return plain.__annotations__", "`plain.__annotations__` cannot be followed"),
        ("import inspect\n    return inspect.getsource(plain)", "cannot be followed"),
        ("return Form.__subclasses__()", "`Form.__subclasses__` cannot be followed"),
        ("import sys\n    return sys.modules[x]", "`sys.modules` cannot be followed"),
        ("from importlib import import_module as f\n    return f(x)", "cannot be followed"),
        ("import sys as s\n    return s.modules[x]", "`s.modules` cannot be followed"),
        ("import builtins\n    return builtins.getattr(Form, x)", "cannot be followed"),
        ("setattr(Form, 'factor', x)", "`setattr` cannot be followed"),
        ("from operator import attrgetter as a\n    return a(x)", "`a(x)` cannot be followed"),
        ("import operator\n    return operator.methodcaller(x)(Form)", "cannot be followed"),
        ("from fpreexport import h\n    return h.low(x)", "import it where it is used"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_line(
    project, tmp_path: Path, body, complaint
) -> None:
    source = CHAPTER + f"\ndef opaque(x):\n    {body}\n"
    (tmp_path / "fpreexport.py").write_text("import fphelpers as h\n")
    project(HELPERS, source)
    line = source.split("\n").index("def opaque(x):") + 2
    with pytest.raises(LadderError) as caught:
        fp.check(sys.modules["fpchapter"].opaque)
    assert complaint.format(line=line) in str(caught.value)


def test_an_edit_after_the_import_is_never_given_to_old_code(project, tmp_path: Path) -> None:
    project(HELPERS, CHAPTER)
    module = sys.modules["fpchapter"]
    for cached in CACHES:
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
