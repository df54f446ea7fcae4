"""The training: what is promised about names, splits, bits and figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.caching.basics import LadderError
from tasks.caching.bodies import Body, Here
from tasks.caching.call import Call, Settings
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.images.drawing import draw, held_out_of
from tasks.report.findings import together
from tasks.rungs import recording
from tasks.rungs import train as training
from tasks.rungs.building import initialize, new_model
from tasks.rungs.calibrate import calibrated
from tasks.rungs.course import batches, course, shifted
from tasks.rungs.losses import LOSSES
from tasks.rungs.measure import answers, load_model, threads
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import OPTIMIZERS, SCHEDULES, one_cycle, triangular
from tasks.rungs.recipes import Recipe
from tasks.rungs.recording import repeated
from tasks.rungs.split import split
from tasks.rungs.train import best_epoch, train
from tests.benchmarks.naive import PLAIN
from tests.climbing import climbed

pytestmark = pytest.mark.usefixtures("one_thread")


def stack(images: np.ndarray | torch.Tensor) -> Stack:
    images = torch.as_tensor(images)
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    rows = np.array([list(digest) for digest in digests], np.uint8).reshape(-1, 32)
    return Stack(images, [f"{i}.png" for i in range(len(images))], rows)


def pictures(
    classes: int = 3, n: int = 40, shape: tuple[int, ...] = (8, 8), seed: int = 0
) -> list[Stack]:
    """Noise with one bright band per class: easy, but not trivial."""
    random = np.random.default_rng(seed)
    stacks = []
    for c in range(classes):
        images = random.integers(0, 128, (n, *shape))
        images[:, 2 * c : 2 * c + 2] += 100
        stacks.append(stack(images.astype(np.uint8)))
    return stacks


def quick(model: str = "linear", **fields: Any) -> Recipe:
    return Recipe(model=model, loss="cross_entropy", **({"epochs": 3, "batch_size": 16} | fields))


def fitted(recipe: Recipe, **arguments: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"training": pictures(), "testing": pictures(seed=1)} | arguments
    classes = ["a", "b", "c"][: len(given["training"])]
    return together(climbed(recipe=recipe, classes=classes, **given))


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    weights = zip(a["weights"].tensors.items(), b["weights"].tensors.items(), strict=True)
    return (
        all(n == m and torch.equal(x, y) for (n, x), (m, y) in weights)
        and a["history"] == b["history"]
        and torch.equal(a["probabilities"], b["probabilities"])
    )


def test_a_step_takes_what_its_recipe_says_of_a_small_training_set() -> None:
    """1,294 images with `batch_size = "auto"` make 33 steps an epoch."""
    recipe = Recipe(model="convnet", loss="cross_entropy")
    assert len(course(torch.Generator(), recipe, SCHEDULES["triangular"], 1294, 0).rates) == 33


def test_a_training_reaches_what_its_recipe_names_and_no_other() -> None:
    """So an edit of one model, loss, optimizer or schedule leaves the trainings of others alone."""
    fields = {"model": "mlp", "loss": "softmax_mse", "optimizer": "adamw", "schedule": "one_cycle"}
    names = (MODELS, LOSSES, OPTIMIZERS, SCHEDULES)
    parts = {each.__name__: each for registry in names for each in registry.values()}
    code = train.follow({"recipe": Recipe(**fields), "training": [], "watched": []}).code
    reached = {unit.rpartition(".")[2] for unit in code} & parts.keys()
    assert reached == {"mlp", "softmax_mse", "AdamW", "one_cycle"}


def test_small_models_get_one_thread() -> None:
    """A second one slows them down, and on a GPU none has use for it.  No more than cores."""
    assert [threads(model, 2, "cpu") for model in MODELS] == [1, 1, 2, 2, 2]
    assert threads("resnet18", 1, "cpu") == 1
    assert {threads(model, 16, "cuda") for model in MODELS} == {1}


# --- the split


def test_the_longest_training_goes_first_on_the_first_night_too(tmp_path) -> None:
    """Where no earlier run tells, the recipe does: else cores idle beside the last one."""
    asked = []

    class Asked(Here):
        def run(self, body: Body, progress: Callable[..., None]) -> Any:
            asked.append(body.seconds)
            raise LadderError("no more is asked")

    for model, epochs in (("linear", 1), ("linear", 2), ("mlp", 2)):
        given = {"training": [], "watched": [], "classes": [], "validation": 0.1, "mirrored": None}
        given["recipe"] = Recipe(model=model, loss="cross_entropy", epochs=epochs)
        with pytest.raises(LadderError, match="no more"):
            Call(train, "train", given, Settings(str(tmp_path), "tiny"), Asked()).perform()
    assert 0 < asked[0] < asked[1] < asked[2]


def test_an_image_never_changes_sides() -> None:
    """Taking half the images away moves none of the others across."""
    every = pictures(n=200)
    fewer = [stack(s.images[::2]) for s in every]
    held = split(every, every, (8, 8), 0.3)[1]
    held_of_fewer = split(fewer, fewer, (8, 8), 0.3)[1]
    assert 0.2 < len(held.labels) / 600 < 0.4
    whole, part = ({bytes(i.numpy().tobytes()) for i in h.images} for h in (held, held_of_fewer))
    half = {i.numpy().tobytes() for s in fewer for i in s.images}
    assert part == whole & half


def test_equal_images_never_straddle() -> None:
    """Copies of one image, in two classes too, are on one side; labels follow the stacks."""
    one = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    training = [stack(np.concatenate([s.images.numpy(), one, one])) for s in pictures(n=30)]
    seen, held = split(training, training, (8, 8), 0.5)
    inside = [
        (side.images == torch.from_numpy(one)).all((1, 2)).sum().item() for side in (seen, held)
    ]
    assert sorted(inside) == [0, 6]
    for side in (seen, held):
        for image, index in zip(side.images, side.labels, strict=True):
            assert (training[index].images == image).all((1, 2)).any()


@pytest.mark.parametrize("validation", [0.1, 0.5, 0.9, 1 - 1e-9])
def test_no_class_gives_its_last_image_away(validation: float) -> None:
    """A class of one, two or equal images keeps some to train on, and no equal ones straddle."""
    large, few, pair = pictures(n=50)
    for seed in range(20):
        one = pictures(1, 1, seed=seed)[0]
        equal = stack(np.repeat(one.images.numpy(), 3, axis=0))
        twins = stack(np.concatenate([equal.images.numpy(), large.images[:1].numpy()]))
        two = stack(pair.images[seed : seed + 2])
        training = [large, two, stack(few.images[seed : seed + 1]), equal, twins]
        seen, held = split(training, training, (8, 8), validation)
        assert set(seen.labels.tolist()) == set(range(5))
        sides = [{image.numpy().tobytes() for image in side.images} for side in (seen, held)]
        assert not sides[0] & sides[1]


def test_only_a_class_that_would_lose_all_keeps_one_and_always_the_same() -> None:
    """Elsewhere an image's own number decides alone, whatever comes into other classes."""
    large, small, _ = pictures(n=60)
    own = [draw(each.digests) < 0.4 for each in (large, small)]
    assert [held.tolist() for held in held_out_of([large.digests, small.digests], 0.4)] == [
        held.tolist() for held in own
    ]
    whole = small.digests[own[1]]  # of these the draw would take every one
    kept = held_out_of([large.digests, whole], 0.4)
    assert kept[0].tolist() == own[0].tolist()
    assert (~kept[1]).nonzero()[0].tolist() == [draw(whole).argmax()]
    assert held_out_of([large.digests[:9], whole[::-1]], 0.4)[1].tolist() == kept[1][::-1].tolist()


