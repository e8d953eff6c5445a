"""Values of strangers in messages: short, on one line, and never walked through, as a value may refer to itself."""

from __future__ import annotations

from .machine import Inert

MOST = 60  # characters of a value


def said(value: object) -> str:
    """A number or a text as it is written, cut; of anything else its type."""
    if value is None or isinstance(value, bool | int | float):
        return _cut(repr(value))
    return f"'{short(value)}'" if isinstance(value, str) else kind(value)


def kind(value: object) -> str:
    """What a value is."""
    if isinstance(value, Inert):
        return value.name
    return "bytes" if isinstance(value, memoryview) else type(value).__name__


def short(text: str) -> str:
    """A text without line breaks and the like, cut in the middle."""
    return _cut(text[: 4 * MOST].encode("ascii", "backslashreplace").decode().translate(HIDDEN))


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 3]}..."


HIDDEN = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
