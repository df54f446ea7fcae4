"""More images than memory holds: the same training to the bit, a batch at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import fitted, killed_after, pictures, quick, same_bits

from tasks.caching import machine
from tasks.caching.stage import Run
from tasks.rungs.mirror import mirror
from tasks.rungs.rows import Rows, blocks
from tasks.rungs.split import split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with no memory to speak of; how many images are copied at a time."""
    counts: list[int] = []
    select = Rows.index_select

    def spy(self: Rows, dim: int, index: torch.Tensor) -> torch.Tensor:
        counts.append(len(index))
        return select(self, dim, index)

    monkeypatch.setattr(machine, "LARGE", 100)
    monkeypatch.setattr(machine, "available_memory", lambda: 7000)
    monkeypatch.setattr(Rows, "index_select", spy)
    monkeypatch.setattr("tasks.rungs.rows.BLOCK", 640)
    monkeypatch.setattr("tasks.rungs.measure.TOGETHER", 640)
    return counts


def gathered(recipe: Any, **arguments: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "LARGE", 64_000_000)
        return fitted(recipe, **arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "linear"},
        {"model": "convnet", "shift": 1, "flip": True},
        {"model": "deep_convnet", "batch_size": 24, "keep": "best", "normalize": True},
    ],
)
@pytest.mark.parametrize("validation", [0.2, "testing"])
def test_the_bits_are_those_of_images_in_memory(
    taken: list[int], fields: dict[str, Any], validation: Any
) -> None:
    """Never are more images copied than a batch has, or than may be looked at at a time."""
    recipe = quick(**{"epochs": 2, **fields})
    mapped = fitted(recipe, validation=validation)
    assert taken
    assert max(taken) <= 24 + 3, "a last batch may take in a few more"
    count = len(taken)
    assert same_bits(mapped, gathered(recipe, validation=validation))
    assert len(taken) == count, "with room nothing is mapped"


def test_a_killed_training_goes_on_from_its_checkpoint(taken: list[int], tmp_path: Path) -> None:
    recipe = quick("mlp")
    killed_after(2, recipe, tmp_path)
    notes: list[str] = []
    run = Run(scratch=tmp_path, progress=lambda _done, _total, note: notes.append(note))
    assert same_bits(fitted(recipe, run=run), gathered(recipe))
    assert notes[0].startswith("epoch 3 of 3")
    assert taken


def test_mirrored_images_are_measured_alike(taken: list[int]) -> None:
    recipe = quick("linear")
    trained = fitted(recipe)
    given = trained, pictures(), [], ["a", "b", "c"], recipe
    mapped = mirror.fn(*given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "LARGE", 64_000_000)
        assert mirror.fn(*given) == mapped
    assert taken


def test_rows_are_those_of_their_stacks(taken: list[int]) -> None:
    """In any order, of several stacks, one of them empty."""
    stacks = pictures(n=30)
    rows, labels = split(stacks, [], (8, 8), 0.3)[0]
    assert isinstance(rows, Rows)
    whole = torch.cat([*blocks(rows)])
    assert whole.shape == rows.shape == (len(labels), 8, 8)
    index = torch.randperm(len(labels))[:20]
    assert torch.equal(rows.index_select(0, index), whole[index])
    assert torch.equal(rows[3:7], whole[3:7])
    assert torch.equal(torch.cat([*rows.split(7)]), whole)
    empty = Rows(
        [each.images for each in stacks], [torch.arange(2), torch.arange(0), torch.arange(1)]
    )
    assert torch.equal(empty[:], torch.cat([stacks[0].images[:2], stacks[2].images[:1]]))
    assert taken
