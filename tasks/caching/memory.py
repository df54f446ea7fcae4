"""How much memory there is to take, so that what cannot fit is told before it is tried."""

from __future__ import annotations

import math
import os
import re
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tasks.caching.basics import LadderError
from tasks.caching.cores import groups

LARGE = 64_000_000  # bytes: for less, to ask how much memory there is takes too long

# The files of a control group's limit and of what it uses, and what of that it can do without
_VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def insist_on_room(what: str, count: int, shape: Sequence[int], share: float = 1) -> None:
    """Raise LadderError where images[count, *shape] uint8 take more than a share of what is free.

    what: who they are, or which one they are like.
    """
    size = count * math.prod(shape)
    free = available_memory() * share if size > LARGE else size
    if size > free:
        shrink = max(2, math.ceil(max(shape) / 256))
        height, width = (max(1, side // shrink) for side in shape[:2])
        raise LadderError(
            f"{what}: {count:,} images of {shape[0]} x {shape[1]} take {size / 1e9:,.1f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are free for them: ask for a smaller size, such as "
            f"--size {height}x{width}"
        )


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


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""
