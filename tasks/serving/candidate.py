"""After a run: its best rung by validation against the model in use, on the same testing images."""

from __future__ import annotations

import datetime
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.caching.basics import LadderError, shown
from tasks.caching.refs import Ref
from tasks.caching.values import Stack, Weights, load, weights_bytes
from tasks.report.findings import VERSION
from tasks.report.measures import unpacked
from tasks.report.predictions import predictions
from tasks.report.seeds import models_of
from tasks.rungs.calibrate import calibrated
from tasks.rungs.measure import answers, load_model
from tasks.serving.modelfile import model_of, read_model
from tasks.serving.promotion import Decision, Rule, decide
from tasks.serving.registry import Registry


def consider(
    results: dict[str, Any], run: str, stages: Mapping[str, Ref], cache: Path, rule: Rule
) -> dict[str, Any] | None:
    """Make the best rung of a run its dataset's model where `decide` says so.

    results: results.json of the run of this name.  stages: the references of what it decoded.
    Gives "number", of the model in use from now on (None where there is none), "promoted",
    "regression", and "said", all of it in a line; None where no rung was trained.  Where another
    model stays in use, "predictions" are what that says of the testing images, as Parquet.
    Raises LadderError for a folder of models that cannot be read or written.
    """
    if not results["answer"]:
        return None
    rung = models_of(results["rungs"])[results["answer"]["best"]]
    if not rung["weights"]:
        raise LadderError(f"the weights of {rung['label']} are not stored whole; run it again")
    registry = Registry(results["dataset"]["home"])
    if settled := _settled(registry, rung, rule):
        return settled
    with registry.turn():
        # Another run may have been quicker.
        return _settled(registry, rung, rule) or _decided(
            registry, results, run, rung, stages, cache, rule
        )


def _settled(registry: Registry, rung: Mapping[str, Any], rule: Rule) -> dict[str, Any] | None:
    """What was found of these very weights before, so that a night without change writes nothing.

    A model that was rolled back stays so: only `stepladder models promote` uses it again.
    """
    used, digest = registry.current(), rung["weights"]["digest"]
    number = used["number"] if used else None
    history = registry.history()
    last = next((each for each in reversed(history) if each["weights"] == digest), None)
    if last is None:
        return None
    if last["kind"] == "kept":
        same = (last["against"], last["rule"]) == (number, rule)
        return _said(number, rung["label"], Decision(**last["decision"])) if same else None
    if last["number"] == number:
        return _told(number, f"Model {number} is in use: it is this run's best rung.")
    if last["number"] in left_behind(history):
        return _told(number, f"Model {number} stays in use: this run's best rung is model "
                             f"{last['number']}, which was rolled back.")  # fmt: skip
    return None


def left_behind(history: Sequence[Mapping[str, Any]]) -> set[int]:
    """The models that were rolled back from, and not used again since."""
    number, found = 0, set()
    for event in history:
        if event["kind"] == "kept":
            continue
        if event["kind"] == "rolled back":
            found.add(number)
        number = event["number"]
        found.discard(number)
    return found


def _decided(
    registry: Registry, results: dict[str, Any], run: str, rung: dict[str, Any],
    stages: Mapping[str, Ref], cache: Path, rule: Rule,
) -> dict[str, Any]:  # fmt: skip
    used, present, probabilities = registry.current(), None, None
    before = number = used["number"] if used else None
    try:
        if used:
            registry.read(**used)
            present = read_model(registry.path(used["number"]))
            probabilities = _asked(present, results, stages, cache)
        decision = _decision(registry, results, rung, present, probabilities, rule)
    except LadderError as error:
        decision = Decision(rule == "always", False, f"it cannot be measured: {error}")
    facts = {
        "run": run,
        "rule": rule,
        "testing": testing_of(results),
        "against": before,
        "decision": vars(decision),
    }
    event = now_and_who() | event_of(rung) | facts
    if decision.promoted:
        model = model_from(results, run, rung["label"], cache)
        number = registry.promote(weights_bytes(model), event)
        return _said(number, rung["label"], decision, before)
    registry.keep(event)
    said = _said(number, rung["label"], decision, before)
    if probabilities is not None:
        names = {"testing": [stack.names for stack in _testing(results, stages, cache)]}
        said["predictions"] = predictions(
            results["dataset"]["classes"], f"model {number}", names, {"testing": probabilities}
        )
    return said


