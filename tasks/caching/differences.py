"""In words, how plain data differs from what it was: `lr 1.0 -> 0.5`, `names: b added`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

FIRST = "has not run before"
_WRITTEN = ("pathlib", "decimal", "datetime", "uuid", "bytes", "float")  # of these, a text is kept


def some(names: list[str]) -> str:
    """The first three of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def told(names: list[str], verb: str) -> list[str]:
    """Nothing, or one reason for all names."""
    return [f"{some(names)} {verb}"] if names else []


def new_and_gone(old: Iterable[str], new: Iterable[str]) -> list[str]:
    """In words, which names are new and which are gone."""
    old, new = list(old), list(new)
    return [
        *told([name for name in new if name not in old], "new here"),
        *told([name for name in old if name not in new], "no longer used"),
    ]


def differ(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether what both have is not the same in a key, where 1 is not 1.0 and not true."""
    both = [json.dumps(each[name], sort_keys=True) for each in (old, new) if name in each]
    return len({*both}) == 2


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """In words, how the fields of plain data differ."""
    for name in new:
        if differ(name, old, new):
            yield from changed_value(name.removeprefix("$"), old[name], new[name])
    yield from new_and_gone(old, new)


def changed_value(name: str, old: Any, new: Any) -> Iterator[str]:
    """In words, how plain data differs that does."""
    was, now = bare(old), bare(new)
    if isinstance(was, dict) and isinstance(now, dict):
        yield from (f"{name}: {words}" for words in changed_fields(was, now))
    elif type(was) is type(now) and _are_texts(was) and _are_texts(now):
        yield f"{name}: {_moved(was, now)}"
    elif _are_pairs(was) and _are_pairs(now):
        yield f"{name}: {some([*_changed_pairs(dict(was), dict(now))])}"
    else:
        written = [(_shown(was), _shown(now)), (repr(was), repr(now)), (repr(old), repr(new))]
        before, after = next((pair for pair in written if pair[0] != pair[1]), written[0])
        text = f"{name} {before} -> {after}"
        yield text if len(text) <= 100 else f"{name} changed"


def bare(item: Any) -> Any:
    """Plain data as people write it; a model's stays an object, its type among the fields."""
    match item:
        case {"$type": "tuple", "items": list(items)}:
            return tuple(map(bare, items))
        case {"$type": "list" | "dict", "items": list(items)}:
            return [*map(bare, items)]
        case {"$type": str(kind), "value": str(value)} if kind.partition(".")[0] in _WRITTEN:
            return value
        case list():
            return [*map(bare, item)]
    return item


def _changed_pairs(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if [*old] != [*new]:
        yield _moved([*old], [*new])
    for key, value in new.items():
        if differ(key, old, new):
            yield from changed_value(_quoted(key), old[key], value)


def _moved(old: Sequence[str], new: Sequence[str]) -> str:
    """In words, how a list of texts differs from another."""
    added, removed = (
        [_quoted(text) for text in (Counter(one) - Counter(other)).elements()]
        for one, other in ((new, old), (old, new))
    )
    said = [*told(added, "added"), *told(removed, "removed")]
    return ", ".join(said) or "in another order"


def _are_texts(item: Any) -> bool:
    return isinstance(item, list | tuple) and all(isinstance(each, str) for each in item)


def _are_pairs(item: Any) -> bool:
    """Whether plain data may be a mapping's."""
    pairs = isinstance(item, list) and all(isinstance(e, list) and len(e) == 2 for e in item)
    return pairs and _are_texts([key for key, _ in item])


def _shown(item: Any) -> str:
    """A value in words."""
    if isinstance(item, dict):
        fields = [f"{name}={_shown(bare(each))}" for name, each in item.items() if name[:1] != "$"]
        return f"{str(item.get('$type', '')).rpartition('.')[2]}({', '.join(fields)})"
    text = "none" if item is None else str(item)
    return text if text.strip() else repr(text)


def _quoted(text: str) -> str:
    """One text of several, which must be seen to end; of a long one its beginning and end."""
    short = text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"
    return repr(short) if "," in short or short != short.strip() or not short else short
