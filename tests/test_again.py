"""A run that has crashed begins again by itself, twice at most; a mistake never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

from flows.ladder import open_session
from tasks.caching.basics import LadderError
from tasks.caching.places import Place
from tasks.caching.session import SESSION, Session, opening

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("count", "begins"), [(0, True), (1, True), (3, True), (4, False)])
def test_the_fourth_attempt_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, begins: bool
) -> None:
    """Failed, it is begun no more: else a run that always crashes would hold up all others."""
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", str(count))
    monkeypatch.setenv("STEPLADDER_DATA", str(tmp_path))
    place = Place(tmp_path / "tiny", "tiny", "tiny", "tiny")
    token = SESSION.set(Session.__new__(Session))
    try:
        with opening(Session):
            if begins:
                assert open_session(place, "cpu", [], "", (0, 0))
            else:
                with pytest.raises(
                    LadderError, match=r"^this run has crashed 3 times: see the wor"
                ):
                    open_session(place, "cpu", [], "", (0, 0))
    finally:
        SESSION.reset(token)


def test_the_automations_are_what_prefect_takes() -> None:
    """The one ends what shows no life, the other begins again what crashed, and nothing else."""
    text = (ROOT / "automations" / "dead-machine.yaml").read_text()
    dead, again = [
        AutomationCore.model_validate(each) for each in yaml.safe_load(text)["automations"]
    ]
    found: Any = again.trigger
    assert found.after == {"prefect.flow-run.Crashed"}
    assert [str(action.state.value) for action in (*dead.actions, *again.actions)] == [
        "CRASHED", "SCHEDULED",
    ]  # fmt: skip
