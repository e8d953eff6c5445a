"""What is looked for in a dump: detectors, which add up sums over chunks and judge them at the end.

    sums of a dump = Σ_chunks measure(chunk),   finding = judge(sums, known)

A detector is two pure functions, so that chunks, files and ranks can be read in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

EACH = "each/"

Sums = dict[str, Tensor]
"""Additive statistics by name; those of two chunks have the same shapes.

Names that begin with `EACH` hold one entry a response, `[B, ...]`, and are laid end to end in the order of reading.
"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a run beside its dump, None where nobody says.

    Args:
        experts: of the model.
        replay: of the recipe, disabled, R2 or R3.
        precision: of the rollout engine's arithmetic: bf16, fp8, fp16 or fp32.
        minibatches: updates a rollout, N.
    """

    experts: int | None = None
    replay: str | None = None
    precision: str | None = None
    minibatches: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault that was found.

    Args:
        fault: its name, `off by one`.
        evidence: one sentence with the figures that name it.
        questions: the two to ask next.
        place: the first response that shows it, counted in the order of reading; None where all do.
        where: the same as a file and a row, which `judge_all` looks up.
    """

    fault: str
    evidence: str
    questions: tuple[str, str]
    place: int | None = None
    where: str | None = None


@dataclass(frozen=True, kw_only=True)
class Detector:
    """One fault and how it is found.

    Args:
        fault: its name.
        stage: of the order in which questions are asked: 1 readable, 2 aligned, 3 degenerate columns, 4 route fills,
            5 semantics, 6 size. What an earlier stage finds explains what later ones see.
        needs: columns of `Sample` without which it says nothing.
        measure: the sums of a chunk.
        judge: the finding, None where there is none. It alone holds the rule.
        rule: that rule in words, with its thresholds.
    """

    fault: str
    stage: int
    needs: tuple[str, ...]
    measure: Callable[[Chunk], Sums]
    judge: Callable[[Sums, Known], Finding | None]
    rule: str

    def applies(self, chunk: Chunk) -> bool:
        """Whether a chunk has what it needs."""
        return all(getattr(chunk, name) is not None for name in self.needs)


def merged(a: Sums, b: Sums) -> Sums:
    """The sums of two chunks together, and what is kept of each response end to end."""
    return (
        a
        | b
        | {
            name: torch.cat([a[name], b[name]]) if name.startswith(EACH) else a[name] + b[name]
            for name in a.keys() & b.keys()
        }
    )


def first(hits: Tensor) -> int | None:
    """The first True of bool `[B]`; None where there is none, or nothing but."""
    return int(hits.int().argmax()) if hits.any() and not hits.all() else None
