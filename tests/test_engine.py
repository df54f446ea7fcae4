"""The engine by itself: stages that know no image, in a process that knows no Prefect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMALL = '''
"""A flow of three stages."""
import torch
from tasks.caching.refs import Ref
from tasks.caching.session import Session
from tasks.caching.stage import stage

@stage
def count(upto: int) -> torch.Tensor:
    return torch.arange(upto)

@stage
def scale(values: torch.Tensor, by: float) -> torch.Tensor:
    return values * by

@stage
def total(parts: list) -> float:
    return float(sum(part.sum() for part in parts))

def flow(session: Session, upto: int, by: float) -> Ref | None:
    session.begin()
    numbers = count(upto)
    return session.finish(total([scale["once"](numbers, 1.0), scale["more"](numbers, by)]))
'''

CLIMB = """
import json, sys
from pathlib import Path
import small
from tasks.caching.call import Settings
from tasks.caching.plan import Asleep
from tasks.caching.session import Session

settings, told = Settings(str(Path("cache").resolve()), "numbers"), []
for by in (2.0, 2.0, 3.0):
    planned = []
    small.flow(Asleep(planned, settings), 4, by)
    session = Session(settings)
    ref = small.flow(session, 4, by)
    told.append([
        ref.load(Path("cache")),
        {each.stage: each.state for each in planned},
        {name: [ref.outcome.state, *ref.outcome.why] for name, ref in session.results().items()},
    ])
assert "prefect" not in sys.modules
print(json.dumps(told))
"""


def test_stages_climb_where_there_is_no_prefect(tmp_path: Path) -> None:
    """Planned, run, reused and explained in one process, which never imports it."""
    (tmp_path / "small.py").write_text(SMALL)
    done = subprocess.run(
        [sys.executable, "-c", CLIMB], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, again, changed = json.loads(done.stdout)
    names = ["count", "scale[once]", "scale[more]", "total"]
    assert [first[0], again[0], changed[0]] == [18, 18, 24]
    assert first[1] == dict(zip(names, ["will run", *["may run"] * 3], strict=True))
    assert first[2] == {name: ["ran", "has not run before"] for name in names}
    assert again[1] == dict.fromkeys(names, "cached")
    assert again[2] == {name: ["cached"] for name in names}
    assert changed[1] == first[1] | {
        "count": "cached", "scale[once]": "cached", "scale[more]": "will run"
    }  # fmt: skip
    assert changed[2] == again[2] | {
        "scale[more]": ["ran", "by 2.0 -> 3.0"], "total": ["ran", "scale[more] changed"]
    }  # fmt: skip
