"""Where stages' bodies run: a runner takes a body, and gives what it returned.

`Here` runs it in this process; `tasks.caching.process`, in a process of its own.  A body can be
sent anywhere: it is a function's name with plain arguments, and speaks to no one but its runner.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from tasks.caching.basics import StoppedError
from tasks.caching.cores import Claim, close
from tasks.caching.machine import available_cores, core_numbers

_PATIENCE = 5.0  # seconds without cores, until that is told
_SHORTEST, _LONGEST, _SECOND = 0.002, 0.1, 1.0  # from look to look at what other processes hold
MODULES: dict[str, None] = {}  # those that define stages, for a runner to import beforehand


class Body(NamedTuple):
    """A function of a module, with what to call it with."""

    module: str
    function: str
    arguments: tuple[Any, ...]
    cores: int = 1  # that it has use for
    seconds: float = 0.0  # that it may take; 0 where nobody knows
    timeout: int = 0  # seconds that it is given from when it begins; 0 for any number
    ahead: str = ""  # a function to call with its arguments once, where many bodies follow

    def run(self, progress: Callable[..., None], cores: int) -> Any:
        """Call the function in this process, `progress=` and `cores=` added."""
        return self._named(self.function)(*self.arguments, progress=progress, cores=cores)

    def prepare(self) -> None:
        """Do in this process what this body and its like will all need."""
        if self.ahead:
            self._named(self.ahead)(*self.arguments)

    def _named(self, function: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), function)
        return found


class Runner(Protocol):
    """A way to run the bodies of one flow run, from many threads at once."""

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body when there are cores for it; gives what it returned.

        progress is called in this process: first with nothing, when it begins.
        Raises LadderError as the body did, and StageError for anything else it raised.
        """

    def stop(self) -> None:
        """End every body at once, and let none begin that still waits."""

    def is_stopped(self) -> bool:
        """Whether that was said."""


class Here:
    """The plainest way: in this process, one after another as they are asked for.

    What a body raises comes as it is, so that a debugger stops where it was raised.
    """

    def run(self, body: Body, progress: Callable[..., None]) -> Any:
        """Run a body now."""
        return body.run(progress, min(body.cores, CORES.total))

    def stop(self) -> None:
        """Nothing waits, and whoever calls this is what would be stopped."""

    def is_stopped(self) -> bool:
        """Never."""
        return False


class Cores:
    """Hands out cores: few-core work first, then the longest, which then is not all that is left.

    What is as long as another comes in order of asking.
    """

    def __init__(self, total: int, numbers: Sequence[int] = ()) -> None:
        """`numbers`: those of the machine's cores that are shared with other processes."""
        self.total = total
        self._numbers = numbers
        self._free = total
        self._queue: list[tuple[int, float, int]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._claim: Claim | None = None  # of the first in the queue
        self._since = 0.0  # when that began to wait for other processes
        self._told = False

    @contextlib.contextmanager
    def hold(
        self, wanted: int, seconds: float, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[int]:
        """Wait for and hold up to `wanted` cores, for about so long; gives how many.

        Raises StoppedError when `stopped` says, while it waits, that nobody wants them any more.
        """
        cores = min(wanted, self.total)
        with self._changed:
            ticket = (cores, -seconds, next(self._count))
            heapq.heappush(self._queue, ticket)
            pause = _SHORTEST
            try:
                while (taken := self._take(ticket)) is None:
                    if stopped():
                        raise StoppedError("its run was stopped before it began")
                    is_first = self._queue[0] == ticket
                    if is_first and self._free >= cores:
                        self._tell()
                    self._changed.wait(pause if is_first else _SECOND)
                    pause = min(_LONGEST, 1.5 * pause) if is_first else pause
            finally:
                self._leave(ticket)
            self._free -= cores
        try:
            yield cores
        finally:
            with self._changed:
                close(taken)
                self._free += cores
                self._changed.notify_all()

    def _take(self, ticket: tuple[int, float, int]) -> list[int] | None:
        """What holds the cores of a ticket, once it is the first and they are free everywhere."""
        if self._queue[0] != ticket or self._free < ticket[0]:
            return None
        if self._claim is None or self._claim.count != ticket[0]:
            self._drop_claim()
            self._claim = Claim(self._numbers, ticket[0])
        return self._claim.take() if self._numbers else []

    def _tell(self) -> None:
        """Say once, when that is so for a while, why nothing happens."""
        self._since = self._since or time.monotonic()
        if not self._told and time.monotonic() - self._since > _PATIENCE:
            self._told = True
            logging.getLogger("stepladder").warning(
                "stepladder: waiting for cores that other runs on this machine use"
            )

    def _leave(self, ticket: tuple[int, float, int]) -> None:
        """Take a ticket out of the queue, whose first has a claim among processes."""
        self._since = 0.0
        self._queue.remove(ticket)
        heapq.heapify(self._queue)
        self._drop_claim()
        self._changed.notify_all()

    def _drop_claim(self) -> None:
        if self._claim:
            self._claim.leave()
        self._claim = None


CORES = Cores(available_cores(), core_numbers())
