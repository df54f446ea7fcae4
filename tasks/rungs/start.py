"""Weights to start from, instead of random ones: a file of somebody's training."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.caching.basics import DamagedError, LadderError, open_regular, shortened
from tasks.rungs.building import Normalize, contents, fill

SUFFIXES = (".safetensors", ".pt", ".pth")


def content(path: str) -> str:
    """What stands for a file of weights in a key: 16 hex digits of its content's sha256.

    Raises LadderError for what is no file of weights.
    """
    if not path.endswith(SUFFIXES):
        raise LadderError(f"weights {shortened(path)} ends in none of {', '.join(SUFFIXES)}")
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        raise LadderError(f"weights {shortened(path)}: there is no such file") from None
    return _content(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _content(path: str, *_status: int) -> str:
    return hashlib.sha256(_read(path)).hexdigest()[:16]


def _read(path: str) -> bytes:
    try:
        with open_regular(Path(path)) as (file, _status):
            return file.read()
    except (DamagedError, OSError) as error:
        reason = getattr(error, "strerror", None) or "it is no file"
        raise LadderError(f"weights {shortened(path)} cannot be read: {reason}") from None


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.

    A .pt file is read by torch's `weights_only`, which runs no code of it: a dict of tensors, or
    one under "state_dict".  Raises LadderError for any other file.
    """
    data = _read(path)
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        found: Any = torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception:
        found = None
    if isinstance(found, Mapping):
        found = found.get("state_dict", found)
    if isinstance(found, Mapping) and all(isinstance(each, Tensor) for each in found.values()):
        return dict(found)
    raise LadderError(f"weights {shortened(path)} is no file of tensors: write one by "
                      "safetensors.torch.save_file(model.state_dict(), FILE)")  # fmt: skip


def start_from(model: nn.Module, path: str) -> None:
    """Fill a model, in place, with the weights of a file.

    They may be those of the model before which a recipe puts a layer that normalizes images.
    Raises LadderError that names a tensor which the model does not have, or of another shape.
    """
    tensors, whole = read_weights(path), model
    first, *others = model.children()
    if isinstance(first, Normalize) and "0.mean" not in tensors:
        [whole] = others
    needed, there = whole.state_dict(), contents(whole)
    place = f"weights {shortened(path)} do not fit the model"
    for name in (*needed, *tensors):
        if name not in tensors or name not in there:
            side = "they lack" if name in there else "it has no"
            raise LadderError(f"{place}: {side} '{shortened(name)}'")
        if tensors[name].shape != there[name].shape:
            raise LadderError(f"{place}: '{name}' is of shape {list(tensors[name].shape)} in the "
                              f"file and {list(there[name].shape)} in the model")  # fmt: skip
    fill(whole, tensors)
