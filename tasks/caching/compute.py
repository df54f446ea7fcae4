"""What a body does: load a stage's inputs, call its function, store what it returns."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.caching import own
from tasks.caching.basics import DamagedError, LadderError
from tasks.caching.call import Settings
from tasks.caching.fingerprint import KNOWN, named_files
from tasks.caching.held import changed
from tasks.caching.refs import Ref, inputs_of
from tasks.caching.refs import loaded as loaded_argument
from tasks.caching.stage import Run, Stage, nothing, stage_named
from tasks.caching.store import Store
from tasks.caching.traces import Tracer
from tasks.caching.values import content_digest

# How torch says that there is no memory left, its allocators and the libraries it calls
_NO_ROOM = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class _Watched(Run):
    """A Run that notes what of it a stage looks at."""

    seen: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        super().__getattribute__("seen").add(name)
        return super().__getattribute__(name)


def run_body(
    where: tuple[str, str, str],
    arguments: dict[str, Any],
    key: str,
    settings: Settings,
    purpose: str,
    *,
    progress: Callable[..., None],
    cores: int,
) -> tuple[str, set[str]]:
    """Run a stage in this process: load, call, store.

    `purpose` is "store", "refresh" (store, and take nothing from earlier results) or "compare"
    (take nothing and store nothing).  Gives the result's digest and what the stage saw of its Run.
    Raises LadderError when the code here is not the code that the key was made from.
    """
    progress()
    torch.set_num_threads(cores)
    own.search(settings.places)
    module, name, label = where
    stage: Stage[Any, Any] = stage_named(module, name)
    look = stage.look(arguments, settings.device, cores)
    if look.key != key:
        raise LadderError(
            "its code changed while the run went on, or a module's value is another each time it "
            "is imported (a set's order, the time); run again, and if this stays, mend that"
        )
    store = Store(Path(settings.cache))
    loaded = {name: loaded_argument(item, store.root) for name, item in arguments.items()}
    seen: set[str] = set()
    last = store.last(settings.dataset, label) or {"key": ""}
    earlier = functools.partial(
        _earlier, store, stage.name, look.ingredients, last["key"], settings.began
    )
    run = _Watched(
        seen=seen,
        device=settings.device,
        progress=progress,
        scratch=store.scratch(key) if purpose == "store" else None,
        outcomes={ref.label: ref.outcome for ref in inputs_of(arguments) if isinstance(ref, Ref)},
        started=settings.started,
        command=settings.command,
        cache=store.root,
        earlier=earlier if purpose == "store" else nothing,
    )
    if "run" in stage.signature.parameters:
        loaded["run"] = run
    # Whoever draws from the generators that all share gets the same numbers every time.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    start = time.perf_counter()
    with Tracer([settings.cache, *_folders(arguments)]) as tracer:
        tracer.expect(named_files(look.ingredients, arguments))
        with _memory_of(settings.device):
            value = stage.fn(**loaded)
    seconds = time.perf_counter() - start
    if purpose == "compare":
        return content_digest(value), seen
    asked = tracer.trace(look.ingredients["code"])
    about = {"name": label, "device": settings.device, "seen": sorted(seen), "asked": asked}
    record = store.put(stage.name, key, value, seconds, look.ingredients, about)
    store.drop_scratch(key)
    return record.digest, seen


@contextlib.contextmanager
def _memory_of(device: str) -> Iterator[None]:
    """Inside, to ask for more memory than there is raises LadderError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _NO_ROOM):
            raise
        at = f"the memory of {'the GPU' if device == 'cuda' else 'this machine'}"
        raise LadderError(
            f"{at} does not suffice: lower batch_size, ask for smaller images (--size), or end "
            f"what else uses it{', or take --device cpu' if device == 'cuda' else ''}"
        ) from error


def look_ahead(
    where: tuple[str, str, str],
    arguments: dict[str, Any],
    _key: str,
    settings: Settings,
    *_more: Any,
) -> None:
    """Read the sources that `run_body` will, for processes that are forked from this one."""
    own.search(settings.places)
    KNOWN.set({})
    module, name, _label = where
    with contextlib.suppress(LadderError):  # the body will say so
        stage_named(module, name).follow(arguments)


def _earlier(
    store: Store, stage: str, ingredients: dict[str, Any], last: str, since: int, *but: str
) -> Iterator[tuple[Any, Any]]:
    """What `Run.earlier` gives, each verified before it is loaded; damaged ones are passed over."""
    for was, record in store.earlier(stage, ingredients, *but, first=last, since=since):
        with contextlib.suppress(DamagedError):
            verified = store.get(stage, record.key)
            if verified is not None and not changed(verified.about.get("asked", {})):
                yield was, store.load(verified.value)


def _folders(arguments: dict[str, Any]) -> list[str]:
    """Those that references among the arguments stand for, and whose content is in the key."""
    return [each.path for each in inputs_of(arguments) if hasattr(each, "path")]
