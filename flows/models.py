"""`stepladder models`: which model of a dataset is in use, which were, and to choose another."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from flows.options import Given, offers, whole
from tasks.caching.basics import LadderError, cache_root, data_root, entries, read_regular, shown
from tasks.serving.registry import Registry

Home = Annotated[
    Given,
    Parameter(help="A dataset, as `stepladder models` lists it", completer=offers("with models")),
]

app = cyclopts.App(name="models", help="The models in use, and those that were.")


@app.default
def models() -> None:
    """List each dataset's model in use: what it is, its testing accuracy, and since when."""
    from flows.console import print_table

    rows = []
    for home in homes():
        registry = Registry(home)
        used = registry.current()
        event = _latest(registry, used["number"]) if used else None
        if event:
            rows.append([home, str(event["number"]), *_figures(event), event["label"]])
    if not rows:
        raise LadderError(f"no model under {data_root() / 'models'} yet; a run makes the first")
    print_table(["dataset", "model", "accuracy", "since", "recipe"], rows)


@app.command
def show(
    dataset: Home,
    /,
    *,
    json: Annotated[bool, Parameter(help="Print one JSON object a line, no table")] = False,
) -> None:
    """Show all that became of a dataset's models, the latest first: figures, when, who and why."""
    from flows.console import print_table

    registry = _registry(dataset)
    if json:
        print("\n".join(map(jsonlib.dumps, registry.history())))
        return
    used = registry.current()
    rows = [
        [
            event["kind"],
            str(event.get("number") or ""),
            *_figures(event),
            event["who"],
            f"{event['label']}; {_why(event)}",
        ]
        for event in reversed(registry.history())
    ]
    print_table(["what", "model", "accuracy", "when", "who", "recipe, and why"], rows)
    if used:
        print(f"in use: {registry.path(used['number'])}")


@app.command
def rollback(
    dataset: Home,
    number: Annotated[
        int | None,
        Parameter(help="A model's number; the one used before, if left out", converter=whole),
    ] = None,
    /,
) -> None:
    """Use an earlier model again, its file as it was."""
    from tasks.serving.candidate import now_and_who

    registry = _registry(dataset)
    with registry.turn():
        number = _before(registry) if number is None else number
        made = _latest(registry, number)
        told = {name: made[name] for name in _KEPT if made and name in made}
        registry.rollback(number, told | now_and_who())
    print(f"model {number} is in use: {registry.path(number)}")


@app.command
def promote(
    run: Annotated[Given, Parameter(help="A run, the beginning of its name, or a dataset")],
    recipe: Annotated[str, Parameter(help="A rung's name as the report shows it, in quotes")],
    /,
) -> None:
    """Use a rung of a run from now on, whatever its figures."""
    from flows.reports import find_report
    from tasks.caching.values import weights_bytes
    from tasks.report.seeds import models_of
    from tasks.serving.candidate import event_of, model_from, now_and_who

    folder = find_report(str(run))
    results = jsonlib.loads(read_regular(folder / "results.json") or b"")
    model = weights_bytes(model_from(results, folder.name, recipe, cache_root()))
    event = event_of(models_of(results["rungs"])[recipe]) | {"run": folder.name}
    registry = Registry(results["dataset"]["home"])
    with registry.turn():
        number = registry.promote(model, now_and_who() | event)
    print(f"model {number} is in use: {registry.path(number)}")


_KEPT = ("label", "weights", "validation_accuracy", "testing_accuracy", "run")


def homes() -> list[str]:
    """The datasets that have models."""
    return sorted(each.name for each in entries(data_root() / "models") if each.is_dir())


def find_registry(dataset: Given) -> Registry | None:
    """The models of a dataset, by its name or path; None where it has none.  Raises LadderError."""
    from tasks.caching.places import find_place

    known = homes()
    place = None if str(dataset) in known else find_place(str(dataset), "")
    home = place.home if place else str(dataset)
    return Registry(home) if home in known else None


def _registry(dataset: Given) -> Registry:
    registry = find_registry(dataset)
    if registry is None:
        known = homes()
        there = f"there are models of {', '.join(known)}" if known else "a run makes the first"
        raise LadderError(f"{shown(dataset)} has no models; {there}")
    return registry


def _latest(registry: Registry, number: int) -> dict[str, Any] | None:
    """The last event that put a model to use."""
    events = [each for each in registry.history() if each.get("number") == number]
    return events[-1] if events else None


def _before(registry: Registry) -> int:
    """The model that was in use before the present one."""
    numbers = [each["number"] for each in registry.history() if each["kind"] != "kept"]
    earlier = [number for number in numbers if number != numbers[-1]]
    if not earlier:
        raise LadderError(f"{registry.folder} has no earlier model to go back to")
    return int(earlier[-1])


def _figures(event: dict[str, Any]) -> list[str]:
    from tasks.report.words import per_hundred

    return [f"{per_hundred(event['testing_accuracy'])}%", event["when"][:16].replace("T", " ")]


def _why(event: dict[str, Any]) -> str:
    decision = event.get("decision")
    return decision["why"] if decision else "asked for by hand"
