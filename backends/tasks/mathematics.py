"""`math`: problems with an answer in LaTeX or as a number; math-verify says whether a response's last one is equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firstorder.core.errors import DataError

from .config import TaskSettings
from .problems import Listed, Problem, read, split
from .verifiable import Judge
from .worker import Worker

SYSTEM = "Reason step by step, and put the final answer within \\boxed{}."
PACKAGES = ("math_verify",)


def problems(settings: TaskSettings) -> tuple[Listed, Listed]:
    """Those that are trained on, and those that are held out."""
    found = read(settings.files, settings.prompt_column, settings.answer_column, _wrong)
    return split([Problem(p.question, str(p.reference)) for p in found], settings.held_out)


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
    """Whether the last answer in a text is the reference.

    Raises:
        DataError: the reference is none that math-verify can read.
    """
    from math_verify import parse, verify

    marked = any(mark in reference for mark in ("$", "\\boxed", "\\(", "\\["))
    wanted = parse(reference if marked else f"${reference}$", parsing_timeout=None)
    if not wanted:
        raise DataError(f"math-verify cannot read the answer {reference!r} of a problem; correct it in task.files")
    return float(verify(wanted, parse(text, parsing_timeout=None), timeout_seconds=None))


def _wrong(answer: Any) -> str:
    fine = isinstance(answer, (str, int, float)) and not isinstance(answer, bool) and str(answer).strip()
    return "" if fine else "a text or a number"
