"""Where stages' bodies run: a runner takes a body, and gives what it returned.

`Here` runs it in this process; `tasks.caching.process`, in a process of its own.  A body can be
sent anywhere: it is a function's name with plain arguments, and speaks to no one but its runner.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from tasks.caching.machine import available_cores

MODULES: dict[str, None] = {}  # those that define stages, for a runner to import beforehand


class Body(NamedTuple):
    """A function of a module, with what to call it with."""

    module: str
    function: str
    arguments: tuple[Any, ...]
    cores: int = 1  # that it has use for
    seconds: float = 0.0  # that it may take; 0 where nobody knows

    def run(self, progress: Callable[..., None], cores: int) -> Any:
        """Call the function in this process, `progress=` and `cores=` added."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return found(*self.arguments, progress=progress, cores=cores)


class Runner(Protocol):
    """A way to run the bodies of one flow run, from many threads at once."""

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body when there are cores for it; gives what it returned.

        progress is called in this process: first with nothing, when it begins.
        Raises LadderError as the body did, and StageError for anything else it raised.
        """

    def stop(self) -> None:
        """End every body at once, and let none begin that still waits."""


class Here:
    """The plainest way: in this process, one after another as they are asked for.

    What a body raises comes as it is, so that a debugger stops where it was raised.
    """

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body now."""
        return body.run(progress, min(body.cores, CORES.total))

    def stop(self) -> None:
        """Nothing waits, and whoever calls this is what would be stopped."""


class Cores:
    """Hands out cores: few-core work first, then the longest, which then is not all that is left.

    What is as long as another comes in order of asking.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._queue: list[tuple[int, float, int]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, wanted: int, seconds: float) -> Iterator[int]:
        """Wait for and hold up to `wanted` cores, for about so long; gives how many."""
        cores = min(wanted, self.total)
        ticket = (cores, -seconds, next(self._count))
        with self._changed:
            heapq.heappush(self._queue, ticket)
            while self._queue[0] != ticket or self._free < cores:
                self._changed.wait()
            heapq.heappop(self._queue)
            self._free -= cores
            self._changed.notify_all()
        try:
            yield cores
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()


CORES = Cores(available_cores())
