"""A dataset's models: numbered files, which of them is in use, and all that ever became of them.

`data/models/<dataset>/` holds `0001.safetensors`..., `history.jsonl` (a line per event, only ever
appended to) and `current`, which names the model in use and is replaced in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.caching.basics import (
    DamagedError,
    LadderError,
    data_root,
    read_regular,
    unwritable,
    write_atomic,
)
from tasks.caching.locks import hold


class Registry:
    """The models of one dataset.  Every method raises LadderError that names the file at fault."""

    def __init__(self, dataset: str) -> None:
        self.folder = data_root() / "models" / dataset

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Look, decide and write while no other run does, so that runs promote in one order.

        What a kill left undone between history and pointer is done first.
        """
        with hold(self.folder / ".lock"):
            self._finish()
            yield

    def history(self) -> list[dict[str, Any]]:
        """All events, oldest first; a last line that a kill cut short is none."""
        lines = (read_regular(self.folder / "history.jsonl") or b"").split(b"\n")[:-1]
        try:
            return [json.loads(line) for line in lines if line]
        except ValueError:
            raise DamagedError(
                f"{self.folder / 'history.jsonl'} has a line that is not JSON; restore the file "
                "from a backup, or move it away"
            ) from None

    def current(self) -> dict[str, Any] | None:
        """The model in use: {"number", "digest"}, or None where there is none."""
        data = read_regular(self.folder / "current")
        if data is None:
            return None
        try:
            found = json.loads(data)
            return {"number": int(found["number"]), "digest": str(found["digest"])}
        except (ValueError, KeyError, TypeError):
            raise DamagedError(
                f"{self.folder / 'current'} names no model; `stepladder models rollback DATASET N` "
                "does"
            ) from None

    def read(self, number: int, digest: str) -> bytes:
        """A model file's bytes, checked by their sha256."""
        path = self.path(number)
        data = read_regular(path)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            state = "is missing" if data is None else "is not what was stored"
            raise DamagedError(
                f"{path} {state}; `stepladder models rollback DATASET N` uses another"
            )
        return data

    def path(self, number: int) -> Path:
        """Where a numbered model lies."""
        return self.folder / f"{number:04}.safetensors"

    def promote(self, model: bytes, event: dict[str, Any]) -> int:
        """Keep a model file and make it the one in use; call it within `turn`.  Gives its number.

        File, then history, then pointer: wherever a kill falls, `current` names a whole file.
        """
        taken = [int(p.stem) for p in self.folder.glob("[0-9]*.safetensors") if p.stem.isdigit()]
        number, digest = max(taken, default=0) + 1, hashlib.sha256(model).hexdigest()
        write_atomic(self.path(number), model)
        self._point(number, digest, {**event, "kind": "promoted"})
        return number

    def keep(self, event: dict[str, Any]) -> None:
        """Note that a candidate did not become the model; call it within `turn`."""
        self._append({**event, "kind": "kept"})

    def rollback(self, number: int, event: dict[str, Any]) -> None:
        """Use a model of the history again, its bytes as they were; call it within `turn`."""
        known = {e["number"]: e["digest"] for e in self.history() if e["kind"] == "promoted"}
        if number not in known:
            raise LadderError(f"there is no model {number}; `stepladder models` lists them")
        self.read(number, known[number])
        self._point(number, known[number], {**event, "kind": "rolled back"})

    def _finish(self) -> None:
        """Point to the model that the last event put to use."""
        events = [event for event in self.history() if event["kind"] != "kept"]
        if events:
            named = {name: events[-1][name] for name in ("number", "digest")}
            used = None
            with contextlib.suppress(DamagedError):
                used = self.current()
            if used != named and self.path(named["number"]).is_file():
                write_atomic(self.folder / "current", json.dumps(named).encode())

    def _point(self, number: int, digest: str, event: dict[str, Any]) -> None:
        named = {"number": number, "digest": digest}
        self._append({**event, **named})
        write_atomic(self.folder / "current", json.dumps(named).encode())

    def _append(self, event: dict[str, Any]) -> None:
        """Add a line that outlasts a power cut; what a kill left of a line before it goes first."""
        path = self.folder / "history.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab+") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(json.dumps(event, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(path, error) from error
