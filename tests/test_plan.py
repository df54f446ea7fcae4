"""The plan keeps its word, and reuse never shows in the results: random edits, held against both.

Each step edits something in a scratch copy of the project or its data, asks for the plan, runs, and
runs once more from an empty cache.  The flow's own body runs below Prefect, each step in a fresh
fork of a process that has torch imported, so that edited code is imported anew in milliseconds.
"""

from __future__ import annotations

import ast
import json
import os
import py_compile
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import numpy as np
import pytest
from climbing import FIGURES
from PIL import Image
from pydantic import BaseModel

from tasks.caching.cues import Code, Inputs, Look, Parameters, Versions
from tasks.caching.refs import Ref

ROOT = Path(__file__).resolve().parents[1]
FULL = os.environ.get("STEPLADDER_FAULTS") == "full"
STEPS = 300 if FULL else 14
RECIPE = '[[recipe]]\nmodel = "linear"\nloss = "{loss}"\nepochs = {epochs}\nlr = {lr}\n'
CHAPTERS = (
    "images/decode", "rungs/baseline", "rungs/models", "rungs/losses", "rungs/split",
    "rungs/measure", "rungs/checkpoint", "rungs/train",
)  # fmt: skip

# Reasons


@dataclass(frozen=True)
class Given:
    """A reference, of a result or of what is still to come."""

    label: str
    digest: str = "12" * 32

    def load(self, root: Path) -> None:
        """Nothing."""


class Settings(BaseModel):
    """A parameter with fields."""

    lr: Any = 1.0
    names: Any = ()


class Other(Settings):
    """Another type with the same fields."""


