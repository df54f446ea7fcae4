"""What a run keeps of its images, so that later ones can tell how the data drifted.

A sketch of a set are its smallest digests: sha256 scatters them evenly, so that what holds of them
holds of all, as in Bar-Yossef et al., "Counting distinct elements in a data stream" (2002).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # whoever only compares sketches need not wait for torch
    from torch import Tensor

    from tasks.caching.values import Stack

MOST = 1024  # digests in a sketch: a share is then right within 3 points, 19 times of 20
LETTERS = 12  # of a digest in hex: two of 70,000 images agree in them once in 100,000 times
SIDE = 28  # of the mean image, at most


def kept_of(training: Sequence[Stack], means: Sequence[Tensor]) -> dict[str, object]:
    """The "sketch" and the "mean" image of all training images; see `share_of_new`.

    means: of each class, [H, W(, 3)] float32, 0 to 1.  "mean" is a PNG as a data URI.
    """
    digests = {bytes(row).hex()[:LETTERS] for stack in training for row in stack.digests}
    weights = np.array([len(stack.names) for stack in training], float)
    stacked = np.stack([mean.numpy() for mean in means])
    whole = np.tensordot(weights / weights.sum(), stacked, 1)
    picture = Image.fromarray(np.rint(255 * whole).astype(np.uint8))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {
        "sketch": sorted(digests)[:MOST],
        "mean": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
    }


def share_of_new(before: Sequence[str], now: Sequence[str]) -> float:
    """Which share of the images of one sketch another does not have, 0 to 1; see `kept_of`.

    Up to the smaller of their ends both know every digest that they have.
    """
    ends = [sketch[-1] for sketch in (before, now) if len(sketch) == MOST]
    known = [digest for digest in now if all(digest <= end for end in ends)]
    return len({*known} - {*before}) / max(1, len(known))
