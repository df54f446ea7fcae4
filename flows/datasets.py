"""Which dataset a run is about, and what to do where it is not there."""

from __future__ import annotations

import difflib
from typing import Literal

from tasks.caching.basics import LadderError, clean, data_root, shown
from tasks.caching.places import Place, candidates, find_place
from tasks.images.placing import RESERVED


def find_dataset(dataset: str, name: str = "") -> Place:
    """A dataset: a path, or a name under the data root; which it is.  Raises LadderError."""
    if place := find_place(dataset, name):
        return place
    if dataset == "sample":
        from tasks.images.fetch import fetch  # which takes a second to import

        fetch(dataset, data_root())  # it needs no network
        return find_dataset(dataset, name)
    raise LadderError(why_missing(dataset))


def known() -> list[str]:
    """The names of datasets: those that can be fetched, and those under the data root."""
    there = [each.name for each in data_root().glob("[!.]*/") if each.name not in RESERVED]
    return [*dict.fromkeys(["sample", "mnist", *sorted(there)])]


def validates(
    validation: float | Literal["testing"], *, is_given: bool
) -> float | Literal["testing", "given"]:
    """What a run validates with: images given for it, where there are any; else what was asked for.

    Raises LadderError where a share of training was asked for beside such images.
    """
    if not is_given or validation == "testing":
        return validation
    if validation != 0.1:
        raise LadderError(
            f"--validation {validation}: the dataset has images for validation; leave this out, or "
            "move them to those for training"
        )
    return "given"


def why_missing(dataset: str) -> str:
    """In words, why a dataset's folder is not there, and what to do."""
    for path in candidates(dataset):
        if path.is_symlink() and not path.exists():
            return f"{clean(path)} is a broken link: mend or remove it"
        if path.exists():
            return (f"{clean(path)} is no folder of images; "
                    "`stepladder fetch NAME --from FILE` unpacks an archive")  # fmt: skip
    if dataset in ("sample", "mnist"):
        hint = f"`stepladder fetch {dataset}` brings it"
    else:
        names = known()
        near = [name for name in names if name.casefold() == dataset.casefold()]
        near = near or difflib.get_close_matches(dataset, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else (
            "give the path of a folder with a folder of images per class"
        )  # fmt: skip
    return f"no dataset {shown(dataset)} under {data_root()} or here; {hint}"
