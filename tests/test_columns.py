"""Arrow's columns are what its own `array` makes, and pandas is not asked for them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tasks.caching.columns import binaries, numbers, texts

TEXTS = [[], [""], ["a", "", "é\N{GRINNING FACE}", "a" * 999], [f"{i}.png" for i in range(70)]]


@pytest.mark.parametrize("values", TEXTS)
def test_texts_are_what_arrow_makes_of_them(values: list[str]) -> None:
    raw = [each.encode() for each in values]
    for made, usual in (
        (texts(values), pa.array(values, pa.string())),
        (binaries(raw), pa.array(raw, pa.binary())),
    ):
        made.validate(full=True)
        assert made.equals(usual)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 8, 9, 100])
def test_numbers_are_what_arrow_makes_of_them(kind: str, size: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2, size).astype(kind)
    missing = generator.random(size) < 0.5
    for made, usual in (
        (numbers(values), pa.array(values)),
        (numbers(values, missing), pa.array(values, mask=missing)),
    ):
        made.validate(full=True)
        assert made.equals(usual)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        texts(["\udcff"])


def test_a_stack_is_stored_without_pandas() -> None:
    """Each decode is a process of its own, and would import it."""
    code = (
        "import sys, numpy as np, torch\n"
        "from tasks.caching.values import Stack, encode\n"
        "stack = Stack(torch.zeros(2, 3, 3, dtype=torch.uint8), ['a', 'b'],"
        " np.zeros((2, 32), np.uint8))\n"
        "encode({'stack': stack, 'tensor': torch.zeros(3)}, lambda data, suffix: suffix)\n"
        "assert not {'pandas', 'numpy.ma'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
