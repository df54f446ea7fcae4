"""The whole pipeline, run as a user runs it: what is computed, what is reused, and why."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import PrefectServer, leashed, post
from shell import Shell
from sklearn.datasets import load_digits

from flows.ladder import ladder
from tasks.caching.orchestration import limited

ROOT = Path(__file__).resolve().parents[1]
RECIPES = """
[[recipe]]
model = "linear"
loss = "cross_entropy"
epochs = 2
lr = 1.0

[[recipe]]
model = "linear"
loss = "softmax_mse"
epochs = 2

[[recipe]]
model = "mlp"
loss = "cross_entropy"
epochs = 2
"""
LINEAR = "train[linear, cross_entropy, seed 0]"
SOFTMAX = "train[linear, softmax_mse, seed 0]"
MLP = "train[mlp, cross_entropy, seed 0]"
RUNGS = {LINEAR, SOFTMAX, MLP}


def rung(training: str) -> set[str]:
    """The stages of a rung, by that of its training."""
    return {training.replace("train[", f"{stage}[") for stage in ("train", "calibrate", "measure")}


class Project:
    """A scratch copy of the project with a small dataset, driven through its command line."""

    def __init__(self, root: Path, environment: dict[str, str], shell: Shell) -> None:
        self.root = root
        self.shell = shell
        self.data = root / "data"
        self.images = self.data / "tiny"
        self.environment = {**environment, "STEPLADDER_DATA": str(self.data)}
        for package in ("flows", "tasks"):
            shutil.copytree(ROOT / package, root / package, ignore=_no_bytecode)
        for extra in ("prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / extra, root / extra)
        self.recipes = root / "recipes.toml"
        self.recipes.write_text(RECIPES)

    def stepladder(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line in the copy."""
        done = self.shell.run(list(arguments), self.root, self.environment)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    def ask(self, command: str, *more: str) -> dict[str, Any]:
        """`run` or `plan` on the small dataset, with --json."""
        done = self.stepladder(command, "tiny", "--recipes", "recipes.toml", "--json", *more)
        return json.loads(done.stdout)

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit a source file."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))

    def plan_and_run(self, *more: str) -> tuple[dict[str, Any], set[str]]:
        """Plan, then run; holds the plan to its word and gives it with what ran."""
        plan = {each["stage"]: each for each in self.ask("plan", *more)["stages"]}
        result = self.ask("run", *more)
        ran = set(result["ran"])
        assert result["stages"] == {"ran": len(ran), "cached": len(plan) - len(ran)}
        assert {name for name, each in plan.items() if each["state"] == "will run"} <= ran
        assert not {name for name, each in plan.items() if each["state"] == "cached"} & ran
        return plan, ran

    def states(self) -> set[str]:
        """Those of the stages, as a plan tells them."""
        return {each["state"] for each in self.ask("plan")["stages"]}

    def results(self) -> dict[str, Any]:
        """results.json of the latest run."""
        latest = self.data / "reports" / "tiny" / "latest" / "results.json"
        return json.loads(latest.read_text())


def _no_bytecode(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def write_digits(folder: Path, classes: int, per_class: int) -> None:
    """The first of scikit-learn's digits as PNG class folders, a quarter of them for testing."""
    digits = load_digits()
    for label in range(classes):
        images = digits.images[digits.target == label][:per_class]
        for number, image in enumerate(images):
            split = "testing" if number % 4 == 0 else "training"
            path = folder / split / str(label) / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer, shell: Shell
) -> Project:
    """A scratch project that has run once."""
    project = Project(tmp_path_factory.mktemp("project"), prefect_server.environment, shell)
    write_digits(project.images, classes=3, per_class=40)
    first = project.ask("run")
    assert first["stages"] == {"ran": 23, "cached": 0}
    return project


@pytest.fixture(autouse=True)
def as_it_was(project: Project) -> Iterator[None]:
    """Each test finds the sources, the recipes and the images as the first one did."""
    folders = [project.root / "flows", project.root / "tasks", project.images]
    files = [path for each in folders for path in each.rglob("*.*") if path.is_file()]
    before = {path: path.read_bytes() for path in [project.recipes, *files]}
    yield
    for path, data in before.items():
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


