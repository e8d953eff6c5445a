"""`math`: problems with an answer in LaTeX or as a number; math-verify says whether a response's last one is equal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.progress import steps

from .config import TaskSettings
from .problems import Listed, Problem, read, split
from .verifiable import Judge
from .worker import Worker

SYSTEM = "Reason step by step, and put the final answer within \\boxed{}."
PACKAGES = ("math_verify",)
PERCENT = re.compile(r"%[\s$.)}\]\\]*\Z")  # math-verify drops it
PLAIN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")  # what math-verify always finds equal to itself
POWER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]{1,3}")  # which math-verify reads as a product with e
NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
PROSE = re.compile(r"(?=.*[^\W\d_]{4})(?:[^\W\d_]|[\s'-])+")  # four letters in a row, and nothing but words


def problems(settings: TaskSettings) -> tuple[Listed, Listed]:
    """Those that are trained on, and those that are held out."""
    columns = settings.files, settings.prompt_column, settings.answer_column
    listed = [Problem(p.question, spelled(p.reference)) for p in read(*columns, _wrong)]
    unequal = _unequal(dict.fromkeys(p.reference for p in listed), settings)
    if unequal is not None:  # read once more, for its row
        what = "is not an answer that math-verify finds equal to itself"
        read(*columns, lambda answer: f"{what}: {answer!r}; correct it" if spelled(answer) == unequal else "")
    return split(listed, settings.held_out)


def _unequal(references: Iterable[str], settings: TaskSettings) -> str | None:
    """The first that is not equal to itself; a plain number is, and needs no worker."""
    worker = Worker(itself, prepare, settings.seconds, settings.memory_mib)
    try:
        for reference in steps("answers verified", [r for r in references if not PLAIN.fullmatch(r)]):
            if not worker([(reference,)])[0]:
                return reference
    finally:
        worker.close()
    return None


def judge(settings: TaskSettings) -> Judge:
    """1 for an equal answer, else 0; a verifier that takes too long has seen none."""
    worker = Worker(equal, prepare, settings.seconds, settings.memory_mib)

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        pairs = [(p.reference, text.rpartition("</think>")[2]) for p, text in zip(problems, texts, strict=True)]
        return [reward or 0.0 for reward in worker(pairs)]

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

    if said := words(reference):  # a product of its letters for math-verify, and equal to any anagram
        answer = last_box(text)
        parsed = parse(answer, parsing_timeout=None) if answer else []
        return float(bool(parsed) and said in (words(parsed[-1]), words(str(answer))))
    marked = any(mark in reference for mark in ("$", "\\boxed", "\\(", "\\["))
    expected = parse(reference if marked else f"${reference}$", parsing_timeout=None)
    if not expected:
        raise DataError(f"math-verify cannot read the answer {reference!r} of a problem; correct it in task.files")
    answer = last_box(text)
    if answer is None or bool(PERCENT.search(answer)) != bool(PERCENT.search(reference)):
        return 0.0
    parsed = parse(answer, parsing_timeout=None)
    return float(verify(expected, parsed, timeout_seconds=None) and not _apart(expected[0], parsed[0]))


def itself(reference: str) -> float:
    """Whether a reference is equal to itself, and is neither undefined nor an infinity without direction."""
    from math_verify import parse
    from sympy import Basic, nan, zoo

    try:
        same = equal(reference, f"\\boxed{{{bare(reference)}}}")
    except DataError:
        return 0.0
    read = parse(f"${bare(reference)}$", parsing_timeout=None)
    return float(same and not any(isinstance(part, Basic) and part.has(nan, zoo) for part in read))


def words(answer: str) -> list[str]:
    """The words of an answer in prose, in lower case; none where it may be mathematics.

    Example:
        >>> words("\\\\boxed{\\\\text{On Monday}}"), words("xyz"), words("5 metres")
        (['on', 'monday'], [], [])
    """
    plain = re.sub(r"\\(?:boxed|fbox|mbox|mathrm|text[a-z]*)(?![a-zA-Z])|[{}$.]", " ", answer)
    return plain.casefold().split() if PROSE.fullmatch(plain) else []


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
    """An answer as text; a number in digits, since 1e-05 reads as a product with e.

    Example:
        >>> spelled(1e-05), spelled("x"), spelled(180), spelled("2.5e3")
        ('0.00001', 'x', '180', '2500')
    """
    if isinstance(answer, str) and not POWER.fullmatch(answer.strip()):
        return answer
    return format(Decimal(answer.strip() if isinstance(answer, str) else repr(answer)), "f")


def bare(answer: str) -> str:
    """An answer without the signs that mark it as mathematics."""
    return re.sub(r"\$|\\[()\[\]]", "", answer)


def _apart(expected: Any, parsed: Any) -> bool:
    """Whether two numbers differ by more than their last digits, which rounding to six decimals does not see."""
    try:
        first, second = complex(expected), complex(parsed)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(first - second) > 1e-6 * max(abs(first), abs(second))


def _wrong(answer: Any) -> str:
    fine = isinstance(answer, (str, int, float)) and not isinstance(answer, bool) and bool(str(answer).strip())
    if fine and NO_NUMBER.fullmatch(str(answer).strip()):  # which is how floats are spelled that are not finite, too
        return f"must be a finite number, got {answer!r}; correct it"
    return "" if fine else f"must be a text or a number, got {answer!r}"
