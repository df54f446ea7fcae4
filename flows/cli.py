"""`stepladder run | plan | why | debug | open | compare | fetch | cache`: the command line.

Torch and Prefect take seconds to import, so each command imports what it needs.
"""

from __future__ import annotations

import importlib.metadata
import io
import json as jsonlib
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from flows.climb import climb, planned_by, tame_prefect
from flows.endings import Raised, blamed, briefly, refuse_bytes, say, stop
from flows.options import Dataset, Given, Options, whole
from flows.parameters import Stage, no_stage
from flows.quick import Memory, mark_cached
from tasks.caching.basics import (
    LadderError,
    StageError,
    cache_root,
    data_root,
    printable,
    shortened,
    shown,
)
from tasks.rungs.limits import allowed
from tasks.rungs.toml import read_small


class _App(cyclopts.App):
    def generate_completion(self, **asked: Any) -> str:
        """Where the script knows nothing to offer, or files, the shell completes paths its way."""
        script = super().generate_completion(**asked)
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        return script.replace("complete -F", "complete -o bashdefault -o default -F")


app = _App(
    name="stepladder",
    help="Climb a ladder of image classifiers; run again, redo only what a change can reach.",
    version=lambda: importlib.metadata.version("stepladder"),
    default_parameter=Parameter(negative="", show_default=lambda value: value or None),
)
app.register_install_completion_command(
    add_to_startup=True, help="Let the shell complete commands and options: bash, zsh or fish."
)


@app.command
def run(
    dataset: Dataset = "sample",
    /,
    *,
    options: Options = Options(),
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
    quiet: Annotated[bool, Parameter(help="No progress, only the result")] = False,
    verbose: Annotated[bool, Parameter(help="Show Prefect's own log too")] = False,
    audit: Annotated[
        int,
        Parameter(
            help="Compute this many cached stages again, and compare",
            converter=whole,
            validator=Number(gte=0),
        ),
    ] = 0,
) -> None:
    """Climb the ladder on a dataset and write its report; reuse whatever no change can reach."""
    from flows.console import Display, print_ladder

    memory = _memory(dataset, options)
    with Display(quiet=quiet) as display:
        if memory and not options.refresh and not audit and (known := memory.recall()):
            folder = known.folder
            display.states |= dict.fromkeys(known.stages, "cached")
            news = mark_cached(folder)
        else:
            folder = climb(dataset, options, display, audit, memory, verbose=verbose)
            news = True
    if memory and news:
        memory.keep(folder, list(display.states))
    states = display.states
    ran = [stage for stage, state in states.items() if state == "ran"]
    if json:
        paths = {"report": str(folder / "report.html"), "results": str(folder / "results.json")}
        counts = {"ran": len(ran), "cached": len(states) - len(ran)}
        print(jsonlib.dumps({**paths, "stages": counts, "ran": ran, "audited": display.audited}))
    else:
        print_ladder(folder)
        print(f"stages: {len(ran)} ran, {len(states) - len(ran)} cached")
        if audit:
            print(f"audit: {len(display.audited)} computed again, all came out the same")


def _memory(dataset: Given, options: Options) -> Memory | None:
    """What an earlier run with these options may have left, to see at a glance that it holds."""
    place = options.place(str(dataset))
    if place is None:
        return None
    given = {name: str(value) for name, value in asdict(options).items()}
    if options.recipes:
        given["recipes"] = read_small(options.recipes).hex()
    return Memory(data_root().resolve(), place.folder, given)