def accuracies(results: dict[str, Any]) -> Any:
    """What a run found out, without when and how fast."""
    rungs = [
        {
            key: rung[key]
            for key in ("label", "testing_accuracy", "per_class", "confusion", "history")
        }
        for rung in results["rungs"]
    ]
    return results["baselines"], rungs, results["dataset"]


def test_a_second_run_computes_nothing(project: Project) -> None:
    """The same again is all cached, starts no flow, and leaves the report as it was."""
    before = project.results()
    plan, ran = project.plan_and_run()
    assert ran == set()
    assert {each["state"] for each in plan.values()} == {"cached"}
    assert list((project.data / "cache" / "quick").iterdir()), "the next one takes the short cut"
    after = project.results()
    assert accuracies(after) == accuracies(before)
    assert [rung["cached"] for rung in after["rungs"]] == [True, True, True]


def test_a_plan_at_a_glance_says_what_the_plan_itself_says(project: Project) -> None:
    """To the letter: all that its table shows, too.  What is to run anew is never looked at so."""
    project.ask("run")
    at_a_glance = project.ask("plan")
    memories = [*(project.data / "cache" / "quick").iterdir()]
    for path in memories:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"stages": {"remembered": 7.0}}))
    remembered = {"stage": "remembered", "state": "cached", "why": [], "seconds": 7.0}
    assert project.ask("plan") == {"stages": [remembered]}, "it was the memory that answered"
    assert len(project.ask("plan", "--refresh", LINEAR)["stages"]) == 23
    for path in memories:
        path.unlink()
    assert project.ask("plan") == at_a_glance


def test_another_lr_trains_that_recipe_alone(project: Project) -> None:
    text = project.recipes.read_text()
    project.recipes.write_text(text.replace("lr = 1.0", "lr = 0.5"))
    plan, ran = project.plan_and_run()
    assert ran == {*rung(LINEAR), "report"}
    assert plan[LINEAR]["why"] == ["lr 1.0 -> 0.5"]
    project.recipes.write_text(text)
    assert project.ask("run")["ran"] == [], "going back finds everything stored"


def test_more_epochs_go_on_from_what_is_stored(project: Project) -> None:
    """Epochs 2 -> 3 under a constant lr trains one epoch, to the bits of three from scratch.

    Which `--refresh` trains, and with it all else that it names; the report stands.
    """
    text = project.recipes.read_text()
    longer = text.replace("epochs = 2\nlr = 1.0", "epochs = 3\nlr = 1.0")
    project.recipes.write_text(longer)
    plan, ran = project.plan_and_run()
    assert ran == {*rung(LINEAR), "report"}
    assert plan[LINEAR]["why"] == ["epochs 2 -> 3", "goes on from epoch 2"]
    resumed = accuracies(project.results())
    _plan, ran = project.plan_and_run("--refresh", "train[linear, *")
    assert ran == {LINEAR, SOFTMAX}, "what it names, and what comes out is the same"
    assert accuracies(project.results()) == resumed, "from scratch it is the same to the bit"


def test_cosmetic_edits_run_nothing(project: Project) -> None:
    """A comment, a docstring and white space in every chapter reach no stage."""
    sources = {path: path.read_text() for path in (project.root / "tasks").glob("[!c]*/*.py")}
    for path, source in sources.items():
        path.write_text(source.replace('"""', '"""Edited. ', 1) + "\n\n\n# a comment at the end\n")
    assert len(sources) > 9
    assert project.states() == {"cached"}


def test_a_helper_of_one_loss_reaches_the_trainings_with_that_loss(project: Project) -> None:
    """An edit two calls below softmax_mse runs it again, names the helper, and nothing else."""
    source = (project.root / "tasks/rungs/losses.py").read_text()
    (project.root / "tasks/rungs/losses.py").write_text(
        source
        + "\n\ndef _twice_below(x):\n    return x\n"
        + "\n\ndef _below(x):\n    return _twice_below(x)\n"
    )
    said = "logits.detach().t().softmax(0)"
    project.replace("tasks/rungs/losses.py", said, f"_below({said})")
    assert SOFTMAX in project.ask("run")["ran"]
    project.replace(
        "tasks/rungs/losses.py",
        "def _twice_below(x):\n    return x",
        "def _twice_below(x):\n    return 1 * x",
    )
    plan, ran = project.plan_and_run()
    assert plan[SOFTMAX]["why"] == ["tasks.rungs.losses._twice_below changed"]
    assert ran == {SOFTMAX}, "the same weights come out, so the report stands"


