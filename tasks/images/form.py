"""Form: what every image of a dataset is made into, whatever it was."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

CAPPED = 64  # pixels a side that are chosen at most without --size: what a CPU trains on in minutes
Fit = Literal["crop", "pad", "stretch"]


class Form(BaseModel):
    """What an image is made into: a parameter of `decode`, and a model's preprocessing.

    size: (height, width) in pixels; None leaves each image its own, and unequal ones are refused.
    fit: what an image of another aspect loses: `crop` its ends, centred; `pad` nothing, white is
    added; `stretch` its aspect.  colour: None leaves each its own.  background: what transparent
    pixels and padding show, 0 to 255 in every channel.  strict: refuse what would be converted:
    transparency, 16 bits, CMYK, several frames, a suffix of another kind.
    skip_bad: leave damaged files out instead of refusing them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    colour: Literal["greyscale", "RGB"] | None = None
    background: int = 255
    strict: bool = False
    skip_bad: bool = False


AS_THEY_ARE = Form(strict=True)
