"""`stepladder export`: a model as a file that runs elsewhere, its card beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from flows.endings import say
from flows.options import Dataset
from tasks.caching.basics import (
    LadderError,
    cache_root,
    clean,
    data_root,
    read_regular,
    write_atomic,
)

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "torch-export": ".pt2"}


def export(
    dataset: Dataset = "",
    /,
    *,
    model: Annotated[Path | None, Parameter(help="A model file, instead of a dataset's")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["onnx", "safetensors", "torch-export"],
        Parameter(
            help="onnx for any runtime, safetensors for this project, torch-export for torch"
        ),
    ] = "onnx",
    out: Annotated[
        Path | None, Parameter(help="Where to write it; here, named after the model, if left out")
    ] = None,
) -> None:
    """Write a model as a file that runs elsewhere, and its card (FILE.md) beside it."""
    from tasks.serving.modelfile import read_model

    if (model is None) == (dataset == ""):
        raise LadderError("say whose model: a dataset, or --model FILE")
    weights = in_use(dataset) if model is None else read_model(model)
    name = weights.metadata["home"] if model is None else model.stem
    out = out or Path(name + SUFFIXES[format])
    if model is not None and out.exists() and out.samefile(model):
        raise LadderError(f"{clean(out)} is the model itself; give another --out")
    print("\n".join(map(str, write(weights, format, out))))


def write(weights: Any, kind: str, out: Path) -> list[Path]:
    """Write a model as a file of some kind, and its card; gives the paths of both.

    Raises LadderError for what cannot be exported so; then nothing is written.
    """
    from tasks.serving.card import card
    from tasks.serving.export import FORMATS

    said = card(weights.metadata, results_of(weights.metadata))
    files = {out: FORMATS[kind](weights), out.with_name(f"{out.name}.md"): said.encode()}
    for path, content in files.items():
        write_atomic(path, content)
    return [*files]


def in_use(dataset: str | Path) -> Any:
    """The model of a dataset that is in use, see `stepladder models`; else its latest run's best.

    Raises LadderError where there is neither.
    """
    from flows.models import find_registry
    from tasks.serving.modelfile import read_model

    registry = find_registry(dataset)
    used = registry.current() if registry else None
    if registry and used:
        registry.read(**used)
        return read_model(registry.path(used["number"]))
    best = best_of(dataset)
    say(f"{clean(dataset)} has no model in use; this is the best of its latest run")
    return best


def best_of(dataset: str | Path) -> Any:
    """The model of the best rung of a dataset's latest run.  Raises LadderError without one."""
    from flows.reports import find_report
    from tasks.serving.candidate import model_from

    folder = find_report(str(dataset))
    results = json.loads(read_regular(folder / "results.json") or b"")
    if not results["answer"]:
        raise LadderError(f"the latest run of {clean(dataset)} trained no rung; run it again")
    return model_from(results, folder.name, results["answer"]["best"], cache_root())


def results_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """What the run that made a model wrote into results.json; None where that is gone."""
    if not {"home", "run"} <= metadata.keys():
        return None
    path = data_root() / "reports" / metadata["home"] / metadata["run"] / "results.json"
    try:
        return dict(json.loads(read_regular(path) or b""))
    except (LadderError, ValueError, TypeError, RecursionError):
        return None
