"""Our side, where a benchmark runs stages without the flow: two processes, as in the engine."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import torch
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from torch import Tensor

from tasks.caching.basics import cache_root
from tasks.caching.call import Settings
from tasks.caching.orchestration import begin
from tasks.caching.process import keep_freed_memory
from tasks.caching.stage import Run
from tasks.caching.values import Stack
from tasks.caching.yielding import yield_to_others
from tasks.images.decode import decode
from tasks.images.scan import Folder, scan
from tasks.rungs.augmentations import none
from tasks.rungs.baseline import DISTANCES, baseline, mean
from tasks.rungs.building import initialize, new_model
from tasks.rungs.calibrate import calibrate
from tasks.rungs.checkpoint import State
from tasks.rungs.course import course
from tasks.rungs.losses import LOSSES
from tasks.rungs.measure import measure
from tasks.rungs.models import MODELS
from tasks.rungs.optimizers import OPTIMIZERS, constant
from tasks.rungs.recipes import Recipe
from tasks.rungs.split import Labelled
from tasks.rungs.train import Descent, train


@contextmanager
def processes(count: int, threads: int, yields: bool = True) -> Iterator[Pool]:
    """Workers as the engine makes them, with so many torch threads each, which yield to others."""
    context = multiprocessing.get_context("forkserver")
    with context.Pool(count, _prepare, (threads, yields)) as pool:
        pool.map(time.sleep, [0.5] * count, 1)  # started and imported before anything is timed
        yield pool


def _prepare(threads: int, yields: bool) -> None:
    keep_freed_memory()
    if yields:
        yield_to_others(threads)
    torch.set_num_threads(threads)


def decode_folder(folder: Folder, root: Path, averaged: bool = False) -> float:
    """One decode stage's body, and that of its mean when asked for; gives its CPU seconds."""
    start = time.process_time()
    stack = decode.fn(folder.load(root))
    if averaged:
        mean.fn(stack)
    return time.process_time() - start


def decode_all(pool: Pool, folders: list[Folder], root: Path, averaged: bool = False) -> float:
    """Every decode stage's body, side by side; gives their CPU seconds."""
    body = functools.partial(decode_folder, root=root, averaged=averaged)
    return sum(pool.map(body, folders, 1))


def rung(
    recipe: Recipe, training: list[Folder], testing: list[Folder], root: Path
) -> dict[str, Tensor]:
    """One training stage's body on all of training; gives its weights."""
    result = train.fn(*_given(training, testing, root), recipe, "testing")
    return {name: tensor.clone() for name, tensor in result["weights"].tensors.items()}


def _given(
    training: list[Folder], testing: list[Folder], root: Path
) -> tuple[list[Stack], list[Stack], list[str]]:
    """What a training stage gets whatever its recipe: both sides' stacks, and the classes."""
    stacks = ([_stack(folder, root) for folder in side] for side in (training, testing))
    return (*stacks, [folder.label for folder in training])


@functools.cache
def _stack(folder: Folder, root: Path) -> Stack:
    return decode.fn(folder.load(root))


def rungs(
    pool: Pool, recipes: list[Recipe], training: list[Folder], testing: list[Folder], root: Path
) -> list[dict[str, Tensor]]:
    """Several training stages' bodies, side by side."""
    body = functools.partial(rung, training=training, testing=testing, root=root)
    return pool.map(body, recipes, 1)


def trained(
    recipe: Recipe,
    training: list[Folder],
    testing: list[Folder],
    root: Path,
    device: str = "cpu",
) -> tuple[float, float]:
    """One training stage's body, a tenth held out: its seconds and its testing accuracy."""
    seen, tests, classes = _given(training, testing, root)
    run = Run(device)
    start = time.perf_counter()
    result = train.fn(seen, [], classes, recipe, run=run)
    seconds = time.perf_counter() - start
    figures = measure.fn(result, calibrate.fn(result), tests, classes, recipe, run=run)
    return seconds, figures["testing_accuracy"]


@functools.cache
def _descent(recipe: Recipe) -> Descent:
    """A training of one batch of noise."""
    generator = torch.Generator().manual_seed(0)
    model = new_model(MODELS[recipe.model], (28, 28), 10, generator)
    initialize(model, recipe.init, generator)
    optimizer = OPTIMIZERS[recipe.optimizer]([*model.parameters()], recipe.weight_decay)
    noise = torch.randint(256, (recipe.batch_size, 28, 28), dtype=torch.uint8)
    seen = Labelled(noise, torch.randint(10, (recipe.batch_size,)))
    state = State(model, optimizer, generator, [], {})
    return Descent(state, seen, LOSSES[recipe.loss], none, recipe, "cpu")


def step(recipe: Recipe) -> None:
    """One step of a recipe on one batch of noise, as the train stage takes it."""
    way = course(torch.Generator(), recipe, constant, recipe.batch_size, 0)
    _descent(recipe).step(way.batches[0], *(each[0] for each in way[1:]))


def steps(recipe: Recipe, seconds: float) -> tuple[float, float]:
    """Steps for so long; gives how long each took, and how long its threads computed or spun."""
    step(recipe)
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        step(recipe)
        count += 1
    return (time.perf_counter() - start) / count, (time.process_time() - cpu) / count


@flow(name="baselines", task_runner=ThreadPoolTaskRunner(max_workers=64))
def baselines(dataset: Path) -> None:
    """The ladder's first half: scan to baselines."""
    session = begin(Settings(str(cache_root()), str(dataset)))
    data = scan(dataset, Path(session.settings.cache))
    training, testing = (
        [decode[f.label](f) for f in side] for side in (data.training, data.testing)
    )
    means = [mean[name](stack) for name, stack in zip(data.classes, training, strict=True)]
    found = [baseline[d](means, testing, data.classes, d) for d in DISTANCES]
    session.finish(found[-1])