def test_a_changed_image_reaches_what_is_made_of_it(project: Project) -> None:
    """One PNG of training/2: its decode, its mean, the baselines, the trainings, the report."""
    path = next((project.images / "training" / "2").iterdir())
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)
    plan, ran = project.plan_and_run()
    assert plan["decode[training/2]"]["why"] == [f"training/2: 1 changed ({path.name})"]
    assert plan["mean[2]"]["state"] == "may run"
    assert plan["mean[2]"]["why"] == ["waits for decode[training/2]"]
    expected = {
        "decode[training/2]",
        "mean[2]",
        "baseline[mae]",
        "baseline[mse]",
        "familiar",
        "twins",
        "report",
    }
    assert ran == expected.union(*map(rung, RUNGS))


def test_the_same_pixels_in_other_bytes_are_decoded_and_no_more(project: Project) -> None:
    path = next((project.images / "training" / "1").iterdir())
    image = Image.open(path)
    image.load()
    image.save(path, compress_level=0)
    assert project.plan_and_run()[1] == {"decode[training/1]"}


def test_an_added_model_runs_its_own_training_alone(project: Project) -> None:
    project.replace(
        "tasks/rungs/models.py",
        "MODELS = Registry(\n    {",
        "def wide(shape, classes):\n    return mlp(shape, classes)\n\n\n"
        'MODELS = Registry(\n    {\n    "wide": wide,',
    )
    added = '\n[[recipe]]\nmodel = "wide"\nloss = "cross_entropy"\nepochs = 1\n'
    project.recipes.write_text(RECIPES + added)
    plan, ran = project.plan_and_run()
    assert ran == {*rung("train[wide, cross_entropy, seed 0]"), "report"}
    assert plan["train[wide, cross_entropy, seed 0]"]["why"] == ["has not run before"]


def test_damage_is_set_aside_and_computed_again(project: Project) -> None:
    """Deleted, cut, flipped and foreign files: a warning each, and the same results."""
    project.ask("run")
    before = accuracies(project.results())
    cache = project.data / "cache"
    stacks = sorted((cache / "files").glob("*.arrow"))
    weights = sorted((cache / "files").glob("*.safetensors"))
    records = sorted((cache / "records" / "train").glob("*.json"))
    stacks[0].unlink()
    stacks[1].write_bytes(stacks[1].read_bytes()[:-9])
    for path in (stacks[2], weights[0]):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    weights[1].write_bytes(b"\x80\x04N.")  # a pickle
    for path in records:
        path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    done = project.stepladder("run", "tiny", "--recipes", "recipes.toml")
    assert "set aside and computed again" in done.stderr
    assert accuracies(project.results()) == before
    assert project.states() == {"cached"}


def test_every_cached_file_can_be_lost(project: Project) -> None:
    """Whatever single file of the cache is deleted, the plan says so instead of failing."""
    files = [path for path in (project.data / "cache").rglob("*") if path.is_file()]
    assert len(files) > 30
    project.ask("run")
    before = accuracies(project.results())
    for path in files:
        path.unlink()
    project.ask("run")
    assert accuracies(project.results()) == before


def test_a_deleted_report_is_restored_without_computing(project: Project) -> None:
    shutil.rmtree(project.data / "reports")
    done = project.ask("run")
    assert done["stages"]["ran"] == 0
    assert Path(done["report"]).read_text().startswith("<!doctype html>")
    assert json.loads(Path(done["results"]).read_text())["dataset"]["name"] == "tiny"


