"""Problems: a question and what its verifier compares with, from files or from a generator, and which are held out.

Whether a problem is held out is a hash of its question, so the same question never is on both sides, wherever it came
from and however often.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from firstorder.backends.keys import key
from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import shown

ENDLESS = 2**31  # prompts of a generator
TRIES = 10_000
GRAIN = 2**20


@dataclass(frozen=True)
class Problem:
    """A question, and its answer, tests or references."""

    question: str
    reference: Any


class Problems(Protocol):
    """A fixed sequence of problems."""

    @property
    def size(self) -> int:
        """How many there are."""

    def __getitem__(self, row: int) -> Problem:
        """The problem of a row below `size`."""


@dataclass(frozen=True)
class Listed:
    """Problems that are all there."""

    problems: Sequence[Problem]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.problems)

    def __getitem__(self, row: int) -> Problem:
        """The problem of a row."""
        return self.problems[row]


@dataclass(frozen=True)
class Generated:
    """Problems without end: each row draws until what it draws is on its side.

    Args:
        draw: the problem of a 31-bit number.
        held_out: the side.
        share: of questions that are held out.
        name: what is drawn, for an error.
    """

    draw: Callable[[int], Problem]
    held_out: bool
    share: float
    name: str
    size: int = ENDLESS

    def __getitem__(self, row: int) -> Problem:
        """The problem of a row.

        Raises:
            ConfigError: no question is on this side, since there are too few of them.
        """
        side = "held out" if self.held_out else "train"
        for attempt in range(TRIES):
            problem = self.draw(key(self.name, side, row, attempt))
            if is_held_out(problem.question, self.share) == self.held_out:
                return problem
        raise ConfigError(
            f"{self.name} has too few questions for task.held_out = {self.share:g}: none of {TRIES} is on the "
            f"{side} side; set another share or other task.options"
        )


def is_held_out(question: str, share: float) -> bool:
    """Whether a question belongs to the share that is never trained on."""
    return key("split", question) % GRAIN < share * GRAIN


def split(problems: Sequence[Problem], share: float) -> tuple[Listed, Listed]:
    """The problems that are trained on and those that are held out, each in an order fixed by a hash.

    Raises:
        ConfigError: one side is empty.
    """
    mixed = sorted(problems, key=lambda problem: key("order", problem.question))
    sides = [Listed([p for p in mixed if is_held_out(p.question, share) == side]) for side in (False, True)]
    if not all(side.size for side in sides):
        raise ConfigError(
            f"of {len(problems)} problems, {sides[1].size} are held out with task.held_out = {share:g}; "
            "both sides need at least one: give more problems or another share"
        )
    return sides[0], sides[1]


def read(files: Sequence[str], prompt: str, answer: str, valid: Callable[[Any], str]) -> list[Problem]:
    """The problems of JSONL and Parquet files.

    Args:
        files: their paths.
        prompt, answer: names of columns.
        valid: what is wrong with an answer, e.g. `must be a text`, or "".

    Raises:
        ConfigError: a file cannot be read, lacks a column, or holds a row that is no problem; with the row.
    """
    problems = []
    for file in files:
        for number, row in enumerate(_rows(Path(file)), 1):
            place = f"{file}, row {number}"
            for column in (prompt, answer):
                if column not in row:
                    raise ConfigError(
                        f"{place} has no {column!r}; its columns are {', '.join(map(str, row))}: set "
                        "task.prompt_column and task.answer_column"
                    )
            question, reference = row[prompt], row[answer]
            if not isinstance(question, str) or not question.strip():
                raise ConfigError(f"{place}: {prompt!r} must be a text, got {question!r}")
            if wrong := valid(reference):
                raise ConfigError(f"{place}: {answer!r} {wrong}")
            problems.append(Problem(question, reference))
    return problems


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
            return
        if path.exists() and not path.is_file():  # a device is read without end, until the memory is full
            raise OSError("not a file")
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read {path}: {reason}; give task.files as a list of JSONL or Parquet files"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number} is not JSON: {error}; a JSONL file has an object a line"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number} must be an object, got {shown(row)}")
        yield row


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow; pip install 'firstorder[sweep]' or give JSONL") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise ConfigError(f"{path} is not a Parquet file: {error}") from None
    return rows