def test_validating_on_testing_trains_on_everything() -> None:
    """validation="testing" holds nothing out, and watches testing."""
    result = fitted(quick(), validation="testing")
    assert result["images"] == {"training": 120, "validation": 120, "testing": 120}
    assert result["history"][-1]["validation_accuracy"] == result["testing_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 1e-9}, "0 for validation"),
        ({"training": [stack(np.zeros((1, 8, 8), np.uint8))] * 3}, "0 for validation"),
        ({"validation": 1.5}, "between 0 and 1, not 1.5"),
        ({"validation": float("nan")}, "between 0 and 1, not nan"),
        (
            {"testing": [stack(np.zeros((0, 8, 8), np.uint8))] * 3},
            "no images in testing/a, testing/b, testing/c: add some",
        ),
        (
            {"testing": [*pictures()[:2], stack(np.zeros((2, 8, 9), np.uint8))]},
            r"testing/c has images of shape \[8, 9\], testing/a of \[8, 8\]",
        ),
        (
            {"training": [*pictures()[:2], stack(np.zeros((2, 8, 8, 3), np.uint8))]},
            r"training/c has images of shape \[8, 8, 3\].*: save all images as RGB, or all as grey",
        ),
        ({"testing": pictures()[:2]}, "testing has one stack for each of .* classes, not 2 for 3"),
    ],
)
def test_what_cannot_be_trained_on_is_named(arguments, message) -> None:
    """Empty sides, impossible fractions and stacks that do not fit give one clear line."""
    with pytest.raises(LadderError, match=message):
        fitted(quick(), **arguments)


