"""`stepladder serve`: a server, a schedule and the runs, for whoever has no workers.

Where Prefect knows a server, that keeps the schedule, and this process is who runs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.climb import tame_prefect
from flows.datasets import why_missing
from flows.endings import say, stop_without_server
from flows.options import Dataset, whole
from flows.parameters import Dataset as DatasetText
from flows.server import TemporaryServer
from tasks.caching.basics import LadderError, UsageError, printable, shown
from tasks.caching.places import find_place, insist_on_data_root
from tasks.rungs.limits import allowed

NIGHTLY = "0 2 * * *"


def serve(
    dataset: Annotated[list[Dataset] | None, Parameter(help="Names under the data root")] = None,
    *,
    schedule: Annotated[
        str, Parameter(help="When, in UTC: minute, hour, day, month and weekday, as cron has them")
    ] = NIGHTLY,
    port: Annotated[
        int,
        Parameter(
            help="Of the server on this machine; 0 takes a free one",
            converter=whole,
            validator=Number(gte=0, lte=65_535),
        ),
    ] = 4200,
) -> None:
    """Climb the ladder on datasets every night, one after another, until Ctrl-C.

    Without datasets, on the sample.  Starts a Prefect server, unless one is set.
    """
    places = [_place(str(each)) for each in dataset or ["sample"]]
    tame_prefect(verbose=True)
    server = TemporaryServer(stop_without_server, port, whole=True)
    server.begin()
    deployments = [_deployment(name, given, schedule) for name, given in places]
    with server.use():
        _insist_on_answer()
        asyncio.run(_work(deployments))
    say("stopped; what had finished is kept, and the schedules are paused until the next start")


def _place(dataset: str) -> tuple[str, str]:
    """A dataset's name, and what a run is told.  Raises LadderError where a run could not be."""
    place = find_place(allowed("dataset", DatasetText, dataset))
    if place:
        insist_on_data_root(place.folder, "the dataset")
        return place.home, place.given
    if dataset != "sample":
        raise LadderError(why_missing(dataset))
    return dataset, dataset  # the first run makes it


def _deployment(name: str, given: str, cron: str) -> Any:
    """ladder/<name>, whose runs import the code anew.  Raises UsageError for what is no cron."""
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.ladder import ladder

    try:
        return ladder.to_deployment(
            name,
            schedule=Cron(cron, timezone="UTC"),
            parameters={"dataset": given},
            tags=["stepladder", name],
            description=f"Climb the ladder on {name}; only what changed is computed again.",
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    except ValueError:
        raise UsageError(f"--schedule {shown(cron)} is no cron line such as {NIGHTLY!r}") from None


def _insist_on_answer() -> None:
    """See that the server takes what it is told.  Raises LadderError."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    try:
        with get_client(sync_client=True) as client:
            client.request("GET", "/admin/version")
    except (HTTPError, RuntimeError) as error:
        raise LadderError(
            f"Prefect's server at {PREFECT_API_URL.value()} does not take what it is told "
            f"({' '.join(str(error).split())}): start it, set PREFECT_API_AUTH_STRING, or "
            "`prefect config unset PREFECT_API_URL` for one of this command"
        ) from error


async def _work(deployments: list[Any]) -> None:
    """Run what the server has scheduled, one at a time, until a signal; then cancel what runs.

    The schedules are paused at the end: else all nights missed would be made up for at the next.
    """
    from prefect.runner import Runner

    logging.getLogger("prefect.runner").setLevel("WARNING")  # it says each second who waits
    runner = Runner(name="stepladder", limit=1)
    for each in deployments:
        await runner.aadd_deployment(each)
    working = asyncio.create_task(runner.start())
    while not runner.started and not working.done():
        await asyncio.sleep(0.05)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    _tell(deployments)
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        await runner.astop()
    stopped.cancel()
    await working


def _tell(deployments: list[Any]) -> None:
    """Say what is served, and how to look at it from elsewhere."""
    for each in deployments:
        print(printable(f"ladder/{each.name}  {each.schedules[0].schedule.cron} UTC"))
    url, known = os.environ.get("PREFECT_API_URL"), os.environ.get("PREFECT_API_AUTH_STRING")
    if url and known:
        print(f"{url.removesuffix('/api')} asks for: {known}")
        print("in another terminal, for `stepladder status` and Prefect's own commands:")
        print(f"export PREFECT_API_URL={url} PREFECT_API_AUTH_STRING={known}")
    print("Ctrl-C ends it", flush=True)
