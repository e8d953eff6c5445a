"""TOML in, TOML out: files, shipped names, dotted overrides, and errors that name the nearest valid key."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from firstorder.core.errors import ConfigError

LONGEST = 200  # characters of a value in an error
OWN = ("name", "summary", "source", "scope")  # keys of `about` that no recipe has from its base
Tree = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


def shipped() -> list[str]:
    """The names of the recipes in the package, sorted."""
    return list(_shipped())


@lru_cache
def _shipped() -> tuple[str, ...]:
    folder = resources.files("firstorder.core") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def read(recipe: str) -> Tree:
    """The tables of a shipped recipe or of a TOML file, laid over those of its `base` if it names one.

    A base is a shipped name or a file, whose path is relative to the file that names it, and may have a base itself.
    What a recipe does not say is as its base has it, but for what a recipe says about itself (`OWN`).

    Raises:
        ConfigError: no such recipe or file, not TOML, or bases that go round in a circle.
    """
    places = [_place(recipe, Path())]
    tree = _tables(places[0])
    while "base" in tree:
        places.append(_base(tree.pop("base"), places))
        base = _tables(places[-1])
        if isinstance(about := base.pop("about", {}), dict):
            about = {key: value for key, value in about.items() if key not in OWN}
        tree = overlay(base | ({"about": about} if about else {}), tree)
    return tree


def _base(base: Any, places: list[str | Path]) -> str | Path:
    """Where the base is that the last of `places` names; the others are its children."""
    child = places[-1]
    if not isinstance(base, str):
        raise ConfigError(f"base of {child} must be the name of a shipped recipe or of a file, got {shown(base)}")
    try:
        place = _place(base, child.parent if isinstance(child, Path) else Path())
    except ConfigError as error:
        raise ConfigError(f"base of {child}: {error}") from None
    *before, here = (each if isinstance(each, str) else each.resolve() for each in (*places, place))
    if here in before:
        circle = " -> ".join(map(str, [*places, place]))
        raise ConfigError(f"the bases of {places[0]} go round in a circle, {circle}; drop one of them")
    return place


def _place(recipe: str, folder: Path) -> str | Path:
    """The name of a shipped recipe as it is, or the path of a file."""
    if recipe in shipped():
        return recipe
    path = folder / recipe
    if path.is_dir():
        raise ConfigError(
            f"{str(path)!r} is a folder and a recipe is a file; give a file in it, as {path / 'config.toml'}"
        )
    if not path.is_file():
        hint = nearest(recipe, shipped())
        raise ConfigError(f"no recipe or file {shown(recipe)}; {hint}`firstorder recipes` lists the shipped ones")
    return path


def _tables(place: str | Path) -> Tree:
    """What one file says, and nothing of its base."""
    return tomllib.loads(source(place)) if isinstance(place, str) else parse(place)


def parse(file: Path) -> Tree:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML that this package takes.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{file} is not valid TOML: its brackets are nested too deeply") from None
    except ValueError as error:  # of the syntax, of the encoding, or a number of thousands of digits
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


@lru_cache
def source(name: str) -> str:
    """The text of a shipped recipe, byte for byte."""
    return (resources.files("firstorder.core") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def overlay(base: Tree, given: Tree) -> Tree:
    """`given` over `base`, table by table, so that one key of a table leaves the others as they are.

    Example:
        >>> overlay({"clip": {"kind": "ppo", "high": 0.2}}, {"clip": {"high": 0.28}})
        {'clip': {'kind': 'ppo', 'high': 0.28}}
    """
    merged = dict(base)
    for key, value in given.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """`tree` with dotted assignments `a.b=value` laid over it; a value is TOML, or else a bare string.

    Example:
        >>> override({"sim": {"seed": 0}}, ["sim.seed=7", "sim.numerics.kind=noise"])
        {'sim': {'seed': 7, 'numerics': {'kind': 'noise'}}}
    """
    return assign(tree, [assignment(each) for each in assignments])


def assignment(text: str) -> tuple[str, Any]:
    """The dotted key and the value of `a.b=value`; a value is TOML, or else a bare string.

    Raises:
        ConfigError: it is no assignment, or its value is none that TOML could hold.
    """
    key, equals, given = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"an override is a.b=value, got {shown(text)}")
    return key.strip(), value(given.strip())


def assign(tree: Tree, given: Iterable[tuple[str, Any]]) -> Tree:
    """`tree` with values laid over it at dotted keys."""
    result = copy.deepcopy(tree)
    for key, new in given:
        *sections, last = key.split(".")
        table = result
        for part in sections:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{shown(key)} reaches into {part!r}, which is a value, not a section")
        table[last] = new
    return result


def value(text: str) -> Any:
    """A TOML value, or else the bare string.

    Raises:
        ConfigError: it is TOML, but nested too deeply or a number of thousands of digits.
    """
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ConfigError(f"the brackets of {shown(text)} are nested too deeply; no setting has such a value") from None
    except ValueError:
        raise ConfigError(f"{shown(text)} has too many digits; no setting takes such a number") from None


def shown(value: Any) -> str:
    """A value as it was given, for an error: its Python form, cut in the middle where it is long.

    Example:
        >>> shown("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ... xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' (1,002 characters)"
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= LONGEST else f"{text[:32]} ... {text[-32:]} ({len(text):,} characters)"


def build(model: type[Model], tree: Mapping[str, Any], section: str = "") -> Model:
    """A validated model from a tree.

    Raises:
        ConfigError: one line with the dotted key, what was got and the nearest valid key or the rule broken.
    """
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(_explain(model, error, section)) from None


def dump(tree: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables of scalars and arrays; None is left out.

    Example:
        >>> dump({"grid": {"clip.high": [0.2, 0.3]}})
        '[grid]\\n"clip.high" = [0.2, 0.3]\\n'
    """
    lines = [f"{_key(key)} = {literal(value)}" for key, value in tree.items() if not _skip(value)]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_key(key)}"
            body = dump(value, prefix=f"{name}.")
            header = f"[{name}]\n" if any(not isinstance(v, Mapping) and v is not None for v in value.values()) else ""
            text += ("\n" if text else "") + header + body
    return text


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Nested tables as one, with dotted keys."""
    joined: Tree = {}
    for key, value in tree.items():
        joined |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return joined


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _skip(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _key(name: str) -> str:
    """A key, quoted unless it is bare."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def literal(value: Any) -> str:
    """A scalar or an array as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {"inf": "inf", "-inf": "-inf"}.get(str(value), "nan")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(literal(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _explain(model: type[BaseModel], error: ValidationError, section: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join([section, *path] if section else path)
    if first["type"] == "extra_forbidden":
        known = _keys(model, path[:-1])
        return f"unknown key {shown(dotted)}; {nearest(path[-1], known)}valid keys: {', '.join(known)}"
    message, got = first["msg"].removeprefix("Value error, "), shown(first["input"])
    if first["type"] == "value_error" and not path:
        return message
    field = _field(model, path)
    notes = field.json_schema_extra if field is not None and isinstance(field.json_schema_extra, dict) else {}
    if first["type"] in OUTSIDE and "interval" in notes:
        message = f"must lie in {notes['interval']}"
    elif first["type"] in QUOTED and isinstance(first["input"], (str, bool)):
        remedy = _as_number(first["input"]) if isinstance(first["input"], str) else "; a bool is no number"
        return f"{dotted}: {message[0].lower()}{message[1:]}, got {got}{remedy}"
    why = f"; {notes['why']}" if "why" in notes and first["type"] in REASONED else ""
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {got}{why}"


def _as_number(text: str) -> str:
    """How a number that came as text is written; nothing for a text that is none."""
    try:
        tomllib.loads(f"number = {text}")
        return "; write it without quotes"
    except tomllib.TOMLDecodeError:  # .1, 1. and 01 are numbers to people
        try:
            return f"; write {literal(float(text))}"
        except ValueError:
            return ""


OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
QUOTED = ("float_type", "int_type")
REASONED = (*OUTSIDE, "string_pattern_mismatch", "finite_number")


def _field(model: type[BaseModel], path: list[str]) -> FieldInfo | None:
    """The field that a path leads to, or the one of the tuple that it ends in."""
    field = None
    for part in path:
        if part not in model.model_fields:
            break
        field = model.model_fields[part]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return field


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return sorted(model.model_fields)
