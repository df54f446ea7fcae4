"""The cores that there are (affinity, control groups, OMP_NUM_THREADS), and who has them when."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.caching import cores as claims
from tasks.caching.basics import StoppedError
from tasks.caching.bodies import Cores
from tasks.caching.machine import available_cores, core_numbers

ROOT = Path(__file__).resolve().parents[1]
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 {} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores."""
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def machine(folder: Path, group: str, mounts: str, files: dict[str, str]) -> Path:
    """A root with these files below /sys/fs/cgroup, and what /proc says of this process."""
    proc = folder / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(group)
    (proc / "mountinfo").write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n{mounts}\n")
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("50000 100000", 1),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("1600000 100000", 8),
        ("100 0", 8),
        ("", 8),
        ("nonsense", 8),
        ("1 2 3", 8),
        ("inf 100000", 8),
        ("nan 100000", 8),
        ("-1 100000", 8),
    ],
)
def test_a_quota_of_version_2_counts_whole_cores(tmp_path, quota, expected) -> None:
    """In a container its own group is the topmost; half a core is one, and never two."""
    root = machine(tmp_path, "0::/\n", V2, {"cpu.max": f"{quota}\n"})
    assert available_cores(root) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("50000", "100000", 1), ("300000", "100000", 3), ("9", "0", 8)],
)
def test_a_quota_of_version_1_counts_whole_cores(tmp_path, quota, period, expected) -> None:
    """A container whose group lies elsewhere in the hierarchy than its mount says finds it too."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": f"{quota}\n",
        "cpu,cpuacct/cpu.cfs_period_us": f"{period}\n",
        "memory/cpu.cfs_quota_us": "1\n",
        "memory/cpu.cfs_period_us": "100000\n",
    }
    group = "5:memory:/\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"
    root = machine(tmp_path, group, f"{MEMORY}\n{V1.format('/docker/1f')}", files)
    assert available_cores(root) == expected


@pytest.mark.parametrize("strictest", ["", "user.slice/", "user.slice/a b/", "user.slice/a b/c/"])
def test_the_strictest_of_nested_groups_counts(tmp_path, strictest) -> None:
    groups = ["user.slice/", "user.slice/a b/", "user.slice/a b/c/"]
    files = {f"{each}cpu.max": "400000 100000" for each in groups}
    files[f"{strictest}cpu.max"] = "200000 100000"
    files["elsewhere/cpu.max"] = "100000 100000"
    root = machine(tmp_path, "0::/user.slice/a b/c\n", V2, files)
    assert available_cores(root) == 2


def test_what_cannot_be_read_limits_nothing(tmp_path) -> None:
    """No /proc, no mount, files that are folders or not text, a group outside the mount."""
    assert available_cores(tmp_path / "nowhere") == 8
    root = machine(tmp_path, "0::/../..\nnonsense\n", f"short - cgroup2\n- \n\n{V2}", {})
    (root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert available_cores(root) == 8
    (root / "proc/self/cgroup").write_bytes(b"\xff\xfe0::/")
    assert available_cores(root) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("3", 3), ("1", 1), ("4,2", 4), (" 2 ", 2), ("64", 8)),
        *(("0", 8), ("-1", 8), ("abc", 8), ("", 8), (",3", 8), ("1.5", 8), ("²", 8)),
    ],
)
def test_omp_num_threads_limits_where_it_makes_sense(monkeypatch, tmp_path, text, expected) -> None:
    """A list is of nested levels, of which the first is ours."""
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert available_cores(tmp_path) == expected


def test_affinity_counts_and_what_cannot_say_it_counts_all(monkeypatch, tmp_path) -> None:
    """Python 3.13 knows a limit of its own; macOS has no affinity."""
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5})
    assert available_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores(tmp_path) == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert available_cores(tmp_path) == 5


SOURCES = [*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").glob("*.py")]
NAMES = """
    sched_getaffinity sched_setaffinity sched_getscheduler posix_fadvise posix_fallocate fdatasync
    memfd_create eventfd timerfd_create pidfd_open pidfd_send_signal copy_file_range splice
    getrandom pipe2 getxattr setxattr listxattr removexattr prlimit unshare setns getresuid
    O_DIRECT O_PATH O_TMPFILE O_NOATIME O_LARGEFILE MAP_POPULATE MADV_DONTFORK MADV_HUGEPAGE
    sigtimedwait sigwaitinfo SIGRTMIN SIGPWR F_SETPIPE_SZ F_OFD_SETLK F_OFD_SETLKW F_ADD_SEALS
    SO_PEERCRED MSG_NOSIGNAL AF_NETLINK CLOCK_BOOTTIME RUSAGE_THREAD epoll PR_SET_PDEATHSIG
"""
LINUX_ONLY = set(NAMES.split())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_name_that_only_linux_has(path) -> None:
    """Else the program would not start on macOS; `machine` asks whether there is an affinity."""
    nodes = ast.walk(ast.parse(path.read_text()))
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not named & LINUX_ONLY
    assert "cpu_count" not in named or path.name == "machine.py"  # which all others ask


def test_the_engine_starts_where_there_is_no_affinity() -> None:
    """It is imported with the calls taken away that macOS does not have."""
    code = (
        f"import os; [delattr(os, name) for name in {LINUX_ONLY} if hasattr(os, name)]; "
        "import tasks.caching.process as process; process.keep_freed_memory(); "
        "assert process.CORES.total == (os.cpu_count() or 1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_cores_are_told_apart_by_number(monkeypatch, tmp_path) -> None:
    """Two processes that are bound to different cores do not wait for each other."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {7, 3, 5})
    assert core_numbers(tmp_path) == [3, 5, 7]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert core_numbers(tmp_path) == [3, 5, 7]
    assert available_cores(tmp_path) == 1


