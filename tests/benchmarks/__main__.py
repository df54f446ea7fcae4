"""`python -m tests.benchmarks [NAME...]`: each benchmark by name, or all that need no option.

Ours and the naive way take turns in one run, so that what else the machine does hits both.  Prints
medians and ratios and writes them to benchmarks.md beside this file; `gpu` by itself to gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flows.predict import found, load_model
from tasks.caching.bodies import CORES
from tasks.images.decode import decode
from tasks.images.fetch import fetch
from tasks.images.scan import Dataset, Folder, scan
from tasks.rungs.ladders import post_ladder
from tasks.rungs.recipes import DEFAULTS, Recipe
from tasks.rungs.train import threads
from tasks.serving.export import plain
from tests.benchmarks import naive, ours
from tests.benchmarks.truth import bench_truth

HERE = Path(__file__).resolve().parent
ARCHIVE = HERE.parents[2] / "shared" / "mnist_png.tgz"
SHA256 = "b9ddb3f9e8d8ec92b0771df035e9bb4bf7b447bff3b0a5bcb7d97d0256a6f599"


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    what: str
    ours: float  # median seconds, or megabytes
    other: float | None  # the same of what it is held against
    ratio: float | None  # median of the rounds' own ratios
    target: str
    n: int
    note: str = ""
    unit: str = "s"

    def cells(self) -> list[str]:
        """As text."""
        other, ratio = ("-" if x is None else f"{x:.3g}" for x in (self.other, self.ratio))
        return [
            *(self.what, f"{self.ours:.3g} {self.unit}", other, ratio),
            *(self.target, str(self.n), self.note),
        ]


class Place:
    """A temporary data root with MNIST in it."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root = root
        self.options = options
        self.rounds: int = options.rounds
        self.cache = root / "cache"
        self.mnist = root / "mnist"
        if options.data:
            shutil.copytree(options.data, self.mnist)
        elif ARCHIVE.is_file():
            fetch("mnist", root, str(ARCHIVE), SHA256)
        else:
            fetch("mnist", root)
        self.environment = {
            **os.environ,
            "STEPLADDER_DATA": str(root),
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
        }

    def scan(self) -> Dataset:
        """The dataset's listing."""
        return scan(self.mnist, self.cache)

    def run(self, *command: str, **more: str) -> str:
        """Run a command in the repository; gives what it printed."""
        done = subprocess.run(
            command, cwd=more.pop("cwd", HERE.parents[1]), env=self.environment | more,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stepladder(self, *arguments: str, **more: str) -> str:
        """Run our command line."""
        return self.run(sys.executable, "-m", "flows.cli", *arguments, **more)


def seconds(act: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def in_turns(rounds: int, *ways: Callable[[], object]) -> list[list[float]]:
    """Seconds of each way in each round."""
    timed = [[seconds(way) for way in ways] for _ in range(rounds)]
    return [list(column) for column in zip(*timed, strict=True)]


def compared(
    what: str,
    target: str,
    mine: list[float],
    other: list[float],
    note: str = "",
    *,
    up: bool = True,
) -> Row:
    """A row of two columns of seconds: how many times faster ours is, or `up=False` its share."""
    pairs = zip(mine, other, strict=True)
    ratio = statistics.median([o / m if up else m / o for m, o in pairs])
    middle = statistics.median
    return Row(what, middle(mine), middle(other), ratio, target, len(mine), note)


# The benchmarks


def bench_decode(place: Place) -> Iterator[Row]:
    """70,000 warm PNGs to stacks, in two processes as in the engine, against Image.open."""
    data = place.scan()
    folders = [*data.training, *data.testing]
    expected = [s for side in ("training", "testing") for s in naive.stacks(place.mnist / side)]
    stacks = (decode.fn(folder.load(place.cache)).images for folder in folders)
    equal = all(map(torch.equal, stacks, expected))
    cpu: list[list[float]] = [[], []]

    def plain() -> None:
        start = time.process_time()
        for side in ("training", "testing"):
            naive.stacks(place.mnist / side)
        cpu[1].append(time.process_time() - start)

    with ours.processes(2, 1) as pool:
        mine, other = in_turns(
            place.rounds,
            lambda: cpu[0].append(ours.decode_all(pool, folders, place.cache)),
            plain,
        )
    note = (
        f"pixels of all {sum(map(len, expected)):,} files {'equal' if equal else 'DIFFER'}; "
        "CPU {:.2g} s and {:.2g} s".format(*map(statistics.median, cpu))
    )
    yield compared("decode / Image.open + torch.stack", ">= 8x", mine, other, note)
    if place.options.peers:
        yield from other_decoders(place, folders, expected)


def other_decoders(
    place: Place, folders: list[Folder], stacks: list[torch.Tensor]
) -> Iterator[Row]:
    """The same against the quickest decoders there are, in two processes, too."""
    digests = [hashlib.sha256(stack.numpy()).hexdigest() for stack in stacks]
    pixels = hashlib.sha256("".join(digests).encode()).hexdigest()
    packages = {"opencv": "opencv-python-headless", "kornia_rs": "kornia_rs"}
    python = install(place, "numpy", *packages.values()) / "python"
    with ours.processes(2, 1) as pool:
        for name, package in packages.items():
            script = (str(python), str(HERE / "with_decoders.py"), str(place.mnist), name)
            rounds = [
                (
                    seconds(lambda: ours.decode_all(pool, folders, place.cache)),
                    json.loads(place.run(*script)),
                )
                for _ in range(place.rounds)
            ]
            mine, found = zip(*rounds, strict=True)
            same = all(each["pixels"] == pixels for each in found)
            look = f"import importlib.metadata as m; print(m.version('{package}'))"
            note = f"{package} {place.run(str(python), '-c', look).strip()}, its pixels "
            note += f"{'equal' if same else 'DIFFERENT'}"
            yield compared(f"decode / {name} + numpy.stack", "> 1x", [*mine],
                           [each["seconds"] for each in found], note)  # fmt: skip


def bench_scan(place: Place) -> Iterator[Row]:
    """Noticing that none of 70,000 files changed, against listing and stat-ing them."""
    place.scan()
    mine, plain, relative = in_turns(
        max(place.rounds, 5),
        place.scan,
        lambda: naive.listed(place.mnist),
        lambda: naive.listed_relative(place.mnist),
    )
    yield compared("scan, unchanged / listdir + stat", "<= 1.3", mine, plain, up=False)
    note = "names relative to an open folder, the least that Python can do"
    yield compared("scan, unchanged / listdir + stat", "", mine, relative, note, up=False)


def bench_noop(place: Place) -> Iterator[Row]:
    """`stepladder run mnist` with nothing to do, against `dvc repro`."""
    command = ("run", "mnist", "--only", "linear*", "--epochs", "1", "--quiet")
    place.stepladder(*command)
    time.sleep(2.5)  # what has just been written is not trusted yet
    place.stepladder(*command)
    if not place.options.peers:
        (mine,) = in_turns(place.rounds, lambda: place.stepladder(*command))
        note = "DVC skipped: --peers installs it in a scratch environment"
        yield Row("stepladder run, nothing to do / dvc repro", statistics.median(mine), None, None,
                  "<= 0.25", len(mine), note)  # fmt: skip
        return
    dvc = install_dvc(place)
    mine, other = in_turns(place.rounds, lambda: place.stepladder(*command), dvc)
    version = place.run(str(place.root / "dvc" / "bin" / "dvc"), "--version").strip()
    yield compared("stepladder run, nothing to do / dvc repro", "<= 0.25", mine, other,
                   f"DVC {version}, one stage that depends on the folder", up=False)  # fmt: skip


def install_dvc(place: Place) -> Callable[[], object]:
    """DVC in an environment of its own with one stage over MNIST; gives its no-op `repro`."""
    dvc, project = str(install(place, "dvc") / "dvc"), place.root / "project"
    shutil.copytree(place.mnist, project / "mnist")
    (project / "dvc.yaml").write_text(
        "stages:\n  count:\n    cmd: find mnist -name '*.png' | wc -l > count.txt\n"
        "    deps: [mnist]\n    outs: [count.txt]\n"
    )
    place.run(dvc, "init", "--no-scm", cwd=str(project))
    place.run(dvc, "repro", cwd=str(project))
    return lambda: place.run(dvc, "repro", cwd=str(project))


def install(place: Place, *names: str) -> Path:
    """Install packages in an environment of their own; gives the folder of its commands."""
    environment = place.root / names[0]
    venv.create(environment, with_pip=True)
    place.run(str(environment / "bin" / "pip"), "install", "--quiet", *names)
    return environment / "bin"


def bench_edit(place: Place) -> Iterator[Row]:
    """One changed PNG, scan to baselines, in a flow run against a server that is there."""
    victim = sorted((place.mnist / "training" / "7").iterdir())[0]
    good = victim.read_bytes()
    spare = [path.read_bytes() for path in sorted((place.mnist / "testing" / "7").iterdir())]
    with prefect_server(place) as url:

        def run() -> None:
            place.run(sys.executable, "-m", "tests.benchmarks.halfway", str(place.mnist),
                      PREFECT_API_URL=url)  # fmt: skip

        peer = install_dagster(place) if place.options.peers else None
        mine, unchanged, other = [], [], []
        run()
        for number in range(place.rounds):
            unchanged.append(seconds(run))
            victim.write_bytes(spare[number])
            mine.append(seconds(run))
            if peer:
                other.append(seconds(peer))
    victim.write_bytes(good)
    what = "one PNG changed, scan to baselines"
    yield compared(f"{what} / no-op flow run", "<= 1.5", mine, unchanged,
                   "whole processes, Prefect server running", up=False)  # fmt: skip
    if other:
        yield compared(f"{what} / the same on Dagster", "< 1", mine, other,
                       "an asset per class folder, made in its own process", up=False)  # fmt: skip


def install_dagster(place: Place) -> Callable[[], object]:
    """Dagster in an environment of its own, all assets made; gives its next run."""
    python = install(place, "dagster", "numpy", "pillow") / "python"
    home = place.root / "dagster-home"
    home.mkdir()
    (home / "dagster.yaml").touch()
    script = (str(python), str(HERE / "with_dagster.py"), str(place.mnist))

    def run() -> None:
        made = place.run(*script, DAGSTER_HOME=str(home))
        if "baseline" not in made:
            raise RuntimeError(f"Dagster should have made the baseline anew, but made {made}")

    run()
    return run


@contextlib.contextmanager
def prefect_server(place: Place) -> Iterator[str]:
    """A Prefect server on loopback; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=place.environment, stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def bench_rungs(place: Place) -> Iterator[Row]:
    """The four small rungs, each on all of training, from stacks to weights."""
    epochs, data = place.options.epochs, place.scan()
    recipes = [  # the longest first, as in the engine
        Recipe(model=model, loss=loss, epochs=epochs) for model, loss in reversed(naive.RUNGS)
    ]
    training, testing = (naive.stacks(place.mnist / side) for side in ("training", "testing"))
    models: list[torch.nn.Module] = []
    with ours.processes(2, 1) as pool:
        arguments = (pool, recipes, data.training, data.testing, place.cache)
        weights = ours.rungs(*arguments)

        def exactly(recipe: Recipe) -> dict[str, torch.Tensor]:
            return naive.exactly(recipe.model, recipe.loss, training, epochs).state_dict()

        def plain() -> None:
            pairs = naive.pairs(training), naive.pairs(testing)
            models[:] = [naive.rung(r.model, r.loss, *pairs, epochs) for r in recipes]

        rounds = min(place.rounds, 3)
        mine, other = in_turns(rounds, lambda: ours.rungs(*arguments), plain)
    far = [
        [error(each, exact) for each in (tensors, model.state_dict())]
        for tensors, model, exact in zip(weights, models, map(exactly, recipes), strict=True)
    ]
    worst = ", ".join(f"{a:.1e} ({b:.1e})" for a, b in far)
    note = f"{epochs} epochs each; weights from those of float64, ours (the loop's): {worst}"
    yield compared("four small rungs / DataLoader loop", ">= 6x", mine, other, note)


def error(weights: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """The largest difference of one number."""
    return max((weights[name].double() - exact[name]).abs().max().item() for name in exact)


def bench_resnet18(place: Place) -> Iterator[Row]:
    """A ResNet18 epoch of 60,000 images, from a few steps each."""
    cores = CORES.total
    torch.set_num_threads(cores)
    recipe = Recipe(model="resnet18", loss="cross_entropy", batch_size=256)
    model = naive.resnet18()
    x, y = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    turns = recipe.batch_size // 64
    with ours.processes(1, cores) as pool:
        pool.apply(ours.step, (recipe,)), naive.step(model, x, y)
        rounds = in_turns(
            place.rounds,
            lambda: pool.apply(ours.step, (recipe,)),
            lambda: [naive.step(model, x, y) for _ in range(turns)],
        )
    mine, other = ([took * 60_000 / recipe.batch_size for took in way] for way in rounds)
    note = f"scaled from steps of {recipe.batch_size} images ({recipe.precision}) and {turns} of 64"
    yield compared("ResNet18 epoch / torch's convolutions", ">= 6x", mine, other, f"{note} (fp32)")


def bench_convnet(place: Place) -> Iterator[Row]:
    """The convnet of the default ladder: seconds of training and true testing accuracy."""
    data = place.scan()
    with ours.processes(1, 2) as pool:
        done = [
            pool.apply(
                ours.trained,
                (Recipe(model="convnet", loss="cross_entropy", seed=seed),
                 data.training, data.testing, place.cache),
            )
            for seed in range(place.options.seeds)
        ]  # fmt: skip
    took, right = zip(*done, strict=True)
    note = f"mean testing accuracy {statistics.mean(right):.2%}, worst {min(right):.2%} (>= 99.4 %)"
    yield Row("convnet, training stage", statistics.median(took), None, None, "<= 10 s",
              len(took), note)  # fmt: skip


def bench_predict(place: Place) -> Iterator[Row]:
    """From 10,000 PNG files to probabilities by the convnet, on all cores."""
    place.stepladder("run", "mnist", "--models", "convnet", "--quiet")
    model = load_model("mnist")
    files = list(found([str(place.mnist / "testing")], []))
    network = plain(deepcopy(model.network)).eval()
    said: list[list[torch.Tensor]] = [[], []]

    def mine() -> None:
        said[0] = [each.probabilities for each in model.files(files)]

    def theirs() -> None:
        said[1] = list(naive.predictions(network, files))

    ours_took, other = in_turns(place.rounds, mine, theirs)
    sure = [torch.cat(each).argmax(1) for each in said]
    note = (
        f"{len(files) / statistics.median(ours_took):,.0f} images a second (>= 20,000); answers "
        f"{'equal' if torch.equal(*sure) else 'DIFFER'}"
    )
    yield compared("predict / Image.open + torch's convolutions", ">= 1x", ours_took, other, note)


def bench_busy(place: Place) -> Iterator[Row]:
    """A step of each kind of training, alone and beside as many busy processes as cores.

    Held against one thread, and against threads that spin as torch's do where nobody looks.
    """
    for recipe in post_ladder()[2:]:
        # Where threads spin beside others, ResNet18 takes a minute for a step of 256.
        images = 64 if recipe.model == "resnet18" else 256
        fixed = recipe.model_copy(update={"batch_size": images})
        wanted = threads(recipe.model, CORES.total, "cpu")
        ways = {"as trained": (wanted, True), "one thread": (1, False), "spinning": (wanted, False)}
        with contextlib.ExitStack() as stack:
            pools = [stack.enter_context(ours.processes(1, *way)) for way in ways.values()]
            for neighbours in (0, CORES.total):
                with busy(neighbours):
                    rounds = [
                        [pool.apply(ours.steps, (fixed, 2.0)) for pool in pools]
                        for _ in range(min(place.rounds, 3))
                    ]
                columns = [*zip(*rounds, strict=True)]
                took = [[seconds for seconds, _cpu in column] for column in columns]
                cpu = [statistics.median(cpu for _seconds, cpu in column) for column in columns]
                what = f"{recipe.model}, a step beside {neighbours} busy processes"
                targets = {"one thread": "<= 1.3", "spinning": ""} if neighbours else {
                    "one thread": "", "spinning": "<= 1.1"}  # fmt: skip
                for against, other in list(enumerate(ways))[1:]:
                    note = f"{images} images, {wanted} threads; CPU "
                    note += f"{1e3 * cpu[0]:.3g} ms, {1e3 * cpu[against]:.3g}"
                    yield compared(f"{what} / {other}", targets[other], took[0], took[against],
                                   note, up=False)  # fmt: skip


def bench_cold(place: Place) -> Iterator[Row]:
    """The whole pipeline from nothing, without ResNet18, against the naive script; and its peak."""
    epochs = place.options.epochs
    recipes = place.root / "recipes.toml"
    tables = [("linear", loss) for _, loss in naive.RUNGS[:3]] + [("mlp", "cross_entropy")]
    text = "".join(
        f'[[recipe]]\nmodel = "{model}"\nloss = "{loss}"\nepochs = {epochs}\n'
        for model, loss in tables
    )
    recipes.write_text(f'{text}[[recipe]]\nmodel = "convnet"\nloss = "cross_entropy"\n')
    script = (sys.executable, "-m", "tests.benchmarks.naive")
    convnet_epochs = str(DEFAULTS["convnet"]["epochs"])
    peaks: list[float] = []

    place.stepladder("run", "mnist", "--quiet", "--only", "linear*", "--epochs", "1")
    # By now Prefect has its database, which it makes once on each machine.

    def ladder() -> None:
        shutil.rmtree(place.cache, ignore_errors=True)
        with watched_memory() as peak:
            place.stepladder("run", "mnist", "--quiet", "--recipes", str(recipes))
        peaks.append(peak[0])

    mine, other = in_turns(
        place.options.long_rounds,
        ladder,
        lambda: place.run(*script, str(place.mnist), str(epochs), convnet_epochs),
    )
    note = f"small rungs {epochs} epochs each; temporary Prefect server included"
    yield compared("cold pipeline without ResNet18 / the script", ">= 4x", mine, other, note)
    yield Row("cold pipeline, peak memory", statistics.median(peaks) / 1e6, None, None,
              "<= 1500 MB", len(peaks), "proportional share of its processes", "MB")  # fmt: skip
    yield from budget(place)


def budget(place: Place) -> Iterator[Row]:
    """Where the cold pipeline's seconds go: each part alone, then what the last run's stages took.

    The parts up to the server overlap in a run, as far as two cores let them.
    """
    server = "from flows.server import TemporaryServer as T; s = T(); s.begin(); s._wait()"
    python = {
        "import torch and the chapters": "import tasks.report.page",
        "import Prefect": "import prefect.flows, prefect.task_runners",
        "start and end a temporary server": server,
    }
    for what, code in python.items():
        took = [seconds(lambda code=code: place.run(sys.executable, "-c", code)) for _ in range(3)]
        yield Row(f"part: {what}", statistics.median(took), None, None, "", 3)
    took = [seconds(lambda at=f"index-{n}": scan(place.mnist, place.root / at)) for n in range(3)]
    yield Row("part: scan without an index", statistics.median(took), None, None, "", 3)

    results = json.loads((place.root / "reports/mnist/latest/results.json").read_text())
    stages: dict[str, list[float]] = {}
    for each in results["stages"]:
        kind = each["stage"] if each["stage"].startswith("train") else each["stage"].split("[")[0]
        stages.setdefault(kind, []).append(each["seconds"])
    for kind, took in stages.items():
        note = "seconds of one core, side by side" if len(took) > 1 else ""
        yield Row(f"part: {kind}, {len(took)} stages", sum(took), None, None, "", 1, note)


def bench_stages(place: Place) -> Iterator[Row]:
    """Many classes of 20 small images: what a stage costs above its body; 1,000 at last."""
    few, many, most = 2, 150, 1000
    for classes in (few, many, most):
        write_classes(place.root / f"classes-{classes}", classes)
    place.stepladder("run", "mnist", "--quiet", "--only", "linear*", "--epochs", "1")
    least, _bodies, fewest = climb_classes(place, few)
    costs, whole = [], 0.0
    for _ in range(min(place.rounds, 3)):
        whole, bodies, count = climb_classes(place, many)
        costs.append((whole - least - bodies / CORES.total) / (count - fewest))
    note = f"{count} stages, {whole:.3g} s in all, {least:.3g} s of them as for {few} classes"
    yield Row(f"{many} classes, a stage above its body", statistics.median(costs), None, None,
              "<= 0.03 s", len(costs), note)  # fmt: skip
    whole, bodies, count = climb_classes(place, most)
    note = f"{count} stages, bodies {bodies / CORES.total:.3g} s; a linear model, one epoch"
    yield Row(f"{most:,} classes, from nothing to the report", whole, None, None, "", 1, note)


def write_classes(folder: Path, classes: int) -> None:
    """So many classes of 20 images to train on and 5 to test with, noise over a mean of theirs."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        base = generator.integers(0, 256, (16, 16))
        for side, count in (("training", 20), ("testing", 5)):
            inner = folder / side / f"c{label:04}"
            inner.mkdir(parents=True)
            for number in range(count):
                pixels = (3 * base + generator.integers(0, 256, base.shape)) // 4
                Image.fromarray(pixels.astype(np.uint8)).save(inner / f"{number}.png")


def climb_classes(place: Place, classes: int) -> tuple[float, float, int]:
    """Seconds from nothing to the report; of all bodies; and how many stages there were."""
    shutil.rmtree(place.cache, ignore_errors=True)
    name = f"classes-{classes}"
    words = ("run", name, "--models", "linear", "--epochs", "1", "--quiet")
    whole = seconds(lambda: place.stepladder(*words))
    stages = json.loads((place.root / f"reports/{name}/latest/results.json").read_text())["stages"]
    return whole, sum(each["seconds"] for each in stages), len(stages)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside this one, each of which wants a core for itself."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Peak of what this process's descendants hold, in bytes, shared pages counted once."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(1):  # to be counted stops a process for some milliseconds
            peak[0] = max(peak[0], sum(map(held, descendants(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def descendants(process: int) -> list[int]:
    """The process ids below one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == process:
                child = int(status.parent.name)
                found += [child, *descendants(child)]
    return found


def held(process: int) -> int:
    """A process's proportional share of memory, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def bench_scale(place: Place) -> Iterator[Row]:
    """Ten times MNIST, 700,000 files: scan, decode and means must grow no more than the data."""
    large = place.root / "large"
    for source in place.mnist.rglob("*.png"):
        target = large / source.relative_to(place.mnist)
        target.parent.mkdir(parents=True, exist_ok=True)
        for copy in range(10):
            shutil.copyfile(source, target.with_stem(f"{target.stem}-{copy}"))
    data = place.scan(), scan(large, place.cache)
    folders = [[*each.training, *each.testing] for each in data]
    small, ten = in_turns(place.rounds, place.scan, lambda: scan(large, place.cache))
    yield compared("scan, 700,000 / 70,000 files", "~10", ten, small, up=False)
    with ours.processes(2, 1) as pool, watched_memory() as peak:
        small, ten = in_turns(
            min(place.rounds, 3),
            lambda: ours.decode_all(pool, folders[0], place.cache, averaged=True),
            lambda: ours.decode_all(pool, folders[1], place.cache, averaged=True),
        )
    note = f"two workers together held {peak[0] / 1e6:.0f} MB at most"
    yield compared("decode and mean, 700,000 / 70,000", "~10", ten, small, note, up=False)


def bench_gpu(place: Place) -> Iterator[Row]:
    """Each rung of the default ladder on the GPU: alone, then all at once."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no GPU here")
    data, recipes = place.scan(), post_ladder()
    calls = [(each, data.training, data.testing, place.cache, "cuda") for each in recipes]
    targets = {"convnet": "<= 0.5 s", "resnet18": "<= 1 s"}
    alone = 0.0
    with ours.processes(1, 1) as pool:
        for recipe, call in zip(recipes, calls, strict=True):
            once = recipe.model_copy(update={"epochs": 1})
            pool.apply(ours.trained, (once, *call[1:]))  # which sets the GPU up
            with watched_gpu() as busy:
                done = [pool.apply(ours.trained, call) for _ in range(place.rounds)]
            took, right = zip(*done, strict=True)
            alone += statistics.median(took)
            note = f"testing accuracy {statistics.mean(right):.2%}; GPU busy {busy():.0%}"
            what = f"GPU: {recipe.model}, {recipe.loss}, {recipe.epochs} epochs"
            yield Row(what, statistics.median(took), None, None,
                      targets.get(recipe.model, "<= 0.3 s"), place.rounds, note)  # fmt: skip
    with ours.processes(len(calls), 1) as pool:
        for call in calls:
            pool.starmap(ours.trained, [call] * len(calls), 1)  # every process has met every rung
        with watched_gpu() as busy:
            together = seconds(lambda: pool.starmap(ours.trained, calls, 1))
    yield Row("GPU: all rungs at once / one after another", together, alone, alone / together, "",
              1, f"GPU busy {busy():.0%}")  # fmt: skip


@contextlib.contextmanager
def watched_gpu() -> Iterator[Callable[[], float]]:
    """Gives a function that tells, afterwards, for which share of the time the GPU was busy."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    watch = subprocess.Popen([*command, "--loop-ms=50"], stdout=subprocess.PIPE, text=True)
    said: list[float] = []
    try:
        yield lambda: statistics.mean(said) / 100
    finally:
        watch.terminate()
        said += map(float, watch.communicate()[0].split())


BENCHMARKS = {
    "decode": bench_decode,
    "scan": bench_scan,
    "noop": bench_noop,
    "edit": bench_edit,
    "rungs": bench_rungs,
    "resnet18": bench_resnet18,
    "convnet": bench_convnet,
    "predict": bench_predict,
    "busy": bench_busy,
    "cold": bench_cold,
    "stages": bench_stages,
    "scale": bench_scale,
    "gpu": bench_gpu,
}
OPTIONAL = {"scale", "gpu"}  # only when named


# The result


def machine() -> list[str]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text()
        cpu = text.split("model name", 1)[1].split(":", 1)[1].splitlines()[0].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    names = ("torch", "numpy", "pillow", "pyarrow", "prefect")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return [
        f"{cpu}, {CORES.total} cores, {memory:.0f} GB{gpu}; {platform.system()}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"load average at the start {os.getloadavg()[0]:.1f}; "
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}",
    ]


def written(about: list[str], rows: list[Row]) -> str:
    """The result as Markdown."""
    head = ["what", "ours", "other", "ratio", "target", "n", "note"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Medians in seconds; the ratio is the median over the rounds, ours and the other way "
            "taking turns. Run them with `make bench`.",
            "",
            *(f"- {line}" for line in about),
            "",
            *(f"| {' | '.join(cells)} |" for cells in lines),
            "",
        ]
    )


def main() -> None:
    """Run the benchmarks that were asked for and write their result."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    known = f"{', '.join(BENCHMARKS)}; or truth, by itself, which writes truth.md"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--data", type=Path, help="MNIST's folder, instead of its archive")
    parser.add_argument("--rounds", type=int, default=5, help="of the short ones")
    parser.add_argument("--long-rounds", type=int, default=1, help="of the cold pipeline")
    parser.add_argument("--epochs", type=int, default=41, help="of each small rung")
    parser.add_argument("--seeds", type=int, default=5, help="of the convnet")
    parser.add_argument(
        "--peers", action="store_true", help="install DVC, Dagster and decoders, and compare"
    )
    options = parser.parse_args()
    if options.names == ["truth"]:
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as root:
            bench_truth(Path(root))
        return
    names = options.names or [name for name in BENCHMARKS if name not in OPTIONAL]
    if unknown := set(names) - BENCHMARKS.keys():
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    about, rows = machine(), []
    print("To be measured, one after the other, ours and the other way by turns:")
    for name in names:
        print(f"  {name:10} {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}")
    print("\n".join(about), flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as root:
        os.environ["STEPLADDER_DATA"] = root
        place = Place(Path(root), options)
        for name in names:
            begun = time.monotonic()
            print(f"{name}:", flush=True)
            for row in BENCHMARKS[name](place):
                print("  " + " | ".join(row.cells()), flush=True)
                rows.append(row)
            print(f"  took {time.monotonic() - begun:.0f} s", flush=True)
    # A machine with a GPU is another one: its figures stay beside those of the rest.
    target = "gpu.md" if names == ["gpu"] else "benchmarks.md"
    (HERE / target).write_text(written(about, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
