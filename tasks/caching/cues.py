"""Why a stage runs again: a key's ingredients held against those of the last time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.caching.refs import Pending, inputs_of

FIRST = "has not run before"


class Look(BaseModel):
    """A stage's key with what went into it."""

    key: str
    ingredients: dict[str, Any]
    names: dict[str, list[str]]  # parameter -> what its inputs are called


def waits_for(labels: list[str]) -> str:
    """In words, which stages must run before more can be said."""
    return f"waits for {_some(labels)}"


def _some(names: list[str]) -> str:
    """The first three of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _told(names: list[str], verb: str) -> list[str]:
    """Nothing, or one reason for all names."""
    return [f"{_some(names)} {verb}"] if names else []


def differences(
    look: Look, last: dict[str, Any] | None, arguments: Mapping[str, Any], root: Path
) -> tuple[str, ...]:
    """In words, what in a key's ingredients differs from the last time."""
    if last is None:
        return ()
    old, new = last["ingredients"], look.ingredients
    return (
        *_told(
            [name for name in new["code"] if _differ(name, old["code"], new["code"])], "changed"
        ),
        *_new_and_gone(old["code"], new["code"]),
        *_changed_fields(old["versions"], new["versions"]),
        *_changed_parameters(old["parameters"], new["parameters"], last["names"], arguments),
        *(
            words
            for name in new["inputs"]
            for words in _changed_inputs(name, last, list(inputs_of(arguments[name])), root)
        ),
        *(["the cache's format changed"] if old["format"] != new["format"] else []),
    )


def _new_and_gone(old: Iterable[str], new: Iterable[str]) -> list[str]:
    old, new = list(old), list(new)
    return [
        *_told([name for name in new if name not in old], "new here"),
        *_told([name for name in old if name not in new], "no longer used"),
    ]


def _differ(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether what both have is not the same in a key, where 1 is not 1.0 and not true."""
    both = [json.dumps(each[name], sort_keys=True) for each in (old, new) if name in each]
    return len({*both}) == 2


def _changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in new:
        if _differ(name, old, new):
            yield from _changed_value(name, old[name], new[name])
    yield from _new_and_gone(old, new)


def _changed_parameters(
    old: dict[str, Any], new: dict[str, Any], names: dict[str, list[str]], now: Mapping[str, Any]
) -> Iterator[str]:
    for name in (name for name in new if _differ(name, old, new)):
        labels = [each.label for each in inputs_of(now[name])]
        if labels != names.get(name, []):
            continue  # which inputs are new and which are gone is said of themselves
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            yield from _changed_fields(old[name], new[name])
            if hasattr(now[name], "remark"):  # a parameter that knows what its change means
                yield from now[name].remark(old[name])
        else:
            yield from _changed_value(name, old[name], new[name])
    yield from _new_and_gone(old, new)


def _changed_value(name: str, old: Any, new: Any) -> Iterator[str]:
    """In words, how plain data differs that does."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from (f"{name}: {words}" for words in _changed_fields(old, new))
    elif _are_texts(old) and _are_texts(new):
        yield f"{name}: {_moved(old, new)}"
    elif _are_pairs(old) and _are_pairs(new):
        yield f"{name}: {_some([*_changed_pairs(dict(old), dict(new))])}"
    else:
        written = [(_shown(old), _shown(new)), (repr(old), repr(new))]
        before, after = next((pair for pair in written if pair[0] != pair[1]), written[0])
        text = f"{name} {before} -> {after}"
        yield text if len(text) <= 100 else f"{name} changed"


def _changed_pairs(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if [*old] != [*new]:
        yield _moved([*old], [*new])
    for key, value in new.items():
        if _differ(key, old, new):
            yield from _changed_value(_quoted(key), old[key], value)


def _moved(old: list[str], new: list[str]) -> str:
    """In words, how a list of texts differs from another."""
    added, removed = (
        [_quoted(text) for text in (Counter(one) - Counter(other)).elements()]
        for one, other in ((new, old), (old, new))
    )
    said = [*_told(added, "added"), *_told(removed, "removed")]
    return ", ".join(said) or "in another order"


def _are_texts(item: Any) -> bool:
    return isinstance(item, list) and all(isinstance(each, str) for each in item)


def _are_pairs(item: Any) -> bool:
    """Whether plain data may be a mapping's."""
    pairs = isinstance(item, list) and all(isinstance(e, list) and len(e) == 2 for e in item)
    return pairs and _are_texts([key for key, _ in item])


def _shown(item: Any) -> str:
    """A value in words."""
    text = "none" if item is None else str(item)
    return text if text.strip() else repr(text)


def _quoted(text: str) -> str:
    """One text of several, which must be seen to end; of a long one its beginning and end."""
    short = text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"
    return repr(short) if "," in short or short != short.strip() or not short else short


def _changed_inputs(name: str, last: dict[str, Any], inputs: list[Any], root: Path) -> list[str]:
    labels = last["names"].get(name, [])
    before = dict(zip(labels, last["ingredients"]["inputs"].get(name, []), strict=True))
    now = {each.label: each for each in inputs if not isinstance(each, Pending)}
    differing = [
        each for label, each in now.items() if before.get(label, each.digest) != each.digest
    ]
    again = [each.label for each in inputs]
    return [
        *(each.explain(before[each.label], root) for each in differing if _explains(each)),
        *_told([each.label for each in differing if not _explains(each)], "changed"),
        *_new_and_gone(before, dict.fromkeys(again)),
        *([f"{name}: in another order"] if labels != again and Counter(labels) == Counter(again)
          else []),
    ]  # fmt: skip


def _explains(each: Any) -> bool:
    """Whether an input can say more than that it changed."""
    return hasattr(each, "explain")
