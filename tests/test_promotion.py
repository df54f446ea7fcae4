"""Promotion: a real gain changes the model, luck hardly ever, and its user has the last word."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.serving.promotion import Rule, decide

IMAGES = 10_000


def seeds(accuracy: float, luck: np.random.Generator, spread: float = 0.12) -> np.ndarray:
    """Answers of a seed [IMAGES] bool: images are hard alike for all, and seeds differ in luck."""
    hard = np.random.default_rng(7).normal(0, 8, IMAGES)
    low, high = 0.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-middle - hard))).mean() < accuracy:
            low = middle
        else:
            high = middle
    shift = low + luck.normal(0, spread)
    return luck.random(IMAGES) < 1 / (1 + np.exp(-shift - hard))


@pytest.mark.parametrize("start", range(3))
def test_a_hundred_nights_of_luck_hardly_change_the_model(start: int) -> None:
    """Seeds at 99.4 %, some 0.05 points apart: at most 5 of 100 nights change the model."""
    luck = np.random.default_rng(start)
    used, changes = seeds(0.994, luck), 0
    for _ in range(100):
        candidate = seeds(0.994, luck)
        if decide(candidate, used).promoted:
            used, changes = candidate, changes + 1
    assert changes <= 5


def test_a_gain_of_three_tenths_of_a_point_changes_the_model() -> None:
    """From 99.1 to 99.4 %: promoted in most single runs, and never a regression."""
    luck = np.random.default_rng(0)
    found = [decide(seeds(0.994, luck), seeds(0.991, luck)) for _ in range(40)]
    assert sum(each.promoted for each in found) >= 32
    assert not any(each.regression for each in found)


@pytest.mark.parametrize("spread", [0.12, 0.3])
@pytest.mark.parametrize("start", range(3))
def test_a_hundred_nights_of_luck_raise_no_alarm(start: int, spread: float) -> None:
    """Though whatever is in use won by luck, and most nights lose to it: at most 1 of 100."""
    luck = np.random.default_rng(start)
    used, alarms = seeds(0.994, luck, spread), 0
    earlier = [float(used.mean())]
    for _ in range(100):
        candidate = seeds(0.994, luck, spread)
        found = decide(candidate, used, earlier=earlier)
        alarms += found.regression
        earlier.append(float(candidate.mean()))
        used = candidate if found.promoted else used
    assert alarms <= 1


@pytest.mark.parametrize("nights", [0, 10])
def test_a_loss_of_a_point_raises_the_alarm(nights: int) -> None:
    """From 99.4 to 98.4 %, on the first night after a model as on the eleventh."""
    luck = np.random.default_rng(0)
    for _ in range(10):
        earlier = [float(seeds(0.994, luck).mean()) for _ in range(nights)]
        found = decide(seeds(0.984, luck), seeds(0.994, luck), earlier=earlier)
        assert found.regression
        assert not found.promoted


@pytest.mark.parametrize(
    ("rule", "won", "lost", "promoted", "regression"),
    [
        ("p<0.05", 20, 5, True, False),
        ("p<0.05", 6, 5, False, False),
        ("p<0.05", 5, 20, False, False),
        ("p<0.05", 5, 60, False, True),
        ("better", 6, 5, True, False),
        ("better", 5, 5, False, False),
        ("always", 5, 60, True, True),
        ("never", 20, 5, False, False),
    ],
)
def test_rules(rule: Rule, won: int, lost: int, promoted: bool, regression: bool) -> None:
    """What each rule makes of images won and lost."""
    candidate = np.array([True] * won + [False] * lost + [True] * 50)
    present = np.array([False] * won + [True] * lost + [True] * 50)
    found = decide(candidate, present, rule)
    assert (found.promoted, found.regression) == (promoted, regression)


def test_first_model_and_one_that_testing_images_chose() -> None:
    """The first is promoted; one chosen by testing images only where its user says always."""
    sheet = np.ones(5, bool)
    assert decide(sheet, None).promoted
    assert not decide(sheet, None, optimistic=True).promoted
    assert decide(sheet, None, "always", optimistic=True).promoted
