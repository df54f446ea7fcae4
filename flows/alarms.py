"""`stepladder alarms URL`: a webhook is called when a night fails, is late, or finds a worse model.

It sets Prefect's own automations up on the server, which watches from then on.
"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from flows.server import insist_on_server
from tasks.caching.basics import LadderError, shown

BLOCK = "stepladder-alarms"
OURS = {"prefect.resource.role": "flow", "prefect.resource.name": "ladder"}
FLOW_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
RUN = "{{ flow_run.name }} ({{ flow_run.id }})"
# What calls the webhook: the events, what they are of, and the text, in Prefect's templates.
ALARMS: dict[str, tuple[set[str], dict[str, Any], str]] = {
    "regression": (
        {"stepladder.regression"},
        {"match": {"prefect.resource.id": "stepladder.dataset.*"}},
        "{{ event.resource['prefect.resource.name'] }}: {{ event.payload.said }}",
    ),
    "failed": (
        {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")},
        {"match": FLOW_RUNS, "match_related": OURS},
        f"{RUN}: {{{{ flow_run.state.name }}}}: {{{{ flow_run.state.message }}}}",
    ),
    "late": (
        {"prefect.flow-run.Late"},
        {"match": FLOW_RUNS, "match_related": OURS},
        f"{RUN} is late: is a worker running?",
    ),
}


def alarms(
    url: Annotated[str, Parameter(help="What to call, with a JSON object whose text says why")],
    /,
) -> None:
    """Have Prefect's server call a webhook when a run fails, is late, or finds a worse model.

    Called again, it replaces what it set up before.
    """
    if not url.startswith(("http://", "https://")):
        raise LadderError(f"{shown(url)} is no URL; give one such as https://hooks.example.org/x")
    insist_on_server()
    for name in set_up(url):
        print(name)


def set_up(url: str) -> list[str]:
    """Make the automations of ALARMS, in place of earlier ones; gives their names."""
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture
    from pydantic import SecretStr

    block: Any = Webhook(url=SecretStr(url)).save(BLOCK, overwrite=True)
    made = []
    with get_client(sync_client=True) as client:
        there = client.request("POST", "/automations/filter", json={}).json()
        for kind, (events, of, text) in ALARMS.items():
            name = f"{BLOCK}: {kind}"
            for each in there:
                if each["name"] == name:
                    client.request("DELETE", "/automations/{id}", path_params={"id": each["id"]})
            Automation(
                name=name,
                description=f"Calls the webhook of the block {BLOCK}",
                trigger=EventTrigger(expect=events, posture=Posture.Reactive, threshold=1, **of),
                actions=[CallWebhook(block_document_id=block, payload=_said(text))],
            ).create()
            made.append(name)
    return made


def _said(text: str) -> str:
    """A template of a JSON object with this text in it, whatever the names in that are."""
    return f"{{% set said %}}{text}{{% endset %}}" + '{"text": {{ said | string | tojson }}}'
