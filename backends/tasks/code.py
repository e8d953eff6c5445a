"""`code`: write a Python program; the reward is the share of its unit tests that pass in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .config import TaskSettings
from .problems import Listed, Problem, read, split
from .sandbox import Limits, check, passed_by
from .verifiable import Judge

SYSTEM = "Write a Python program. Answer with one block that begins with ```python and ends with ```."
PACKAGES: tuple[str, ...] = ()


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


def shares(programs: Sequence[str], tests: Sequence[Sequence[str]], limits: Limits) -> list[float]:
    """The share of its tests that each program passes."""
    return [sum(each) / len(each) for each in passed_by(programs, tests, limits)]


def program(text: str) -> str:
    """The last block of code of a response, or else all that follows its thoughts.

    Example:
        >>> program("Here:\\n```python\\nx = 1\\n```\\nDone.")
        'x = 1\\n'
    """
    after = text.rpartition("</think>")[2]
    blocks: list[str] = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)```", after, flags=re.DOTALL)
    return blocks[-1] if blocks else after


def _wrong(tests: Any) -> str:
    fine = isinstance(tests, list) and tests and all(isinstance(test, str) and test.strip() for test in tests)
    return "" if fine else "a list of Python tests, e.g. assertions"