# Cores that processes share

HOLDER = """
import sys
from tasks.caching.bodies import Cores
cores = Cores(2, [int(each) for each in sys.argv[2:]])
for _line in iter(sys.stdin.readline, ""):
    with cores.hold(int(sys.argv[1]), 0) as held:
        print(held, flush=True)
        sys.stdin.readline()
    print("gave back", flush=True)
"""


class Other:
    """Another process, which holds cores when it is told to."""

    def __init__(self, temporary: Path, wanted: int, *numbers: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(wanted), *map(str, numbers)],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self) -> None:
        """Have it ask for its cores, or give them back."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def says(self) -> str:
        """What it says next: how many cores it holds, or that it gave them back."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Other]]:
    """Starts others that share this test's cores, of which there are three: 1, 2 and 3."""
    monkeypatch.setattr(claims, "usual_folder", lambda: tmp_path / f"stepladder-{os.getuid()}")
    started: list[Other] = []

    def start(wanted: int, *numbers: int) -> Other:
        started.append(Other(tmp_path, wanted, *(numbers or (1, 2, 3))))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def is_granted(wanted: int, *numbers: int, looks: int = 20) -> bool:
    """Whether this process gets so many of these cores, looking a few times."""
    left = iter(range(looks))
    with contextlib.suppress(StoppedError):
        hold = Cores(3, numbers or (1, 2, 3)).hold(wanted, 0, lambda: next(left, None) is None)
        with hold as held:
            return held == wanted
    return False


def test_two_processes_have_no_core_at_once(other: Callable[..., Other]) -> None:
    """What one holds the other waits for; it gets the rest, and all when the first gives back."""
    first = other(2)
    first.ask()
    assert first.says() == "2"
    assert is_granted(1)
    assert not is_granted(2)
    assert is_granted(2, 8, 9), "on cores of its own it does not wait"
    first.ask()
    assert first.says() == "gave back"
    assert is_granted(3)


def test_a_killed_holder_blocks_nobody(other: Callable[..., Other]) -> None:
    """Neither what it held nor its place in the line."""
    first, second = other(2), other(2)
    first.ask()
    assert first.says() == "2"
    second.ask()  # and waits
    for each in (second, first):
        each.process.kill()
        each.process.wait()
    assert is_granted(3, looks=200)


def test_who_waits_comes_before_who_had_them_last(other: Callable[..., Other]) -> None:
    """A run of many long stages does not take all the cores that it gives back again."""
    cores, order = Cores(2, (1, 2)), []
    waiting = other(2, 1, 2)

    def again() -> None:
        with cores.hold(2, 0):
            order.append("again")

    with cores.hold(2, 0):
        waiting.ask()
        deadline = time.monotonic() + 30
        while (turn := claims._lock("turn-2")) is not None:
            os.close(turn)
            assert time.monotonic() < deadline, "it takes no place in the line"
            time.sleep(0.01)
    thread = threading.Thread(target=again)
    thread.start()
    assert waiting.says() == "2"
    assert order == [], "it took them again at once"
    waiting.ask()
    thread.join(30)
    assert order == ["again"]


def test_who_waits_for_other_runs_says_so_once(
    other: Callable[..., Other],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not where the run's own stages have the cores, which its display shows."""
    monkeypatch.setattr("tasks.caching.bodies._PATIENCE", 0.05)
    first, cores = other(2), Cores(3, (1, 2, 3))
    first.ask()
    assert first.says() == "2"
    left = iter(range(40))

    def ask(wanted: int) -> None:
        with (
            contextlib.suppress(StoppedError),
            cores.hold(wanted, 0, lambda: not next(left, 0)),
        ):
            assert wanted == 1

    with cores.hold(1, 0):
        ask(3)
    assert not caplog.records
    left = iter(range(1, 20))
    ask(3)
    left = iter(range(1, 20))
    ask(3)
    said = [each.getMessage() for each in caplog.records]
    assert said == ["stepladder: waiting for cores that other runs on this machine use"]


@pytest.mark.parametrize("fault", ["link", "file", "no locks", "no folder"])
def test_where_there_are_no_locks_nobody_waits(
    other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    """Nor is anything believed that another user may have put in the folder's place."""
    first = other(2)
    first.ask()
    assert first.says() == "2"
    folder = tmp_path / f"stepladder-{os.getuid()}"
    if fault in ("link", "file"):
        folder.rename(tmp_path / "moved")
    if fault == "link":
        folder.symlink_to(tmp_path / "moved")
    if fault == "file":
        folder.touch()
    if fault == "no folder":
        monkeypatch.setattr(claims, "usual_folder", lambda: tmp_path / "gone" / "cores")
    if fault == "no locks":

        def refused(*_call: Any) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refused)
    assert is_granted(3)
