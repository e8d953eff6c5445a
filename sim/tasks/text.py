"""`text`: say what the prompt says, every word translated; judged by ROUGE-L.

The reference is the prompt with token k replaced by the next one (V-1 by 1). A response is compared by its longest
common subsequence (LCS) with the reference, the end token left out:

    F1 = 2 · LCS / (|response| + |reference|)

`graded` pays F1 (`core.rouge`), `binary` pays for the reference itself only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nn

from firstorder.core.rouge import rouge_l

from .demonstrations import Automaton
from .task import WordTask


class Text(WordTask):
    """Translation with partial credit."""

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """F1 with the reference, or whether it is 1; see `SimTask.earned`."""
        f1 = rouge_l(response, self.reference(prompts))
        return f1 if self.sim.graded else (f1 == 1.0).double()

    def reference(self, prompts: Tensor) -> Tensor:
        """The translation of prompts, `[..., P]`."""
        return prompts % (self.sim.vocab - 1) + 1

    def automaton(self, prompts: Tensor) -> Automaton:
        """States count the reference's tokens said so far, in order; once all are, anything is accepted."""
        reference = self.reference(prompts)
        state, token = torch.arange(prompts.shape[-1] + 1), torch.arange(1, self.sim.vocab)
        awaited = nn.pad(reference, (0, 1))  # nothing is awaited once all is said
        follow = state[:, None] + (awaited[..., None] == token).long()
        return Automaton(
            start=torch.zeros(len(prompts), dtype=torch.int64),
            follow=follow,
            accept=(state == prompts.shape[-1]).expand(len(prompts), -1),
        )
