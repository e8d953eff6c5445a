"""`code`: write a Python program; the reward is the share of its unit tests that pass in the sandbox.

A test is Python that calls what the program defines, or a pair of an input and the output that is wanted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import TaskSettings
from .fences import program
from .jail.forms import unjudged
from .problems import Listed, Problem, read, split
from .sandbox import Limits, Test, check, passed_by
from .verifiable import Judge

SYSTEM = "Write a Python program. Answer with one block that begins with ```python and ends with ```."
PACKAGES: tuple[str, ...] = ()
PAIR = {"input", "output"}


def problems(settings: TaskSettings) -> tuple[Listed, Listed]:
    """Those that are trained on, and those that are held out.

    Raises:
        ConfigError: a file is wrong, or programs cannot be run here.
    """
    check(settings.limits)
    return split(read(settings.files, settings.prompt_column, settings.answer_column, _wrong), settings.held_out)


def judge(settings: TaskSettings) -> Judge:
    """The share of tests that pass."""

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return shares([program(text) for text in texts], [p.reference for p in problems], settings.limits)

    return earned


def shares(programs: Sequence[str], tests: Sequence[Sequence[Test]], limits: Limits) -> list[float]:
    """The share of its tests that each program passes."""
    return [sum(each) / len(each) for each in passed_by(programs, tests, limits)]


def _wrong(tests: Any) -> str:
    if not isinstance(tests, list) or not tests:
        return f"must be a list of tests, got {tests!r}"
    for number, test in enumerate(tests, 1):
        if isinstance(test, str) and test.strip():
            if reason := unjudged(test):
                return f"has a test {number} that cannot be judged, {test!r}: it {reason}"
        elif not isinstance(test, dict) or set(test) != PAIR or not all(isinstance(v, str) for v in test.values()):
            return (
                f"must be a list of Python tests, e.g. assertions, or of objects with `input` and `output`, texts; "
                f"test {number} is {test!r}"
            )
    return ""
