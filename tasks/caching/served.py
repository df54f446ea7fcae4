"""Imported by the fork server alone, and first: it ends without taking torch apart.

Whoever reads what a run prints, through a pipe, waits for the last process that could still write.
Nor does it look for garbage: an import makes hundreds of thousands of objects, all to be kept.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any

from tasks.caching import traces  # noqa: F401 - before others take functions of Python's

_SERVER = os.getpid()


def _leave() -> None:
    if os.getpid() == _SERVER:  # and no fork of it, which has a status to give
        os._exit(0)


def _say_nothing(*error: Any) -> None:
    if os.getpid() != _SERVER:  # what cannot be forked here is told by who asked for it
        sys.__excepthook__(*error)


atexit.register(_leave)
sys.excepthook = _say_nothing
gc.disable()
