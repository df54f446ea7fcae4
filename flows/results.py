"""What earlier runs have stored, by the names that `stepladder plan` shows: for scripts, notebooks.

    from flows.results import load, names

    names("mnist")                                               what there is
    load("mean[7]", "mnist")                                     a tensor[H, W(, 3)]
    load("train[mlp, cross_entropy, seed 0]", "mnist")["weights"]    see tasks.rungs.train

Nothing is run, and Prefect is not imported.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

from tasks.caching.basics import DamagedError, LadderError, data_root, shown
from tasks.caching.places import Place, find_place
from tasks.caching.records import Record
from tasks.caching.store import Store


def load(stage: str, dataset: str = "sample", *, name: str = "") -> Any:
    """What a stage gave in the latest run of a dataset that came to it.

    stage: its name as `plan` shows it.  dataset, name: as for `stepladder run`.  Gives what the
    stage returns: a Stack of images, a tensor, numbers, texts, or dicts and lists of them; tensors
    are mapped from the store, and writing to one changes no file.
    Raises LadderError for what is not there, with what to run.
    """
    place, store = _place(dataset, name)
    last = store.last(place.home, stage)
    if last is None:
        known = [record.about["name"] for record in _records(place, store)]
        near = difflib.get_close_matches(stage, known, n=1, cutoff=0.3)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise LadderError(f"nothing is stored for {shown(stage)} of {shown(place.name)}; {hint}"
                          f"`stepladder run {place.given}` stores what it lacks")  # fmt: skip
    try:
        record = store.get(stage.partition("[")[0], last["key"])
    except DamagedError as error:
        raise _lost(stage, place) from error
    if record is None:
        raise _lost(stage, place)
    return store.load(record.value)


def names(dataset: str = "sample", *, name: str = "") -> list[str]:
    """The stages whose results `load` gives, sorted."""
    place, store = _place(dataset, name)
    return sorted(record.about["name"] for record in _records(place, store))


def _place(dataset: str, name: str) -> tuple[Place, Store]:
    place = find_place(dataset, name)
    if place is None:
        raise LadderError(f"no dataset {shown(dataset)} under {data_root()} or here; "
                          "give its name or its path")  # fmt: skip
    return place, Store((data_root() / "cache").resolve())


def _records(place: Place, store: Store) -> Iterator[Record]:
    """The records that the dataset's stages had last."""
    for path in store.record_paths():
        with contextlib.suppress(DamagedError):
            record = store.read_record(path)
            if record and "name" in record.about:
                last = store.last(place.home, record.about["name"])
                if last and last["key"] == record.key:
                    yield record


def _lost(stage: str, place: Place) -> LadderError:
    return LadderError(f"what {stage} gave is no longer stored whole; "
                       f"`stepladder run {place.given}` computes it again")  # fmt: skip
