"""Make a model for a training: built under its seed, looked over, copied out and filled again.

What its builder makes is what is trained, of whatever layers, parameters and buffers it is.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tasks.caching.basics import LadderError
from tasks.rungs.convolution import Conv, First, channels
from tasks.rungs.rows import Images, blocks

_seeding = threading.RLock()  # what draws from a process's own streams takes turns


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's, NumPy's and Python's own streams inside, and leave them as they were after.

    Ours never draw from them, but a model may: its builder when it makes its weights, dropout in
    each step.
    """
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with _seeding, torch.random.fork_rng(devices):
        before = np.random.get_state(), random.getstate()
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


class Normalize(nn.Module):
    """Pixels of mean 0 and deviation 1 in each channel, over the images it has learned from."""

    mean: Tensor  # [channels] float32
    deviation: Tensor  # [channels] float32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """images[B, H, W(, 3)] float32, 0 to 1 -> the same shape."""
        return (x - self.mean) / self.deviation

    def learn(self, images: Images) -> None:
        """Take mean and deviation of images[N, H, W(, 3)] uint8; sums of bytes are exact."""
        total = torch.zeros(2, len(self.mean), dtype=torch.int64)
        for part in blocks(images):
            bytes_ = part.reshape(-1, len(self.mean)).long()
            total += torch.stack([bytes_.sum(0), bytes_.square().sum(0)])
        mean, square = total.double() / (images.numel() / len(self.mean))
        self.mean.copy_(mean / 255)
        self.deviation.copy_((square - mean.square()).sqrt().clamp(min=1) / 255)


def new_model(
    build: Callable[[Sequence[int], int], nn.Module],
    shape: Sequence[int],
    classes: int,
    generator: torch.Generator,
    *,
    normalize: bool = False,
) -> nn.Module:
    """A model as its builder makes it, which draws from the stream of `generator`, on the CPU.

    With `normalize`, a layer before it that is to `learn` from the images trained on.
    What the builder leaves uninitialised is NaN here, for `check_numbers` to find.
    Raises LadderError for what no training here can train.
    """
    seed = generator.initial_seed()
    with seeded(seed):
        with _empty_is_nan():
            model = build(shape, classes)
        if normalize:
            check_model(model)
            model = nn.Sequential(Normalize(channels(shape)), model)
        if torch.initial_seed() == seed:  # else the builder has fixed one for all recipes
            generator.set_state(torch.get_rng_state())
    check_model(model)
    return model


