"""What this machine is and grants one process: processor, cores, memory, open files, a GPU.

As the kernel, its control groups and the user's own limits have it.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import platform
import re
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.caching.basics import LadderError, cache_root, unwritable

LARGE = 64_000_000  # bytes: less is held in memory without asking how much there is
# The files of a control group's limit and of what it uses, and what of that it can do without
_VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_LIVE = ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph")  # others may write to these
# Of these instructions a processor's widest; and what makes libraries use others
_WIDE = ("avx512f", "avx2", "avx", "sve", "asimd")
_FORCING = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
            "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # fmt: skip
_MOST = 65_536  # open files; more are of no use, and some libraries walk through all that may be
_LEAST = 128  # what a run and Prefect's client hold open beside each other, and some to spare

# Cores


def available_cores(root: Path = Path("/")) -> int:
    """Cores to use, at least 1: the least that affinity, cgroup quotas and OMP_NUM_THREADS allow.

    Python's own limit (PYTHON_CPU_COUNT, from 3.13 on) counts as affinity does.  `root` is where
    /proc and /sys are.
    """
    return min([len(core_numbers(root)), *_omp_num_threads()])


def core_numbers(root: Path = Path("/")) -> list[int]:
    """The numbers of the cores that affinity and cgroup quotas allow, at least one."""
    quotas = [int(quota) for quota in _quotas(root)]  # of 2.5 cores, 2 never have to wait
    return _schedulable()[: max(1, min(quotas, default=1 << 20))]


def _schedulable() -> list[int]:
    """The cores that this process may be scheduled on; macOS cannot say, and counts all."""
    affinity = getattr(os, "sched_getaffinity", None)
    numbers = sorted(affinity(0)) if affinity else [*range(os.cpu_count() or 1)]
    count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
    return [*numbers, *range(len(numbers), most)][:most] if count and (most := count()) else numbers


def _omp_num_threads() -> list[int]:
    """OMP_NUM_THREADS as OpenMP reads it, the first of a list; nothing where it makes no sense."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return [int(first)] if first.isascii() and first.isdigit() and int(first) else []


def _quotas(root: Path) -> Iterator[float]:
    """The cores' worth of time of each control group that this process is in."""
    for folder in groups("cpu", root):
        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """What a group may use, in cores; nothing where it is not limited or cannot be read."""
    version_2 = _text(folder / "cpu.max")  # "max 100000", "50000 100000"
    version_1 = _text(folder / "cpu.cfs_quota_us") + " " + _text(folder / "cpu.cfs_period_us")
    for pair in (version_2.split(), version_1.split()):
        with contextlib.suppress(ValueError):
            quota, period = map(int, pair)
            if quota > 0 and period > 0:  # -1 is no limit
                yield quota / period


# Processor


def processor(root: Path = Path("/")) -> str:
    """Of what vendor the processor is, and what could make libraries choose among its ways.

    Cheap to ask: no torch.  `root` is where /proc is.
    """
    try:
        with (root / "proc/cpuinfo").open() as file:
            first = file.read(8192).partition("\n\n")[0]  # of many cores, one
    except (OSError, ValueError):
        first = ""
    said = dict(re.findall(r"^(vendor_id|CPU implementer|flags|Features)\s*: *(.*)$", first, re.M))
    vendor = said.get("vendor_id") or said.get("CPU implementer") or platform.machine()
    have = {*(said.get("flags") or said.get("Features") or "").split()}
    wide = [flag for flag in _WIDE if flag in have][:1]
    forced = [f"{name}={os.environ[name]}" for name in _FORCING if os.environ.get(name)]
    return " ".join([vendor, *wide, *forced])


@functools.cache
def arithmetic() -> str:
    """The class of processors among which the same sums give the same bits.

    Same vendor, whose libraries choose by it, and the same instructions for torch to choose from.
    """
    import torch

    return f"{processor()} (torch: {torch.backends.cpu.get_cpu_capability()})"


# Memory


