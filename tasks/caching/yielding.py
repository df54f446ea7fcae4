"""Let torch's threads sleep where they would spin, as long as other processes want their cores.

An operation of torch ends when the slowest of its threads has.  The others spin meanwhile, for
milliseconds: on idle cores that is the quickest, but beside other processes they take a core from
the very thread they wait for, and a step takes 5 to 20 times as long.

How long OpenMP spins is read once, when it is loaded.  But it spins a thousandth of that while a
process has more of its threads than there are cores (libgomp's manual, on GOMP_SPINCOUNT).  So we
let a few more exist, asleep, for as long as this process has to wait for cores.  How an operation
is shared out between threads does not depend on it, nor does any bit of its result.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOOK = 0.05  # seconds from look to look
CROWDED = 0.35  # of the time, that a thread waited for a core; beside two busy processes it is 0.5
SHORTEST, LONGEST = 0.5, 8.0  # seconds to yield before looking again, twice as many each time
OWN_CHOICE = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def yield_to_others(threads: int) -> None:
    """Look after this process, of so many threads of torch, unless its user has chosen for it."""
    if threads > 1 and not any(os.environ.get(name) for name in OWN_CHOICE):
        threading.Thread(target=look_after, args=(threads,), daemon=True).start()


def look_after(threads: int) -> None:
    """Yield whenever it is crowded, for as long as this process lives."""
    stay = SHORTEST
    for share in waiting():
        if share < CROWDED:
            stay = SHORTEST
        else:
            with crowd(threads):
                time.sleep(stay)
            stay = min(2 * stay, LONGEST)


def waiting() -> Iterator[float]:
    """The share of each LOOK for which one thread, the unluckiest, was ready and had no core."""
    while True:
        start, before = time.monotonic(), waited()
        time.sleep(LOOK)
        longest = max((now - before.get(each, now) for each, now in waited().items()), default=0)
        yield longest / (time.monotonic() - start)


def waited() -> dict[str, float]:
    """Seconds for which each thread of this process had to wait for a core, since it began.

    As Linux counts them; nothing elsewhere.
    """
    seconds = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError, IndexError):  # it has just ended
                fields = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
                seconds[thread] = int(fields[1]) / 1e9
    return seconds


@contextlib.contextmanager
def crowd(threads: int) -> Iterator[None]:
    """Inside, OpenMP has more threads than there are cores, those that do nothing among them."""
    end = threading.Event()
    helper = threading.Thread(target=_attend, args=(threads, end), daemon=True)
    helper.start()
    try:
        yield
    finally:
        end.set()
        helper.join()


def _attend(threads: int, end: threading.Event) -> None:
    """Be a thread with a team of OpenMP's, as its end is the end of its team."""
    everything = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # torch is not built with OpenMP
        team = max(2, everything.omp_get_num_procs() - threads + 2)  # this thread is one of it
        everything.GOMP_parallel(everything.free, None, team, 0)  # each frees nothing, and waits
        end.wait()
