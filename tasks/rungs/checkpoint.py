"""Where a training is, kept on disk, so that a killed or a longer one goes on to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.caching.basics import write_atomic
from tasks.rungs.building import contents, fill
from tasks.rungs.optimizers import Optimizer
from tasks.rungs.recipes import Recipe
from tasks.rungs.rows import blocks
from tasks.rungs.split import Labelled


class State(NamedTuple):
    """All that changes while a model trains, and so all that a checkpoint keeps."""

    model: nn.Module
    optimizer: Optimizer
    generator: torch.Generator
    history: list[dict[str, float]]
    best: dict[str, Tensor]  # the weights of the best epoch so far, where a recipe keeps those


def go_on(
    state: State, epochs: int, earlier: Callable[..., Iterator[tuple[int, dict[str, Any]]]]
) -> None:
    """Start where the longest stored training of fewer epochs ended, if there is one.

    Under a constant learning rate its steps are the first steps of this one, to the bit.
    """
    stored = earlier("parameters", "recipe", "epochs")
    shorter = [(count, result) for count, result in stored if count < epochs]
    if shorter:
        _count, result = max(shorter, key=lambda each: each[0])
        resume = result["resume"].tensors
        put_back(state, result["weights"].tensors, resume, result["history"])


def save(scratch: Path | None, origin: str, state: State) -> None:
    """Put a checkpoint into `scratch`, whole or not at all.  Raises LadderError on a full disk."""
    if scratch is None:
        return
    tensors = {f"model.{name}": tensor for name, tensor in contents(state.model).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    tensors |= moving(state)
    metadata = {"origin": origin, "history": json.dumps(state.history)}
    metadata["digest"] = digest(tensors, metadata)
    write_atomic(scratch / "checkpoint.safetensors", safetensors.torch.save(tensors, metadata))


def restore(scratch: Path | None, origin: str, state: State) -> None:
    """Take back the checkpoint in `scratch`; a damaged one, or another training's, is ignored."""
    path = scratch / "checkpoint.safetensors" if scratch else None
    if path is None or not path.is_file():
        return
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return
    if metadata.pop("digest", "") != digest(tensors, metadata) or metadata["origin"] != origin:
        return
    weights, best, slots = _parts(tensors)
    put_back(state, weights, slots, json.loads(metadata["history"]))
    state.best.update(best)


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """The model's, those of the best epoch, and the rest, of a checkpoint's tensors."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind if kind in parts else ""][rest if kind in parts else name] = tensor
    return tuple(parts.values())


def moving(state: State) -> dict[str, Tensor]:
    """What changes while a model trains, besides its weights: the optimizer and the generator."""
    slots = {f"optimizer.{name}": tensor for name, tensor in state.optimizer.state().items()}
    slots["generator"] = state.generator.get_state()
    return {name: tensor.cpu().contiguous() for name, tensor in slots.items()}


def put_back(
    state: State, weights: Mapping[str, Tensor], slots: Mapping[str, Tensor], history: list[Any]
) -> None:
    """Bring a fresh state to where a training was."""
    fill(state.model, weights)
    prefix = "optimizer."
    state.optimizer.restore(
        {name.removeprefix(prefix): each for name, each in slots.items() if name != "generator"}
    )
    state.generator.set_state(slots["generator"])
    state.history.extend(history)


def identity(seen: Labelled, held_out: Labelled, recipe: Recipe) -> str:
    """Hex sha256 over the images, the labels and the recipe: what a checkpoint is good for."""
    sha = hashlib.sha256(recipe.model_dump_json().encode())
    for images, labels in (seen, held_out):
        sha.update(f"{tuple(images.shape)}{tuple(labels.shape)}".encode())
        for part in blocks(images):
            sha.update(part.numpy().data)
        sha.update(labels.numpy().data)
    return sha.hexdigest()


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex sha256 over names, shapes and values: safetensors itself does not notice a lost bit."""
    sha = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
