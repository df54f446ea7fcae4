"""An epoch's steps, a few at a time, as a GPU can repeat them without Python."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tasks.rungs.course import Course

LEG = 8  # steps: enough to hide Python from a GPU, and few enough to be recorded of any model


class Legs:
    """Takes the steps of an epoch, LEG at a time, as a GPU can repeat them.

    step(batch[B] int64, shifts[4, 2] int64, flips[4] bool, rate[] float64) takes one, on `device`.
    """

    def __init__(self, step: Callable[[Tensor, Tensor, Tensor, Tensor], None], device: str) -> None:
        self._step, self._device = step, device
        self._legs: dict[tuple[int, ...], tuple[list[Tensor], Iterator[None]]] = {}

    def take(self, way: Course) -> Iterator[int]:
        """Take an epoch's steps; tells before each leg how many are taken."""
        sizes = tuple(map(len, way.batches))
        order, *others = (each.to(self._device) for each in (torch.cat([*way.batches]), *way[1:]))
        parts = order.split(sizes)
        for first in range(0, len(sizes), LEG):
            yield first
            some = slice(first, first + LEG)
            given = [torch.cat(parts[some]), *(each[some] for each in others)]
            if sizes[some] not in self._legs:
                self._legs[sizes[some]] = self._leg(sizes[some], given)
            room, turns = self._legs[sizes[some]]
            for here, there in zip(room, given, strict=True):
                here.copy_(there)
            next(turns)

    def _leg(
        self, sizes: tuple[int, ...], like: list[Tensor]
    ) -> tuple[list[Tensor], Iterator[None]]:
        """Room for what steps of these sizes go by, and the steps by what is in it."""
        room = [torch.empty_like(each) for each in like]

        def take() -> None:
            order, *others = room
            for given in zip(order.split(sizes), *others, strict=True):
                self._step(*given)

        return room, repeated(take, self._device)


def repeated(work: Callable[[], None], device: str) -> Iterator[None]:
    """Does `work` at each step of the iterator, on a GPU without Python between its kernels.

    There, the first time is as usual and leaves nothing to be set up; the second is recorded as a
    CUDA graph, which is what runs from then on.  So `work` may read and change only tensors that
    stay where they are, and wait for no number.
    """
    while device != "cuda":
        work()
        yield
    stream = torch.cuda.Stream()  # nothing can be recorded on the usual one
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    yield
    recording = torch.cuda.CUDAGraph()
    with no_collection(), torch.cuda.graph(recording, stream=stream):
        work()
    while True:
        recording.replay()
        yield


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Inside, Python collects no garbage: to free another training's graph spoils a recording."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
