"""A model in use: from files, or pixels, to the probability of each class.

A file comes to it by the way that the training images came, `canvas.read_image`: what its metadata
say of size, fit and colour is done to every image.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.caching.basics import LadderError
from tasks.caching.values import Weights
from tasks.images.canvas import Canvas, read_image
from tasks.images.folders import read_files
from tasks.images.form import Form
from tasks.images.pillow import fitted
from tasks.rungs.calibrate import calibrated
from tasks.rungs.familiar import unlike
from tasks.rungs.measure import answers, load_model

BLOCK = 2048  # files that are read and decoded while the model answers for those before


class Answers(NamedTuple):
    """What a model says of files: probabilities[N, C] of `paths`, and why of others nothing.

    unlike: [N] bool, the images unlike all that was trained on.
    """

    paths: list[Path]
    probabilities: Tensor
    unlike: Tensor
    problems: list[str]


class Classifier:
    """A model and what is to be done to images before it sees them."""

    def __init__(self, model: Weights) -> None:
        metadata = model.metadata
        preprocessing = json.loads(metadata["preprocessing"])
        self.classes: list[str] = json.loads(metadata["classes"])
        self.shape: tuple[int, ...] = tuple(preprocessing["shape"])
        self.form = Form(
            size=(self.shape[0], self.shape[1]),
            colour="RGB" if len(self.shape) == 3 else "greyscale",
            fit=metadata.get("fit", "crop"),  # type: ignore[arg-type] # checked by pydantic
        )
        self.network = load_model(*model)
        self._temperature = float(metadata.get("temperature", 1))
        self._familiar = json.loads(metadata.get("familiar", "null"))
        self._precision = json.loads(metadata["recipe"])["precision"]

    def __call__(self, images: Any) -> Tensor:
        """The probability of each class, [N, C] float32, in the order of `classes`.

        images: uint8 [N, H, W(, 3)], an array or a tensor of the model's own shape; or a list of
        paths, PIL images or uint8 arrays [H, W(, 3)] of any size, made as those of training were.
        Raises LadderError for images of another shape, and for a file that is none.
        """
        if isinstance(images, list | tuple):
            rows = [self._made(each) for each in images]
            images = np.stack(rows) if rows else np.empty((0, *self.shape), np.uint8)
        pixels = torch.as_tensor(images)
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != self.shape:
            raise LadderError(
                f"images are {str(pixels.dtype).removeprefix('torch.')} {[*pixels.shape]}; this "
                f"model takes uint8 [N, {', '.join(map(str, self.shape))}]: give a list to have "
                "each resized"
            )
        return self.judge(pixels)[0]

    def judge(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The probability of each class, [N, C] float32, and what is unlike training, [N] bool.

        pixels: uint8 [N, H, W(, 3)], of the model's own shape.
        """
        logits = answers(self.network, pixels, self._precision)
        strange = torch.zeros(len(pixels), dtype=torch.bool)
        if self._familiar:
            strange = unlike(pixels, logits, self._familiar)
        return calibrated(logits, self._temperature), strange

    def files(self, paths: Iterable[Path]) -> Iterator[Answers]:
        """What it says of files, some at a time, in their order.

        Raises LadderError where this computer is short of something.
        """
        with ThreadPoolExecutor(1) as ahead:
            blocks = _blocks(paths)
            waiting = ahead.submit(self._read, next(blocks, []))
            while True:
                read, images, problems = waiting.result()
                block = next(blocks, [])
                waiting = ahead.submit(self._read, block)
                yield Answers(read, *self.judge(torch.from_numpy(images)), problems)
                if not block:
                    return

    def _read(self, paths: Sequence[Path]) -> tuple[list[Path], np.ndarray, list[str]]:
        """The files that can be read, their images[N, H, W(, 3)], and a line for each other one."""
        if not paths:
            return [], np.empty((0, *self.shape), np.uint8), []
        canvas = Canvas(paths[0].parent, [path.name for path in paths])
        try:
            data = list(enumerate(read_files(canvas.folder, canvas.names)))
        except LadderError as error:  # of the folder itself
            return [], np.empty((0, *self.shape), np.uint8), [str(error)]
        canvas.problems += [str(each) for _, each in data if isinstance(each, LadderError)]
        whole = [(row, each) for row, each in data if isinstance(each, bytes)]
        canvas.decode([row for row, _ in whole], [each for _, each in whole], self.form)
        rows = canvas.filled()
        images = canvas.images[rows] if rows else np.empty((0, *self.shape), np.uint8)
        return [paths[row] for row in rows], images, canvas.problems

    def _made(self, image: Any) -> np.ndarray:
        """One image as the training's were."""
        if isinstance(image, str | Path):
            path = Path(image)
            [data] = read_files(path.parent, [path.name])
            if isinstance(data, LadderError):
                raise data
            return read_image(data, path, self.form)
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image, np.uint8))
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        return np.asarray(fitted(image, self.form))


def _blocks(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Files of one folder each, so that it is opened once."""
    for _, group in itertools.groupby(paths, key=lambda path: path.parent):
        while block := list(itertools.islice(group, BLOCK)):
            yield block
