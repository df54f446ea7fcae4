"""`python -m tests.reference`: writes RECIPES.md, every field of a recipe, from the code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tasks.rungs.recipes import BUILT, CHOICES, DEFAULTS, Recipe

PAGE = Path(__file__).resolve().parents[1] / "RECIPES.md"
HEAD = """# Recipes: every field and its values

Written from the code by `make reference`; a test holds it to that.

A recipe is one model, one loss and how to train them. It stands in a TOML file, for `--recipes`:
alone as a `[[recipe]]`, or as one of those that `[cross]` spans. On the command line each field is
an option, such as `--batch-size 64`, that sets it in every recipe. In `[cross]` and on the command
line a list, `lr = [0.1, 0.01]` or `--lr 0.1,0.01`, makes a recipe of each value. In `[cross]` and
on the command line model, loss and seed are `models`, `losses` and `seeds`, always lists.

Where it says `FILE.py:NAME`, a function of your own will do, in a file or in a module
(`package.module:name`); [EXTENDING.md](EXTENDING.md) shows each. Paths are relative to the recipe
file, on the command line to the working directory.
"""


def page() -> str:
    """The whole page."""
    fields = Recipe.model_json_schema()["properties"]
    usual = [[f"`{name}`", values(each), left_out(each), each["description"] + "."]
             for name, each in fields.items()]  # fmt: skip
    parts = [HEAD, table(["field", "values", "left out", "meaning"], usual)]
    parts += ["## Left out, by model\n\n" + defaults()]
    for field, (registry, takes) in CHOICES.items():
        rows = [[f"`{name}`", first_line(each)] for name, each in registry.items()]
        parts.append(
            f"## `{field}`: called with ({takes})\n\n" + table(["name", "what it is"], rows)
        )
    return "\n".join(parts)


def values(field: dict[str, Any]) -> str:  # noqa: PLR0911 - one return for each kind of field
    """What a field may be, in words, from its JSON schema."""
    match field:
        case {"anyOf": kinds}:
            return " or ".join(map(values, kinds))
        case {"enum": names}:
            return ", ".join(f"`{name}`" for name in names)
        case {"const": name}:
            return f"`{name}`"
        case {"pattern": _}:
            return "`FILE.py:NAME`"
        case {"type": "boolean"}:
            return "`true`, `false`"
        case {"type": "integer", "minimum": least, "maximum": most}:
            return f"{least:,} to {most:,}"
        case {"type": "number", "exclusiveMinimum": least, "maximum": most}:
            return f"above {least:g}, up to {most:g}"
        case {"type": "number", "minimum": least, "maximum": most}:
            return f"{least:g} to {most:g}"
    return "`none`, or a file's path"


def left_out(field: dict[str, Any]) -> str:
    """What a field is when a recipe leaves it out."""
    return f"`{toml(field['default'])}`" if "default" in field else "must be given"


def toml(value: Any) -> str:
    """A value as a recipe file has it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def defaults() -> str:
    """The fields whose defaults are others for a model, and what they are."""
    usual = {name: field.default for name, field in Recipe.model_fields.items()}
    rows = [
        [name, ", ".join(f"`{field} = {toml(value)}`" for field, value in each.items()
                         if value != usual[field]) or "nothing"]
        for name, each in [
            *((f"`{name}`", BUILT | each) for name, each in DEFAULTS.items()),
            ("your own", BUILT),
        ]
    ]  # fmt: skip
    return table(["model", "what differs from the table above"], rows)


def first_line(function: Any) -> str:
    """What a function's docstring says first."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
