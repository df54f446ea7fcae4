"""Pages from templates: what every page of ours has in common, and that nothing breaks out of it.

Nothing here takes long to import.
"""

from __future__ import annotations

import base64
import functools
import re
from hashlib import sha256
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from tasks.report import words

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")


def template(text: str) -> jinja2.Template:
    """A template of HTML: whatever is put into it is escaped, `|name` for names from outside.

    It knows the common `style` and `script`, and the `policy` that lets nothing else run or load.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    allowed = base64.b64encode(sha256(SCRIPT.encode()).digest()).decode()
    environment.globals.update(
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        policy=Markup(
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
        ),
    )
    environment.globals["count_of"] = functools.partial(words.count, what="image")
    environment.filters.update(
        about=lambda at: Markup(' data-case="{}"').format(at),
        name=words.readable,
        per_hundred=words.per_hundred,
        percent=words.percent,
        interval=words.span,
        duration=words.duration,
        luck=words.luck,
        give_or_take=words.give_or_take,
        sureness=words.sureness,
        doing=words.doing,
        said=_said,
        spread=words.spread,
        nearly=words.nearly,
        moment=words.moment,
    )
    return environment.from_string(text)


def _said(sentence: str) -> Markup:
    """A sentence in which a class's name from right to left turns nothing but itself."""
    text = str(escape(words.readable(sentence)))
    return Markup(re.sub("&#34;(.*?)&#34;", r"&#34;<bdi>\1</bdi>&#34;", text))
