"""Models of the user's: what their builder makes is what is trained, stored and loaded again."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import fitted, killed_after, pictures, same_bits
from torch import Tensor, nn

from tasks.caching.basics import LadderError
from tasks.caching.stage import Run
from tasks.rungs.building import contents, initialize, new_model
from tasks.rungs.calibrate import calibrated
from tasks.rungs.convolution import Conv, First
from tasks.rungs.course import batches
from tasks.rungs.measure import answers, load_model
from tasks.rungs.models import MODELS
from tasks.rungs.recipes import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

LOADED = torch.linspace(-1, 1, 64 * 6).view(6, 64)


class Everything(nn.Module):
    """Of each kind of thing that a module can hold, one; for images[B, 8, 8]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45]))
        self.register_buffer("spread", torch.tensor([0.22]), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("bits", torch.ones(3, dtype=torch.bfloat16))
        self.scale = nn.Parameter(torch.ones(8))
        self.convolution = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.places = nn.Embedding(9, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.2)
        self.loaded = nn.Linear(64, 6)
        self.loaded.load_state_dict({"weight": LOADED, "bias": torch.zeros(6)})
        self.loaded.requires_grad_(False)
        self.twin = nn.Linear(9 * 8 + 6, 9 * 8 + 6)
        self.tied = nn.Linear(9 * 8 + 6, 9 * 8 + 6)
        self.tied.weight = self.twin.weight
        self.head = nn.Linear(9 * 8 + 6, classes)

    def forward(self, x: Tensor) -> Tensor:
        """images[B, 8, 8] -> logits[B, classes]."""
        x = (x - self.mean) / self.spread
        if self.training:
            self.seen += 1
        maps = self.convolution(x[:, None]).flatten(2).transpose(1, 2)  # [B, 9, 8]
        maps = self.norm(maps * self.scale + self.places.weight)
        maps = self.dropout(maps + self.attention(maps, maps, maps, need_weights=False)[0])
        both = torch.cat([maps.flatten(1), self.loaded(x.flatten(1)).tanh()], 1)
        return self.head(self.tied(self.twin(both).relu()))


def everything(_shape: tuple[int, ...], classes: int) -> nn.Module:
    """In evaluation mode, as a builder may leave it that has tried its model."""
    return Everything(classes).eval()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """Registers a builder as the model "own" and gives a recipe of it."""

    def register(build: Any, **fields: Any) -> Recipe:
        monkeypatch.setitem(MODELS, "own", build)
        given = {"loss": "cross_entropy", "epochs": 3, "batch_size": 16, "lr": 0.05, "seed": 3}
        return Recipe(model="own", **(given | fields))

    return register


def built(build: Any, seed: int = 3) -> nn.Module:
    return new_model(build, (8, 8), 3, torch.Generator().manual_seed(seed))


def seeded(build: Any, seed: int = 3) -> nn.Module:
    """As plain torch makes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build((8, 8), 3)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_starts_as_its_builder_made_it() -> None:
    """Parameters and buffers of every kind are those of plain torch after `manual_seed`."""
    ours, theirs = built(everything), seeded(everything)
    assert equal(contents(ours), contents(theirs))
    assert contents(ours).keys() == {*ours.state_dict(), "spread", "seen"}
    assert ours.tied.weight is ours.twin.weight
    assert not equal(contents(ours), contents(built(everything, seed=4)))


@pytest.mark.parametrize("fields", [{}, {"init": "default", "loss": "softmax_mse"}])
def test_an_own_model_trains_to_the_bits_of_a_plain_loop(own, fields) -> None:
    """What is trained, and its order of images, are a seeded torch's; left out, `init` is this."""

    def build(_shape: tuple[int, ...], classes: int) -> nn.Module:
        norm, head = nn.BatchNorm1d(64), nn.Linear(64, classes)
        return nn.Sequential(nn.Flatten(), norm, nn.LayerNorm(64), head)

    recipe = own(build, **fields)
    result = fitted(recipe, validation="testing")
    x = torch.cat([each.images for each in pictures()]).float() / 255
    y = torch.arange(3).repeat_interleave(40)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = build((8, 8), 3)
        for _ in range(3):
            for part in batches(torch.randperm(120), 16):
                logits = plain(x[part])
                wrong = logits.softmax(1) - F.one_hot(y[part], 3)
                squared = recipe.loss == "softmax_mse"
                loss = (wrong**2).mean() if squared else F.cross_entropy(logits, y[part])
                loss.backward()
                for p in plain.parameters():
                    p.data -= 0.05 * p.grad
                    p.grad = None
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(result["weights"].tensors[name], tensor, msg=name)
    assert result["weights"].tensors["1.num_batches_tracked"].dtype == torch.int64
    assert result["weights"].tensors["1.num_batches_tracked"] == 3 * 8


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}])
def test_trainings_go_on_to_the_same_bits_whatever_a_model_holds(own, tmp_path, fields) -> None:
    """Killed after epoch 2, or from a stored training of fewer epochs; beside draws of others'."""
    recipe = own(everything, **fields)
    whole = fitted(recipe)
    killed_after(2, recipe, tmp_path)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert same_bits(fitted(recipe, run=Run(scratch=tmp_path)), whole)
    shorter = fitted(recipe.model_copy(update={"epochs": 1}))
    notes: list[str] = []
    run = Run(
        earlier=lambda *_: iter([(1, shorter)]), progress=lambda _d, _t, note: notes.append(note)
    )
    assert same_bits(fitted(recipe, run=run), whole)
    assert notes[0].startswith("epoch 2 of 3")
    assert torch.equal(whole["weights"].tensors["loaded.weight"], LOADED)
    assert whole["weights"].tensors["seen"] == 3 * len(batches(torch.arange(107), 16))
    assert not same_bits(whole, fitted(recipe.model_copy(update={"seed": 4})))


