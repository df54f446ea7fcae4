"""A user's own models, losses, optimizers and schedules, in files of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from climbing import climb, climbed, write_tiny
from prefect_server import PrefectServer
from shell import Shell
from test_ladder import Project, write_digits
from test_train import pictures, quick

from tasks.caching.basics import LadderError
from tasks.caching.own import beside
from tasks.rungs.ladders import label, read_recipes
from tasks.rungs.measure import load_model
from tasks.rungs.recipes import Recipe
from tasks.rungs.train import train

MODELS = """
import math
from torch import nn
from own_parts import HIDDEN

def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), HIDDEN), act(),
                         nn.Linear(HIDDEN, classes))

def act():
    return nn.ReLU()

def plain(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
"""
RECIPES = """
[cross]
models = ["own_models.py:wide", "own_models.py:plain", "linear"]
epochs = 2
"""
WIDE = "train[own_models:wide, cross_entropy, seed 0]"


@pytest.fixture
def project(tmp_path: Path, prefect_server: PrefectServer, shell: Shell) -> Project:
    """A project, and in a folder beside it a recipe file with models of its own."""
    project = Project(tmp_path / "project", prefect_server.environment, shell)
    write_digits(project.images, classes=3, per_class=24)
    own = tmp_path / "own"
    own.mkdir()
    (own / "own_models.py").write_text(MODELS)
    (own / "own_parts.py").write_text("HIDDEN = 8\n")
    (own / "recipes.toml").write_text(RECIPES)
    return project


def not_cached(project: Project, recipes: str) -> dict[str, list[str]]:
    """The stages that a plan would run, each with its reasons."""
    done = project.stepladder("plan", "tiny", "--recipes", recipes, "--json")
    plan = json.loads(done.stdout)["stages"]
    return {each["stage"]: each["why"] for each in plan if each["state"] != "cached"}


def test_own_models_train_and_their_code_is_followed(project: Project) -> None:
    """Named from any folder; a helper's edit reaches its model alone, a move of the files none."""
    recipes = "../own/recipes.toml"
    own = project.root.parent / "own"
    done = project.stepladder("run", "tiny", "--recipes", recipes, "--json")
    ran = json.loads(done.stdout)["ran"]
    assert {WIDE, WIDE.replace("wide", "plain"), "train[linear, cross_entropy, seed 0]"} < {*ran}
    assert not_cached(project, recipes) == {}

    moved = own.with_name("moved")
    shutil.move(own, moved)
    recipes = "../moved/recipes.toml"
    assert not_cached(project, recipes) == {}, "the key holds the code, and not where it lies"

    (moved / "own_parts.py").write_text("HIDDEN = 9\n")
    source = moved / "own_models.py"
    source.write_text(source.read_text().replace("nn.ReLU", "nn.SiLU"))
    reasons = not_cached(project, recipes)
    assert reasons[WIDE] == ["own_models.act, own_parts.HIDDEN changed"]
    assert {name.partition("[")[2] for name in reasons} == {WIDE.partition("[")[2], ""}

    done = project.stepladder("run", "tiny", "--recipes", recipes, "--json")
    again = json.loads(done.stdout)["ran"]
    assert WIDE in again, "no short cut overlooks it"
    results = project.results()
    assert results["rungs"][0]["label"] == "own_models:wide, cross_entropy, seed 0"


OWN = """
import torch
from torch import nn

def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def narrow(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

def squared(logits, labels, smoothing):
    return (logits.softmax(1) - torch.eye(logits.shape[1])[labels]).square().mean()

def each(logits, labels, smoothing):
    return logits.sum(1)

def fixed(logits, labels, smoothing):
    return torch.tensor(1.0)

def darker(images):
    return images // 2

def floats(images):
    return images.float()

def halving(done):
    return 0.5 ** (4 * done)

def wordy(done):
    return "half"

class Momentum:
    def __init__(self, parameters, weight_decay):
        self.parameters = parameters
        self.moments = [torch.zeros_like(each) for each in parameters]

    @torch.no_grad()
    def step(self, lr):
        for parameter, moment in zip(self.parameters, self.moments):
            moment.mul_(0.9).add_(parameter.grad)
            parameter -= lr.float() * moment
            parameter.grad = None

    def state(self):
        return {str(i): moment for i, moment in enumerate(self.moments)}

    def restore(self, state):
        for i, moment in enumerate(self.moments):
            moment.copy_(state[str(i)])

class Bare:
    def __init__(self, parameters, weight_decay):
        pass

number = 5

def few(shape):
    return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a user's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_pieces.py").write_text(OWN)
    (folder / "broken_own.py").write_text("x = 1\nx = = 2\n")
    (folder / "lacking_own.py").write_text("import a_module_that_is_not_there\n")
    (folder / "json.py").write_text(OWN)
    (folder / "9.py").write_text(OWN)
    return folder


PACKAGE = {
    "__init__.py": "from .nets import Deep",
    "nets.py": """
from markupsafe import escape
from torch import nn
from .parts import width

class Deep(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Linear(width(), classes)

    def forward(self, x):
        return self.layer(x.flatten(1) if escape("a") == "a" else x)

def beside(shape, classes):
    return unused()

def unused():
    return 1
""",
    "parts.py": "WIDTH = 64\n\ndef width():\n    return WIDTH\n",
}


@pytest.mark.parametrize("name", ["own_package.nets:Deep", "own_package:Deep"])
def test_a_package_is_followed_through_its_imports(folder: Path, name: str) -> None:
    """To what the model reaches and no further; other people's packages count by version."""
    (folder / "own_package").mkdir(exist_ok=True)
    for file, text in PACKAGE.items():
        (folder / "own_package" / file).write_text(text)
    mine = recipe(folder, model=name)
    code, versions = train.follow({"recipe": mine, "training": [], "watched": []})
    assert {unit for unit in code if unit.startswith("own_package")} == {
        "own_package.nets.Deep", "own_package.parts.width", "own_package.parts.WIDTH",
    }  # fmt: skip
    assert "MarkupSafe" in versions
    assert not any("MODELS" in unit for unit in code)
    climbed(mine, pictures(), pictures(seed=1), ["a", "b", "c"])


def test_a_flow_takes_files_of_ones_own_as_json_gives_them(folder: Path, tmp_path: Path) -> None:
    """As the parameters of a deployment, whose worker runs in another folder."""
    write_tiny(tmp_path)
    own = {"model": f"{folder}/own_pieces.py:wide", "loss": "cross_entropy", "epochs": 1}
    done = climb(tmp_path, recipes=[own], fields={"lr": [0.1, 0.2]})
    label = "own_pieces:wide, cross_entropy, seed 0, lr"
    assert {f"train[{label} 0.1]", f"measure[{label} 0.2]", "report"} < done.keys()


def recipe(folder: Path, **fields: Any) -> Recipe:
    """A recipe whose files lie in a folder."""
    with beside(folder / "recipes.toml"):
        given = {"model": "linear", "loss": "cross_entropy", "epochs": 4, "batch_size": 16}
        return Recipe(**(given | {"lr": 0.1} | fields))


@pytest.mark.usefixtures("one_thread")
def test_every_part_of_a_recipe_can_be_ones_own(folder: Path) -> None:
    """Named from a file, each is used in training, and the model can be loaded."""
    mine = recipe(
        folder, model="own_pieces.py:wide", loss="own_pieces.py:squared",
        optimizer="own_pieces.py:Momentum", schedule="own_pieces:halving",
        augment="own_pieces.py:darker",
    )  # fmt: skip
    assert [*label([mine])] == ["own_pieces:wide, own_pieces:squared, seed 0"]
    assert str(folder) not in mine.model_dump_json()
    trained, _, figures = climbed(mine, pictures(), pictures(seed=1), ["a", "b", "c"])
    losses = [epoch["training_loss"] for epoch in trained["history"]]
    assert losses[-1] < losses[0]
    said = load_model(*trained["weights"])(torch.zeros(2, 8, 8))
    assert said.shape == (2, 3)
    assert figures["testing_accuracy"] > 0.5


def test_a_recipe_file_may_name_a_module(folder: Path) -> None:
    """`module:name` is looked for beside the recipe file, and among what is installed."""
    path = folder / "recipes.toml"
    path.write_text('[[recipe]]\nmodel = "own_pieces:wide"\nloss = "own_pieces.py:squared"\n')
    assert read_recipes(path)[0].model == "own_pieces:wide"
    path.write_text('[[recipe]]\nmodel = "own_pieces.py:narrower"\nloss = "cross_entropy"\n')
    with pytest.raises(LadderError, match=r"recipe 1: 'own_pieces:narrower': .* no narrower"):
        read_recipes(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "absent.py:wide"}, "'absent.py:wide': there is no file "),
        ({"model": "absent:wide"}, "there is no module absent; install it, or go to the folder"),
        ({"model": "own_pieces.py:wider"}, "own_pieces.py defines no wider"),
        ({"model": "own_pieces.py:number"}, " is no function or class but a int"),
        ({"model": "own_pieces.py:few"}, r"takes \(shape\), but will be called with \(shape, clas"),
        ({"model": "own_pieces.py:"}, "'own_pieces.py:' names no function: write it as my_models"),
        ({"model": "9.py:wide"}, "names no function: write it"),
        ({"model": "json.py:wide"}, "Python would take another module json .*: rename your file"),
        ({"model": "broken_own.py:wide"}, r"cannot be imported: SyntaxError: .*, line 2\)"),
        ({"model": "lacking_own.py:wide"}, r"ModuleNotFoundError: No module named 'a_.*line 1"),
        ({"loss": "own_pieces.py:wide"}, r"takes \(shape, classes\), but will be called with \(l"),
        ({"model": "own_pieces.py"}, "'own_pieces.py'; a function of your own is named FILE.py"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg', did you mean 'sgd'?"),
    ],
)  # fmt: skip
def test_what_is_no_function_to_use_is_one_line(folder: Path, fields: Any, message: str) -> None:
    with pytest.raises(LadderError, match=message) as error:
        recipe(folder, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "own_pieces.py:narrow"}, r"with torch.float32 of shape \[2, 2\], not with"),
        ({"loss": "own_pieces.py:each"}, r"the loss gives \[2\], not a scalar: take the mean"),
        ({"loss": "own_pieces.py:fixed"}, "the loss does not depend on the logits"),
        ({"optimizer": "own_pieces.py:Bare"}, r"the optimizer, a Bare, lacks step\(lr\), state"),
        (
            {"augment": "own_pieces.py:floats"},
            r"makes torch.float32 \[2, 8, 8\] of images torch.ui",
        ),
        ({"schedule": "own_pieces.py:wordy"}, "the schedule gives 'half' for 0.0, not a number"),
    ],
)
def test_what_gives_the_wrong_thing_is_one_line(folder: Path, fields: Any, message: str) -> None:
    """Said before the first step."""
    with pytest.raises(LadderError, match=message) as error:
        climbed(recipe(folder, **fields), pictures(), pictures(seed=1), ["a", "b", "c"])
    assert "\n" not in str(error.value)


def test_weights_of_anybody_import_nothing_unless_told_to(tmp_path, monkeypatch) -> None:
    """A file that names a function of a module: its author chose both it and what it is given."""
    (tmp_path / "their_model.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\n" + OWN
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = climbed(quick(), pictures(), pictures(seed=1), ["a", "b", "c"])[0]["weights"]
    for name in ("their_model:wide", "subprocess:call", "torch.nn:Linear"):
        with pytest.raises(LadderError, match=f"'{name}' is code of somebody's own: set STEPL"):
            load_model(weights.tensors, {**weights.metadata, "model": name})
    assert not (tmp_path / "imported").exists()
    monkeypatch.setenv("STEPLADDER_CODE", str(tmp_path))
    load_model(weights.tensors, {**weights.metadata, "model": "their_model:wide"})
    assert (tmp_path / "imported").exists()
