"""Whether a run's best model becomes the dataset's: when it is better beyond noise.

Models of other seeds truly differ on the same testing images, so one is now and then better by
luck.  That does not add up over the nights: whatever won by luck is the harder to beat, and in
`tests/test_promotion.py` a hundred nights of luck alone change the model once or twice.  For the
same reason the model in use is luckier than most, and a night that loses to it is no alarm yet: a
regression is one that is also far below what the nights before came to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.report.measures import compare

LEVEL = 0.05  # of the two-sided test
ALARM, FIRST_ALARM = 1e-3, 1e-6  # the same for a regression; the stricter one of the first nights
NIGHTS, FEW = 10, 5  # how many nights to look back, and how many are too few to know luck by
Rule = Literal["p<0.05", "better", "never", "always"]


@dataclass(frozen=True)
class Decision:
    """What becomes of a candidate.

    won, lost: testing images that only the candidate, only the present model reads right; p: of
    McNemar's exact test, 0 to 1; None where there was nothing to compare with.
    """

    promoted: bool
    regression: bool
    why: str
    won: int | None = None
    lost: int | None = None
    p: float | None = None


def decide(
    candidate: np.ndarray,
    present: np.ndarray | None,
    rule: Rule = "p<0.05",
    optimistic: bool = False,
    earlier: Sequence[float] = (),
) -> Decision:
    """Decide by the answer sheets of both on the same testing images, [N] bool each.

    optimistic: whether testing images chose the candidate (`validation="testing"`), which makes
    its figures too good: then only "always" promotes it, a first model too.  earlier: accuracies,
    0 to 1, of the candidates of nights before on these images, the latest last.
    """
    if rule == "never":
        return Decision(False, False, "--promote-if never")
    if rule != "always" and optimistic:
        return Decision(False, False, "the testing images chose it, so they cannot judge it")
    if present is None:
        return Decision(True, False, "there was no model yet")
    found = compare(candidate, present)
    won, lost, p = found["won"], found["lost"], found["p"]
    figures = f"{won:,} images won, {lost:,} lost, p = {p:.2g}"
    better, beyond = won > lost, p < LEVEL
    promoted = rule == "always" or (better and (beyond or rule == "better"))
    alarm = lost > won and _is_regression(p, float(candidate.mean()), earlier[-NIGHTS:])
    return Decision(promoted, alarm, figures, won, lost, p)


def _is_regression(p: float, accuracy: float, earlier: Sequence[float]) -> bool:
    """Whether a loss is beyond the luck of images, and of nights as far as that is known.

    The second is: lower than the lowest of them by more than they differ among themselves.
    """
    if len(earlier) < FEW:
        return p < FIRST_ALARM
    lowest, highest = min(earlier), max(earlier)
    return p < ALARM and accuracy < lowest - (highest - lowest)
