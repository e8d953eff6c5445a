"""Where a response of `chain` stands: the modes of a context, the order of all contexts, and their features.

Shapes: S contexts, F features, `...` any leading axes.

A place is (problem, position, mode, phase). Its features are those of the problem, of the position, of the mode and of
the phase, each group of the same norm whatever the mode. Off the chain, problem and position have features of their
own, which they share with those on it by a cosine of `shared`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.sim.config import MODES, Sim
from firstorder.sim.model import noise

ON, OFF, THOUGHT, TOLD = range(MODES)
"""On the chain, off it, on it and having thought, off it and told so."""
HALF = 2.0**-0.5


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of the same shape `[...]`, int64: the number of the problem, position, mode, and place in the turn."""

    problem: Tensor
    position: Tensor
    mode: Tensor
    phase: Tensor

    @property
    def holds(self) -> Tensor:
        """Whether they are on the chain, bool."""
        return (self.mode == ON) | (self.mode == THOUGHT)

    @property
    def keys(self) -> Tensor:
        """The hash of what each place is, int64."""
        key = noise.combine(noise.mix(self.problem), self.position)
        return noise.combine(noise.combine(key, self.mode), self.phase)


def modes(sim: Sim) -> list[int]:
    """The modes that a context can have."""
    return [ON, OFF, *[THOUGHT] * (sim.thinking > 0), *[TOLD] * sim.feedback]


def places(sim: Sim, rows: Tensor) -> Places:
    """Every place of problems `rows`, int64 `[X]`, in the order of (problem, position, mode, phase), `[S]`."""
    every = torch.cartesian_prod(rows, torch.arange(sim.positions), torch.tensor(modes(sim)), torch.arange(sim.phases))
    problem, position, mode, phase = every.unbind(-1)
    return Places(problem=problem, position=position, mode=mode, phase=phase)


def number(sim: Sim, at: Places) -> Tensor:
    """Which of `places` each is, int64 `[...]`, where `problem` counts the problems in their order there."""
    used = modes(sim)
    slot = torch.tensor([used.index(mode) if mode in used else -1 for mode in range(MODES)])
    return ((at.problem * sim.positions + at.position) * len(used) + slot[at.mode]) * sim.phases + at.phase


def features(sim: Sim, at: Places) -> Tensor:
    """How much of each feature the places `[S]` have, float64 `[S, F]`; see `Sim.inputs`."""
    problems, half = sim.available, torch.full(at.mode.shape, HALF, dtype=torch.float64)
    common = torch.where(at.holds, half, half * sim.shared)
    own = torch.where(at.holds, 0.0, half * (1 - sim.shared**2) ** 0.5)
    blocks = [
        (problems, at.problem, common),
        (sim.positions, at.position, common),
        (problems, at.problem, own),
        (sim.positions, at.position, own),
        (MODES, at.mode, half),
        (sim.phases, at.phase, half),
    ]
    found = torch.zeros(len(at.mode), sim.inputs, dtype=torch.float64)
    row, offset = torch.arange(len(at.mode)), 0
    for size, which, amount in blocks:
        found[row, offset + which] = amount
        offset += size
    return found
