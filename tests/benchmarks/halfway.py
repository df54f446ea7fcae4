"""`python -m tests.benchmarks.halfway FOLDER`: scan to baselines, as the command line does it."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.climb import CHAPTERS
from flows.endings import briefly
from tasks.caching import process


def main() -> None:
    """Plan, then run; torch and Prefect are imported meanwhile for the stages."""
    process.warm_up(*CHAPTERS)
    from flows.ladder import PLANNED
    from tasks.caching.plan import asleep
    from tests.benchmarks.ours import baselines

    folder = Path(sys.argv[1])
    with asleep() as planned:
        baselines.fn(folder)
    PLANNED.set(planned)
    baselines(folder)


if __name__ == "__main__":
    briefly(main)
