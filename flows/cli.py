"""`stepladder look | run | plan | why | open | compare | models | predict | ...`: commands.

Torch and Prefect take seconds to import, so each command imports what it needs.
"""

from __future__ import annotations

import importlib.metadata
import io
import json as jsonlib
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from flows.climb import climb, planned_by, tame_prefect
from flows.endings import Raised, blamed, briefly, refuse_bytes, say, stop
from flows.options import Dataset, Given, Options, offers, whole
from flows.parameters import Dataset as DatasetText
from flows.parameters import Stage, no_stage
from flows.quick import Memory, mark_cached
from tasks.caching.basics import (
    LadderError,
    RungsError,
    StageError,
    UsageError,
    cache_root,
    data_root,
    digest_of_file,
    printable,
    shortened,
    shown,
)
from tasks.caching.places import Place
from tasks.rungs.limits import allowed
from tasks.rungs.toml import read_small


class _App(cyclopts.App):
    def generate_completion(self, **asked: Any) -> str:
        """Where the script knows nothing to offer, or files, the shell completes paths its way."""
        script = super().generate_completion(**asked)
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        script = script.replace("complete -F", "complete -o bashdefault -o default -F")
        # What we offer may be given as a path as well.
        script = script.replace("-f -a '(__fish_stepladder_complete)'",
                                "-a '(__fish_stepladder_complete)'")  # fmt: skip
        offered = "(( ${#_cyc_vals} )) && compadd -d _cyc_disp -a _cyc_vals\n"
        return script.replace(offered, f"{offered}    _files\n")


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
    runner: Annotated[
        str | None,
        Parameter(
            help="Who performs the stages: local, or workers of dask, dask=ADDRESS, ray, "
            "ray=ADDRESS; STEPLADDER_RUNNER says it once for all runs"
        ),
    ] = None,
) -> None:
    """Climb the ladder on a dataset and write its report; reuse whatever no change can reach."""
    from flows.console import Display, print_ladder

    if runner:
        from flows.runners import choose

        choose(runner)
    memory = _memory(_insist_on(dataset, options), options)
    fallen: RungsError | None = None
    with Display(quiet=quiet) as display:
        if memory and not options.refresh and not audit and (known := memory.recall()):
            folder = known.folder
            display.states |= {each.stage: each.state for each in known.stages}
            news = mark_cached(folder)
        else:
            try:
                folder = climb(dataset, options, display, audit, memory, verbose=verbose)
            except RungsError as error:
                folder, fallen = error.folder, error
            news = True
    if memory and news and not fallen:
        memory.keep(folder)
    states = display.states
    ran = [stage for stage, state in states.items() if state == "ran"]
    if json:
        from flows.reports import figures

        paths = {"report": str(folder / "report.html"), "results": str(folder / "results.json")}
        counts = {"ran": len(ran), "cached": len(states) - len(ran)}
        facts = {**paths, "stages": counts, "ran": ran, "audited": display.audited}
        print(jsonlib.dumps(facts | figures(folder, reused=not ran)))
    else:
        print_ladder(folder, reused=not ran)
        print(f"stages: {len(ran)} ran, {len(states) - len(ran)} cached")
        if audit:
            print(f"audit: {len(display.audited)} computed again, all came out the same")
    if fallen:
        raise fallen


def _insist_on(dataset: Given, options: Options) -> Place | None:
    """The dataset's place; None where it is the sample and has yet to be made.

    Raises LadderError for one that is not there, before anything slow is imported.
    """
    place = options.place(str(dataset))
    if place is None and str(dataset) != "sample":
        from flows.datasets import why_missing

        raise LadderError(why_missing(str(allowed("dataset", DatasetText, str(dataset)))))
    return place


def _memory(place: Place | None, options: Options) -> Memory | None:
    """What an earlier run with these options may have left, to see at a glance that it holds."""
    if place is None:
        return None
    options.times()  # which no run depends on, but must make sense
    given = {name: str(value) for name, value in asdict(options).items() if "timeout" not in name}
    if options.recipes:
        given["recipes"] = read_small(options.recipes).hex()
    if options.labels:
        given["labels"] = digest_of_file(options.labels.expanduser().absolute())
    return Memory(data_root().resolve(), place.folder, given)


@app.command
def plan(
    dataset: Dataset = "sample",
    /,
    *,
    options: Options = Options(),
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
    graph: Annotated[
        bool, Parameter(help="Print Mermaid, and on a terminal a tree, of what depends on what")
    ] = False,
) -> None:
    """Say of every stage whether it would run, and why.  Runs nothing."""
    from flows.console import print_graph, print_plan

    place = _insist_on(dataset, options)
    # A graph shows what depends on what, too, which is not remembered.
    memory = None if options.refresh or graph else _memory(place, options)
    known = memory.recall() if memory else None
    tame_prefect(verbose=False)
    planned: list[Any] = known.stages if known else planned_by(options.parameters(dataset))
    if json:
        stages = [
            {"stage": p.stage, "state": p.state, "why": list(p.why), "seconds": p.seconds}
            for p in planned
        ]
        print(jsonlib.dumps({"stages": stages}))
    elif graph:
        print_graph(planned)
    else:
        print_plan(planned)


_StageName = Annotated[
    str,
    Parameter(help="A stage's name as `plan` shows it, in quotes", completer=offers("stages")),
]


def _meant(dataset: Given) -> Given:
    """A dataset; where none is given, that of the latest run, which is told, or the sample."""
    if dataset:
        return dataset
    from flows.reports import dataset_of_latest

    found = dataset_of_latest() or "sample"
    print(f"of {printable(found)}; another dataset comes after the stage", file=sys.stderr)
    return found


