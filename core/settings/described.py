"""Settings in words: every key of a section with its default, what it takes, and an assignment that it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .section import number
from .toml import literal

WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "table"}
BARE = re.compile(r"[A-Za-z0-9_./+-]+")  # a text that needs no quotes in a shell


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key.

    Args:
        key: dotted, as `--set` takes it.
        default: its value unless given.
        field: what pydantic knows of it.
    """

    key: str
    default: Any
    field: FieldInfo

    @property
    def meaning(self) -> str:
        """What it does."""
        return self.field.description or ""

    @property
    def interval(self) -> str | None:
        """The range of a number, as mathematics writes it."""
        return _note(self.field, "interval")

    @property
    def why(self) -> str | None:
        """What is wrong with a value beyond the range."""
        return _note(self.field, "why")

    @property
    def choices(self) -> list[Any]:
        """All values that it takes; none where they cannot be listed."""
        return choices(self.field.annotation)

    @property
    def example(self) -> str:
        """An assignment that it takes: its default, or where that cannot be written, another value."""
        key, value = self.key, self.default if self.default not in (None, "", (), {}) else _instance(self)
        if isinstance(value, dict):
            ((inner, value),) = value.items()
            key = f"{key}.{inner}"
        text = value if isinstance(value, str) and BARE.fullmatch(value) else literal(value)
        return f"{key}={text}" if BARE.fullmatch(text) else f"'{key}={text}'"


def settings(defaults: BaseModel, prefix: str = "") -> Iterator[Setting]:
    """The keys of a section, those of sections within it in their place.

    Args:
        defaults: the section as it is unless anything is given.
        prefix: what stands before each key, with its dot.
    """
    for name, field in type(defaults).model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield Setting(key=f"{prefix}{name}", default=value, field=field)


def default(value: Any) -> str:
    """A default in words."""
    if isinstance(value, BaseModel):
        return f"kind {value.model_dump()['kind']}"
    if value is None:
        return "unset"
    if isinstance(value, str):
        return f"`{value}`" if value else "none"
    if value in ((), {}):
        return "none"
    return str(list(value) if isinstance(value, tuple) else value).lower()


def takes(field: FieldInfo) -> str:
    """The values of a setting: its type, its range and the reason for it."""
    why = _note(field, "why")
    return f"{kind(field)}: {why}" if why else kind(field)


def kind(field: FieldInfo) -> str:
    """The values of a setting: its type and its range."""
    interval = _note(field, "interval")
    words = _kind(field.annotation)
    return f"{words} in {re.sub(r'[0-9]{6,}', _power, interval)}" if interval else words


def choices(annotation: Any) -> list[Any]:
    """The values of a type that has a list of them."""
    if annotation is bool:
        return [True, False]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [value for each in get_args(annotation) for value in choices(each)]
    return []


def _note(field: FieldInfo, name: str) -> str | None:
    notes = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    found = notes.get(name)
    return str(found) if found is not None else None


def _power(number: re.Match[str]) -> str:
    """A long number as the power of 2 or 10 that it is, or that it is one below."""
    value = int(number[0])
    for base in (2, 10):
        for whole, less in ((value, ""), (value + 1, " - 1")):
            exponent = round(math.log(whole, base))
            if base**exponent == whole:
                return f"{base}^{exponent}{less}"
    return number[0]


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), [each for each in get_args(annotation) if each is not NoneType]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return ", ".join(_kind(each) for each in inner)
    if origin is tuple:
        return f"list of {_kind(inner[0])}s" if inner[-1] is Ellipsis else f"{len(inner)} {_kind(inner[0])}s"
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a section"
    return WORDS[origin or annotation]


def _instance(setting: Setting) -> Any:
    """A value of a key whose default is none: the field's example, its first choice, one of its range, or a text."""
    if setting.field.examples:
        return setting.field.examples[0]
    if setting.choices:
        return setting.choices[0]
    return _inside(setting.interval) if setting.interval else "text"


def _inside(interval: str) -> int | float:
    """The end that belongs to an interval, or its middle."""
    low, high = (number(end) for end in interval[1:-1].split(","))
    if interval[0] == "[":
        return low
    return high if interval[-1] == "]" else (low + high) / 2
