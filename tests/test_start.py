"""Weights to start from: a recipe's `weights`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_train import fitted, quick
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.own import beside
from tasks.rungs.ladders import label, read_recipes
from tasks.rungs.recipes import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(**fields: Any) -> dict[str, Tensor]:
    return fitted(quick("mlp", **fields))["weights"].tensors


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_training_starts_from_a_file(tmp_path: Path, suffix: str) -> None:
    """Without a step that moves them, the weights are those of the file."""
    tensors, path = trained(), tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if suffix == ".pth" else tensors, path)
    still = trained(weights=str(path), lr=1e-30, epochs=1)
    assert all(torch.equal(still[name], each) for name, each in tensors.items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_normalizes_starts_from_either(tmp_path: Path, whole: bool) -> None:
    """From weights with that layer, which then stays as it was, and from the bare model's."""
    tensors, path = trained(normalize=True), tmp_path / "mine.safetensors"
    tensors["0.mean"] += 1
    bare = {name.removeprefix("1."): each for name, each in tensors.items() if name[0] == "1"}
    save_file(tensors if whole else bare, path)
    still = trained(weights=str(path), lr=1e-30, epochs=1, normalize=True)
    same = {name for name, each in tensors.items() if torch.equal(still[name], each)}
    assert same == tensors.keys() - (set() if whole else {"0.mean"})


def test_the_key_holds_what_is_in_the_file(tmp_path: Path) -> None:
    """Not its place; and a recipe without weights says nothing of them."""
    path, copy = tmp_path / "mine.safetensors", tmp_path / "inner" / "copy.safetensors"
    save_file(trained(), path)
    copy.parent.mkdir()
    shutil.copy(path, copy)
    first = quick("mlp", weights=str(path))
    with beside(tmp_path / "recipes.toml"):
        again = quick("mlp", weights="inner/copy.safetensors")
    assert first.model_dump() == again.model_dump()
    assert str(tmp_path) not in first.model_dump_json()
    save_file(trained(epochs=4), copy)
    assert first.model_dump() != again.model_dump()
    optional = {"weights", "class_weights", "patience", "augment"}
    assert not optional & quick("mlp").model_dump().keys()
    with pytest.raises(LadderError, match="listed twice"):
        label([first, Recipe(**dict(first))])
    told = [*label([first, quick("mlp")])]
    assert told[0].startswith("mlp, cross_entropy, seed 0, weights sha256:")
    assert told[1] == "mlp, cross_entropy, seed 0, weights none"


def test_a_recipe_file_names_weights_that_lie_beside_it(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "mine.safetensors")
    recipes = tmp_path / "recipes.toml"
    recipes.write_text('[cross]\nmodels = ["mlp"]\nweights = "mine.safetensors"\n')
    assert read_recipes(recipes)[0].weights == str(tmp_path / "mine.safetensors")


BAD = {
    "text.safetensors": b"not that",
    "text.pt": b"not that",
    "other.onnx": b"",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.safetensors", "weights .*absent.safetensors: there is no such file"),
        ("other.onnx", "other.onnx ends in none of .safetensors, .pt, .pth"),
        ("folder.pt", "folder.pt cannot be read: it is no file"),
        ("text.safetensors", "text.safetensors is no file of tensors: write one by safetensors"),
        ("text.pt", "text.pt is no file of tensors"),
        ("code.pt", "code.pt is no file of tensors"),
        ("fewer.pt", "fewer.pt do not fit the model: they lack '1.weight'"),
        ("more.pt", "more.pt do not fit the model: it has no 'head.bias'"),
        ("other.pt", r"'3.weight' is of shape \[4, 64\] in the file and \[3, 64\] in the model"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    """Files that are not there, hold something else, or do not fit.  No code of theirs runs."""
    for each, data in BAD.items():
        (tmp_path / each).write_bytes(data)
    (tmp_path / "folder.pt").mkdir()
    torch.save(Code(), tmp_path / "code.pt")
    fitting = trained()
    rest = {name: each for name, each in fitting.items() if name != "1.weight"}
    torch.save(rest, tmp_path / "fewer.pt")
    torch.save({**fitting, "head.bias": torch.zeros(3)}, tmp_path / "more.pt")
    torch.save({**fitting, "3.weight": torch.zeros(4, 64)}, tmp_path / "other.pt")
    with pytest.raises(LadderError, match=message) as error:
        trained(weights=str(tmp_path / name))
    assert "\n" not in str(error.value)


class Code:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        """Ends the tests, if it is ever called."""
        return (exit, (1,))
