"""What Prefect shows of a run: its plan, then its report, its ladder and what ran."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tasks.caching.plan import Planned
from tasks.caching.refs import Outcome
from tasks.caching.session import Session
from tasks.report import words
from tasks.report.graph import mermaid, of_plan, tree
from tasks.report.markdown import ladder_table


def announce(session: Session, planned: list[Planned]) -> None:
    """Show in Prefect what is about to run, and why, before the first stage does."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    cached = sum(each.state == "cached" for each in planned)
    create_table_artifact(
        plan_table(planned),
        key=f"plan-{slug_of(session.settings.dataset)}",
        description=f"What is about to run, and why: {len(planned) - cached} of "
        f"{len(planned)} stages, {cached} are cached",
    )
    found = of_plan(planned)
    lines = [f"{before}{node.name}  {node.said}" for before, node in tree(found)]
    create_markdown_artifact(
        "\n".join(
            ["```", *map(words.readable, lines), "```", "", f"```mermaid\n{mermaid(found)}```"]
        ),
        key=f"graph-{slug_of(session.settings.dataset)}",
        description="Which stage depends on which: a tree, and a picture in Mermaid's language",
    )


def slug_of(home: str) -> str:
    """A dataset's home in the letters that Prefect takes for an artifact's key, and still its own.

    Where letters had to go, a digest keeps it from the key of another.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", home.lower()).strip("-")[:60]
    return slug if slug == home else f"{slug or 'dataset'}-{sha256(home.encode()).hexdigest()[:8]}"


def show_in_prefect(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Show a report that lies in `folder`, and what became of each stage."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    name = slug_of(results["dataset"]["home"])
    create_markdown_artifact(
        (folder / "report.md").read_text(encoding="utf-8"),
        key=f"report-{name}",
        description=f"The whole report: {folder / 'report.html'}",
    )
    create_table_artifact(
        ladder_table(results),
        key=f"ladder-{name}",
        description=" ".join([results["headline"], *map(words.escaped, results["warnings"])]),
    )
    create_table_artifact(
        stages_table(outcomes), key=f"stages-{name}", description="What ran, what was cached, why"
    )


def ended(folder: str | None) -> Any:
    """How a flow run ends: with its report's folder, and what became of the model as its message.

    A regression is an event too, "stepladder.regression", for automations to act on.
    """
    if folder is None:
        return None
    from prefect.events import emit_event
    from prefect.states import Completed

    results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    judged = results["promotion"]
    if judged and judged["regression"]:
        data = results["dataset"]
        emit_event(
            "stepladder.regression",
            {
                "prefect.resource.id": f"stepladder.dataset.{slug_of(data['home'])}",
                "prefect.resource.name": data["name"],
            },
            payload={"said": judged["said"], "report": f"{folder}/report.html"},
        )
    return Completed(message=judged["said"] if judged else None, data=folder)


def plan_table(planned: list[Planned]) -> list[dict[str, str]]:
    """A row for each stage: what would become of it, and why; first those that would run."""
    return [
        {
            "stage": words.readable(each.stage),
            "state": each.state,
            "last time": words.duration(each.seconds),
            "why": words.readable("; ".join(each.why)),
        }
        for each in sorted(planned, key=lambda each: each.state == "cached")
    ]


def stages_table(outcomes: Mapping[str, Outcome]) -> list[dict[str, str]]:
    """A row for each stage: its state, how long it took and why it ran; first those that ran."""
    return [
        {
            "stage": words.readable(name),
            "state": outcome.state,
            "time": words.duration(outcome.seconds),
            "why": words.readable("; ".join(outcome.why)),
        }
        for name, outcome in sorted(outcomes.items(), key=lambda item: item[1].state == "cached")
    ]
