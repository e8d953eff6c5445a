"""A search that tries to break a bound: the policies and the reward at which what it bounds is the largest part of it.

Random pairs of free policies are drawn, and from those of each kind that come nearest log(what is bounded / bound) is
climbed.
What is bounded is linear in the reward, so that the best one is 0 or 1 at every response, and known; only a bound that
reads the reward itself has its reward climbed too. A bound holds if no ratio exceeds 1; it is sharp where one comes
near.

Shapes: M members, N contexts, V vocabulary, T horizon, Y responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import bounds_free
from .bounds import BOUNDS
from .bounds_free import Free, full
from .bounds_replay import relaxations
from .levels import Levels

Sum = Callable[[Free], Tensor]

DRAWS, STEPS = 1024, 250
RATE = 0.15  # of Adam, of the size of a logit, at the first step; it falls to 0
LEAST = 1e-3  # bounds below it are not looked at: `SLACK` of one is no more than what probabilities are rounded by
KEEP = 3.0  # times the logarithm by which a bound is below twice `LEAST`
TINY = 1e-30  # under a logarithm
EDGE = 0.05  # of a reward that is climbed from
SLACK = 1e-12  # of a ratio: 1e-15 of reward at `LEAST`, some units of rounding of a sum of probabilities
PARTS = ("pi", "mu", "rewards")
SPREADS = (0.02, 0.5, 1.5, 3.0, 6.0)  # of logits
DISTANCES = (0.1, 0.3, 1.0, 3.0, 6.0)  # of the logits of two policies
KINDS = len(SPREADS) * len(DISTANCES)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound to be broken.

    Args:
        bounded: what it bounds.
        bound: the bound.
        reads: whether it depends on the reward.
    """

    bounded: Sum
    bound: Sum
    reads: bool = False

    def ratio(self, of: Free) -> Tensor:
        """|bounded| / bound, `[M]`; 0 where the bound is below `LEAST`."""
        return self.climbed(of)[0]

    def climbed(self, of: Free) -> tuple[Tensor, Tensor]:
        """The ratio, and what is climbed: its logarithm, less what keeps the bound above `LEAST`; `[M]` each."""
        size, limit = self.bounded(of).abs(), self.bound(of)
        log = limit.clamp(min=TINY).log()
        height = size.clamp(min=TINY).log() - log - KEEP * (math.log(2 * LEAST) - log).clamp(min=0)
        return torch.where(limit > LEAST, size / limit.clamp(min=LEAST), 0.0).detach(), height


@dataclass(frozen=True, kw_only=True)
class Broken:
    """The largest ratio that a search found, and where: a `Free` of one member."""

    ratio: float
    at: Free

    @property
    def breaks(self) -> bool:
        """Whether the bound does not hold."""
        return self.ratio > 1 + SLACK


def _of_error(name: str) -> Sum:
    return lambda of: BOUNDS[name](bounds_free.expansion(of))


def _of_replay(name: str) -> Sum:
    return lambda of: relaxations(bounds_free.moved(of))[name]


RELAXATIONS = (
    "hellinger",
    *(f"{name}_{side}" for side in ("natural", "replayed") for name in ("linear", "pinsker", "bretagnolle_huber")),
    *(f"adaptive_{side}" for side in ("natural", "replayed")),
    "coupling",
)
TARGETS: Mapping[str, Mapping[str, Target]] = {
    "error": {
        name: Target(bounded=bounds_free.error, bound=_of_error(name), reads=name in ("trpo", "cpo", "reach"))
        for name in BOUNDS
    },
    "replay": {
        "total_variation": Target(bounded=bounds_free.gap, bound=bounds_free.sequence_total_variation),
        **{name: Target(bounded=bounds_free.gap, bound=_of_replay(name)) for name in RELAXATIONS},
    },
}
"""Every bound by what it bounds and its name."""


