"""What a study is: an open question, the rule by which it is answered, and the runs that answer it.

A rule and its settings are chosen on seeds below 1000; answers are reported on seeds that nobody looked at before.
Where a rule was changed after a look at its answer, the study starts at other seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIRST, QUICK_FIRST = 2000, 500  # seeds of answers, and of first looks
SEEDS, QUICK_SEEDS = 8, 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is spent on a study.

    Args:
        folder: holds the run folders; finished runs are found again.
        seeds: of the policies, the units of every interval.
        quick: whether it is a first look: fewer seeds, conditions and updates.
    """

    folder: Path
    seeds: range
    quick: bool = False


def plan(folder: Path, *, first: int = FIRST, quick: bool = False) -> Plan:
    """What an answer takes, on seeds from `first`, or a first look, on seeds of its own."""
    first, count = (QUICK_FIRST, QUICK_SEEDS) if quick else (first, SEEDS)
    return Plan(folder=folder, seeds=range(first, first + count), quick=quick)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a study found.

    Args:
        headline: in a sentence, with numbers.
        rows: one a line of its table and a point of its figure: plain values under the same keys.
        measured: all else that was measured, as plain numbers.
    """

    headline: str
    rows: list[dict[str, Any]]
    measured: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """An open question.

    Args:
        id: its name.
        question: in a sentence.
        source: who asks, or claims an answer.
        rule: how runs become an answer, fixed beforehand.
        answer: train what is missing, and read it.
        first: the first seed of its answer.
    """

    id: str
    question: str
    source: str
    rule: str
    answer: Callable[[Plan], Answer]
    first: int = FIRST