def initialize(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw a model's first weights from `generator`, in place.

    "randn" is the post's: the weights and biases of linear layers, and of our convolutions, from
    the standard normal distribution, as a generator of this seed begins.
    Frozen ones, norms, torch's convolutions and whatever else there is stay as they were built.
    "default" leaves all as it was built: torch's layers uniform within 1 / sqrt(inputs of a unit).
    """
    if init == "randn":
        generator.manual_seed(generator.initial_seed())
        for parameter in _linear_parameters(model):
            parameter.data.normal_(generator=generator)


def _linear_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights and biases, frozen ones left out, of linear layers and our convolutions."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, First, Conv)):
            for name, parameter in layer.named_parameters(recurse=False):
                if name in ("weight", "bias") and parameter.requires_grad:
                    yield parameter


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    """Inside, torch fills with NaN what is not initialised."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def check_model(model: object) -> None:
    """Raise LadderError for what a builder must not return."""
    if not isinstance(model, nn.Module):
        raise LadderError(f"the model's builder returned {type(model).__name__}, not an nn.Module")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise LadderError(f"the model's '{name}' has no size yet: give lazy layers their sizes")
        if tensor.device.type != "cpu":
            raise LadderError(f"the model's '{name}' is on {tensor.device}: build it on the CPU, "
                              "and choose where it trains by --device")  # fmt: skip
    parameters = dict(model.named_parameters())
    if not parameters:
        raise LadderError("the model has no parameters, so there is nothing to train")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise LadderError("all parameters of the model are frozen (requires_grad=False), "
                          "so there is nothing to train")  # fmt: skip
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32 and parameter.requires_grad:
            raise LadderError(f"the model's '{name}' is of {parameter.dtype}: a model trains in "
                              "torch.float32, call .float() on it")  # fmt: skip
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and any(
            step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
        ):
            raise LadderError(f"the model's '{name}' is one number seen many times, which cannot "
                              "be loaded again: call .clone() on what .expand() gives")  # fmt: skip
        if not isinstance(value, Tensor):
            raise LadderError(f"the model keeps a {type(value).__name__} as '{name}', which cannot "
                              "be stored: make it a tensor, by register_buffer")  # fmt: skip


def check_numbers(model: nn.Module) -> None:
    """Raise LadderError for parameters and buffers that hold NaN before a step is taken."""
    for name, tensor in contents(model).items():
        if tensor.isnan().any():
            raise LadderError(f"the model's '{name}' holds NaN before its first step: give it "
                              "numbers in the builder, for example by torch.zeros")  # fmt: skip


def try_out(model: nn.Module, images: Tensor, classes: int) -> None:
    """See that a model answers with logits that can be trained.  images[B, H, W(, 3)] uint8.

    Raises LadderError for an answer of another kind; what goes wrong in the model is its own.
    """
    before = contents(model).keys()
    with seeded(0), _empty_is_nan():
        logits = model.eval()(images.float().div_(255))
    if added := contents(model).keys() - before:
        raise LadderError(f"the model makes '{min(added)}' when it first answers: make it in the "
                          "builder, so that a stored model can be loaded")  # fmt: skip
    wanted = (len(images), classes)
    if not isinstance(logits, Tensor):
        raise LadderError(f"the model answers with a {type(logits).__name__}, not with a tensor of "
                          f"logits of shape {list(wanted)}")  # fmt: skip
    if logits.shape != wanted or logits.dtype != torch.float32:
        raise LadderError(f"the model answers {len(images)} images with {logits.dtype} of shape "
                          f"{list(logits.shape)}, not with torch.float32 logits of {list(wanted)}: "
                          f"one for each of {classes} classes")  # fmt: skip
    if logits.isnan().any():
        raise LadderError("the model answers with NaN before its first step: give numbers to "
                          "all that it makes, by torch.zeros instead of torch.empty")  # fmt: skip
    if not logits.requires_grad:
        raise LadderError("what the model answers depends on none of its trainable parameters, "
                          "so there is nothing to train")  # fmt: skip


def check_answers(model: nn.Module, again: nn.Module, images: Tensor, device: str) -> None:
    """See that a model loaded again answers like the trained one.  images[B, H, W(, 3)] uint8.

    Raises LadderError where it does not: what it would say of an image nobody could know.
    """
    pixels, said = images.to(device).float().div_(255), []
    for each in (model, again.to(device)):
        with seeded(0, device), torch.no_grad():
            said.append(each.eval()(pixels))
    if not torch.allclose(said[0], said[1], rtol=1e-2, atol=1e-2, equal_nan=True):
        raise LadderError("the model, stored and loaded again, answers otherwise: what training "
                          "changes has to be a parameter or a buffer (register_buffer), and what "
                          "it draws has to come from torch's own stream")  # fmt: skip


def contents(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each parameter and buffer, those that are not persistent too, on the CPU."""
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `contents` gave.  Raises LadderError where a model has become another."""
    persistent, buffers = model.state_dict().keys(), dict(model.named_buffers())
    others = buffers.keys() & tensors.keys() - persistent
    try:
        model.load_state_dict({name: tensors[name] for name in tensors.keys() - others})
        for name in others:
            buffers[name].copy_(tensors[name])
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise LadderError("these weights are not of the model that the code now builds: "
                          f"{text[:300]}") from error  # fmt: skip
