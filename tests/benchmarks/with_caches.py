"""Runs of small projects whose function `answer` is cached by a library, each in a fresh process.

Run as `with_caches.py LIBRARY` where that library is installed, in a project's folder: its flow is
run once, and `run.json` beside it says what the flow gives, whether `answer` itself was called, or
what was refused; of Stepladder also what its plan and its run said of `answer`.

With `--forks` each line on standard input is a project's folder, whose flow is run in a fork that
has imported torch and our engine and nothing else.  The fork's exit status answers the line.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any


def main() -> None:
    """Run one project, or many in forks."""
    library, *forks = sys.argv[1:]
    if forks:
        fork(library)
    else:
        write(library)


def fork(library: str) -> None:
    """Fork for each folder, after what takes seconds to import."""
    for name in ("torch", "pydantic"):
        importlib.import_module(name)
    if library == "Stepladder":
        from tasks.caching import fingerprint, plan, session  # noqa: F401 - for the forks

        fingerprint.storing()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.chdir(line.strip())
            write(library)
            atexit._run_exitfuncs()  # some libraries write then
            os._exit(0)  # to take torch to pieces lasts a second
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def write(library: str) -> None:
    """Run the project in this folder, and say what happened."""
    Path("../run.json").write_text(json.dumps(run(library)))


def run(library: str) -> dict[str, Any]:
    """What one run of the project in this folder gives."""
    folder = Path.cwd()
    os.environ.update(line.split("=") for line in (folder / "environment").read_text().split())
    sys.path[:0] = [str(folder), str(folder.parent / "site-packages")]
    sys.dont_write_bytecode = True  # what is edited twice in a second is not read from a .pyc
    told: dict[str, Any] = {}
    by = by_stepladder if library == "Stepladder" else by_another
    try:
        return {"result": repr(by(importlib.import_module("flow").flow, told)), **told}
    except Exception as error:
        return {**told, "refused": f"{type(error).__name__}: {error}"}


def by_stepladder(flow: Any, told: dict[str, Any]) -> Any:
    """What a flow of stages gives; `told` is filled with what plan and run say of `answer`."""
    from tasks.caching.call import Settings
    from tasks.caching.plan import Asleep, Planned
    from tasks.caching.session import Session

    store = Path("../store").resolve()
    settings, planned = Settings(str(store), "truth"), list[Planned]()
    Asleep(planned, settings).begin()
    flow()
    told["plan"] = [planned[-1].state, *planned[-1].why]
    session = Session(settings).begin()
    ref = session.finish(flow())
    assert ref
    told["run"] = [ref.outcome.state, *ref.outcome.why]
    told["ran"] = ref.outcome.state == "ran"
    return ref.load(store)


def by_another(flow: Any, told: dict[str, Any]) -> Any:
    """What a flow of cached functions gives; `told` is filled with whether `answer` was called."""
    told["ran"] = False

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "answer":
            told["ran"] = True

    sys.setprofile(watch)
    try:
        return flow()
    finally:
        sys.setprofile(None)


if __name__ == "__main__":
    main()
