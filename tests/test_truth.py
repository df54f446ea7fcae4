"""Stepladder's column of `python -m tests.benchmarks truth`: no edit is answered from before it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.benchmarks import truth

EDITS = [pytest.param(edit, id=f"{edit.kind}, {edit.what}") for edit in truth.edits()]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[truth.Library]]:
    """Builds without a cache, and with ours."""
    place: Path = tmp_path_factory.mktemp("truth")
    libraries = [truth.Library(name, place / name) for name in ("no library", "Stepladder")]
    yield libraries
    for each in libraries:
        each.close()


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_the_result_is_a_clean_build_s_or_it_is_refused(libraries, edit) -> None:
    """And the plan had said what would run, and why."""
    with ThreadPoolExecutor() as pool:
        clean, ours = pool.map(lambda each: each.runs(edit), libraries)
    truth.insist_on_effect(edit, clean)
    assert truth.verdict(edit, clean, ours) != "stale"
    for run in ours:
        if "refused" in run:
            assert run["refused"].startswith("LadderError: ")
            continue
        state, *why = run["plan"]
        if state != "may run":
            assert run["run"] == [{"will run": "ran"}.get(state, state), *why]
