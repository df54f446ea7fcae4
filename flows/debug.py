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
from flows.parameters import meant
from tasks.caching.basics import LadderError, shown
from tasks.caching.call import Call, Settings
from tasks.caching.compute import load_inputs
from tasks.caching.plan import Asleep
from tasks.caching.refs import inputs_of
from tasks.caching.session import opening
from tasks.caching.stage import Run, Stage


class _Looking(Asleep):
    """A plan that keeps the call of one stage."""

    def __init__(self, wanted: str, found: dict[str, Call | None], settings: Settings) -> None:
        super().__init__([], settings)
        self._wanted, self._found = wanted, found

    def call(self, stage: Stage[Any, Any], name: str, arguments: dict[str, Any]) -> Any:
        """Look a stage up, and keep it where it is the one that is wanted."""
        mine = name == self._wanted
        self._found[name] = Call(stage, name, arguments, self.settings) if mine else None
        return super().call(stage, name, arguments)


def prepare(stage: str, parameters: dict[str, Any]) -> Callable[[], Any]:
    """A stage's bare function with its stored inputs, to be called, whether it is cached or not.

    stage: its name as `plan` shows it.  parameters: those of the flow.
    Raises LadderError where there is no such stage or an input is not stored yet.
    """
    found: dict[str, Call | None] = {}
    with opening(lambda settings: _Looking(stage, found, settings)):
        contextvars.copy_context().run(ladder.fn, **parameters)
    call = found.get(stage)
    if call is None:
        hint = meant(stage, found) or "`stepladder plan` shows all"
        raise LadderError(f"no stage {shown(stage)}, {hint}")
    waits = [each.label for each in inputs_of(call.arguments) if not each.digest]
    if waits:
        more = f" and {len(waits) - 3} more" if len(waits) > 3 else ""
        raise LadderError(f"{stage} takes what {', '.join(waits[:3])}{more} must give first: "
                          "`stepladder run`, with the same options, goes as far")  # fmt: skip
    arguments = {n: load_inputs(item, call.store.root) for n, item in call.arguments.items()}
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
