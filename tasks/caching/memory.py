"""How much memory there is to take, so that what cannot fit is told before it is tried."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_VERSIONS = {  # of control groups: where they lie, the files of a limit, of what is used, of a part
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory() -> int:
    """Bytes of memory that this process may still take: what is free, within its limits."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = re.search(r"MemAvailable: *(\d+) kB", _text("/proc/meminfo"))
    limits = [int(free[1]) * 1024 if free else os.sysconf("SC_PHYS_PAGES") * page, *_groups()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - int((_text("/proc/self/statm") or "0").split()[0]) * page)
    return max(0, min(limits))


def _groups() -> Iterator[int]:
    """Bytes that each control group with a limit leaves, from this process's own upwards."""
    for line in _text("/proc/self/cgroup").splitlines():
        _, kind, group = line.split(":", 2)
        if kind in _VERSIONS:
            place, limit, usage, cached = _VERSIONS[kind]
            top = _GROUPS / place
            own = top / group.lstrip("/")
            for folder in (own, *own.parents):
                if folder == top.parent:
                    break
                most = _text(folder / limit).strip()
                if most.isdigit():
                    # What it has read of files counts as used, and goes when memory is wanted.
                    found = re.search(rf"^{cached} (\d+)", _text(folder / "memory.stat"), re.M)
                    used = int(_text(folder / usage) or 0)
                    yield int(most) - used + (int(found[1]) if found else 0)


def _text(path: str | Path) -> str:
    with suppress(OSError):
        return Path(path).read_text()
    return ""