def test_a_loaded_model_says_what_the_trained_one_said(own) -> None:
    """With buffers that are not persistent; torch's, NumPy's and Python's streams stay still."""
    recipe = own(everything)
    streams = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    result = fitted(recipe)
    model = load_model(*result["weights"])
    logits = answers(model, torch.cat([each.images for each in pictures(seed=1)]), "float32")
    said = calibrated(logits, result["temperature"])
    assert torch.equal(said, result["probabilities"])
    assert equal(contents(model), result["weights"].tensors)
    assert not model.training
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    with pytest.raises(
        LadderError, match=r"not of the model that the code now builds: .*size mism"
    ):
        load_model(result["weights"].tensors | {"scale": torch.ones(9)}, result["weights"].metadata)


def test_randn_draws_linear_layers_and_leaves_the_rest() -> None:
    """Weights and biases that are trained; norms, buffers, torch's convolutions stay as built."""
    model, start = built(everything), contents(built(everything))
    initialize(model, "randn", torch.Generator().manual_seed(5))
    changed = {name for name, tensor in contents(model).items() if not tensor.equal(start[name])}
    linear = ("attention.out_proj", "twin", "tied", "head")
    assert changed == {f"{name}.{each}" for name in linear for each in ("weight", "bias")}
    assert contents(model)["twin.weight"].std() == pytest.approx(1, abs=0.05)
    ours = built(lambda *_: nn.Sequential(First(1, 2, 3, 1, 1), Conv(2, 2, 3, padding=0)))
    start = contents(ours)
    initialize(ours, "randn", torch.Generator().manual_seed(5))
    assert not any(tensor.equal(start[name]) for name, tensor in contents(ours).items())


def test_a_builder_may_draw_from_numpy_and_random_and_seed_torch_itself(own) -> None:
    """Each gives the same model for the same seed; another seed still orders images otherwise."""

    def build(_shape: tuple[int, ...], classes: int) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        noise = np.random.rand(classes, 64) + random.random()
        model[1].weight.data += torch.from_numpy(noise)
        return model

    assert equal(contents(built(build)), contents(built(build)))
    assert not equal(contents(built(build)), contents(built(build, seed=4)))

    def fixed(shape: tuple[int, ...], classes: int) -> nn.Module:
        torch.manual_seed(42)
        return MODELS["linear"](shape, classes)

    first, second = (fitted(own(fixed, seed=seed)) for seed in (1, 2))
    assert equal(contents(built(fixed, seed=1)), contents(built(fixed, seed=2)))
    assert not same_bits(first, second)


def cell(*tensors: Tensor, buffer: Tensor | None = None) -> nn.Module:
    """A module of these parameters, a, b ..., and a buffer."""
    module = nn.Module()
    for name, tensor in zip("abc", tensors, strict=False):
        module.register_parameter(name, nn.Parameter(tensor, tensor.requires_grad))
    module.register_buffer("buffer", buffer)
    return module


