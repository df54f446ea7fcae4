"""Imported where others are forked from: climb once, so that each fork starts warm.

By then torch, Arrow and Matplotlib have all been used, and a kill hits a stage, not an import.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from climbing import climb, write_tiny

with tempfile.TemporaryDirectory() as folder:
    write_tiny(Path(folder))
    climb(Path(folder), epochs=2, only="linear, cross*")
