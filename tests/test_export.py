"""Exported files say elsewhere what the model says here."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from climbing import climb, write_tiny
from sklearn.datasets import load_digits
from test_own_models import Everything
from torch import Tensor, nn

from flows import cli
from tasks.caching.basics import LadderError
from tasks.caching.values import Weights, weights_bytes
from tasks.report.publish import place
from tasks.rungs.building import contents
from tasks.rungs.convolution import Conv, Norm
from tasks.rungs.measure import describe, load_model
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe
from tasks.serving.candidate import consider
from tasks.serving.export import onnx_file, plain, torch_export_file
from tasks.serving.modelfile import read_model

DIGITS = torch.from_numpy((load_digits().images * 15).astype(np.uint8))[:1000]  # [N, 8, 8]
LABELS = torch.from_numpy(load_digits().target)
TEMPERATURE = 1.7
SITE = Path(np.__file__).parents[1]


def weights_of(name: str, images: Tensor = DIGITS) -> Weights:
    """A model that has been trained for a few steps, as its file would hold it."""
    shape = list(images.shape[1:])
    torch.manual_seed(0)
    model = MODELS[name](shape, 10).train()
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, 0.02)
    for first in range(0, 400, 20):
        some = slice(first, first + 20)
        F.cross_entropy(model(images[some] / 255), LABELS[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    recipe = Recipe.model_construct(**Recipe(model="mlp", loss="cross_entropy").model_dump())
    metadata = describe(recipe, [f"class {i}" for i in range(10)], shape, 0.1)
    return Weights(contents(model), metadata | {"model": name, "temperature": str(TEMPERATURE)})


def wanted(weights: Weights, images: Tensor) -> np.ndarray:
    """Its calibrated probabilities by its own code: [N, C] float32."""
    with torch.no_grad():
        return (load_model(*weights)(images / 255) / TEMPERATURE).softmax(1).numpy()


def session_of(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_says_what_torch_says(name: str) -> None:
    """Of any number of images, byte for byte of pixels in, calibrated probabilities out."""
    weights = weights_of(name)
    session, expected = session_of(onnx_file(weights)), wanted(weights, DIGITS)
    assert 0.15 < expected.max(1).mean() < 0.99  # neither all alike nor all sure
    for count in (1, 5, 1000):
        [said] = session.run(None, {"images": DIGITS[:count].numpy()})
        assert said.dtype == np.float32
        np.testing.assert_allclose(said, expected[:count], rtol=0, atol=1e-5)
        assert (said.argmax(1) == expected[:count].argmax(1)).all()


@pytest.mark.parametrize("name", ["linear", "convnet"])
def test_colour_is_exported_as_well(name: str) -> None:
    images = torch.randint(0, 256, (400, 12, 9, 3), dtype=torch.uint8)
    weights = weights_of(name, images)
    [said] = session_of(onnx_file(weights)).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(said, wanted(weights, images), rtol=0, atol=1e-5)


def test_a_model_of_the_users_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention, embeddings, buffers, tied and frozen layers, in both formats."""
    monkeypatch.setitem(MODELS, "everything", lambda _shape, classes: Everything(classes))
    weights = weights_of("everything")
    expected = wanted(weights, DIGITS)
    [said] = session_of(onnx_file(weights)).run(None, {"images": DIGITS.numpy()})
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-5)


def test_the_plain_form_has_the_same_names_and_weights() -> None:
    """Torch's own layers under our names; what is derived from ours stays what it is."""

    class Own(Conv):
        pass

    model = nn.Sequential(MODELS["resnet18"]((28, 28), 10), Own(1, 2, 3, padding=1))
    before = model.state_dict()
    after = plain(model)
    assert before.keys() == after.state_dict().keys()
    assert all(torch.equal(before[name], each) for name, each in after.state_dict().items())
    kinds = {type(module) for module in after.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, Own} <= kinds
    assert not {Conv, Norm} & kinds


def test_the_file_tells_what_it_is() -> None:
    """Inputs and outputs by name, any number of images, and all of the model's metadata."""
    weights = weights_of("linear")
    data = onnx_file(weights)
    assert data == onnx_file(weights)
    session = session_of(data)
    [takes], [gives] = session.get_inputs(), session.get_outputs()
    assert (takes.name, takes.type, takes.shape) == ("images", "tensor(uint8)", ["batch", 8, 8])
    assert (gives.name, gives.shape) == ("probabilities", ["batch", 10])
    assert session.get_modelmeta().custom_metadata_map == weights.metadata
    for each in (data, torch_export_file(weights)):
        assert str(Path(__file__).parents[1]).encode() not in each  # nothing of this machine


def elsewhere(tmp_path: Path, code: str, *packages: str) -> str:
    """What code prints where there is nothing but Python and some packages."""
    room = tmp_path / "site"
    room.mkdir()
    for package in packages:
        for path in (SITE / package, SITE / f"{package}.libs", SITE / f"{package}.py"):
            if path.exists():
                (room / path.name).symlink_to(path)
    code = f"import sys; sys.path.append({str(room)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.stdout


READ = """
import importlib.util, json
for name in ("tasks", "flows", {missing!r}):
    assert importlib.util.find_spec(name) is None, name
"""


def test_onnx_needs_only_onnxruntime_and_numpy(tmp_path: Path) -> None:
    """No torch, nothing of this project: two packages, and the classes are in the file."""
    weights = weights_of("convnet")
    (tmp_path / "model.onnx").write_bytes(onnx_file(weights))
    np.save(tmp_path / "images.npy", DIGITS.numpy())
    code = READ.format(missing="torch") + (
        "import numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('model.onnx')\n"
        "[said] = session.run(None, {'images': numpy.load('images.npy')})\n"
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['classes'])\n"
        "print([classes[i] for i in said.argmax(1)])\n"
    )
    printed = elsewhere(tmp_path, code, "numpy", "onnxruntime")
    expected = wanted(weights, DIGITS).argmax(1)
    assert printed == f"{[f'class {i}' for i in expected]}\n"


