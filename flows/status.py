"""`stepladder status`: what is deployed, when it runs next, and how the last runs ended."""

from __future__ import annotations

import datetime
import json as jsonlib
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter

from flows.server import insist_on_server
from tasks.caching.basics import LadderError, printable

LAST = 3  # runs of each deployment
_WORKERS = "/work_pools/{work_pool_name}/workers/filter"
# A server's answers, as its API names them
Answer = dict[str, Any]


class Deployed(NamedTuple):
    """One deployment."""

    name: str  # ladder/mnist
    schedules: list[str]  # "0 2 * * * UTC"
    paused: bool
    next: str  # ISO 8601 time; empty where no run is scheduled
    last: list[Answer]  # its last runs, newest first: name, state, message, started, seconds


def status(
    *, json: Annotated[bool, Parameter(help="Print one JSON object, no table")] = False
) -> None:
    """Say what is deployed on Prefect's server, when it runs next, and how the last runs ended."""
    insist_on_server()
    deployed, workers = ask()
    if json:
        print(jsonlib.dumps({"deployments": [each._asdict() for each in deployed], **workers}))
        return
    if not deployed:
        raise LadderError("nothing of Stepladder is deployed there: `prefect deploy --all`")
    for each in deployed:
        print(printable(f"{each.name:20} {_when(each)}"))
        for run in each.last:
            took = "" if run["seconds"] is None else f"{run['seconds']:,.0f} s"
            said = f"{run['started'][:16].replace('T', ' '):16}  {run['state']:10} {took:>8}"
            print(printable(f"    {said}  {run['message']}".rstrip()))
    print(printable(_told(workers["workers"])))


def ask() -> tuple[list[Deployed], dict[str, Any]]:
    """What the server knows of our deployments and of who runs them.

    Raises LadderError where it does not answer.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:

            def post(path: Any, *, pool: str = "", **body: Any) -> Any:
                parts = {"work_pool_name": pool} if pool else None
                return client.request("POST", path, json=body, path_params=parts).json()

            flows = post("/flows/filter", flows={"name": {"any_": ["ladder", "predict"]}})
            names = {each["id"]: each["name"] for each in flows}
            there = post("/deployments/filter", flows={"id": {"any_": [*names]}}) if names else []
            there.sort(key=lambda each: (names[each["flow_id"]], each["name"]))
            found = [_deployed(post, names[each["flow_id"]], each) for each in there]
            pools = {each["work_pool_name"] for each in there if each["work_pool_name"]}
            workers = {
                pool: [
                    {"name": each["name"], "state": each["status"]}
                    for each in post(_WORKERS, pool=pool)
                ]
                for pool in sorted(pools)
            }
            return found, {"workers": workers}
    except (HTTPError, RuntimeError) as error:
        raise LadderError(
            f"Prefect's server does not answer ({error}); start it: `prefect server start`"
        ) from error


def _deployed(post: Any, flow: str, answer: Answer) -> Deployed:
    of_it = {"deployments": {"id": {"any_": [answer["id"]]}}}
    waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    ended = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}}
    coming = post(
        "/flow_runs/filter", **of_it, **waiting, limit=1, sort="NEXT_SCHEDULED_START_TIME_ASC"
    )
    runs = post("/flow_runs/filter", **of_it, **ended, limit=LAST, sort="START_TIME_DESC")
    schedules = [
        " ".join(str(part) for part in (_rhythm(each["schedule"]), each["schedule"]["timezone"]))
        for each in answer["schedules"]
        if each["active"]
    ]
    return Deployed(
        f"{flow}/{answer['name']}",
        schedules,
        answer["paused"],
        str(coming[0]["next_scheduled_start_time"]) if coming else "",
        [_run(each) for each in runs],
    )


def _rhythm(schedule: Answer) -> str:
    if "interval" in schedule:
        return f"every {datetime.timedelta(seconds=float(schedule['interval']))}"
    return str(schedule.get("cron") or schedule.get("rrule"))


def _run(answer: Answer) -> Answer:
    state = answer["state"] or {}
    message = " ".join(str(state.get("message") or "").split())
    return {
        "name": answer["name"],
        "state": state.get("name") or "",
        "message": message[:120] + "..." * (len(message) > 120),
        "started": answer["start_time"] or "",
        "seconds": answer["total_run_time"] if answer["end_time"] else None,
    }


def _when(each: Deployed) -> str:
    if each.paused:
        return "paused"
    if not each.schedules:
        return "by hand"
    following = f", next {each.next[:16].replace('T', ' ')} UTC" if each.next else ""
    return f"{' and '.join(each.schedules)}{following}"


def _told(workers: dict[str, list[Answer]]) -> str:
    """In words, who would run them."""
    if not workers:
        return "run by `stepladder serve`, or by whoever serves them"
    lines = []
    for pool, members in workers.items():
        there = [each["name"] for each in members if each["state"] == "ONLINE"]
        advice = f"`prefect worker start --pool {pool}` starts one"
        lines.append(f"workers of {pool}: {', '.join(there) or f'none, so nothing runs; {advice}'}")
    return "\n".join(lines)