def search(target: Target, vocab: int, horizon: int, seed: int, *, draws: int = DRAWS, steps: int = STEPS) -> Broken:
    """The largest ratio over free policies and rewards that random draws and ascent from the best of them find.

    Args:
        target: the bound.
        vocab, horizon: V and T of the tree.
        seed: of the draws.
        draws: random pairs of policies.
        steps: of the ascent.
    """
    shape, kinds = full(vocab, horizon), torch.arange(draws) % KINDS
    units = _units(shape, draws, torch.Generator().manual_seed(seed))
    drawn = _rewarded(target, _policies(shape, units, kinds))
    ratios = target.ratio(drawn)
    picks = torch.stack([torch.where(kinds == k, ratios, -1.0).argmax() for k in range(KINDS)])
    most, best, kinds = ratios[picks], _members(drawn, picks), kinds[picks]
    leaves = [x.clone().requires_grad_() for x in (units[0][picks], units[1][picks], _log_odds(best.rewards))]
    climbed = leaves if target.reads else leaves[:2]
    optimiser = torch.optim.Adam(climbed, lr=RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        here = _policies(shape, [*leaves[:2], leaves[2].sigmoid()], kinds)
        here = here if target.reads else _rewarded(target, here)
        ratio, height = target.climbed(here)
        better = ratio > most
        most, best = torch.where(better, ratio, most), _chosen(better, here, best)
        slopes = torch.autograd.grad(-height.sum(), climbed)
        for leaf, slope in zip(climbed, slopes, strict=True):
            leaf.grad = slope
        optimiser.step()
    return Broken(ratio=float(most.max()), at=_members(best, most.argmax()[None]))


def _units(shape: Levels, draws: int, generator: torch.Generator) -> list[Tensor]:
    """What policies are made of, standard normal `[draws, N, V]` twice, and rewards `[draws, Y]`."""
    size = (draws, *shape.terminal.shape)
    both = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*both, torch.rand(draws, shape.widths[-1] * size[-1], generator=generator, dtype=torch.float64)]


def _policies(shape: Levels, units: Sequence[Tensor], kinds: Tensor) -> Free:
    """Pairs of policies of `KINDS` kinds, int64 `[M]`, from nearly uniform to nearly deterministic, from close to far
    apart; their units are climbed in, so that a step is as small as what it moves."""
    spread, distance = (torch.tensor(each).double()[:, None, None] for each in (SPREADS, DISTANCES))
    mu = spread[kinds % len(SPREADS)] * units[0]
    pi = mu + distance[kinds // len(SPREADS)] * units[1]
    return Free(shape=shape, pi=pi.log_softmax(-1), mu=mu.log_softmax(-1), rewards=units[2])


def _rewarded(target: Target, of: Free) -> Free:
    """With the reward in {0, 1} for which what is bounded is the largest: it is linear in the reward."""
    rewards = of.rewards.detach().clone().requires_grad_()
    slope = torch.autograd.grad(target.bounded(replace(_detached(of), rewards=rewards)).sum(), rewards)[0]
    return replace(of, rewards=(slope > 0).double())


def _chosen(which: Tensor, these: Free, others: Free) -> Free:
    """Of some members these, of the rest the others."""

    def each(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (a.ndim - 1)), a.detach(), b)

    pairs = [each(getattr(these, name), getattr(others, name)) for name in PARTS]
    return Free(shape=others.shape, pi=pairs[0], mu=pairs[1], rewards=pairs[2])


def _members(of: Free, which: Tensor) -> Free:
    return replace(of, **{name: getattr(of, name)[which] for name in PARTS})


def _detached(of: Free) -> Free:
    return replace(of, **{name: getattr(of, name).detach() for name in PARTS})


def _log_odds(rewards: Tensor) -> Tensor:
    """Logits of rewards, those of 0 and 1 moved inside so that they can be climbed from."""
    return rewards.clamp(EDGE, 1 - EDGE).logit()
