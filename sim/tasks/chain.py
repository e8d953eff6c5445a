"""`chain`: a chain of reasoning steps, each with several right tokens; one wrong token and the chain is lost.

A problem has Q positions, which a response goes through one after the other and round. At each, `right` of the V
tokens are right, a hash of problem and position. A response that has said nothing wrong when the horizon cuts it earns
1. Contexts off the chain are visited by failing responses alone; `shared` says how much of their features they have in
common with those on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.sim.model import noise

from .contexts import Contexts
from .demonstrations import Automaton
from .task import SimTask

ON, OFF = 0, 1
MODES = 2


class Chain(SimTask):
    """Steps that must all be right."""

    def contexts(self, rows: Tensor) -> Contexts:
        """The contexts of problems `rows`, int64 `[X]`: (problem, position, mode), in that order."""
        sim, q = self.sim, self.sim.positions
        place = torch.cartesian_prod(rows, torch.arange(q), torch.arange(MODES))
        problem, position, mode = place.unbind(-1)
        index = torch.arange(len(place)).view(len(rows), q, MODES)
        right = self.right(problem, position)
        after = index.roll(-1, dims=1)  # the same mode at the next position
        on, off = (after[..., m, None].expand(-1, -1, MODES).flatten()[:, None] for m in (ON, OFF))
        follow = torch.where((mode == ON)[:, None] & right, on, off)
        return Contexts(
            features=self._features(problem, position, mode),
            keys=noise.combine(noise.combine(noise.mix(problem), position), mode),
            start=index[:, 0, ON].clone(),
            follow=follow,
            ends=torch.zeros(0, dtype=torch.float64),
            cut=(mode == ON).double(),
        )

    def right(self, problem: Tensor, position: Tensor) -> Tensor:
        """Which tokens are right, bool `[..., V]`."""
        key = noise.combine(noise.combine(noise.mix(problem), position), -1)
        order = noise.combine(key[..., None], torch.arange(self.sim.vocab)).argsort(-1).argsort(-1)
        return order < self.sim.right

    def _features(self, problem: Tensor, position: Tensor, mode: Tensor) -> Tensor:
        """Problem and position, of their own where the chain is lost but for what is shared, and the mode."""
        sim, problems = self.sim, self.sim.available
        half, lost = 2.0**-0.5, (mode == OFF).double()
        common = half * (1 - lost + lost * sim.shared)
        own = half * lost * (1 - sim.shared**2) ** 0.5
        features = torch.zeros(len(mode), sim.inputs, dtype=torch.float64)
        row = torch.arange(len(mode))
        features[row, problem] = common
        features[row, problems + position] = common
        features[row, problems + sim.positions + problem] = own
        features[row, 2 * problems + sim.positions + position] = own
        features[row, 2 * (problems + sim.positions) + mode] = half
        return features

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """1 where every token was right; see `SimTask.earned`."""
        raise NotImplementedError

    def automaton(self, prompts: Tensor) -> Automaton:
        raise NotImplementedError
