"""How many cores there are for this process: what the kernel, its groups and the user grant it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Cores to use, at least 1: the least that affinity, cgroup quotas and OMP_NUM_THREADS allow.

    Python's own limit (PYTHON_CPU_COUNT, from 3.13 on) counts as affinity does.  `root` is where
    /proc and /sys are.
    """
    quotas = [int(quota) for quota in _quotas(root)]  # of 2.5 cores, 2 never have to wait
    return max(1, min([_schedulable(), *quotas, *_omp_num_threads()]))


def _schedulable() -> int:
    """The cores that this process may be scheduled on; macOS cannot say, and counts all."""
    count = getattr(os, "process_cpu_count", None)  # from Python 3.13 on
    if count:
        return count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _omp_num_threads() -> list[int]:
    """OMP_NUM_THREADS as OpenMP reads it, the first of a list; nothing where it makes no sense."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return [int(first)] if first.isascii() and first.isdigit() and int(first) else []


def _quotas(root: Path) -> Iterator[float]:
    """The cores' worth of time of each control group that this process is in."""
    for folder in groups("cpu", root):
        yield from _quota(folder)


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of the control groups that this process is in, each up to the topmost.

    controller: what they are to control where there is a hierarchy for each: cpu, memory.
    """
    for line in _lines(root / "proc/self/cgroup"):
        # "0::/user.slice" of version 2, "3:cpu,cpuacct:/docker/1f" of version 1
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers or controller in controllers.split(","):
            for mount, top in _mounts(root, controller if controllers else ""):
                yield from _upward(mount, top, path)


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """Where the hierarchy of a controller, or of all, is mounted, and which of its groups is."""
    for line in _lines(root / "proc/self/mountinfo"):
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


def _quota(folder: Path) -> Iterator[float]:
    """What a group may use, in cores; nothing where it is not limited or cannot be read."""
    version_2 = " ".join(_lines(folder / "cpu.max"))  # "max 100000", "50000 100000"
    version_1 = _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
    for pair in (version_2.split(), version_1):
        with contextlib.suppress(ValueError):
            quota, period = map(int, pair)
            if quota > 0 and period > 0:  # -1 is no limit
                yield quota / period


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
