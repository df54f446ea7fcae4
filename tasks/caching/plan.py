"""What a run would do: the flow itself with its stages asleep.

The same body is called, each stage looked up instead of run, so a plan cannot drift from the flow.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from tasks.caching.call import Call, Settings
from tasks.caching.cues import Look, waits_for
from tasks.caching.fingerprint import KNOWN
from tasks.caching.refs import Ref, inputs_of
from tasks.caching.session import Session, opening
from tasks.caching.stage import SESSION, Stage


@dataclass(frozen=True)
class Planned:
    """What a plan says of one stage."""

    stage: str
    state: str  # "cached", "will run" or "may run"
    why: tuple[str, ...]
    seconds: float | None  # what it took the last time, where that is known
    ref: Ref | None = None  # its result, where it is cached
    look: Look | None = None
    last: dict[str, Any] | None = None  # what the look was the last time
    changes: tuple[str, ...] = ()  # what differs from then, whether it must run or not
    comparable: bool = True  # whether its result would be the same in any run


def look_up(call: Call) -> tuple[Ref, Planned]:
    """What would become of a call, and what stands for its result."""
    seconds = call.last["seconds"] if call.last else None
    waits = [each.label for each in inputs_of(call.arguments) if not each.digest]
    changes = call.changes()
    planned = functools.partial(Planned, call.name, look=call.look, last=call.last, changes=changes)
    if waits:
        return Ref(call.name), planned("may run", (*changes, waits_for(waits)), seconds)
    record, why = call.find()
    if record is None:
        return Ref(call.name), planned("will run", why, seconds)
    ref = call.ref(record, ())
    comparable = call.comparable(record, record.about.get("seen", ()))
    return ref, planned("cached", (), record.seconds, ref, comparable=comparable)


class Asleep(Session):
    """A run of a flow's body in which no stage runs, and none of the store is held."""

    def __init__(self, planned: list[Planned], settings: Settings) -> None:
        super().__init__(settings)
        self._planned = planned

    def begin(self) -> Self:
        """Look up the stages that are called from now on."""
        SESSION.set(self)
        KNOWN.set({})
        return self

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Look a stage up; gives its reference, or what stands for one."""
        ref, planned = look_up(Call(stage, name, arguments, self.settings))
        self._planned.append(planned)
        return ref

    def finish(self, handle: Any) -> None:
        """Nothing was run."""


@contextlib.contextmanager
def asleep() -> Iterator[list[Planned]]:
    """Stages called inside are looked up instead of run, and listed here."""
    planned: list[Planned] = []
    with opening(functools.partial(Asleep, planned)):
        yield planned
