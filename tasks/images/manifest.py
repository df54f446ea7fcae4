"""Manifest: a table that says of each image what it shows, and perhaps which side it is for.

CSV (with commas, semicolons or tabs), Parquet or JSON lines, a row for each image.  Paths are from
the dataset's folder.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tasks.caching.basics import LadderError, clean, told
from tasks.images.folders import some
from tasks.images.kinds import SUFFIXES
from tasks.images.labelled import Row

# What columns are usually called, the likeliest first; case, spaces and _ do not count
USUAL = {
    "path": (
        *("path", "filepath", "imagepath", "filename", "file", "image", "imagefile", "imagename"),
        *("img", "imgpath", "name", "imageid", "id"),
    ),
    "label": ("label", "class", "labelname", "classname", "category", "target", "y", "species"),
    "split": ("split", "set", "subset", "partition", "dataset", "fold"),
}
ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".ndjson", ".json")


def read_manifest(file: Path, columns: dict[str, str], folder: Path) -> list[Row]:
    """The rows of a manifest of the images in a folder; the same row twice counts once.

    columns: "path", "label" and "split" -> the name of the column that holds it, where it is not a
    usual one.  Raises LadderError for a file that is none, with a line for each row that is wrong.
    """
    if unknown := columns.keys() - USUAL.keys():
        raise LadderError(f"columns are named for path, label and split, not {some([*unknown])}")
    if not file.exists() and (folder / file.name).is_file():
        raise LadderError(f"{clean(file)} is not there; {clean(folder / file.name)} is")
    names, table = _table(file)
    chosen = {what: _column(file, what, columns.get(what, ""), names) for what in USUAL}
    root = folder.resolve()
    found: dict[str, Row] = {}
    problems: list[str] = []
    for number, cells in enumerate(table, 1):
        path, label, side = (cells.get(chosen[what], "") for what in USUAL)
        where = f"{clean(file)}: row {number:,}"
        try:
            row = Row(_inside(path, folder, root), label, side)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        other = found.setdefault(row.path, row)
        if not label:
            problems.append(f"{where}: {clean(path)} has no label")
        elif other != row:
            what = "label" if other.label != row.label else "split"
            says = [clean(each.label if what == "label" else each.side) for each in (other, row)]
            problems.append(
                f"{where}: {clean(path)} has the {what} {says[1]}, and {says[0]} further above: "
                "keep one of them"
            )
    if problems:
        raise LadderError(told(problems))
    if not found:
        raise LadderError(f"{clean(file)} has no rows; a row for each image is wanted")
    missing = [path for path in found if not os.path.lexists(folder / path)]
    if missing:
        raise LadderError(_missing(file, missing, len(found), folder))
    return [*found.values()]


def _inside(path: str, folder: Path, root: Path) -> str:
    """A row's path, from the dataset's folder.  Raises ValueError."""
    if not path or "\0" in path:
        raise ValueError("it names no file")
    plain = os.path.normpath(path.replace("\\", "/") if os.sep == "/" and "/" not in path else path)
    if Path(plain).is_absolute():
        for start in (folder, root):
            if Path(plain).is_relative_to(start):
                return Path(plain).relative_to(start).as_posix()
        raise ValueError(f"{clean(path)} is not in {clean(folder)}, the dataset's folder")
    if plain == ".." or plain.startswith("../"):
        raise ValueError(f"{clean(path)} leads out of {clean(folder)}, the dataset's folder")
    return plain


def _missing(file: Path, missing: list[str], count: int, folder: Path) -> str:
    """The line for rows whose files are not there, with a guess at why."""
    lines = (
        f"{clean(file)}: {len(missing):,} of {count:,} images are not in {clean(folder)}: "
        f"{some(missing)}"
    )
    first = missing[0]
    around = [*sorted(each for each in folder.iterdir() if each.is_dir()), folder.parent]
    near = next((each for each in around if (each / first).is_file()), None)
    with_suffix = [first + end for end in SUFFIXES if (folder / (first + end)).is_file()]
    if near:
        return f"{lines}; these are in {clean(near)}: give that folder"
    if with_suffix:
        return f"{lines}; its paths lack the suffix of {clean(with_suffix[0])}"
    return f"{lines}; paths are from that folder: bring them, or remove their rows"


def _column(file: Path, what: str, given: str, names: list[str]) -> str:
    """The name of the column that holds a path, a label or a split; "" for no split."""
    if given:
        if given in names:
            return given
        raise LadderError(f"{clean(file)} has no column {clean(given)}; it has {some(names)}")
    plain = {"".join(c for c in name.casefold() if c.isalnum()): name for name in reversed(names)}
    for usual in USUAL[what]:
        if usual in plain:
            return plain[usual]
    if what == "split":
        return ""
    raise LadderError(
        f"{clean(file)} has no column for the {what}, such as {', '.join(USUAL[what][:3])}; say "
        f"which it is: --columns {what}=NAME (it has {some(names)})"
    )


def _table(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A manifest's columns, and its rows as texts.  Raises LadderError."""
    import pyarrow as pa

    suffix = file.suffix.lower()
    if suffix not in ENDINGS:
        raise LadderError(
            f"{clean(file)} is no manifest: give {', '.join(ENDINGS[:5])} or its like"
        )
    try:
        if suffix == ".parquet":
            return _parquet(file)
        text = file.read_bytes().decode("utf-8-sig")
        is_json = suffix in (".jsonl", ".ndjson", ".json")
        return _json_lines(text) if is_json else _csv(text)
    except OSError as error:
        raise LadderError(f"{clean(file)} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise LadderError(f"{clean(file)} is not UTF-8: save it as that") from None
    except (ValueError, csv.Error, pa.ArrowException, RecursionError) as error:
        raise LadderError(f"{clean(file)} cannot be read as a table: {clean(error)}") from None


def _csv(text: str) -> tuple[list[str], list[dict[str, str]]]:
    lines = text.splitlines()
    head = lines[0] if lines else ""
    counts = Counter(c for c in head if c in ",;\t|")
    delimiter = counts.most_common(1)[0][0] if counts else ","
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(rows, [])]
    _insist_on_names(names)
    return names, [dict(zip(names, map(str.strip, row), strict=False)) for row in rows if any(row)]


def _json_lines(text: str) -> tuple[list[str], list[dict[str, str]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number:,} is no JSON object with a path and a label")
            rows.append({key: _text(value) for key, value in row.items()})
    names = [*dict.fromkeys(name for row in rows for name in row)]
    return names, rows


def _parquet(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    _insist_on_names(table.column_names)
    rows = [{name: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    return table.column_names, rows


def _insist_on_names(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"it has several columns called {some(twice)}")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
