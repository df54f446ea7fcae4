"""How sure a model says it is, and how sure it may be."""

from __future__ import annotations

import pytest
import torch

from tasks.rungs.calibrate import best_temperature, calibrated, calibration_error


def test_the_temperature_that_made_the_logits_is_found() -> None:
    """Labels drawn from the softmax of honest logits; these come three times too large."""
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    assert best_temperature(3 * honest, labels) == pytest.approx(3, rel=0.03)
    assert best_temperature(honest / 4, labels) == pytest.approx(0.25, rel=0.03)
    assert calibration_error((3 * honest).softmax(1), labels) > 0.2
    assert calibration_error(calibrated(3 * honest, 3), labels) < 0.02


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("images", [1, 20, 139])
def test_few_images_that_are_all_right_leave_doubt(images: int, classes: int) -> None:
    """Not as sure of the next as one can be, but as sure as (M + 1) / (M + 2), after Platt."""
    labels = torch.arange(images) % classes
    logits = 5.0 * torch.eye(classes)[labels]
    sure = calibrated(logits, best_temperature(logits, labels)).max(1).values
    assert sure.mean().item() == pytest.approx((images + 1) / (images + 2), abs=0.002)


def test_calibration_error_is_the_gap_between_sure_and_right() -> None:
    """Ten images, 80 % sure each, of which six are right: a fifth; bins count by their images."""
    sure = torch.tensor([[0.8, 0.2]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert calibration_error(sure, labels) == pytest.approx(0.2)
    sure = torch.cat([sure, torch.tensor([[1.0, 0.0]] * 30)])
    labels = torch.cat([labels, torch.zeros(30, dtype=torch.long)])
    assert calibration_error(sure, labels) == pytest.approx(0.2 / 4)