def test_a_damaged_image_fails_by_name_and_keeps_the_rest(project: Project) -> None:
    path = next((project.images / "testing" / "0").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    done = project.stepladder("run", "tiny", "--recipes", "recipes.toml", ok=False)
    assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    path.write_bytes(whole)
    assert project.states() == {"cached"}


def test_colour_images_with_word_classes_climb_too(project: Project) -> None:
    """RGB, 12x10, PNG and JPEG mixed, classes with spaces and accents: from decode to report."""
    random = np.random.default_rng(0)
    for label, colour in (("grüne Äpfel", 1), ("red <b>berries", 0), ("skies", 2)):
        for number in range(24):
            split = "testing" if number % 4 == 0 else "training"
            pixels = random.integers(0, 90, (12, 10, 3), dtype=np.uint8)
            pixels[..., colour] += 120
            suffix = "jpg" if number % 5 == 0 else "png"
            path = project.data / "colours" / split / label / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    done = json.loads(project.stepladder("run", "colours", "--epochs", "2", "--json").stdout)
    results = json.loads(Path(done["results"]).read_text())
    assert results["dataset"]["shape"] == [12, 10, 3]
    assert results["dataset"]["classes"] == ["grüne Äpfel", "red <b>berries", "skies"]
    assert [each["accuracy"] for each in results["baselines"]] == [1.0, 1.0, 1 / 3]
    flips = [rung["recipe"]["flip"] for rung in results["rungs"]]
    assert flips in ([True] * 3, [False] * 3), "they ask one trial whether to mirror"
    assert {"train[mirror trial]", "mirror"} <= {*done["ran"]}
    assert "<b>berries" not in Path(done["report"]).read_text()


def test_a_deployment_runs_on_a_worker_and_its_schedule_fires(project: Project) -> None:
    """`prefect deployment run ladder/sample`, then a schedule, on a real server and worker.

    The scheduler makes the second run, which finds all cached.
    """

    def prefect(*arguments: str) -> None:
        line = ["--no-prompt", *arguments]
        done = project.shell.run(line, project.root, project.environment, "prefect")
        assert done.returncode == 0, done.stdout + done.stderr

    # Other images than the rest of this file: equal ones would be found in the cache already.
    write_digits(project.data / "sample", classes=3, per_class=24)
    prefect("work-pool", "create", "stepladder", "--type", "process")
    prefect("deploy", "--all")
    url = project.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}):
        assert limited("train") == set()
        prefect("concurrency-limit", "create", "train", "1")
        assert limited("train") == {"train"}
    worker = subprocess.Popen(
        leashed("worker", "start", "--pool", "stepladder"), stdin=subprocess.PIPE,
        cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        request = ["-p", 'only="linear*"', "-p", "epochs=2", "-p", 'which="post"', "--watch"]
        prefect("deployment", "run", "ladder/sample", *request)
        _let_a_schedule_fire(url, {"only": "linear*", "epochs": 2, "which": "post"})
    finally:
        worker.terminate()
        try:
            worker.communicate(timeout=30)
        except subprocess.TimeoutExpired:  # which Prefect's now and then does not hear of
            worker.kill()
            worker.communicate()

    _insist_on_status(project)
    flow_runs = post(f"{url}/flow_runs/filter", {"sort": "START_TIME_ASC", **_COMPLETED})[-2:]
    assert [run["auto_scheduled"] for run in flow_runs] == [False, True]
    tasks = [post(f"{url}/task_runs/filter", _of_flow_run(run["id"])) for run in flow_runs]
    states = [[task["state"]["name"] for task in each] for each in tasks]
    assert len(states[0]) == len(states[1]) == 6 + 3 + 2 + 1 + 3 * 3 + 1 + 1
    assert set(states[0]) == {"Completed"}
    assert set(states[1]) == {"Cached"}
    names = {task["name"]: task["tags"] for task in tasks[1]}
    assert names["train linear, cross_entropy, seed 0"] == ["train"]
    assert names["decode training/2"] == []
    trainings = sorted(
        (task["start_time"], task["end_time"]) for task in tasks[0] if task["tags"] == ["train"]
    )
    assert len(trainings) == 3
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(trainings))
    assert {*flow_runs[1]["tags"]} >= {"stepladder", "sample"}
    shown = post(f"{url}/artifacts/filter", _of_flow_run(flow_runs[0]["id"]))
    assert {each["key"] for each in shown if each["key"]} == {
        "plan-sample", "graph-sample", "report-sample", "ladder-sample", "stages-sample",
    }  # fmt: skip
    plan = next(json.loads(each["data"]) for each in shown if each["key"] == "plan-sample")
    assert {(row["state"], row["why"]) for row in plan} >= {
        ("will run", "has not run before"), ("may run", "waits for decode[training/0]"),
    }  # fmt: skip
    latest = project.data / "reports" / "sample" / "latest" / "results.json"
    command = json.loads(latest.read_text())["environment"]["command"]
    assert command == "stepladder run sample --epochs 2 --only 'linear*' --ladder post"


