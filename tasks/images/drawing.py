"""Drawing: which images are for testing or validation where nobody has said so.

An image's side follows from its own content, so that it stays there when others come or go, and
equal images are never on two sides.
"""

from __future__ import annotations

import numpy as np

from tasks.images.likeness import alike

OWN = 8  # first byte of a digest that draws for testing; validation is drawn by those before it


def draw(digests: np.ndarray) -> np.ndarray:
    """Each image's own number, 0 to 1, from its digest's first 8 bytes.  [N, 8 or more] -> [N]."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] / 2.0**64


def held_out_of(classes: list[np.ndarray], validation: float) -> list[np.ndarray]:
    """Which images of each class are held out: those whose own number is below `validation`.

    So an image stays on its side when others come or go, but for one case: a class that would be
    held out whole keeps its image with the highest number, and training keeps what equals it.
    classes: an array of digests [N, 32] uint8 each; gives [N] bool for each.
    """
    out = [draw(digests) < validation for digests in classes]
    last = [
        digests[draw(digests).argmax()].tobytes()
        for digests, held in zip(classes, out, strict=True)
        if held.size and held.all()
    ]
    return _with(classes, out, last, held_out=False)


def drawn_for_testing(classes: list[np.ndarray], testing: float) -> list[np.ndarray]:
    """Which images of each class are for testing; as `held_out_of`, by other bytes of the digests.

    A class of which none would be keeps its image with the lowest number for it, and what equals
    that.  A class whose images are all equal has them on one side, whatever is done.
    """
    rest = [digests[:, OWN:] for digests in classes]
    out = held_out_of(rest, testing)
    first = [
        digests[draw(digests).argmin()].tobytes()
        for digests, held in zip(rest, out, strict=True)
        if held.size and not held.any()
    ]
    return _with(rest, out, first, held_out=True)


def together(classes: list[np.ndarray], small: np.ndarray) -> list[np.ndarray]:
    """The digests that images are drawn by so that near duplicates stay together.

    Each image takes the lowest digest of those that it is like, and of those that these are like,
    and so on.  classes: digests [N, 32] uint8 of each;  small: the miniatures of all of them.
    """
    digests = np.concatenate(classes)
    first = list(range(len(digests)))  # of each image, one that it goes with

    def leader(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for one, other in alike(small, small):
        if (a := leader(one)) != (b := leader(other)):
            lower, higher = sorted((a, b), key=lambda row: digests[row].tobytes())
            first[higher] = lower
    led = digests[[leader(row) for row in range(len(digests))]]
    return np.split(led, np.cumsum([len(each) for each in classes])[:-1])


def _with(
    classes: list[np.ndarray], out: list[np.ndarray], digests: list[bytes], *, held_out: bool
) -> list[np.ndarray]:
    """The same, with all images of these digests on one side."""
    for digest in digests:
        same = [(each == np.frombuffer(digest, np.uint8)).all(axis=1) for each in classes]
        out = [np.where(equal, held_out, held) for held, equal in zip(out, same, strict=True)]
    return out
