"""`stepladder predict`: what the model in use says of images; `load_model` is the same in Python.

from flows.predict import load_model

model = load_model("mnist")
model(images)             [N, C] probabilities of images[N, 28, 28] uint8, or of a list of paths
model.classes             their names
"""

from __future__ import annotations

import csv
import glob
import json as jsonlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.options import Given, offers
from tasks.caching.basics import LadderError, clean, expand, shown, write_atomic

if TYPE_CHECKING:
    from tasks.serving.classifier import Answers, Classifier

NEXT = 2  # classes to name after the likeliest


def load_model(dataset: str = "", model: str | Path | None = None) -> Classifier:
    """The model of a dataset that is in use, or a model file; see `Classifier`.

    Left out, the dataset is the one that has a model.  Raises LadderError without one.
    """
    from flows.export import in_use
    from tasks.serving.classifier import Classifier
    from tasks.serving.modelfile import read_model

    if model is not None:
        return Classifier(read_model(Path(model)))
    return Classifier(in_use(dataset or _only_one()))


def predict(
    *paths: Annotated[
        Given,
        Parameter(
            help="Images, folders, globs in quotes, or - for a list on standard input",
            allow_leading_hyphen=True,
        ),
    ],
    dataset: Annotated[
        Given,
        Parameter(
            help="Whose model; may be left out where only one dataset has one",
            completer=offers("with models"),
        ),
    ] = "",
    model: Annotated[Path | None, Parameter(help="A model file, instead of a dataset's")] = None,
    json: Annotated[
        bool, Parameter(help="Print a JSON object for each image, a line each")
    ] = False,
    as_csv: Annotated[bool, Parameter(name="--csv", help="Print CSV")] = False,
    out: Annotated[Path | None, Parameter(help="Write a Parquet file instead")] = None,
) -> None:
    """Say of images what they show: class, probability, and the next two classes.

    Files that are no images are told on standard error, with exit status 1 at the end.
    """
    for path in map(str, paths):
        if path.startswith("-") and path != "-":
            raise LadderError(f"unknown option {shown(path)}; `predict --help` lists them")
    if not paths:
        raise LadderError("say of what: images, folders, or - for a list on standard input")
    if json + as_csv + (out is not None) > 1:
        raise LadderError("--json, --csv and --out exclude each other")
    if model is not None and dataset:
        raise LadderError("say whose model: --dataset, or --model FILE")
    classifier = load_model(str(dataset), model)
    missing: list[str] = []
    files = list(found(map(str, paths), missing))
    said = _told(classifier, files, missing)
    if out is not None:
        count = write_parquet(out, classifier.classes, said)
        print(f"{count:,} predictions: {out}")
    elif json:
        for row in said:
            print(jsonlib.dumps(row))
    elif as_csv:
        _print_csv(said)
    else:
        _print_table(said)
    if missing:
        for line in missing:
            print(f"stepladder: {line}", file=sys.stderr)
        sys.exit(1)


def found(paths: Iterable[str], missing: list[str]) -> Iterator[Path]:
    """The image files that are meant, those of a folder sorted; adds a line for what is not there.

    What a folder holds besides images is left out without a word.
    """
    for given in paths:
        if given == "-":
            yield from found((line.rstrip("\r\n") for line in sys.stdin if line.strip()), missing)
            continue
        path = expand(given)
        if path.is_dir():
            images = list(_images_under(path))
            if not images:
                missing.append(f"{clean(path)} holds no image")
            yield from images
        elif path.exists() or not glob.has_magic(given):
            yield path
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                missing.append(f"{shown(given)} matches no file")
            for match in matches:
                yield from _images_under(Path(match)) if Path(match).is_dir() else [Path(match)]


def _images_under(folder: Path) -> Iterator[Path]:
    from tasks.images.kinds import of_suffix

    for root, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if of_suffix(name) and not name.startswith("."):
                yield Path(root, name)


def rows_of(said: Answers, classes: list[str]) -> Iterator[dict[str, Any]]:
    """What is told of each image.

    {"file", "class", "probability", "next": [[class, probability], ...], "unlike": whether it is
    unlike all that was trained on}
    """
    shares, places = said.probabilities.topk(min(1 + NEXT, len(classes)), dim=1)
    for path, share, place, strange in zip(
        said.paths, shares.tolist(), places.tolist(), said.unlike.tolist(), strict=True
    ):
        names = [classes[each] for each in place]
        yield {
            "file": str(path),
            "class": names[0],
            "probability": share[0],
            "next": [list(each) for each in zip(names[1:], share[1:], strict=True)],
            "unlike": strange,
        }


def _told(
    classifier: Classifier, files: Iterable[Path], missing: list[str]
) -> Iterator[dict[str, Any]]:
    for block in classifier.files(files):
        missing += block.problems
        yield from rows_of(block, classifier.classes)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for tables: a column for each of the next classes, and for its probability."""
    flat = {name: row[name] for name in ("file", "class", "probability")}
    for number, (name, share) in enumerate(row["next"], 2):
        flat |= {f"class_{number}": name, f"probability_{number}": share}
    return flat | {"unlike": row["unlike"]}


def _print_csv(rows: Iterable[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, row in enumerate(map(_flat, rows)):
        if number == 0:
            writer.writerow(row)
        writer.writerow(row.values())


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    from flows.console import print_table

    def share(value: float) -> str:
        return f"{value:.1%}"

    lines = [
        [row["file"], row["class"], share(row["probability"]),
         ", ".join(f"{name} {share(each)}" for name, each in row["next"])
         + "; unlike all that was trained on" * row["unlike"]]
        for row in rows
    ]  # fmt: skip
    if lines:
        print_table(["file", "class", "probability", "next"], lines)


def write_parquet(out: Path, classes: list[str], rows: Iterable[dict[str, Any]]) -> int:
    """Write what `rows_of` gives as Parquet, whole or not at all; gives how many there are."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [_flat(row) for row in rows]
    fields = [("file", pa.string()), ("class", pa.string()), ("probability", pa.float32())]
    for number in range(2, 2 + min(NEXT, len(classes) - 1)):
        fields += [(f"class_{number}", pa.string()), (f"probability_{number}", pa.float32())]
    fields.append(("unlike", pa.bool_()))
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(flat, pa.schema(fields)), file)
    write_atomic(out, file.getvalue())
    return len(flat)


def _only_one() -> str:
    """The dataset that has a model, where there is one such.  Raises LadderError."""
    from flows.models import homes

    there = homes()
    if len(there) == 1:
        return there[0]
    if there:
        raise LadderError(f"say whose model: --dataset, one of {', '.join(there)}")
    raise LadderError("there is no model yet; `stepladder run DATASET` makes one")
