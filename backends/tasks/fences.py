"""The program in a response: its last block of Python, found as Markdown finds blocks.

A block begins with three or more ` or ~, after any indentation or list marker, and a tag; it ends with at least as many
of the same alone on a line. A line like that in a docstring does not end it, as long as the program is Python only with
what follows.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

OPENS = re.compile(r"(?P<before>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<fence>`{3,}|~{3,})(?P<tag>.*)")
PYTHON = re.compile(r"\{?\s*\.?(?:i?python|py)[\d.]*(?![\w+-])", re.IGNORECASE)
ENDS = 32  # lines that may end a block, of which the first is taken that leaves Python


def program(text: str) -> str:
    """The last block tagged as Python of a response, or the last without a tag, or all that follows its thoughts.

    Example:
        >>> program("Here:\\n```python\\nx = 1\\n```\\nIt prints:\\n```\\n1\\n```")
        'x = 1\\n'
    """
    after = re.sub(r"\r\n?", "\n", text.rpartition("</think>")[2])
    blocks = list(_blocks(after.split("\n")))
    tagged = [body for tag, body in blocks if PYTHON.match(tag)]
    plain = [body for tag, body in blocks if not tag]
    return (tagged or plain or [after])[-1]


def _blocks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Tag and body of each block."""
    at = 0
    while at < len(lines):
        opened = OPENS.fullmatch(lines[at])
        at += 1
        if not opened or (opened["fence"][0] == "`" and "`" in opened["tag"]):
            continue
        tag = opened["tag"].strip()
        end = _end(lines, at, len(opened["before"].expandtabs(4)), opened["fence"], python=bool(PYTHON.match(tag)))
        yield tag, _body(lines[at:end], len(opened["before"].expandtabs(4)))
        at = end + 1


def _end(lines: list[str], start: int, indent: int, fence: str, python: bool) -> int:
    """The line that ends a block, or the end of the text."""
    closes = re.compile(rf"([ \t]*){re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
    closing = [(at, closed) for at in range(start, len(lines)) if (closed := closes.fullmatch(lines[at]))][:ENDS]
    if python:
        for at, _ in closing:
            if _is_python(_body(lines[start:at], indent)):
                return at
    ends = [at for at, closed in closing if len(closed[1].expandtabs(4)) <= indent + 3] or [at for at, _ in closing]
    return ends[0] if ends else len(lines)


def _body(lines: list[str], indent: int) -> str:
    """The lines without the indentation of their block."""
    cut = [line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines]
    text = "".join(f"{line}\n" for line in cut)
    return text if _is_python(text) else textwrap.dedent(text)


def _is_python(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a program may say what it likes of escapes
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