# --- the loop


def posts_loop(recipe: Recipe, training: list[Stack], dtype: torch.dtype) -> torch.nn.Module:
    """The post's: pixels of 0 to 1, autograd, parameters updated by hand."""
    generator = torch.Generator().manual_seed(recipe.seed)
    model = new_model(MODELS[recipe.model], (8, 8), 3, generator)
    initialize(model, recipe.init, generator)
    model.to(dtype)
    x = torch.cat([s.images for s in training]).to(dtype) / 255
    y = torch.arange(3).repeat_interleave(len(x) // 3)
    for _ in range(recipe.epochs):
        for part in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
            PLAIN[recipe.loss](model(x[part]), y[part]).backward()
            for p in model.parameters():
                assert p.grad is not None
                p.data -= p.grad * recipe.lr
                p.grad.zero_()
    return model


@pytest.mark.parametrize("epochs", [1, 41])
@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loop_is_as_exact_as_the_posts(model, loss, epochs) -> None:
    """Its weights are no further from a loop in float64 than those of the plain one in float32.

    The largest error of each of three seeds, in the middle: that of one is a matter of luck.
    """
    training, errors = pictures(n=50), []
    for seed in range(3):
        recipe = Recipe(model=model, loss=loss, epochs=epochs, batch_size=64, lr=0.7, seed=seed)
        exact = posts_loop(recipe, training, torch.float64).state_dict()
        plain = posts_loop(recipe, training, torch.float32).state_dict()
        ours = fitted(recipe, training=training, validation="testing")["weights"].tensors
        errors.append([
            max((weights[name].double() - exact[name]).abs().max().item() for name in exact)
            for weights in (ours, plain)
        ])  # fmt: skip
    ours, plain = torch.tensor(errors).median(0).values.tolist()
    assert 0 < ours <= 1.25 * plain < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_bits(model) -> None:
    """Again, and with other trainings in threads beside it: same bits.  Another seed: others."""
    recipe = quick(model, epochs=2, batch_size=64)
    other = quick(model, epochs=2, batch_size=64, seed=1)
    first = fitted(recipe)
    with ThreadPoolExecutor(2) as pool:
        again, different = pool.map(fitted, [recipe, other])
    assert same_bits(first, again)
    assert not same_bits(first, different)


class Recording(TorchDispatchMode):
    """Stands in for a CUDA graph: plays the same operations again on the same memory.

    Like one, it leaves nothing done when it ends, and may not be asked for a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.own: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> Any:
        if torch.Tag.data_dependent_output in operation.tags:
            raise RuntimeError(f"{operation} while recording")
        for storage in storages((args, kwargs)):
            if storage.data_ptr() not in self.own | self.before.keys():
                self.before[storage.data_ptr()] = (storage, storage.clone())
        result = operation(*args, **(kwargs or {}))
        self.own |= {storage.data_ptr() for storage in storages(result)} - self.before.keys()
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        for storage, before in self.before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        for operation, args, kwargs, result in self.calls:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings here repeat their epochs as on a GPU, whose graphs a Recording stands in for."""
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda recording, stream: recording)
    monkeypatch.setattr(recording, "repeated", lambda work, _device: repeated(work, "cuda"))


