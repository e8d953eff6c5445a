"""`math`: problems with an answer in LaTeX or as a number; math-verify says whether a response's last one is equal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from firstorder.core.errors import DataError

from .config import TaskSettings
from .problems import Listed, Problem, read, split
from .verifiable import Judge
from .worker import Worker

SYSTEM = "Reason step by step, and put the final answer within \\boxed{}."
PACKAGES = ("math_verify",)
PERCENT = re.compile(r"%[\s$.)}\]\\]*\Z")  # math-verify drops it


def problems(settings: TaskSettings) -> tuple[Listed, Listed]:
    """Those that are trained on, and those that are held out."""
    worker = Worker(equal, prepare, settings.seconds, settings.memory_mib)

    def wrong(answer: Any) -> str:
        if reason := _wrong(answer):
            return reason
        try:
            (same,) = worker([(spelled(answer), f"\\boxed{{{bare(spelled(answer))}}}")])
        except DataError:
            same = None
        return "" if same else f"is no answer that math-verify finds equal to itself: {answer!r}; correct it"

    try:
        found = read(settings.files, settings.prompt_column, settings.answer_column, wrong)
    finally:
        worker.close()
    return split([Problem(p.question, spelled(p.reference)) for p in found], settings.held_out)


def judge(settings: TaskSettings) -> Judge:
    """1 for an equal answer, else 0; a verifier that takes too long has seen none."""
    worker = Worker(equal, prepare, settings.seconds, settings.memory_mib)

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        pairs = [(p.reference, text.rpartition("</think>")[2]) for p, text in zip(problems, texts, strict=True)]
        return [found or 0.0 for found in worker(pairs)]

    return earned


def prepare() -> None:
    """Import the verifier, which takes seconds; the worker has its own alarm, so it needs none."""
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    equal("1", "1")


def equal(reference: str, text: str) -> float:
    """Whether the last answer in a text is the reference: what is in its last box, or else its last expression.

    Raises:
        DataError: the reference is none that math-verify can read.
    """
    from math_verify import parse, verify

    marked = any(mark in reference for mark in ("$", "\\boxed", "\\(", "\\["))
    wanted = parse(reference if marked else f"${reference}$", parsing_timeout=None)
    if not wanted:
        raise DataError(f"math-verify cannot read the answer {reference!r} of a problem; correct it in task.files")
    answer = last_box(text)
    if answer is None or bool(PERCENT.search(answer)) != bool(PERCENT.search(reference)):
        return 0.0
    found = parse(answer, parsing_timeout=None)
    return float(verify(wanted, found, timeout_seconds=None) and not _apart(wanted[0], found[0]))


def last_box(text: str) -> str | None:
    """The last box of a text, all of it where there is none, and None where the last does not end.

    Example:
        >>> last_box("First \\\\boxed{5}, then \\\\boxed{\\\\frac{7}{2}}."), last_box("\\\\boxed{5} or \\\\boxed{7")
        ('\\\\boxed{\\\\frac{7}{2}}', None)
    """
    boxes = list(re.finditer(r"\\(?:boxed|fbox)\s*(?=[{\w])", text))
    depth, last = 0, boxes[-1] if boxes else None
    if not last:
        return text
    if text[last.end()] != "{":
        return f"\\boxed{{{text[last.end()]}}}"
    for part in re.finditer(r"\\.|[{}]", text[last.end() :], flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if depth == 0 and part[0] == "}":
            return "\\boxed" + text[last.end() : last.end() + part.end()]
    return None


def spelled(answer: str | float) -> str:
    """An answer as text; a number of JSON in digits, since 1e-05 reads as a product with e.

    Example:
        >>> spelled(1e-05), spelled("x"), spelled(180)
        ('0.00001', 'x', '180')
    """
    return answer if isinstance(answer, str) else format(Decimal(repr(answer)), "f")


def bare(answer: str) -> str:
    """An answer without the signs that mark it as mathematics."""
    return re.sub(r"\$|\\[()\[\]]", "", answer)


def _apart(wanted: Any, found: Any) -> bool:
    """Whether two numbers differ by more than their last digits, which rounding to six decimals does not see."""
    try:
        first, second = complex(wanted), complex(found)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(first - second) > 1e-6 * max(abs(first), abs(second))


def _wrong(answer: Any) -> str:
    fine = isinstance(answer, (str, int, float)) and not isinstance(answer, bool) and bool(str(answer).strip())
    if isinstance(answer, float) and not math.isfinite(answer):
        fine = False
    return "" if fine else f"must be a text or a number, got {answer!r}"