def reasons(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why a stage with these arguments runs again, the code being the same."""

    def look(arguments: dict[str, Any]) -> Look:
        inputs = Inputs(arguments)
        cues = [
            Code({"tasks.a": "1"}), Versions({"torch": "2.13.0"}), Parameters(arguments), inputs
        ]  # fmt: skip
        return Look(cues, inputs.names)

    last = json.loads(json.dumps(look(before).to_remember(), sort_keys=True))
    return [*look(now).differences(last, Path())]


CAT, DOG, FOX = (Given(f"decode[training/{name}]") for name in ("cat", "dog", "fox"))
NEWS = Ref("decode[training/owl]")
LONG = "x" * 200


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([CAT, DOG], [CAT, DOG, FOX], ["decode[training/fox] new here"]),
        ([CAT, DOG], [CAT, DOG, NEWS], ["decode[training/owl] new here"]),
        ([CAT, DOG, FOX], [CAT, DOG], ["decode[training/fox] no longer used"]),
        ([CAT, DOG], [CAT, FOX],
         ["decode[training/fox] new here", "decode[training/dog] no longer used"]),
        ([CAT, DOG], [DOG, CAT], ["value: in another order"]),
        ({"a": CAT}, {"a": CAT, "b": DOG}, ["decode[training/dog] new here"]),
        ({"a": CAT}, {"b": CAT}, ["value: b added, a removed"]),
        ([CAT, None], [None, CAT], ["value: its inputs stand in other places"]),
        (CAT, replace(CAT, digest="34" * 32), ["decode[training/cat] changed"]),
        (CAT, [CAT, DOG], ["decode[training/dog] new here"]),
        (1, 1.0, ["value 1 -> 1.0"]),
        (1, True, ["value 1 -> True"]),
        (0.0, -0.0, ["value 0.0 -> -0.0"]),
        ("1", 1, ["value '1' -> 1"]),
        (None, "none", ["value None -> 'none'"]),
        (None, 0.1, ["value none -> 0.1"]),
        ("", "x", ["value '' -> x"]),
        (0.1, "testing", ["value 0.1 -> testing"]),
        ([28, 28], [32, 32], ["value [28, 28] -> [32, 32]"]),
        ((28, 28), (32, 32), ["value (28, 28) -> (32, 32)"]),
        (None, (32, 32), ["value none -> (32, 32)"]),
        ([28, 28], (28, 28), ["value [28, 28] -> (28, 28)"]),
        (("a",), ("a", "b"), ["value: b added"]),
        (("a",), ["a"], ["value ('a',) -> ['a']"]),
        (Path("a"), Path("b"), ["value PosixPath('a') -> PosixPath('b')"]),
        (0.1, float("nan"), ["value 0.1 -> nan"]),
        ({}, {"a": 1}, ["value: a added"]),
        ([[1, 2]], [[1, 2], [3, 4]], ["value [[1, 2]] -> [[1, 2], [3, 4]]"]),
        (None, Settings(), ["value none -> Settings(lr=1.0, names=())"]),
        (Settings(), Other(), ["type test_plan.Settings -> test_plan.Other"]),
        ({"one": Settings()}, {"one": Other()},
         ["value: one: type test_plan.Settings -> test_plan.Other"]),
        (["cat", "dog"], ["cat", "dog", "fox"], ["value: fox added"]),
        (["cat", "dog"], ["cat"], ["value: dog removed"]),
        (["cat", "dog"], ["cat", "fox"], ["value: fox added, dog removed"]),
        (["cat", "dog"], ["dog", "cat"], ["value: in another order"]),
        (["a"], ["a", "a"], ["value: a added"]),
        (["a"], ["a", "b, c", "", LONG],
         ["value: 'b, c', '', " + "x" * 40 + "..." + "x" * 10 + " added"]),
        ([], list("abcdef"), ["value: a, b, c and 3 more added"]),
        (LONG, LONG + "y", ["value changed"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, ["value: in another order"]),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2.0, "c": 3}, ["value: c added, b 2 -> 2.0"]),
        (Settings(), Settings(lr=1), ["lr 1.0 -> 1"]),
        (Settings(names=["a"]), Settings(names=["a", "b"]), ["names: b added"]),
        ({"one": Settings()}, {"one": Settings(lr=2.0), "two": Settings()},
         ["value: two added, one: lr 1.0 -> 2.0"]),
    ],
)  # fmt: skip
def test_a_reason_says_in_words_what_is_new(before: Any, now: Any, expected: list[str]) -> None:
    """A reference is told by its name, and what differs in a key is never told as nothing."""
    assert reasons({"value": before}, {"value": now}) == expected
    assert reasons({"value": now}, {"value": now}) == []


def test_a_parameter_that_came_or_went_is_told() -> None:
    """And one whose default is none, too."""
    assert reasons({}, {"size": None}) == ["size new here"]
    assert reasons({"size": None}, {}) == ["size no longer used"]


# Below Prefect


def serve() -> None:
    """Answer requests on standard input, each in a warm fork that imports the scratch copy."""
    import warmed  # noqa: F401 - climbs once

    for line in sys.stdin:
        if os.fork() == 0:
            answer = climb_thrice(**json.loads(line))
            os.write(1, (json.dumps(answer) + "\n").encode())
            os._exit(0)
        os.wait()


def climb_thrice(project: str, data: str, clean: str) -> dict[str, Any]:
    """The plan, what a run then did, and what a run from an empty cache gave."""
    # The hook of the copy that this file has imported stays, and would look on.
    sys.modules["tasks.caching.traces"]._local.busy = True
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("flows", "tasks", "climbing"):
            del sys.modules[name]
    sys.path.insert(0, project)
    from climbing import climb

    from flows.ladder import ladder
    from tasks.caching.plan import asleep
    from tasks.rungs.ladders import read_recipes

    options = {"recipes": read_recipes(Path(project) / "recipes.toml"), "which": "post"}
    os.environ["STEPLADDER_DATA"] = data
    with asleep() as planned:
        ladder.fn("tiny", **options)
    return {
        "plan": {each.stage: [each.state, list(each.why)] for each in planned},
        "run": _told(climb(Path(data), **options)),
        "clean": _told(climb(Path(clean), "report", **options)),
    }


def _told(done: dict[str, Any]) -> dict[str, Any]:
    return {name: [ref.outcome.state, ref.key, ref.digest] for name, ref in done.items()}


# Edits


class World:
    """A scratch copy of the project with a small dataset, and random edits of both."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.data = root / "data"
        self.random = random.Random(seed)
        self.recipes = [{"loss": loss, "epochs": 2, "lr": 1.0} for loss in LOSSES]
        for package in ("flows", "tasks"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, root / package, ignore=ignore)
        for split in ("training", "testing"):
            for label in ("cat", "dog"):
                (self.data / "tiny" / split / label).mkdir(parents=True)
                for number in range(8):
                    self._paint(self.data / "tiny" / split / label / f"{number}.png")
        self._write_recipes()
        for path in sorted(root.rglob("*.py")):
            self._write_source(path, path.read_text())

    def edit(self) -> str:
        """Make one random edit; gives what it was."""
        kind = self.random.choice(EDITS)
        return f"{kind.__name__}: {kind(self)}"

    def _paint(self, path: Path) -> None:
        pixels = np.frombuffer(self.random.randbytes(64), np.uint8).reshape(8, 8)
        Image.fromarray(pixels).save(path)

    def _write_recipes(self) -> None:
        text = "\n".join(RECIPE.format(**recipe) for recipe in self.recipes)
        (self.root / "recipes.toml").write_text(text)

    def _image(self) -> Path:
        paths = sorted((self.data / "tiny").rglob("*.png"))
        return self.random.choice(paths)

    def change_image(self) -> Path:
        """Other pixels under the same name."""
        path = self._image()
        self._paint(path)
        return path

    def add_image(self) -> Path:
        """One more file."""
        path = self._image().parent / f"{self.random.randrange(10**6)}.png"
        self._paint(path)
        return path

    def remove_image(self) -> Path:
        """One file less, while there are enough."""
        path = self._image()
        if len(list(path.parent.iterdir())) > 5:
            path.unlink()
        return path

    def encode_again(self) -> Path:
        """The same pixels in other bytes."""
        path = self._image()
        image = Image.open(path)
        image.load()
        image.save(path, compress_level=self.random.randrange(10))
        return path

    def touch_image(self) -> Path:
        """The same bytes at another time."""
        path = self._image()
        path.touch()
        return path

    def move_image(self) -> Path:
        """From one class to the other."""
        path = self._image()
        if len(list(path.parent.iterdir())) > 5:
            split = path.parents[1]
            label = "dog" if path.parent.name == "cat" else "cat"
            path.rename(split / label / f"moved-{self.random.randrange(10**6)}.png")
        return path

    def change_recipe(self) -> dict[str, Any]:
        """Another learning rate or number of epochs."""
        recipe = self.random.choice(self.recipes)
        field, values = self.random.choice([("lr", (0.5, 1.0)), ("epochs", (1, 2, 3, 4))])
        recipe[field] = self.random.choice(values)
        self._write_recipes()
        return recipe

    def edit_helper(self) -> str:
        """A statement more in one function: another key, the same results."""
        line = ast.parse(f"_edited = {self.random.randrange(3)}").body
        return self._rewrite(lambda body: line + body)

    def edit_docstring(self) -> str:
        """Another docstring, and the whole file formatted anew: nothing that counts."""
        text = ast.parse(f"'Edit {self.random.randrange(100)}.'").body
        return self._rewrite(lambda body: text + body)

    def edit_comment(self) -> str:
        """A comment and an empty line more: nothing that counts."""
        path = self._chapter()
        line = f"# Edit {self.random.randrange(100)}.\n\n"
        lines = [each for each in path.read_text().splitlines(True) if "# Edit " not in each]
        at = next(i for i, each in enumerate(lines) if each.startswith("def "))
        self._write_source(path, "".join([*lines[:at], line, *lines[at:]]))
        return path.stem

    def change_constant(self) -> str:
        """Another value of a constant that changes no result: another key alone."""
        path = self.root / "tasks/images/decode.py"
        value = self.random.choice((127, 128, 129))
        text = re.sub(r"^LOOKS = \d+", f"LOOKS = {value}", path.read_text(), flags=re.MULTILINE)
        assert f"LOOKS = {value}" in text
        self._write_source(path, text)
        return f"LOOKS {value}"

    def _chapter(self) -> Path:
        return self.root / "tasks" / f"{self.random.choice(CHAPTERS)}.py"

    def _write_source(self, path: Path, text: str) -> None:
        """Write a source and its bytecode, which is told apart by content instead of by time."""
        path.write_text(text)
        py_compile.compile(str(path), invalidation_mode=PycInvalidationMode.CHECKED_HASH)

    def _rewrite(self, change: Callable[[list[ast.stmt]], list[ast.stmt]]) -> str:
        path = self._chapter()
        tree = ast.parse(path.read_text())
        function = self.random.choice([n for n in tree.body if isinstance(n, ast.FunctionDef)])
        bare = function.body[ast.get_docstring(function) is not None :]
        function.body = change([each for each in bare if "_edited" not in ast.unparse(each)])
        self._write_source(path, ast.unparse(tree))
        return f"{path.stem}.{function.name}"

    def change_arithmetic(self) -> str:
        """Another divisor in the mean image: other results wherever it is used."""
        path = self.root / "tasks/rungs/baseline.py"
        tree = ast.parse(path.read_text())
        [mean] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "mean"]
        constants = [n for n in ast.walk(mean) if isinstance(n, ast.Constant)]
        [divisor] = [n for n in constants if n.value in (254, 255)]
        divisor.value = self.random.choice((254, 255))
        self._write_source(path, ast.unparse(tree))
        return f"divisor {divisor.value}"

    def lose_cached_file(self) -> str:
        """Any single file of the cache."""
        files = sorted(path for path in (self.data / "cache").rglob("*") if path.is_file())
        path = self.random.choice(files)
        path.unlink()
        return str(path.relative_to(self.data))

    def damage_cached_file(self) -> str:
        """One bit of any file of the cache."""
        files = sorted(path for path in (self.data / "cache").rglob("*") if path.is_file())
        path = self.random.choice([each for each in files if each.stat().st_size])
        data = bytearray(path.read_bytes())
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        path.write_bytes(data)
        return str(path.relative_to(self.data))

    def cut_cached_file(self) -> str:
        """The end of any file of the cache cut off."""
        files = sorted(path for path in (self.data / "cache").rglob("*") if path.is_file())
        path = self.random.choice([each for each in files if each.stat().st_size])
        os.truncate(path, self.random.randrange(path.stat().st_size))
        return str(path.relative_to(self.data))


