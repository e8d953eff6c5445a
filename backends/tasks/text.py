"""`text`: say what a reference says, with partial credit: the best ROUGE-L F1 over the references, word by word.

Words are runs of letters and digits in lower case, as ROUGE counts them; a script without spaces is one word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from firstorder.core.rouge import rouge_l
from firstorder.core.tasks import padded

from .config import TaskSettings
from .problems import Listed, Problem, read, split
from .verifiable import Judge, conclusion

SYSTEM = ""
PACKAGES: tuple[str, ...] = ()


def problems(settings: TaskSettings) -> tuple[Listed, Listed]:
    """Those that are trained on, and those that are held out."""
    rows = read(settings.files, settings.prompt_column, settings.answer_column, _wrong)
    listed = [Problem(p.question, [p.reference] if isinstance(p.reference, str) else p.reference) for p in rows]
    return split(listed, settings.held_out)


def judge(settings: TaskSettings) -> Judge:
    """The best F1 over a problem's references."""

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        said = [conclusion(text) for text in texts]
        return [max(overlap([text] * len(p.reference), p.reference)) for p, text in zip(problems, said, strict=True)]

    return earned


def overlap(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of texts with references.

    Example:
        >>> overlap(["the cat sat", "The cat sat!"], ["the cat sat down", "the cat sat"])
        [0.8571428571428571, 1.0]
    """
    words = [re.findall(r"\w+", text.lower()) for text in (*texts, *references)]
    number = {word: i for i, word in enumerate(sorted({word for each in words for word in each}), 1)}
    ids, _ = padded([[number[word] for word in each] or [0] for each in words])
    f1: list[float] = rouge_l(ids[: len(texts)], ids[len(texts) :]).tolist()
    return f1


def _wrong(references: Any) -> str:
    listed = [references] if isinstance(references, str) else references
    fine = isinstance(listed, list) and listed and all(isinstance(r, str) and r.strip() for r in listed)
    return "" if fine else f"must be a text or a list of texts, got {references!r}"