def _insist_on_status(project: Project) -> None:
    """`stepladder status` tells what is deployed, when it runs next, how the last runs ended."""
    told = json.loads(project.stepladder("status", "--json").stdout)
    deployed = {each["name"]: each for each in told["deployments"]}
    assert {*deployed} >= {"ladder/mnist", "ladder/sample", "predict/mnist", "predict/sample"}
    assert "0 2 * * * UTC" in deployed["ladder/mnist"]["schedules"]
    assert deployed["ladder/mnist"]["next"]
    sample = deployed["ladder/sample"]
    # On a slow machine the schedule may have fired once more, just when the worker ended.
    ended = [run for run in sample["last"] if run["state"] == "Completed"]
    assert len(ended) == 2
    assert all(run["seconds"] > 0 for run in ended)
    assert told["workers"]["stepladder"]
    lines = project.stepladder("status").stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")][:2] == [
        "ladder/mnist", "ladder/sample",
    ]  # fmt: skip
    assert "workers of stepladder: " in lines[-1]


_COMPLETED = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}


def _let_a_schedule_fire(url: str, parameters: dict[str, Any]) -> None:
    """Give ladder/sample a schedule, every 20 s from 2 s on, until one of its runs completes."""
    [deployment] = post(
        f"{url}/deployments/filter",
        {"deployments": {"name": {"any_": ["sample"]}}, "flows": {"name": {"any_": ["ladder"]}}},
    )
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    schedule = {
        "schedule": {"interval": 20, "anchor_date": start.isoformat()},
        "active": True,
        "parameters": parameters,
    }
    schedules = f"{url}/deployments/{deployment['id']}/schedules"
    [made] = post(schedules, [schedule])
    deadline = time.monotonic() + 180
    while not [run for run in post(f"{url}/flow_runs/filter", _COMPLETED) if run["auto_scheduled"]]:
        assert time.monotonic() < deadline, "no run of the schedule completes"
        time.sleep(0.3)
    request = urllib.request.Request(f"{schedules}/{made['id']}", method="DELETE")
    urllib.request.urlopen(request, timeout=30).close()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"epochs": 10**9}, "epochs: 1000000000 is not a whole number from 1 to 10,000"),
        ({"epochs": "three", "recipes": [{}] * 900}, "recipes: recipe 1"),
        ({"size": [0, 0]}, "size: [0, 0] is not [height, width]"),
        ({"size": [100_000, 100_000]}, "size: [100000, 100000] is not [height, width]"),
        ({"dataset": ""}, "'' names no dataset"),
        ({"dataset": "x" * 5000}, "(5,000 characters) is not a dataset's name or path"),
        ({"dataset": "two\nlines"}, "no dataset 'two\\nlines'"),
        ({"refresh": ["trian*"]}, "--refresh 'trian*' matches no stage"),
    ],
)
def test_a_flow_run_that_cannot_be_fails_in_one_short_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], words: str
) -> None:
    """What a form or `deployment run -p` asks for makes its state say why, and trains nothing."""
    monkeypatch.setenv("STEPLADDER_DATA", str(project.data))
    url = project.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}):
        state = ladder(**{"dataset": "tiny", **parameters}, return_state=True)
    assert state.is_failed()
    assert words in state.message
    assert len(state.message) < 400
    assert "\n" not in state.message


def _of_flow_run(identity: str) -> dict[str, Any]:
    return {"flow_runs": {"id": {"any_": [identity]}}}
