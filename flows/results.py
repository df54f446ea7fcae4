"""What earlier runs have stored, by the names that `stepladder plan` shows: for scripts, notebooks.

    from flows.results import load, names

    names("mnist")                                               what there is
    load("mean[7]", "mnist")                                     a tensor[H, W(, 3)]
    load("train[mlp, cross_entropy, seed 0]", "mnist")["weights"]    see tasks.rungs.train

Nothing is run, and Prefect is not imported.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.datasets import why_missing
from flows.parameters import Dataset, Name, Stage, meant
from tasks.caching.basics import DamagedError, LadderError, cache_root, shown
from tasks.caching.places import Place, find_place
from tasks.caching.records import Record
from tasks.caching.store import Store
from tasks.rungs.limits import allowed


def load(stage: str, dataset: str | Path = "sample", *, name: str = "") -> Any:
    """What a stage gave in the latest run of a dataset that came to it.

    stage: its name as `plan` shows it.  dataset, name: as for `stepladder run`.  Gives what the
    stage returns: a Stack of images, a tensor, numbers, texts, or dicts and lists of them; tensors
    are mapped from the store, and writing to one changes no file.
    Raises LadderError for what is not there, with what to run.
    """
    allowed("stage", Stage, stage)
    place, store = _place(dataset, name)
    last = store.last(place.home, stage)
    if last is None:
        near = meant(stage, [record.about["name"] for record in _records(place, store)])
        hint = f"{near} `{_run(place, name)}` stores what it lacks".lstrip()
        raise LadderError(f"nothing is stored for {shown(stage)} of {shown(place.name)}; {hint}")
    try:
        record = store.get(stage.partition("[")[0], last["key"])
    except DamagedError as error:
        raise _lost(stage, place, name) from error
    if record is None:
        raise _lost(stage, place, name)
    return store.load(record.value)


def names(dataset: str | Path = "sample", *, name: str = "") -> list[str]:
    """The stages whose results `load` gives, sorted."""
    place, store = _place(dataset, name)
    return sorted(record.about["name"] for record in _records(place, store))


def _place(dataset: str | Path, name: str) -> tuple[Place, Store]:
    path = os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset
    given = allowed("dataset", Dataset, path)
    place = find_place(given, allowed("name", Name, name))
    if place is None:
        raise LadderError(why_missing(given))
    return place, Store(cache_root())


def _records(place: Place, store: Store) -> Iterator[Record]:
    """The records that the dataset's stages had last."""
    for path in store.record_paths():
        with contextlib.suppress(DamagedError):
            record = store.read_record(path)
            if record and "name" in record.about:
                last = store.last(place.home, record.about["name"])
                if last and last["key"] == record.key:
                    yield record


def _lost(stage: str, place: Place, name: str) -> LadderError:
    return LadderError(f"what {stage} gave is no longer stored whole; "
                       f"`{_run(place, name)}` computes it again")  # fmt: skip


def _run(place: Place, name: str) -> str:
    return shlex.join(["stepladder", "run", place.given, *(["--name", name] if name else [])])