LOSSES = ("cross_entropy", "softmax_mse")
EDITS = (
    World.change_image,
    World.add_image,
    World.remove_image,
    World.encode_again,
    World.touch_image,
    World.move_image,
    World.change_recipe,
    World.change_recipe,
    World.edit_helper,
    World.edit_helper,
    World.edit_docstring,
    World.edit_comment,
    World.change_constant,
    World.change_arithmetic,
    World.lose_cached_file,
    World.damage_cached_file,
    World.cut_cached_file,
)


@pytest.fixture(scope="module")
def climbs() -> Iterator[Callable[..., dict[str, Any]]]:
    """Ask the server below."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip

    def ask(**request: str) -> dict[str, Any]:
        assert server.stdin
        assert server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield ask
    server.communicate(timeout=30)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_plan_keeps_its_word_and_reuse_never_shows(
    tmp_path: Path, climbs: Callable[..., dict[str, Any]], seed: int
) -> None:
    """What it called cached was not run, what it said would run ran, and all as from nothing."""
    world = World(tmp_path, seed)
    log = ["nothing"]
    states = {"ran": 0, "cached": 0}
    for number in range(STEPS // 2):
        clean = tmp_path / "clean"
        shutil.rmtree(clean, ignore_errors=True)
        clean.mkdir()
        (clean / "tiny").symlink_to(world.data / "tiny")
        found = climbs(project=str(tmp_path), data=str(world.data), clean=str(clean))
        story = f"step {number} of seed {seed}, after {log}"
        plan, ran = found["plan"], found["run"]
        assert plan.keys() == ran.keys() == {*found["clean"], "report"}, story
        for name, (state, key, digest) in ran.items():
            promise, why = plan[name]
            states[state] += 1
            assert promise != "cached" or state == "cached", f"{name} ran; {story}"
            assert promise != "will run" or state == "ran", f"{name} did not, {why}; {story}"
            if name != "report":  # it tells of its own run
                assert [key, digest] == found["clean"][name][1:], f"{name}; {story}"
        FIGURES["random edits: plan, run, clean run"]["rounds"] += 1
        log.append(world.edit())
    assert min(states.values()) > STEPS, "both happen often enough to mean something"


if __name__ == "__main__":
    serve()
