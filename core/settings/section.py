"""Sections: typed, frozen settings whose numbers have ranges, each with the reason for it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

T = TypeVar("T")

SEED = "[0, 9223372036854775807]"
SEED_WHY = "a seed is kept in 63 bits; take fewer digits"
COUNT_WHY = "no run is that long; it may be a slip of the keyboard"


class Section(BaseModel):
    """A frozen section of settings.

    It refuses unknown keys, NaN, infinities (except where `inf` means none) and values of another type: neither a bool
    nor a text is a number. A whole number is a real one too, and an array a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _arrays_are_tuples(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def _named(place: str) -> str:
    if "\0" in place:
        raise ValueError("a name of a file holds no NUL character")
    if len(place.encode()) > 4095 or any(len(part.encode()) > 255 for part in place.split("/")):
        raise ValueError("a path has at most 4,095 bytes, and 255 between two slashes")
    return place


Place = Annotated[str, AfterValidator(_named)]
"""A file or folder: what the system takes for the name of one."""


def within(default: T, interval: str, why: str, description: str | None = None, example: Any = None) -> T:
    """A numeric field with its range.

    Args:
        default: its value unless given; a tuple of numbers has its range in the type of its items.
        interval: the range as mathematics writes it, such as `(0, 1]`; `inf]` and `[-inf` take infinity.
        why: what is wrong beyond it, for whoever is refused.
        description: what it means.
        example: a value that is taken, where the default is none and the ends of the range are refused.

    Example:
        >>> class Step(Section):
        ...     size: float = within(0.1, "(0, 10]", "a larger step leaves the policy")
        >>> Step(size=1).size
        1.0
    """
    bounds: dict[str, Any] = {} if isinstance(default, tuple) else _bounds(interval)
    noted: dict[str, Any] = {"interval": interval, "why": why}
    shown = None if example is None else [example]
    field: T = Field(default, description=description, examples=shown, json_schema_extra=noted, **bounds)
    return field


def _bounds(interval: str) -> dict[str, Any]:
    """An interval in the words of pydantic."""
    low, high = (number(end) for end in interval[1:-1].split(","))
    bounds: dict[str, Any] = {"gt" if interval[0] == "(" else "ge": low}
    if low == -float("inf"):
        bounds |= {"allow_inf_nan": True}  # and no NaN, which is not at least -inf
    if high == float("inf"):
        return bounds | {"allow_inf_nan": True}
    return bounds | {"lt" if interval[-1] == ")" else "le": high}


def number(text: str) -> float:
    """An end of an interval: a whole number where it is written as one."""
    try:
        return int(text)
    except ValueError:
        return float(text)