def _decision(
    registry: Registry, results: dict[str, Any], rung: dict[str, Any], present: Weights | None,
    probabilities: np.ndarray | None, rule: Rule,
) -> Decision:  # fmt: skip
    counts = results["health"]["counts"]["testing"]
    truth = np.repeat(np.arange(len(counts)), counts)
    theirs = None if probabilities is None else probabilities.argmax(1) == truth
    earlier = [
        event["testing_accuracy"]
        for event in registry.history()
        if event.get("testing") == testing_of(results) and not event["decision"]["regression"]
    ]
    optimistic = results["validation"] == "testing"
    mine = unpacked(rung["right"], len(truth))
    decision = decide(mine, theirs, rule, optimistic=optimistic, earlier=earlier)
    if present and not _is_alike(present, results):
        return replace(decision, regression=False)
    return decision


def testing_of(results: Mapping[str, Any]) -> str:
    """Hex sha256 of which testing images there are, and of which classes."""
    data = results["dataset"]
    said = [data["testing_digest"], data["classes"], results["health"]["counts"]["testing"]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _is_alike(present: Weights, results: Mapping[str, Any]) -> bool:
    """Whether a run tried what made the present model; of less, worse is no regression."""
    tried = models_of(results["rungs"])
    return not results["answer"]["left_out"] or present.metadata.get("rung") in tried


def _testing(results: Mapping[str, Any], stages: Mapping[str, Ref], cache: Path) -> list[Stack]:
    names = results["dataset"]["classes"]
    return [stages[f"decode[testing/{name}]"].load(cache) for name in names]


def _asked(
    present: Weights, results: Mapping[str, Any], stages: Mapping[str, Ref], cache: Path
) -> np.ndarray:
    return asked(present, _testing(results, stages, cache), results["dataset"]["classes"])


def asked(model: Weights, testing: Sequence[Stack], names: Sequence[str]) -> np.ndarray:
    """What a model says of a run's testing images: [N, C] float32, by the run's classes.

    testing: a Stack per name.  A class that the model does not know has probability 0.
    Raises LadderError for images of another shape than it takes.
    """
    shape, classes = (
        json.loads(model.metadata["preprocessing"])["shape"], json.loads(model.metadata["classes"])
    )  # fmt: skip
    network = load_model(*model)
    precision = json.loads(model.metadata["recipe"])["precision"]
    temperature = float(model.metadata["temperature"])
    places = [(names.index(name), at) for at, name in enumerate(classes) if name in names]
    parts = []
    for stack in testing:
        found = np.zeros((len(stack.names), len(names)), np.float32)
        if len(stack.names):
            if list(stack.images.shape[1:]) != shape:
                raise LadderError(f"it takes images of shape {shape}, and these are of "
                                  f"{list(stack.images.shape[1:])}")  # fmt: skip
            said = calibrated(answers(network, stack.images, precision), temperature).numpy()
            for here, there in places:
                found[:, here] = said[:, there]
        parts.append(found)
    return np.concatenate(parts)


def model_from(results: dict[str, Any], run: str, label: str, cache: Path) -> Weights:
    """A model of a run as its file holds it.  Raises LadderError without it."""
    if results.get("version") != VERSION:
        raise LadderError(f"run {run} is of another version of Stepladder; run it again")
    models = models_of(results["rungs"])
    if label not in models:
        names = "; ".join(rung["label"] for rung in results["rungs"]) or "none"
        raise LadderError(f"no rung {shown(label)} in run {run}; there are: {names}")
    rung = models[label]
    if not rung["weights"]:
        raise LadderError(f"the weights of {shown(label)} are not stored whole; run it again")
    name = Path(rung["weights"]["path"]).name
    weights = load({"$weights": name}, cache / "files")
    return model_of(weights, rung["calibration"]["temperature"], results, run, label)


def event_of(rung: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of history says of a rung."""
    return {
        "label": rung["label"],
        "weights": rung["weights"]["digest"],
        "validation_accuracy": rung["validation_accuracy"],
        "testing_accuracy": rung["testing_accuracy"],
    }


def now_and_who() -> dict[str, str]:
    """The time, UTC, and user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"when": when, "who": f"{user}@{socket.gethostname()}"}


def _said(
    number: int | None, label: str, decision: Decision, before: int | None = None
) -> dict[str, Any]:
    if decision.promoted:
        of = f", in place of model {before}" if before else ""
        line = f"Model {number} is in use now{of}: {label}; {decision.why}."
    elif number is None:
        line = f"No model is in use: {decision.why}."
    elif decision.regression:
        line = f"Model {number} stays in use, and this run's best rung is worse: {decision.why}."
    else:
        line = f"Model {number} stays in use: {decision.why}."
    return _told(number, line, promoted=decision.promoted, regression=decision.regression)


def _told(number: int | None, said: str, **facts: bool) -> dict[str, Any]:
    return {"number": number, "promoted": False, "regression": False, "said": said} | facts
