"""ROUGE-L: how much of a reference a text says, in order.

Shapes: `...` any leading axes, T and R tokens of two texts. Token 0 is padding and matches nothing.

Reference:
    Lin (2004), ROUGE: a package for automatic evaluation of summaries, sec. 3 (ROUGE-L with β = 1).
"""

from __future__ import annotations

from torch import Tensor, zeros_like
from torch.nn import functional as nn


def rouge_l(a: Tensor, b: Tensor) -> Tensor:
    """F1 = 2 · LCS / (|a| + |b|), float64 `[...]` in [0, 1], of `[..., T]` and `[..., R]`; 0 for two empty texts."""
    total = (a > 0).sum(-1) + (b > 0).sum(-1)
    return 2.0 * longest_common(a, b).double() / total.clamp(min=1)


def longest_common(a: Tensor, b: Tensor) -> Tensor:
    """Length of the longest common subsequence (LCS), `[...]`, of `[..., T]` and `[..., R]`.

    Row t of the table holds LCS(a_1..t, b_1..r) for every r = 0..R; the maximum over r runs along the row.
    """
    row = nn.pad(zeros_like(a[..., :1] * b), (1, 0))
    for token in a.unbind(-1):
        match = (b == token[..., None]) & (token[..., None] > 0)
        longer = row[..., 1:].maximum(row[..., :-1] + match)
        row = nn.pad(longer.cummax(-1).values, (1, 0))
    return row[..., -1]