def on_disk(size: int) -> mmap.mmap:
    """So many bytes to write to, in a file without a name beside the cache.

    The system writes pages of it out where memory is short, and it is gone when nobody holds it.
    Raises LadderError where the disk has no room for it.
    """
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for start in range(0, size, LARGE):  # a full disk would kill who writes to a mapping
                file.write(bytes(min(LARGE, size - start)))
            file.flush()
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise unwritable(folder, error) from error


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: what is free, within its limits.

    `root` is where /proc and /sys are.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    free = re.search(r"MemAvailable: *(\d+) kB", _text(root / "proc/meminfo"))
    limits = [int(free[1]) * 1024 if free else os.sysconf("SC_PHYS_PAGES") * page]
    for folder in groups("memory", root):
        limits += _left(folder)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - int((_text(root / "proc/self/statm") or "0").split()[0]) * page)
    return max(0, min(limits))


def _left(folder: Path) -> Iterator[int]:
    """What a control group may still take; nothing where it has no limit.

    What it has read of files counts as used, and is given up when memory is wanted.
    """
    for limit, usage, cached in _VERSIONS:
        most = _text(folder / limit).strip()
        if most.isdigit():
            found = re.search(rf"^{cached} (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
            yield int(most) - int(_text(folder / usage) or 0) + (int(found[1]) if found else 0)


# Open files


def raise_limit() -> int:
    """Let this process and those it starts open as many files as may be; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST if soft == resource.RLIM_INFINITY else soft
    for limit in (wanted, 10_240):  # macOS has a limit of its own below the hard one
        if soft < limit:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return limit
    return soft


def threads() -> int:
    """How many threads may wait for a stage each: with its lock, and Prefect's pipes and sockets.

    Where Prefect's threads are refused a file, they end, and who waits for them waits for good.
    """
    return max(16, min(256, (raise_limit() - 64) // 4))


def insist_on_open_files() -> None:
    """See that a run can open what it needs.  Raises LadderError."""
    if (limit := raise_limit()) < _LEAST:
        raise LadderError(
            f"at most {limit} files may be open here, a run needs {_LEAST}: `ulimit -n 1024`"
        )


# File systems


def stat_tells(folder: Path, root: Path = Path("/")) -> bool:
    """Whether a file that is changed in a folder has another stat.

    Not where an image that nobody can write to may have been mounted in place of another: its
    times are what its maker liked.  Raises OSError.
    """
    if not os.statvfs(folder).f_flag & os.ST_RDONLY:
        return True
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number] and (said := after.split()):
            # Read-only may be this view alone, as of a container's volume, or this machine's.
            return said[0] in _LIVE or "rw" in said[-1].split(",")
    return False


def disk_of(folder: Path) -> int:
    """The number of the disk that a folder lies on; 0 where it is another with each mount.

    Raises OSError.
    """
    device = folder.stat().st_dev
    return device if os.major(device) else 0


# Control groups


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of the control groups that this process is in, each up to the topmost.

    controller: what they are to control where there is a hierarchy for each: cpu, memory.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        # "0::/user.slice" of version 2, "3:cpu,cpuacct:/docker/1f" of version 1
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers or controller in controllers.split(","):
            for mount, top in _mounts(root, controller if controllers else ""):
                yield from _upward(mount, top, path)


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """Where the hierarchy of a controller, or of all, is mounted, and which of its groups is."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(), after.split()[:1], after.split()[-1:]
        if len(fields) < 5 or kind != ["cgroup" if controller else "cgroup2"]:
            continue
        if not controller or controller in options[0].split(","):
            yield root / fields[4].lstrip("/"), fields[3]


def _upward(mount: Path, top: str, path: str) -> Iterator[Path]:
    """The folders of a group and of those it is in, as far as they are mounted."""
    inside = path.removeprefix(top.rstrip("/")) if top != "/" else path
    folder = mount.joinpath(*[part for part in inside.split("/") if part not in ("", "..")])
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# GPU


def find_device(wanted: str) -> str:
    """The device to train on, cpu or cuda.  Raises LadderError for a GPU that is not there."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise LadderError("torch sees no GPU here; use --device auto or cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


# The code that runs on it


def code() -> str | None:
    """The commit of the code that runs, and whether it was edited since; None without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "--no-optional-locks"]
    found = []
    for asked in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            ended = subprocess.run([*git, *asked], capture_output=True, text=True, timeout=10,
                                   check=True)  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        found.append(ended.stdout.strip())
    commit, edited = found
    return f"{commit[:12]}, edited since" if edited else commit[:12]
