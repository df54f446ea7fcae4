"""Sides: what training, validation and testing are called where people keep them apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# A side's names, whatever their case: train, training, Train2017, train_images, trainset, ...
NAMES = {"training": "train(ing)?", "validation": "val(id(ation)?)?|dev", "testing": "test(ing)?"}
_AFTER = "([^a-z].*|set|data|images?)?"


def role_of(name: str) -> str:
    """Which side a folder's name, or a manifest's word, stands for; "" for none."""
    for role, names in NAMES.items():
        if re.fullmatch(f"({names}){_AFTER}", blurred(name), re.DOTALL):
            return role
    return ""


def are_splits(roles: set[str]) -> bool:
    """Whether these sides make a dataset that need not be drawn."""
    return "training" in roles and len(roles) > 1


def blurred(name: str) -> str:
    """A name without what is easily mistaken in it: case, width of characters, spaces."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def folders_read(names: Iterable[str]) -> list[str]:
    """Of the folders in a dataset's, those that a scan looks into."""
    names = list(names)
    splits = [name for name in names if role_of(name)]
    return splits if are_splits({role_of(name) for name in splits}) else names