class Keeping(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> Any:
        """A dict."""
        return {"calls": 3}


class Answering(nn.Linear):
    """Says what `answer` makes of its logits."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__(64, 3)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        """images[B, 8, 8] -> anything."""
        return self.answer(super().forward(x.flatten(1)))


class Odd(nn.Linear):
    """Keeps or makes a tensor in a way of its own, as `way` says."""

    def __init__(self, way: str) -> None:
        super().__init__(64, 3)
        self.way = way
        self.shade = torch.empty(64) if way == "is empty" else torch.zeros(64)
        self.streams = np.random.default_rng()
        if way == "is one number":
            del self.shade
            self.register_buffer("shade", torch.ones(1).expand(64))

    def forward(self, x: Tensor) -> Tensor:
        """images[B, 8, 8] -> logits[B, 3]."""
        pixels = x.flatten(1)
        if self.way == "follows training" and self.training:
            self.shade = pixels.mean(0)
        if self.way == "comes late":
            self.register_buffer("late", torch.zeros(64))
        if self.way == "is made empty":
            self.shade = pixels.new_empty(64)
        if self.way == "has a stream of its own":
            self.shade = torch.from_numpy(self.streams.normal(0, 9, 64)).float()
        return super().forward(pixels - self.shade)


class Sparse(nn.Embedding):
    """Counts pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """images[B, 8, 8] -> logits[B, 3]."""
        return super().forward((x.flatten(1) * 255).long()).mean(1)


WEIGHT = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda *_: nn.Flatten(), "the model has no parameters, so there is nothing to train"),
        (lambda *_: cell(torch.ones(3)), r"all .* are frozen \(requires_grad=False\)"),
        (lambda *_: nn.LazyLinear(3), "the model's 'weight' has no size yet: give lazy layers"),
        (lambda *_: nn.Linear(4, 3).double(), "'weight' is of torch.float64: .* call .float()"),
        (lambda *_: nn.Linear(4, 3).half(), "'weight' is of torch.float16: "),
        (lambda *_: nn.Linear(4, 3, device="meta"), "'weight' is on meta: build it on the CPU"),
        (lambda *_: None, "the model's builder returned NoneType, not an nn.Module"),
        (lambda *_: nn.Linear, "the model's builder returned type, not an nn.Module"),
        (lambda *_: Answering(lambda y: (y, 1)), r"a tuple, not with a tensor .* shape \[2, 3\]"),
        (lambda *_: Answering(lambda y: y[:, :2]), r"shape \[2, 2\], .* one for each of 3 classes"),
        (lambda *_: Answering(lambda y: y.double()), "2 images with torch.float64 of shape"),
        (lambda *_: Answering(torch.zeros_like), "depends on none of its trainable parameters"),
        (
            lambda *_: Sparse(256, 3, sparse=True),
            "adamw takes no sparse gradients: train by sgd, or",
        ),
        (lambda *_: Odd("is empty"), "answers with NaN before its first step"),
        (lambda *_: Odd("is made empty"), "answers with NaN before its first step"),
        (lambda *_: Odd("is one number"), r"'shade' is one number seen many times.* \.clone\(\)"),
        (
            lambda *_: Odd("comes late"),
            "makes 'late' when it first answers: make it in the",
        ),
        (lambda *_: Odd("follows training"), "loaded again, answers otherwise: what training"),
        (lambda *_: Odd("has a stream of its own"), "what it draws has to come from torch's own"),
        (lambda *_: Keeping(4, 3), "keeps a dict as '_extra_state', which cannot be stored"),
    ],
)
def test_what_cannot_be_trained_is_one_line(own, build, message) -> None:
    with pytest.raises(LadderError, match=message) as error:
        fitted(own(build, optimizer="adamw"))
    assert "\n" not in str(error.value)


def test_a_model_under_another_default_dtype_is_one_line(own) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(
            LadderError, match=r"'1.weight' is of torch.float64: .* call .float\(\)"
        ):
            fitted(own(MODELS["linear"]))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda *_: cell(WEIGHT, torch.empty(5)), "b"),
        (lambda *_: cell(WEIGHT, buffer=torch.Tensor(5)), "buffer"),
        (lambda *_: cell(WEIGHT, buffer=torch.tensor([0, float("nan")])), "buffer"),
        (lambda *_: nn.utils.skip_init(nn.Linear, 64, 3), "weight"),
    ],
)
def test_what_a_builder_leaves_uninitialised_is_named(own, build, name) -> None:
    """A parameter or a buffer without numbers never trains from what memory happened to hold."""
    with pytest.raises(LadderError, match=f"the model's '{name}' holds NaN before its first step"):
        fitted(own(build))


def test_infinite_buffers_such_as_masks_are_fine() -> None:
    mask = torch.full((3,), -torch.inf)
    assert built(lambda *_: cell(WEIGHT, buffer=mask)).buffer.equal(mask)


class Exploding(nn.Linear):
    """Finite at first, and not after a step."""

    def forward(self, x: Tensor) -> Tensor:
        """images[B, 8, 8] -> logits[B, C]."""
        return super().forward(x.flatten(1)) * 1e30


def test_an_own_model_that_diverges_says_so(own) -> None:
    """As a rung of ours does, and with the epoch."""
    recipe = own(lambda *_: Exploding(64, 3), lr=100)
    with pytest.raises(LadderError, match=r"^diverged in epoch 1"):
        fitted(recipe)


@pytest.mark.parametrize("model", ["linear", "own"])
def test_no_training_imports_a_compiler(own, monkeypatch, model) -> None:
    """Torch's takes a second or more to import, which each body would wait for."""
    for name in ("torch._dynamo", "torch._inductor", "sympy"):
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it is an error
    recipe = own(everything, optimizer="adamw")
    load_model(*fitted(recipe.model_copy(update={"model": model}))["weights"])
