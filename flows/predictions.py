"""The flow `predict`: what the model in use says of a folder, written as Parquet, by a deployment.

`stepladder predict` does the same by hand, and without Prefect.
"""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.datasets import find_dataset
from flows.parameters import Dataset, within_limits
from flows.predict import found, load_model, rows_of, write_parquet
from tasks.caching.basics import LadderError, data_root, expand, shown
from tasks.caching.orchestration import Plainly
from tasks.caching.places import insist_on_reach
from tasks.report.artifacts import slug_of
from tasks.report.markdown import table
from tasks.report.words import escaped
from tasks.rungs.limits import Text

Folder = Annotated[str, Text("a folder's path", 4_096, least=0)]


@flow(
    name="predict",
    flow_run_name=lambda: shown(flow_run.parameters.get("dataset", "mnist")).strip("'"),
    validate_parameters=False,
)
def predict(dataset: Dataset = "mnist", folder: Folder = "") -> Any:
    """Say what each image of a folder shows, by a dataset's model in use.

    Gives the path of the Parquet file; its columns are those of `stepladder predict --out`.
    Raises LadderError for a dataset without a model and a folder without images.

    Args:
        dataset: whose model to ask
        folder: where the images lie; left empty, inbox/<dataset> under the data root

    """
    Plainly.begin()
    dataset, folder = within_limits(predict.fn, locals())
    if folder:
        insist_on_reach(expand(folder), "the folder")
    place = find_dataset(dataset, "")
    model = load_model(place.home)
    images = expand(folder) if folder else data_root() / "inbox" / place.home
    missing: list[str] = []
    files = list(found([str(images)], missing)) if images.is_dir() else []
    if not files:
        raise LadderError(f"{images} holds no image: put some there, or name another folder")
    rows: list[dict[str, Any]] = []
    for block in model.files(files):
        missing += block.problems
        rows += rows_of(block, model.classes)
    now = datetime.datetime.now(datetime.UTC)
    out = data_root() / "predictions" / place.home / f"{now:%Y%m%d%H%M%S}.parquet"
    write_parquet(out, model.classes, rows)
    strange = sum(row["unlike"] for row in rows)
    said = f"{len(rows):,} images, {strange:,} unlike all of training, {len(missing):,} unreadable"
    _show(slug_of(place.home), out, said, rows, missing)
    return Completed(message=f"{said}: {out}", data=str(out))


def _show(name: str, out: Path, said: str, rows: list[dict[str, Any]], missing: list[str]) -> None:
    """How many images are of which class, as an artifact; the files that could not be read."""
    counts = Counter(row["class"] for row in rows)
    lines = [f"{escaped(said)}: {escaped(str(out))}", ""]
    lines += table(["class", "images"], [[label, f"{n:,}"] for label, n in counts.most_common()])
    lines += ["", *(f"- {escaped(each)}" for each in missing[:100])]
    create_markdown_artifact("\n".join(lines), key=f"predictions-{name}", description=said)
