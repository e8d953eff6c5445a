"""`program`: write a little program for a function that the prompt names.

A program acts on one register modulo the vocabulary V. Token 1 adds one; token k > 1 multiplies by k. The prompt wants
x -> a x + b, a its first token and b the sum of the others. `graded` pays the share of the V test cases x = 0, ..., V-1
that the program passes; `binary` pays for all of them only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .demonstrations import Automaton
from .task import WordTask


class Program(WordTask):
    """Programs judged by running them on every input."""

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """The share of test cases that pass, or whether all do; see `SimTask.earned`."""
        vocab = self.sim.vocab
        inputs = torch.arange(vocab)
        register = inputs.expand(*response.shape[:-1], vocab)
        for token in response.unbind(-1):
            register = run(register, token[..., None], vocab)
        slope, offset = self.wanted(prompts)
        passed = register == (slope[..., None] * inputs + offset[..., None]) % vocab
        return passed.double().mean(-1) if self.sim.graded else passed.all(-1).double()

    def wanted(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of the function that each prompt names, `[...]`."""
        return prompts[..., 0], prompts[..., 1:].sum(-1) % self.sim.vocab

    def automaton(self, prompts: Tensor) -> Automaton:
        """States are the functions a x + b that a prefix computes, numbered a V + b; the wanted one is accepted."""
        vocab = self.sim.vocab
        state, token = torch.arange(vocab**2), torch.arange(1, vocab)
        slope = torch.where(token == 1, state[:, None] // vocab, state[:, None] // vocab * token % vocab)
        follow = slope * vocab + run(state[:, None] % vocab, token, vocab)
        a, b = self.wanted(prompts)
        return Automaton(
            start=torch.full((len(prompts),), vocab),
            follow=follow.expand(len(prompts), *follow.shape),
            accept=state == (a * vocab + b)[:, None],
        )


def run(register: Tensor, token: Tensor, vocab: int) -> Tensor:
    """The register after one instruction; token 0 is none."""
    return torch.where(token == 1, register + 1, torch.where(token > 1, register * token, register)) % vocab
