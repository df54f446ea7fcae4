"""Every prediction, image by image, as predictions.parquet holds them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.caching.columns import numbers, texts
from tasks.report.words import readable

MOST = 100  # classes, up to which each image's probability of every one is kept
FEW = ("split", "label", "predicted", "model")  # columns of few values, each of them many times


def predictions(
    classes: list[str],
    model: str,
    files: Mapping[str, Sequence[Sequence[str]]],
    said: Mapping[str, np.ndarray],
) -> bytes:
    """What a model says of each image, a row each.  Parquet.

    files: split -> the names of each class's files.  said: split -> probabilities[N, C] float32, in
    the order of those files.  Columns: split, label and file, which lies in the folder of its
    class; predicted, correct, and probability, of the class predicted; probabilities, of all
    classes in their order, where there are at most 100; model.
    """
    counts = [len(names) for split in said for names in files[split]]
    truth = np.repeat(np.tile(np.arange(len(classes)), len(said)), counts)
    probabilities = np.concatenate([*said.values()])
    likeliest = probabilities.argmax(1)
    shown = [readable(name) for name in classes]
    held = {
        "split": texts(split for split, each in said.items() for _ in each),
        "label": texts(shown[each] for each in truth),
        "file": texts(readable(f) for split in said for names in files[split] for f in names),
        "predicted": texts(shown[each] for each in likeliest),
        "correct": numbers(likeliest == truth),
        "probability": numbers(probabilities.max(1)),
        "model": texts([model] * len(truth)),
    }
    if len(classes) <= MOST:
        every = pa.FixedSizeListArray.from_arrays(numbers(probabilities.reshape(-1)), len(classes))
        held["probabilities"] = every.cast(pa.list_(pa.float32()))
    file = io.BytesIO()
    pq.write_table(
        pa.table(held),
        file,
        compression="zstd",
        use_dictionary=[*FEW],
        column_encoding={
            name: "BYTE_STREAM_SPLIT"
            for name in ("probability", "probabilities.list.element")
            if name.partition(".")[0] in held
        },
    )
    return file.getvalue()
