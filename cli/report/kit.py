"""Pages that are one file: style, script, data and images inside, nothing fetched, and nothing run but what is ours.

What a page shows may come from a hostile file. `text` makes it harmless where it stands in HTML and `data` where a
script reads it; the page's Content-Security-Policy names its style and its script by their hashes, so that what
slipped through still could not act.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from firstorder import __version__

# controls, surrogates, and what turns or hides the text around it: bidi marks and overrides, zero-width characters
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
NARROW = 700  # pixels up to which a page is a phone's
SHORT = 44  # letters of a cell that stay on one line: a number with its interval and where it was last known
CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"


def text(value: object) -> str:
    """Anything as HTML text or the value of an attribute; a character that would steer the page is shown by its code.

    >>> text("<b> \u202e")
    '&lt;b&gt; \\\\u202e'
    """
    return escape(visible(str(value)))


def visible(words: str) -> str:
    """With the codes of the characters that would steer what is around them."""
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", words)


def static(name: str) -> str:
    """A file of the package that goes into pages."""
    return (resources.files("firstorder.cli.report") / "static" / name).read_text(encoding="utf-8")


def document(title: str, parts: Sequence[str], script: str = "", more_style: str = "") -> str:
    """A page.

    Args:
        title: of the page, its first heading, too.
        parts: HTML, in order.
        script: JavaScript that runs once all parts are there, ours alone: no data in it.
        more_style: CSS after that of all pages.
    """
    style = static("page.css") + more_style
    policy = f"{CLOSED}; style-src {_hash(style)}" + (f"; script-src {_hash(script)}" if script else "")
    head = (
        f"<meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{policy}\">"
        "<meta name='viewport' content='width=device-width'><meta name='color-scheme' content='light dark'>"
        f"<title>{text(title)}</title><style>{style}</style>"
    )
    body = [f"<h1>{text(title)}</h1>", *parts, note(f"firstorder {__version__}")]
    end = f"<script>{script}</script>\n" if script else ""
    whole = "\n".join(body)
    return f"<!doctype html>\n<html lang='en'>\n<head>{head}</head>\n<body>\n{whole}\n{end}</body>\n</html>\n"


def data(name: str, value: Any) -> str:
    """A JSON value that a script reads from the element of that id; no character in it can end the element."""
    packed = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    safe = packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def section(name: str, title: str, *parts: str) -> str:
    """Parts under a heading that can be linked to."""
    return "\n".join([f'<h2 id="{name}">{text(title)}</h2>', *filter(None, parts)])


def note(words: str) -> str:
    """A remark, smaller than the text."""
    return f"<p class='note'>{text(words)}</p>"


def listed(items: Iterable[str]) -> str:
    """A list of sentences; nothing if there is none."""
    lines = "".join(f"<li>{text(item)}</li>\n" for item in items)
    return f"<ul>\n{lines}</ul>" if lines else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], name: str, links: str = "", code: bool = False) -> str:
    """A table, which scrolls by itself where it is wider than the page.

    Args:
        columns: their heads.
        rows: cells as plain text; the first of a row is its head.
        name: of the table, for those who do not see it.
        links: HTML below it.
        code: whether the heads of rows are what a user types.
    """
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    lines = "\n".join(f"<tr>{_head(row[0], code)}{''.join(map(_cell, row[1:]))}</tr>" for row in rows)
    region = f"<div class='wide' role='region' tabindex='0' aria-label=\"{text(name)}\">"
    whole = f"{region}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    return f"{whole}\n<p class='note'>{links}</p>" if links else whole


def figure(name: str, title: str, images: Mapping[str, bytes], shown: str, caption: str, before: str = "") -> str:
    """A figure under its heading.

    Args:
        name: of its files.
        title: its heading.
        images: `svg`, and `phone`, an SVG for narrow pages, if there is one.
        shown: what it shows, for those who do not see it.
        caption: HTML below it; links to the files follow.
        before: HTML between heading and figure.
    """
    image = f'<img alt="{text(shown)}" src="{_source(images["svg"])}">'
    if "phone" in images:
        narrow = f'<source media="(max-width: {NARROW}px)" srcset="{_source(images["phone"])}">'
        image = f"<picture>{narrow}{image}</picture>"
    links = " · ".join(link(f"{name}.{suffix}", suffix.upper()) for suffix in ("png", "svg", "csv"))
    inner = f"<figure>\n{image}\n<figcaption>{caption}{links}</figcaption>\n</figure>"
    return section(name, title, before, inner)


def _source(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def terms(meanings: Iterable[tuple[str, str, str]]) -> str:
    """What quantities mean: (title, key, meaning) each."""
    lines = "\n".join(
        f"<dt>{'' if title == key else f'{text(title)} '}<code>{text(key)}</code></dt><dd>{text(meaning)}</dd>"
        for title, key, meaning in meanings
    )
    return f"<dl>\n{lines}\n</dl>"


def link(target: str, words: str) -> str:
    """A link to a file beside the page, or to a place in it."""
    return f'<a href="{text(target)}">{text(words)}</a>'


def keyed(rows: Sequence[Mapping[str, str]], name: str, file: str) -> str:
    """A table of rows that all have the same columns, with the file that holds it."""
    return table(list(rows[0]), [list(row.values()) for row in rows], name, link(file, "CSV"))


def _head(cell: str, code: bool) -> str:
    return f'<th scope="row">{f"<code>{text(cell)}</code>" if code else text(cell)}</th>'


def _cell(cell: str) -> str:
    return f"<td class='{'number' if len(cell) <= SHORT else 'words'}'>{text(cell)}</td>"


def _hash(source: str) -> str:
    """The name of an inline style or script in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
