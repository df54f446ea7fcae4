"""Images that stay in the files of their stacks, for datasets larger than memory.

Where all of them fit they are gathered into one tensor, which is faster; else a batch takes its
rows from the mapped files, and the system keeps as many pages of those as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.caching import machine

SHARE = 0.5  # of the memory that is free: more is not gathered
BLOCK = 16_000_000  # bytes looked at at a time


class Rows:
    """Chosen rows of several stacks, one after the other, with what is used here of a tensor's way.

    stacks: images[N, H, W(, 3)] uint8 each, mapped; rows: [M] int64 for each.
    """

    dtype = torch.uint8

    def __init__(self, stacks: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        self._stacks, self._rows = stacks, rows
        self._ends = torch.tensor([len(each) for each in rows]).cumsum(0)
        self.shape = torch.Size((int(self._ends[-1]), *stacks[0].shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        return self.index_select(0, torch.arange(*part.indices(len(self))))

    def numel(self) -> int:
        """How many pixels, of all channels."""
        return self.shape.numel()

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The images[B, H, W(, 3)] at index[B] int64, copied.  dim: 0."""
        assert dim == 0
        images = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
        owner = torch.bucketize(index, self._ends, right=True)
        for number in owner.unique().tolist():
            where = (owner == number).nonzero()[:, 0]
            first = int(self._ends[number]) - len(self._rows[number])
            rows = self._rows[number][index[where] - first]
            images.index_copy_(0, where, self._stacks[number].index_select(0, rows))
        return images

    def split(self, count: int) -> Iterator[Tensor]:
        """All images, `count` at a time, copied."""
        for start in range(0, len(self), count):
            yield self[start : start + count]

    def to(self, device: Any) -> Rows | Tensor:
        """Themselves for the CPU; another device gets a copy of all."""
        return self if torch.device(device).type == "cpu" else self[:].to(device)


Images = Tensor | Rows


def fit(count: int, shape: Sequence[int]) -> bool:
    """Whether images[count, *shape] uint8 may be gathered in memory."""
    size = count * torch.Size(shape).numel()
    return size <= machine.LARGE or size <= SHARE * machine.available_memory()


def blocks(images: Images) -> Iterator[Tensor]:
    """All images, some of bounded size at a time."""
    yield from images.split(max(1, BLOCK // max(1, images.shape[1:].numel())))