@app.command
def why(
    stage: _StageName,
    dataset: Dataset = "",
    /,
    *,
    options: Options = Options(),
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Show all that goes into one stage's key, and what differs from the last time."""
    from flows.console import print_why

    allowed("stage", Stage, stage)
    dataset = _meant(dataset)
    _insist_on(dataset, options)
    tame_prefect(verbose=False)
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
    stage: _StageName,
    dataset: Dataset = "",
    /,
    *,
    options: Options = Options(),
    pdb: Annotated[bool, Parameter(help="Open Python's debugger where it fails")] = False,
) -> None:
    """Call one stage's bare function in this process, on its stored inputs; store nothing."""
    allowed("stage", Stage, stage)
    dataset = _meant(dataset)
    _insist_on(dataset, options)
    tame_prefect(verbose=False)
    from flows.debug import brief, prepare

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
    from tasks.caching.upkeep import held, users

    store = _store()
    print_store(held(store), users(store))


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
    remote: Annotated[
        int | None,
        Parameter(
            help="Instead, remove what was stored in STEPLADDER_REMOTE more than so many days ago",
            converter=whole,
        ),
    ] = None,
) -> None:
    """Remove results that no kept report needs, and what killed runs left behind."""
    from tasks.caching import upkeep

    if remote is not None:
        records, files = _asked(lambda shared: shared.clear(remote))
        print(f"removed {records} results, {files} files")
        return
    if keep_last is None and max_size is None:
        raise LadderError("say what may go: --keep-last N reports, or --max-size 500MB")
    if keep_last is not None and keep_last < 1:
        raise LadderError(f"--keep-last is a number from 1, not {keep_last}")
    try:
        size = 0 if max_size is None else upkeep.parse_size(max_size)
    except LadderError as error:
        raise UsageError(f"--max-size {error}") from None
    freed = upkeep.clear(_store(), keep_last=keep_last or 1, max_size=size)
    print(
        f"freed {freed.size / 1e6:.1f} MB: {freed.records} results, {freed.files} files and folders"
    )


@cache.command
def push() -> None:
    """Send all that is stored to STEPLADDER_REMOTE, which other machines share."""
    print(f"sent {_asked(lambda shared: shared.push(_store()))} results")


@cache.command
def pull() -> None:
    """Fetch all that is in STEPLADDER_REMOTE; a run fetches what it needs by itself."""
    from tasks.caching.store import Store

    print(f"fetched {_asked(lambda shared: shared.pull(Store(cache_root()), say))} results")


def _asked(ask: Callable[[Any], Any]) -> Any:
    """What the shared store answers.  Raises LadderError where it does not."""
    from tasks.caching.remote import in_words, insist_on_shared

    shared = insist_on_shared()
    try:
        return ask(shared)
    except (OSError, ValueError) as error:
        said = f"the shared store {shared.name} does not answer: {in_words(error)}"
        raise LadderError(said) from error


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
        Parameter(
            help="A dataset, a run or the beginning of its name; the latest if left out",
            completer=offers("runs"),
        ),
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
    before: Annotated[
        Given,
        Parameter(help="A run, the beginning of its name, or a dataset", completer=offers("runs")),
    ],
    now: Annotated[Given, Parameter(help="Another", completer=offers("runs"))],
    /,
    *,
    json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False,
) -> None:
    """Compare two runs: which rung moved, and whether beyond noise."""
    from flows.reports import compare as compare_runs
    from flows.reports import print_comparison

    compared = compare_runs(str(before), str(now))
    if json:
        print(jsonlib.dumps(compared))
    else:
        print_comparison(compared)


for place, name, told in (
    ("flows.listing:datasets", "list", "List the datasets: their runs, accuracy, model in use."),
    ("flows.look:look", "look", "Say what a folder holds, as a run would read it."),
    ("flows.history:history", "history", "Show every kept run of a dataset; as a page too."),
    ("flows.predict:predict", "predict", "Say what the model in use sees in images."),
    ("flows.export:export", "export", "Write a model as a file that runs elsewhere."),
    ("flows.serve:serve", "serve", "Run every night, here: server, schedule and runs in one."),
    ("flows.alarms:alarms", "alarms", "Have a webhook called when a night goes wrong."),
    ("flows.status:status", "status", "Say what is deployed, runs next, and how runs ended."),
    ("flows.models:app", "models", "The models in use, and those that were."),
):
    app.command(place, name=name, help=told)


def main() -> None:
    """Run the command line; mistakes end in one line, not in a traceback.

    Exit status 2 is for a command line that is wrong in itself, 1 for what could not be done, 3 for
    a run some of whose rungs failed.
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
        if 'value "gpu" for --device' in text:
            text = text.replace('Did you mean "cpu"?', 'Did you mean "cuda"?')
        if isinstance(error, cyclopts.UnusedCliTokensError):
            text = f"There is no place for the argument {shown((error.unused_tokens or [''])[0])}."
        say(text if "Did you mean" in text else f"{text} `stepladder --help` says more.")
        sys.exit(2)
    except Raised as debugged:
        raised = debugged.error
    except (LadderError, StageError) as error:
        say(str(error))
        sys.exit(_status(error))
    except BrokenPipeError:  # its reader has read enough
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # of this machine: a disk, a limit, a right that is not there
        say(blamed(error))
        sys.exit(1)
    if raised:  # with its own traceback, to whoever debugs, and to a debugger
        raise raised


def _status(error: Exception) -> int:
    """The exit status that an error ends with."""
    if isinstance(error, RungsError):
        return 3
    return 2 if isinstance(error, UsageError) or str(error).startswith("--") else 1


def start() -> None:
    """The command `stepladder`: `main`, as quickly begun and ended as can be."""
    briefly(main)


if __name__ == "__main__":
    start()
