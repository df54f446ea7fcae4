"""`python -m tests.benchmarks.halfway FOLDER`: scan to baselines, as the command line does it."""

from __future__ import annotations

import sys
from pathlib import Path

from tasks.caching import process

if __name__ == "__main__":
    process.warm_up("tasks.report")  # before torch and Prefect are imported here
    from flows.ladder import PLANNED
    from tasks.caching.plan import asleep
    from tests.benchmarks.ours import baselines

    folder = Path(sys.argv[1])
    with asleep() as planned:
        baselines.fn(folder)
    PLANNED.set(planned)
    baselines(folder)
