"""What a Dask worker imports before it is given stages: `dask worker ... --preload flows.worker`.

A worker whose loop stands still for the seconds that this takes is taken for lost.
"""

from __future__ import annotations

import importlib
import os

# Dask sets it to 1 for all its workers; how many cores a stage has, is said by the run.
os.environ.pop("OMP_NUM_THREADS", None)

for each in ("tasks.caching.orchestration", *importlib.import_module("flows.climb").CHAPTERS):
    importlib.import_module(each)