@pytest.mark.parametrize("model", MODELS)
def test_what_a_gpu_records_are_the_same_steps(model, request, monkeypatch) -> None:
    """Each leg of an epoch once as it is, then from a recording: order, shifts, rates are new."""
    monkeypatch.setattr(recording, "LEG", 2)  # so that 107 images take legs of 2 and 2 batches
    recipe = Recipe(model=model, loss="cross_entropy", batch_size=32, epochs=5, precision="float32")
    plain = fitted(recipe)
    request.getfixturevalue("gpu")
    assert same_bits(fitted(recipe), plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_can_be_recorded(loss, request) -> None:
    recipe = Recipe(model="mlp", loss=loss, batch_size=32, epochs=4, label_smoothing=0.1)
    plain = fitted(recipe)
    request.getfixturevalue("gpu")
    assert same_bits(fitted(recipe), plain)


def test_class_weights_and_augmentations_can_be_recorded(request) -> None:
    """Weights to the same bits; what an augmentation draws is the recording's own."""
    recipe = quick("mlp", batch_size=32, epochs=4, class_weights="balanced")
    plain = fitted(recipe)
    request.getfixturevalue("gpu")
    assert same_bits(fitted(recipe), plain)
    fitted(recipe.model_copy(update={"augment": "cutout"}))


@pytest.mark.usefixtures("gpu")
def test_a_step_that_waits_for_a_number_cannot_be_recorded(monkeypatch) -> None:
    """The stand-in refuses what a CUDA graph refuses."""
    monkeypatch.setitem(
        LOSSES, "cross_entropy", lambda logits, *_: logits.mean() * logits.sum().item()
    )
    with pytest.raises(RuntimeError, match="while recording"):
        fitted(quick())


def test_training_leaves_torchs_own_stream_alone() -> None:
    """No draw comes from the global generator."""
    before = torch.get_rng_state()
    fitted(quick("convnet", epochs=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(model, (8, 8)) for model in MODELS] + [("mlp", (9, 12, 3)), ("convnet", (9, 12, 3))],
    ids=str,
)
def test_every_default_recipe_learns_small_pictures(model, shape) -> None:
    """Each model's defaults, given a few dozen steps, beat chance by far, grey or RGB."""
    data = {"training": pictures(n=80, shape=shape), "testing": pictures(shape=shape, seed=1)}
    recipe = Recipe(model=model, loss="cross_entropy", batch_size=24)
    result = fitted(recipe, **data)
    assert result["testing_accuracy"] > 0.8
    assert result["history"][-1]["training_loss"] < result["history"][0]["training_loss"]


@pytest.mark.parametrize("model", ["convnet", "resnet18"])
@pytest.mark.parametrize("n", [2, 3, 9, 16])
def test_last_batches_of_any_size_survive(model, n) -> None:
    """4 n images in batches of 8, and one batch bigger than the set: batch norm never sees one."""
    for batch_size in (8, 512):
        training = pictures(n=n)
        training[0] = stack(torch.cat([training[0].images, training[0].images[:1]]))
        recipe = quick(model, epochs=1, batch_size=batch_size)
        result = fitted(recipe, training=training, validation="testing")
        assert result["probabilities"].isfinite().all()


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (65, 32, [32, 33]),
        (68, 32, [32, 32, 4]),
    ],
)
def test_only_a_tiny_last_batch_joins_the_one_before(n, size, sizes) -> None:
    """Every image is in one batch, in order; the rest stays short unless under an eighth."""
    parts = batches(torch.arange(n), size)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), torch.arange(n))