def test_torch_export_needs_only_torch(tmp_path: Path) -> None:
    """Loaded where none of this project's code is, it says the same of any number of images."""
    weights = weights_of("convnet")
    (tmp_path / "model.pt2").write_bytes(torch_export_file(weights))
    np.save(tmp_path / "images.npy", DIGITS.numpy())
    code = READ.format(missing="onnxruntime") + (
        "import numpy, torch\n"
        "extra = {'metadata.json': ''}\n"
        "model = torch.export.load('model.pt2', extra_files=extra).module()\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "assert torch.equal(model(images[:1]).argmax(1), model(images)[:1].argmax(1))\n"
        "numpy.save('said.npy', model(images).detach().numpy())\n"
        "print(extra['metadata.json'])\n"
    )
    needs = ["torch", "torchgen", "numpy", "sympy", "mpmath", "typing_extensions", "jinja2",
             "markupsafe", "networkx", "fsspec", "filelock", "functorch"]  # fmt: skip
    assert json.loads(elsewhere(tmp_path, code, *needs)) == weights.metadata
    said = np.load(tmp_path / "said.npy")
    np.testing.assert_allclose(said, wanted(weights, DIGITS), rtol=0, atol=1e-5)


class Choosy(nn.Module):
    """A model that does one thing or another, depending on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        flat = x.flatten(1)
        return self.linear(flat if flat.mean() > 0.5 else flat * 2)


class Moody(Choosy):
    """A model that says something else each time."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.linear(F.dropout(x.flatten(1), 0.5, training=True))


@pytest.mark.parametrize(
    ("model", "said"),
    [(Choosy, "has no fixed list of operations"), (Moody, "says something else in onnxruntime")],
)
def test_what_cannot_be_exported_is_refused(
    model: Callable[[], nn.Module], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "own", lambda _shape, _classes: model())
    with pytest.raises(LadderError, match=f"the model own {said}") as raised:
        onnx_file(weights_of("own"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(LadderError, match=rf"onnx needs {package}: `pip install 'stepladder\[onnx"):
        onnx_file(weights_of("linear"))


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file in a folder of its own, from which commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path / "data"))
    path = tmp_path / "mine.safetensors"
    path.write_bytes(weights_bytes(weights_of("linear")))
    return path


def typed(capfd: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `stepladder export`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["stepladder", "export", *map(str, words)])
        patched.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return (ended.value.code or 0, *capfd.readouterr())


@pytest.mark.parametrize(
    ("kind", "suffix"), [("onnx", ".onnx"), ("torch-export", ".pt2"), ("safetensors", ".x")]
)
def test_a_file_and_its_card_are_written(
    kind: str, suffix: str, model_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both paths are printed, and nothing else, whatever torch would like to say."""
    out = ["--out", "mine.x"] if kind == "safetensors" else []
    done = typed(capfd, "--model", model_file, "--format", kind, *out)
    assert done == (0, f"mine{suffix}\nmine{suffix}.md\n", "")
    assert Path(f"mine{suffix}.md").read_text().startswith("# Model card: linear\n")
    if kind == "safetensors":
        assert Path("mine.x").read_bytes() == model_file.read_bytes()


def test_a_datasets_best_rung_is_exported_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It names the run, and the file in the cache that holds the same weights."""
    data = tmp_path / "data"
    write_tiny(data)
    refs = climb(data, epochs=1, only="linear, cross*")
    monkeypatch.setenv("STEPLADDER_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    place(refs["report"], refs, data / "cache")
    status, printed, error = typed(capfd, "tiny", "--format", "safetensors")
    assert (status, printed) == (0, "tiny.safetensors\ntiny.safetensors.md\n")
    assert "has no model in use; this is the best of its latest run" in error
    folder = place(refs["report"], refs, data / "cache", partial(consider, rule="p<0.05"))
    done = typed(capfd, "tiny", "--format", "safetensors")
    assert done == (0, "tiny.safetensors\ntiny.safetensors.md\n", "")
    tensors, metadata = read_model(Path("tiny.safetensors"))
    stored = read_model(data / "cache" / "files" / f"{metadata['weights']}.safetensors")
    assert all(torch.equal(tensors[name], each) for name, each in stored.tensors.items())
    assert (metadata["dataset"], metadata["run"]) == ("tiny", folder.name)
    assert float(metadata["temperature"]) > 0
    assert "| testing accuracy |" in Path("tiny.safetensors.md").read_text()


def test_mistakes_leave_nothing_behind(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line that says what to do, and no file, whole or half."""
    before = model_file.read_bytes()
    Path("text").write_text("hello")
    other = weights_of("linear")
    other.metadata["model"] = "unheard of"
    Path("other").write_bytes(weights_bytes(other))
    for words, said in [
        (["--model", model_file, "--out", model_file], "is the model itself; give another --out"),
        ([], "say whose model: a dataset, or --model FILE"),
        (["mnist", "--model", model_file], "say whose model"),
        (["mnist"], "no report"),
        (["--model", "text"], "text is no model file"),
        (["--model", "missing"], "missing is no model file"),
        (["--model", "other"], "holds a model 'unheard of', which is not among the MODELS"),
        (["--model", model_file, "--format", "tflite"], "tflite"),
    ]:
        status, printed, error = typed(capfd, *words)
        assert status in (1, 2)
        assert printed == ""
        assert said in error
        assert error.count("\n") == 1
    assert {each.name for each in Path().iterdir()} == {"mine.safetensors", "text", "other"}
    assert model_file.read_bytes() == before
