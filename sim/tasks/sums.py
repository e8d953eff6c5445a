"""`sum`: say tokens whose sum is the prompt's.

A response earns 1 if its tokens (the end token counts 0) sum to the prompt's sum modulo the vocabulary. `graded` pays
1 minus the circular distance over its maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .demonstrations import Automaton
from .task import WordTask


class Sum(WordTask):
    """Verifiable arithmetic."""

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """1 for the right sum; see `SimTask.earned`."""
        vocab = self.sim.vocab
        gap = (response.sum(-1) - prompts.sum(-1)) % vocab
        if not self.sim.graded:
            return (gap == 0).double()
        return 1.0 - torch.minimum(gap, vocab - gap).double() / (vocab // 2)

    def automaton(self, prompts: Tensor) -> Automaton:
        """States are residues; the right sum is accepted."""
        residue = torch.arange(self.sim.vocab)
        follow = (residue[:, None] + residue[1:]) % self.sim.vocab
        return Automaton(
            start=torch.zeros(len(prompts), dtype=torch.int64),
            follow=follow.expand(len(prompts), *follow.shape),
            accept=residue == (prompts.sum(-1) % self.sim.vocab)[:, None],
        )
