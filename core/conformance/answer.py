"""Answers: what another program makes of the golden vectors, read from a file that nobody vouches for.

    {"schema", "version", "framework", "answers": {"methods": ..., "terms": ..., "metrics": ..., "advantages": ...}}

`answers` has the names and shapes of `expected` in the vectors; whatever a program does not answer it leaves out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.settings.toml import nearest, shown

LARGEST = 16 * 2**20  # bytes: sixteen times what the vectors take
WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
SECTIONS = {
    "methods": ("method", "case", "output"),
    "terms": ("term", "case", "output"),
    "metrics": ("case", "metric"),
    "advantages": ("rule", "group", "output"),
}
"""What the names of each section of answers are, from the outside in."""

Path_ = tuple[str, ...]
Place = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a program answers.

    Args:
        framework: what it calls itself.
        leaves: numbers by the names that lead to them, nested as the vectors have them.
    """

    framework: str
    leaves: Mapping[Path_, Any]


def load(path: Path, vectors: Mapping[str, Any]) -> Answers:
    """The answers of a file, checked against the vectors' names and shapes.

    Raises:
        DataError: it cannot be read or is no file of answers, with the place and what is wrong there.
    """
    tree = _parsed(path)
    for key in ("schema", "version"):
        if key not in tree or tree[key] != vectors[key]:
            raise DataError(
                f"{path}: {key} must be {vectors[key]!r} as in the vectors, got {shown(tree.get(key))}; "
                "answer those of `firstorder conformance export`"
            )
    if "answers" not in tree:
        holds = "; it holds the vectors themselves" if "expected" in tree else ""
        raise DataError(f"{path} has no `answers`{holds}; put what your program makes there, as `expected` has it")
    name = tree.get("framework", "unnamed")
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        raise DataError(f"{path}: framework must be a name of at most 200 characters, got {shown(name)}")
    leaves = dict(_leaves(tree["answers"], vectors["expected"], str(path), ()))
    if not leaves:
        raise DataError(f"{path} answers nothing; give at least one number of `expected` under `answers`")
    return Answers(framework=name, leaves=leaves)


def expected_leaves(tree: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every number or list of numbers of the vectors' `expected`, with the names that lead there; no tolerances."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from expected_leaves(value, (*path, key))
        elif key != "tolerance":
            yield (*path, key), value


def numbers(value: Any, place: Place = ()) -> Iterator[tuple[Place, float]]:
    """The numbers of a leaf with their indices; texts of infinities are numbers."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*place, index))
    else:
        yield place, WORDS[value] if isinstance(value, str) else float(value)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path} is not a file; give the file with your answers")
        if size > LARGEST:
            raise DataError(
                f"{path} has {size:,} bytes, and answers have at most {LARGEST:,}; leave out what is not asked"
            )
        tree = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give the file with your answers") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply; answers have the shape of `expected` in the vectors") from None
    except ValueError as error:  # of the syntax, of the encoding, or a number of thousands of digits
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} must hold an object, got {shown(tree)}")
    return tree


def _refuse(word: str) -> float:
    written = word.lower().replace("infinity", "inf")
    raise DataError(f'{word} is not JSON; write the text "{written}" where your program says so')


def _leaves(given: Any, expected: Mapping[str, Any], file: str, path: Path_) -> Iterator[tuple[Path_, Any]]:
    where = "/".join(("answers", *path))
    if not isinstance(given, dict):
        raise DataError(f"{file}: {where} must be an object, got {shown(given)}")
    for key, value in given.items():
        if key == "tolerance" and key in expected:
            continue
        if key not in expected:
            known = [name for name in expected if name != "tolerance"]
            raise DataError(
                f"{file}: {where} has no {_what(path)} {shown(key)}; {nearest(key, known)}known are {_listed(known)}"
            )
        here = (*path, key)
        if isinstance(expected[key], Mapping):
            yield from _leaves(value, expected[key], file, here)
        else:
            _check(value, expected[key], f"{file}: answers/{'/'.join(here)}", ())
            yield here, value


def _what(path: Path_) -> str:
    """What a name at a place would be."""
    if not path:
        return "section"
    names = SECTIONS[path[0]]
    return names[len(path) - 1] if len(path) <= len(names) else "part"


def _listed(known: list[str]) -> str:
    return ", ".join(known) if len(known) <= 12 else f"{', '.join(known[:12])} and {len(known) - 12} more"


def _check(given: Any, expected: Any, where: str, place: Place) -> None:
    """Refuse what has not the shape of the vectors, or is no number."""
    at = f"{where}[{']['.join(map(str, place))}]" if place else where
    if isinstance(expected, list):
        if not isinstance(given, list) or len(given) != len(expected):
            got = f"{len(given)}" if isinstance(given, list) else shown(given)
            raise DataError(f"{at} must be a list of {len(expected)} as in the vectors, got {got}")
        for index, (inner, other) in enumerate(zip(given, expected, strict=True)):
            _check(inner, other, where, (*place, index))
        return
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number and not (isinstance(given, str) and given in WORDS):
        raise DataError(f'{at} must be a number, or one of the texts "inf", "-inf" and "nan", got {shown(given)}')
    if isinstance(given, int) and abs(given) > 10**300:
        raise DataError(f"{at} must be a number that float64 can hold, got {shown(given)}")
    if isinstance(given, float) and not math.isfinite(given):
        raise DataError(
            f'{at} is past what float64 can hold; write the text "inf" or "-inf" where your program says so'
        )
