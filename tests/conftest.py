"""Data that several chapters' tests share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from prefect_server import PrefectServer
from shell import Shell

from tasks.caching import cores
from tasks.images.fetch import fetch

MNIST = Path(__file__).parents[2] / "shared" / "mnist_png.tgz"
MNIST_SHA256 = "b9ddb3f9e8d8ec92b0771df035e9bb4bf7b447bff3b0a5bcb7d97d0256a6f599"

SHARED = ("prefect_server", "mnist")  # fixtures of which one must do for the whole suite
LONG = (  # files
    "test_train", "test_faults", "test_plan", "test_serve", "test_truth", "test_export",
    "test_server", "test_together",
)  # fmt: skip


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the faults' tests have counted, after `make faults`."""
    if os.environ.get("STEPLADDER_FAULTS") != "full":
        return
    from climbing import FIGURES

    columns = ("rounds", "wrong", "crashes", "slowest ms")
    rows = [("fault", *columns)]
    for name, counts in FIGURES.items():
        others = ", ".join(f"{counts[each]} {each}" for each in counts if each not in columns)
        slowest = str(counts["slowest ms"] or "")
        rows.append((name, *(str(counts[each]) for each in columns[:3]), slowest, others))
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        terminalreporter.write_line("  ".join([name.ljust(width), *(f"{c:>10}" for c in cells)]))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a fixture that takes long; begin with the longest of them.

    Elsewhere a file's tests stay together, which share smaller ones.
    """
    for item in items:
        shared = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group((shared or [item.path.stem])[0]))
    order = [*SHARED, *LONG]

    def rank(item: pytest.Item) -> int:
        group = item.get_closest_marker("xdist_group")
        return order.index(group.args[0]) if group.args[0] in order else len(order)

    # A worker that is killed, as some tests do, now and then leaves a connection of the server's to
    # its database locked: the one that needs the most of it comes first.
    items.sort(key=lambda item: (rank(item), "a_deployment_runs_on_a_worker" not in item.name))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name no test by a file's bytes, which may hold the time: each process would name another."""
    return "bytes" if isinstance(val, bytes) else None


@contextlib.contextmanager
def memory(root: Path = Path("/dev/shm")) -> Iterator[Path]:
    """A folder in memory, where there is one with room: a disk that is busy can take minutes.

    What killed tests have left there goes first, whose lock nobody holds any more.
    """
    for left in root.glob("stepladder-tests-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 60:  # else it may be about to be locked
                os.close(locked(left))
                shutil.rmtree(left)
    roomy = os.access(root, os.W_OK) and shutil.disk_usage(root).free > 2e9
    with tempfile.TemporaryDirectory("", "stepladder-tests-", root if roomy else None) as folder:
        lock = locked(Path(folder))
        try:
            yield Path(folder)
        finally:
            os.close(lock)


def locked(folder: Path) -> int:
    """A descriptor that holds a folder's lock.  Raises OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@pytest.fixture(scope="session", autouse=True)
def cores_of_its_own() -> Iterator[None]:
    """No test waits for cores that another test, or who works here, has."""
    with memory() as folder, mock.patch.object(cores, "usual_folder", return_value=folder):
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[PrefectServer]:
    """The one Prefect server of all tests that need one."""
    with memory() as home:
        server = PrefectServer(home)
        try:
            server.wait()
            yield server
        finally:
            server.close()
        assert server.new_errors() == []


@pytest.fixture(autouse=True)
def no_server_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test has passed whose Prefect server has logged an error meanwhile."""
    yield
    if "prefect_server" in request.fixturenames:
        assert request.getfixturevalue("prefect_server").new_errors() == []


@pytest.fixture(scope="session")
def shell(prefect_server: PrefectServer) -> Iterator[Shell]:
    """Where command lines start without importing torch and Prefect first."""
    shell = Shell(prefect_server.environment)
    yield shell
    shell.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch's threads fight over busy cores; here one is enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist() -> Iterator[Path]:
    """MNIST's 70,000 files, unpacked once; not to be written to."""
    if not MNIST.is_file():
        pytest.skip(f"{MNIST} is not there")
    with memory() as folder:
        yield fetch("mnist", folder, str(MNIST), MNIST_SHA256)


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small dataset of random images and returns its folder."""

    def write(
        classes: tuple[str, ...] = ("cat", "dog"),
        count: int = 3,
        shape: tuple[int, ...] = (6, 5),
        name: str = "animals",
        splits: tuple[str, str] = ("training", "testing"),
    ) -> Path:
        generator = np.random.default_rng(0)
        for split in splits:
            for label in classes:
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, shape, np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path / name

    return write
