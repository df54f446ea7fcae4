"""One stage, called in this process, so that a debugger stops where it fails.

The flow's body is called as for a plan, up to the stage; then its inputs are loaded from the store
and its bare function is called with them.  Nothing is stored.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

from flows.ladder import ladder
from flows.parameters import no_stage
from tasks.caching.basics import LadderError
from tasks.caching.call import Call, Settings
from tasks.caching.differences import some
from tasks.caching.plan import Asleep, look_up
from tasks.caching.refs import inputs_of, loaded
from tasks.caching.session import opening
from tasks.caching.stage import Run, Stage


class _Looking(Asleep):
    """A plan that keeps the calls."""

    def __init__(self, calls: dict[str, Call], settings: Settings) -> None:
        super().__init__([], settings)
        self._calls = calls

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Look a stage up, and keep its call."""
        self._calls[name] = Call(stage, name, arguments, self.settings)
        return look_up(self._calls[name])[0]


def prepare(stage: str, parameters: dict[str, Any]) -> Callable[[], Any]:
    """A stage's bare function with its stored inputs, to be called, whether it is cached or not.

    stage: its name as `plan` shows it.  parameters: those of the flow.
    Raises LadderError where there is no such stage or an input is not stored yet.
    """
    calls: dict[str, Call] = {}
    with opening(lambda settings: _Looking(calls, settings)):
        contextvars.copy_context().run(ladder.fn, **parameters)
    if stage not in calls:
        raise no_stage(stage, calls)
    call = calls[stage]
    waits = [each.label for each in inputs_of(call.arguments) if not each.digest]
    if waits:
        raise LadderError(f"{stage} takes what {some(waits)} must give first: "
                          "`stepladder run`, with the same options, goes as far")  # fmt: skip
    arguments = {n: loaded(item, call.store.root) for n, item in call.arguments.items()}
    if "run" in call.stage.signature.parameters:
        arguments["run"] = Run(device=call.settings.device, cache=call.store.root)
    return functools.partial(call.stage.fn, **arguments)


def brief(value: Any, depth: int = 2) -> str:
    """A stage's result in a few words: shapes instead of pixels."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__}{list(value.shape)} {value.dtype}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = {name: getattr(value, name) for name in value._fields}
    if isinstance(value, dict) and depth:
        inner = [f"{key}: {brief(item, depth - 1)}" for key, item in [*value.items()][:20]]
        return f"{{{', '.join(inner)}{', ...' if len(value) > 20 else ''}}}"
    if isinstance(value, bytes | dict | list) or len(repr(value)) > 80:
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)