def test_the_post_has_235_batches_an_epoch() -> None:
    """60,000 images in batches of 256 leave a last one of 96, as in the post."""
    assert [len(part) for part in batches(torch.arange(60_000), 256)] == [256] * 234 + [96]


def test_shifted_moves_quarters_and_fills_with_black() -> None:
    """Each quarter of the batch is its images moved by at most the asked pixels, black behind."""
    images = torch.randint(1, 256, (8, 6, 5), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    corners = torch.randint(5, (4, 2), generator=torch.Generator().manual_seed(1))
    moved = shifted(images, 2, corners)
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    quarters = zip(images.split(2), moved.split(2), corners.tolist(), strict=True)
    for before, after, (y, x) in quarters:
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        assert torch.equal(after, padded[:, y : y + 6, x : x + 5])
    colour = shifted(images[..., None].expand(-1, -1, -1, 3), 2, corners)
    assert torch.equal(colour, moved[..., None].expand(-1, -1, -1, 3))
    assert [len(shifted(images[:n], 2, corners)) for n in range(1, 9)] == [*range(1, 9)]


def test_schedules_have_their_shape() -> None:
    """Both peak at 1, start low and end at nothing."""
    for schedule, peak, start in [(triangular, 0.2, 0), (one_cycle, 0.25, 1 / 25)]:
        assert schedule(0) == pytest.approx(start)
        assert schedule(peak) == pytest.approx(1)
        assert schedule(1) == pytest.approx(0)
        assert max(schedule(i / 100) for i in range(101)) <= 1
    assert set(SCHEDULES) == {"constant", "triangular", "one_cycle"}


def test_adamw_is_torchs() -> None:
    """Bit for bit, whatever a parameter's order in memory; one without a gradient stays."""
    drawn = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (2, 3, 5, 5), (7,)]
    start = [torch.randn(shape, generator=drawn) for shape in shapes]
    start[1] = start[1].contiguous(memory_format=torch.channels_last)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    mine = OPTIMIZERS["adamw"](ours, 0.1)
    torchs = torch.optim.AdamW(theirs, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for lr in (0.01, 0.3, 0.02):
        for p, q in list(zip(ours, theirs, strict=True))[:2]:
            p.grad = torch.randn(p.shape, generator=drawn)
            q.grad = p.grad.clone()
        mine.step(torch.tensor(lr, dtype=torch.float64))
        torchs.param_groups[0]["lr"] = lr
        torchs.step()
        assert all(map(torch.equal, ours, theirs))
        assert not any(p.grad is not None for p in ours)
    assert torch.equal(ours[2], start[2])


def test_sgd_decays_when_asked() -> None:
    """One step by hand: p - lr * (grad + decay * p)."""
    p = torch.nn.Parameter(torch.tensor([2.0]))
    p.grad = torch.tensor([3.0])
    OPTIMIZERS["sgd"]([p], 0.5).step(torch.tensor(0.1))
    assert p.item() == pytest.approx(2 - 0.1 * (3 + 0.5 * 2))
    assert p.grad is None


def test_a_loss_that_is_no_number_is_said_in_one_line(monkeypatch) -> None:
    """The training stops at that epoch's end and names epoch and remedy."""
    monkeypatch.setitem(LOSSES, "cross_entropy", lambda logits, *_: logits.mean() * float("nan"))
    with pytest.raises(LadderError) as error:
        fitted(quick())
    assert str(error.value) == "diverged in epoch 1 (loss nan): lower lr"


def test_weights_that_are_no_numbers_are_said_too() -> None:
    """The last steps of an epoch can ruin the model after its losses were still finite."""
    recipe = quick("resnet18", init="randn", optimizer="sgd", lr=100, precision="float32")
    with pytest.raises(LadderError, match=r"diverged in epoch 1 \(loss .*\): lower lr"):
        fitted(recipe)


# --- results


def test_the_figures_agree_with_each_other() -> None:
    """Accuracy, per class, confusion and probabilities are one measurement, weighted by image."""
    testing = [stack(s.images[: 10 + 10 * i]) for i, s in enumerate(pictures(seed=1))]
    result = fitted(quick(lr=0.05, epochs=1), testing=testing)
    confusion = np.array(result["confusion"])
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    said = result["probabilities"].argmax(1).numpy()
    assert result["probabilities"].dtype == torch.float32
    assert result["probabilities"].sum(1).numpy() == pytest.approx(np.ones(60), abs=1e-5)
    assert confusion.sum(1).tolist() == [10, 20, 30]
    assert confusion[2, 0] == ((labels == 2) & (said == 0)).sum()
    assert result["testing_accuracy"] == pytest.approx((labels == said).mean())
    assert result["testing_accuracy"] == pytest.approx(confusion.trace() / 60)
    assert result["per_class"] == pytest.approx(confusion.diagonal() / [10, 20, 30])
    assert [h["epoch"] for h in result["history"]] == [1]


def test_answers_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that comes to grief on testing images alone is not taken to say the first class."""

    class Logarithm(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1).log())

    monkeypatch.setitem(MODELS, "log", lambda shape, classes: Logarithm(64, classes))
    training = [stack(each.images.clamp(min=1)) for each in pictures()]
    black = [stack(each.images * 0) for each in pictures()]
    with pytest.raises(LadderError, match="gives no numbers for some testing images"):
        fitted(quick("log", init="default", lr=0.01), training=training, testing=black)


def test_a_class_without_testing_images_counts_for_nothing() -> None:
    """Its own accuracy is 0, and the others' are unharmed."""
    testing = pictures(seed=1)
    testing[1] = stack(np.zeros((0, 8, 8), np.uint8))
    result = fitted(quick(), testing=testing)
    assert result["per_class"][1] == 0
    mean = (result["per_class"][0] + result["per_class"][2]) / 2
    assert result["testing_accuracy"] == pytest.approx(mean)


@pytest.mark.parametrize("model", MODELS)
def test_weights_and_metadata_rebuild_the_model(model) -> None:
    """load_model says on testing what the training said."""
    recipe = quick(model, epochs=1)
    testing = pictures(seed=1)
    result = fitted(recipe, testing=testing)
    tensors, metadata = result["weights"]
    assert all(isinstance(value, str) for value in metadata.values())
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert json.loads(metadata["preprocessing"])["shape"] == [8, 8]
    assert Recipe.model_validate_json(metadata["recipe"]) == recipe
    rebuilt = load_model(tensors, metadata)
    said = answers(rebuilt, torch.cat([s.images for s in testing]), recipe.precision)
    assert torch.equal(calibrated(said, result["temperature"]), result["probabilities"])


def test_progress_grows_to_the_end() -> None:
    """Each epoch's end is told, in batches done of all batches, the last being all."""
    told: list[tuple[int, int, str]] = []
    fitted(quick(), run=Run(progress=lambda *args: told.append(args)))
    done, total, note = told[-1]
    assert done == total
    assert len(told) >= 3
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert note.startswith("epoch 3 of 3: loss ")


def test_what_stands_apart_from_a_training_changes_no_bit(monkeypatch, tmp_path: Path) -> None:
    """Its key leaves out the code that shows how far it is, keeps checkpoints and takes cores.

    And how long it may take, which only its turn depends on.
    """
    assert {*train._apart()} == {training.seldom, training.save, threads, training.expected}
    usual = fitted(quick("mlp"), run=Run(scratch=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(training, "seldom", lambda _progress: lambda *_told: None)
        patch.setattr(training, "save", lambda *_state: None)
        assert same_bits(fitted(quick("mlp"), run=Run(scratch=tmp_path / "other")), usual)
    arguments = {"recipe": quick("convnet"), "training": [], "watched": [], "mirrored": None}
    keys = [train.look({**arguments}, "cpu", cores) for cores in (1, 2)]
    assert [each.ingredients["machine"]["threads"] for each in keys] == [1, 2]


# --- checkpoints


class KilledError(Exception):
    """Stands for the end of a process between two epochs."""


def killed_after(epoch: int, recipe: Recipe, scratch: Path) -> None:
    def progress(done: int, total: int, _note: str) -> None:
        if done * recipe.epochs >= epoch * total:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(recipe, run=Run(scratch=scratch, progress=progress))


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_training_resumes_bit_identically(tmp_path, model) -> None:
    """Stopped after epoch 2 of 3 it goes on with epoch 3 and ends with the uninterrupted bits."""
    recipe = quick(model, epochs=3, batch_size=64)
    killed_after(2, recipe, tmp_path)
    told: list[str] = []
    run = Run(scratch=tmp_path, progress=lambda _done, _total, note: told.append(note))
    resumed = fitted(recipe, run=run)
    assert told[0].startswith("epoch 3 of 3")
    assert same_bits(resumed, fitted(recipe))


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "foreign", "text"])
def test_a_checkpoint_that_is_not_ours_is_ignored(tmp_path, harm) -> None:
    """A flipped bit, a torn file, another recipe's checkpoint: the training starts anew."""
    recipe = quick("mlp", epochs=3)
    killed_after(2, quick("mlp", epochs=3, lr=0.5) if harm == "foreign" else recipe, tmp_path)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[-9] ^= 4
    harmed = {"truncate": data[:-100], "empty": b"", "text": b"hello"}.get(harm, data)
    file.write_bytes(bytes(harmed))
    told: list[str] = []
    run = Run(scratch=tmp_path, progress=lambda _done, _total, note: told.append(note))
    result = fitted(recipe, run=run)
    assert told[0].startswith("epoch 1 of 3")
    assert same_bits(result, fitted(recipe))


# --- the best epoch


def test_the_best_epoch_is_kept(tmp_path) -> None:
    """With the bits of a training that ended there, also when it was killed after it."""
    recipe = quick("mlp", epochs=9, lr=30.0, keep="best")
    whole = fitted(recipe)
    accuracies = [each["validation_accuracy"] for each in whole["history"]]
    assert whole["epoch"] < 9, "else this shows nothing"
    assert accuracies[whole["epoch"] - 1] == max(accuracies)
    shorter = fitted(recipe.model_copy(update={"epochs": whole["epoch"], "keep": "last"}))
    assert shorter["epoch"] == whole["epoch"]
    assert torch.equal(whole["held_out"]["logits"], shorter["held_out"]["logits"])
    assert torch.equal(whole["probabilities"], shorter["probabilities"])
    killed_after(whole["epoch"] + 1, recipe, tmp_path)
    assert same_bits(fitted(recipe, run=Run(scratch=tmp_path)), whole)


def test_a_training_out_of_patience_stops(tmp_path) -> None:
    """So many epochs after the best one; more epochs in the recipe change nothing, nor a kill."""
    recipe = quick("mlp", epochs=30, lr=30.0, patience=2)
    whole = fitted(recipe)
    accuracies = [each["validation_accuracy"] for each in whole["history"]]
    assert whole["epoch"] == len(accuracies) < 30
    assert best_epoch(whole["history"]) == len(accuracies) - 2
    assert (
        whole["history"] == fitted(quick("mlp", epochs=30, lr=30.0))["history"][: len(accuracies)]
    )
    assert same_bits(fitted(recipe.model_copy(update={"epochs": 40})), whole)
    killed_after(len(accuracies), recipe, tmp_path)
    assert same_bits(fitted(recipe, run=Run(scratch=tmp_path)), whole)
    kept = fitted(recipe.model_copy(update={"keep": "best"}))
    assert kept["epoch"] == len(accuracies) - 2


def test_classes_can_weigh_alike() -> None:
    """Gradients are those of torch's weighted loss; equal classes train as without weights."""
    uneven = [stack(each.images[:n]) for each, n in zip(pictures(), (40, 8, 24), strict=True)]
    recipe = quick(epochs=1, batch_size=200, lr=0.5, class_weights="balanced")
    weights = fitted(recipe, training=uneven, validation="testing")["weights"].tensors
    x = torch.cat([each.images for each in uneven]).float().div(255).flatten(1)
    y = torch.arange(3).repeat_interleave(torch.tensor([40, 8, 24]))
    plain = new_model(MODELS["linear"], (8, 8), 3, torch.Generator().manual_seed(0))
    initialize(plain, "randn", torch.Generator().manual_seed(0))
    counts = torch.tensor([40.0, 8.0, 24.0])
    loss = torch.nn.functional.cross_entropy(plain(x), y, weight=72 / (3 * counts))
    loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(weights[name], parameter.data - 0.5 * parameter.grad)
    even = {"training": pictures(), "validation": "testing"}
    weighed, unweighed = (
        fitted(quick(class_weights=each), **even) for each in ("balanced", "none")
    )
    assert same_bits(weighed, unweighed)


# --- more epochs


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("linear", {}),
        ("mlp", {"optimizer": "adamw", "lr": 0.01}),
        ("convnet", {"optimizer": "sgd"}),
        ("resnet18", {}),
    ],
)
def test_more_epochs_go_on_from_a_stored_training(model, fields) -> None:
    """Under a constant lr, 2 epochs after 1 stored one are the bits of 2 from scratch."""
    recipe = quick(model, epochs=2, batch_size=64, schedule="constant", **fields)
    shorter, longer = (fitted(recipe.model_copy(update={"epochs": epochs})) for epochs in (1, 3))
    told: list[str] = []

    def earlier(*path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        assert path == ("parameters", "recipe", "epochs")
        return iter([(3, longer), (1, shorter)])

    run = Run(earlier=earlier, progress=lambda _done, _total, note: told.append(note))
    assert same_bits(fitted(recipe, run=run), fitted(recipe))
    assert told[0].startswith("epoch 2 of 2")


def test_a_plan_is_told_whether_more_epochs_go_on_or_start_anew() -> None:
    recipe = quick("linear", epochs=60)
    before = recipe.model_dump(mode="json") | {"epochs": 41}
    assert recipe.remark(before) == ["goes on from epoch 41"]
    assert recipe.remark(before | {"lr": 0.5}) == []
    assert recipe.remark(before | {"epochs": 80}) == []
    cyclic = quick("resnet18", epochs=5)
    (words,) = cyclic.remark(cyclic.model_dump(mode="json") | {"epochs": 4})
    assert words == "starts anew, because one_cycle spreads over all epochs"
    kept = recipe.model_copy(update={"keep": "best"})
    (words,) = kept.remark(before | {"keep": "best"})
    assert words == "starts anew, because not the last epoch's weights are kept"


@pytest.mark.parametrize("schedule", ["one_cycle", "triangular"])
def test_a_schedule_that_spans_all_epochs_starts_anew(schedule) -> None:
    def earlier(*_path: str) -> Iterator[Any]:
        raise AssertionError("nothing earlier can be of use")

    result = fitted(quick(schedule=schedule), run=Run(earlier=earlier))
    assert result["resume"] is None


# --- real images


def test_the_posts_linear_rung_on_real_digits() -> None:
    """Linear + cross-entropy on the 1,797 digits that scikit-learn ships is over 85 %."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    rows = np.arange(len(images)) % 5 == 0
    sides = [[stack(images[m & (digits.target == c)]) for c in range(10)] for m in (~rows, rows)]
    recipe = Recipe(model="linear", loss="cross_entropy")
    result = together(climbed(recipe, *sides, [str(c) for c in range(10)]))
    assert result["testing_accuracy"] > 0.85
    assert sum(result["images"].values()) == 1797