@app.command
def plan(
    dataset: Dataset = "sample",
    /,
    *,
    options: Options = Options(),
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Say of every stage whether it would run, and why.  Runs nothing."""
    from flows.console import print_plan

    tame_prefect(verbose=False)
    planned = planned_by(options.parameters(dataset))
    if json:
        stages = [
            {"stage": p.stage, "state": p.state, "why": list(p.why), "seconds": p.seconds}
            for p in planned
        ]
        print(jsonlib.dumps({"stages": stages}))
    else:
        print_plan(planned)


@app.command
def why(
    stage: Annotated[str, Parameter(help="A stage's name as `plan` shows it, in quotes")],
    dataset: Dataset = "sample",
    /,
    *,
    options: Options = Options(),
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Show all that goes into one stage's key, and what differs from the last time."""
    from flows.console import print_why

    tame_prefect(verbose=False)
    allowed("stage", Stage, stage)
    planned = {each.stage: each for each in planned_by(options.parameters(dataset))}
    if stage not in planned:
        raise no_stage(stage, planned)
    found = planned[stage]
    if json:
        facts = {"stage": stage, "state": found.state, "why": found.why, "changes": found.changes}
        print(jsonlib.dumps({**facts, **found.look.to_remember(), "last": found.last}))
    else:
        print_why(found)


@app.command
def debug(
    stage: Annotated[str, Parameter(help="A stage's name as `plan` shows it, in quotes")],
    dataset: Dataset = "sample",
    /,
    *,
    options: Options = Options(),
    pdb: Annotated[bool, Parameter(help="Open Python's debugger where it fails")] = False,
) -> None:
    """Call one stage's bare function in this process, on its stored inputs; store nothing."""
    tame_prefect(verbose=False)
    from flows.debug import brief, prepare

    allowed("stage", Stage, stage)
    body = prepare(stage, options.parameters(dataset))
    try:
        print(brief(body()))
    except Exception as error:
        if not pdb:
            raise Raised(error) from None
        from pdb import post_mortem

        print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
        post_mortem(error.__traceback__)
        sys.exit(1)


cache = cyclopts.App(name="cache", help="List, verify or clear what is stored.")
app.command(cache)


@cache.command(name="list")
def cache_list() -> None:
    """List the stored results, the least recently used first."""
    from flows.console import print_store
    from tasks.caching.upkeep import held

    print_store(held(_store()))


@cache.command
def verify() -> None:
    """Read every stored file and record again; set aside what is damaged, with exit status 1."""
    from tasks.caching import upkeep

    store = _store()
    damaged = list(upkeep.verify(store))
    print("\n".join([*damaged, f"{len(upkeep.held(store))} results are whole"]))
    sys.exit(1 if damaged else 0)


@cache.command
def gc(
    *,
    keep_last: Annotated[
        int | None,
        Parameter(help="Keep what each dataset's newest reports need, this many", converter=whole),
    ] = None,
    max_size: Annotated[
        str | None, Parameter(help="Keep other results too, up to a size such as 500MB")
    ] = None,
) -> None:
    """Remove results that no kept report needs, and what killed runs left behind."""
    from tasks.caching import upkeep

    if keep_last is None and max_size is None:
        raise LadderError("say what may go: --keep-last N reports, or --max-size 500MB")
    if keep_last is not None and keep_last < 1:
        raise LadderError(f"--keep-last is a number from 1, not {keep_last}")
    size = 0 if max_size is None else upkeep.parse_size(max_size)
    freed = upkeep.clear(_store(), keep_last=keep_last or 1, max_size=size)
    print(
        f"freed {freed.size / 1e6:.1f} MB: {freed.records} results, {freed.files} files and folders"
    )


def _store() -> Any:
    from tasks.caching.store import Store

    root = cache_root()
    if not root.is_dir():
        raise LadderError(f"nothing is cached yet: there is no {root}; a run makes it")
    return Store(root)


@app.command
def fetch(
    name: Annotated[str, Parameter(help="sample, mnist, or a name of your own with --from")],
    /,
    *,
    source: Annotated[
        Given | None, Parameter(name="--from", help="An archive: a file's path or a URL")
    ] = None,
    sha256: Annotated[str | None, Parameter(help="What its sha256 must be, in hex")] = None,
    quiet: Annotated[bool, Parameter(help="No progress")] = False,
) -> None:
    """Bring a dataset under the data root: checked, then unpacked."""
    from flows.console import Display
    from tasks.caching.stage import Run
    from tasks.images.fetch import fetch as bring

    if source in ("", Path()):
        raise LadderError("--from '' names nothing; give an archive's path or URL")
    notes: list[str] = []
    with Display(quiet=quiet) as display:
        run = Run(progress=display.progress(name))
        place = None if source is None else str(source)
        folder = bring(name, data_root(), place, sha256, run, notes.append)
    for note in notes:
        print(printable(note), file=sys.stderr)
    print(folder)


@app.command(name="open")
def open_(
    report: Annotated[
        Given,
        Parameter(help="A dataset, a run or the beginning of its name; the latest if left out"),
    ] = "",
    /,
) -> None:
    """Open a report in the browser, or say where it is where there is no screen."""
    from flows.reports import has_screen, open_report

    print(open_report(str(report)))
    if not has_screen():
        print("there is no screen here: open the file in any browser, or send it", file=sys.stderr)


@app.command
def compare(
    before: Annotated[Given, Parameter(help="A run, the beginning of its name, or a dataset")],
    now: Annotated[Given, Parameter(help="Another")],
    /,
    *,
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Hold two runs against each other: which rung moved, and whether beyond noise."""
    from flows.reports import compare as hold_against
    from flows.reports import print_comparison

    compared = hold_against(str(before), str(now))
    if json:
        print(jsonlib.dumps(compared))
    else:
        print_comparison(compared)


def main() -> None:
    """Run the command line; mistakes end in one line, not in a traceback.

    Exit status 2 is for what the command line cannot mean, 1 for what could not be done.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal has no letters for, in escapes
            stream.reconfigure(errors="backslashreplace")
    raised = None
    try:
        refuse_bytes(sys.argv[1:])
        try:
            app(sys.argv[1:], exit_on_error=False, print_error=False)
        finally:
            print(end="", flush=True)  # here, what cannot be written is still told of
    except cyclopts.CycloptsError as error:
        text = shortened(" ".join(str(error).split()))
        if isinstance(error, cyclopts.UnusedCliTokensError):
            text = f"There is no place for the argument {shown((error.unused_tokens or [''])[0])}."
        say(text if "Did you mean" in text else f"{text} `stepladder --help` says more.")
        sys.exit(2)
    except Raised as debugged:
        raised = debugged.error
    except (LadderError, StageError) as error:
        say(str(error))
        sys.exit(1)
    except BrokenPipeError:  # its reader has read enough
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # of this machine: a disk, a limit, a right that is not there
        say(blamed(error))
        sys.exit(1)
    if raised:  # with its own traceback, to whoever debugs, and to a debugger
        raise raised


def start() -> None:
    """The command `stepladder`: `main`, as quickly begun and ended as can be."""
    briefly(main)


if __name__ == "__main__":
    start()
