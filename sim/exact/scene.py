"""A scene: two engines, one policy that may have moved, and every target that a recipe can have.

π_old and μ_old share the weights θ_old; π_θ is the training engine at θ. Replay is a policy on the whole tree:
at every token of the context, prompt included, π^R2 uses the experts that π_old picks on that same prefix, and
π^R3 those that μ_old picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.routing import replay_of
from firstorder.sim.config import Sim
from firstorder.sim.model.numerics import Arithmetic, arithmetic
from firstorder.sim.model.policy import Weights, leaves, load
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.task import rows

from .edges import Pass, Routes
from .forward import run
from .tree import Tree, chunks, episodes, gather, plant, reach, responses

Mode = str
MODES: tuple[Mode, ...] = ("disabled", "R2", "R3")


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The arithmetics of the training engine π and of the inference engine μ, for M members."""

    pi: Arithmetic
    mu: Arithmetic


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All engine passes over one tree.

    Args:
        tree: contexts and responses.
        rewards: `[B]`.
        weights: the leaves θ.
        pi: the training engine's arithmetic.
        mu_old, mu: the inference engine at θ_old and at θ, routing live.
        old: π_old by replay mode; R2's is the live one.
        target: π_θ by replay mode, with graph.
        stale: whether θ has left θ_old.
    """

    tree: Tree
    rewards: Tensor
    weights: Weights
    pi: Arithmetic
    mu_old: Pass
    mu: Pass
    old: Mapping[Mode, Pass]
    target: Mapping[Mode, Pass]
    stale: bool

    @cached_property
    def measure(self) -> Tensor:
        """μ_old(y|x) / P of every response, `[M, B]`, summing to 1."""
        return gather(self.mu_old.logp, self.tree).sum(-1).exp() / len(self.tree.prompts)

    @cached_property
    def reached(self) -> Tensor:
        """Probability that a response of μ_old comes to each context, `[M, N]`."""
        return reach(self.mu_old.logp, self.tree)

    @cached_property
    def share(self) -> Tensor:
        """Share of each context among the response tokens that μ_old draws, `[M, N]` summing to 1."""
        return self.reached / self.reached.sum(-1, keepdim=True)

    def parts(self) -> list[Scene]:
        """The same contexts with the responses a chunk at a time, so that sums over responses take little memory."""
        cuts = chunks(self.tree, len(self.mu_old.logp))
        if len(cuts) == 1:
            return [self]
        return [replace(self, tree=responses(self.tree, cut), rewards=self.rewards[cut]) for cut in cuts]

    def replay(self, mode: Mode) -> Routes | None:
        """The routes that a mode replays; None where π routes live."""
        return replay_of(mode, self.old["disabled"].routes, self.mu_old.routes)

    def probability(self, mode: Mode) -> Tensor:
        """π_θ(y|x) / P of every response under a replay mode, `[M, B]`, without gradient."""
        return gather(self.target[mode].logp.detach(), self.tree).sum(-1).exp() / len(self.tree.prompts)


def engines(sim: Sim, seeds: Tensor, scale: Tensor | None = None) -> Engines:
    """The two engines that `sim` describes; `scale` `[M]` replaces the noise scale of μ."""
    return Engines(pi=arithmetic(sim.training_numerics, seeds), mu=arithmetic(sim.numerics, seeds, scale))


def grow(sim: Sim, *, others: bool = False) -> tuple[Tree, Tensor]:
    """The tree of the measured prompts (or of the others, which move θ) and its rewards."""
    tree = plant(task_of(sim), rows(sim)[1 if others else 0])
    return tree, verified(tree)


def verified(tree: Tree) -> Tensor:
    """Reward of every complete response of the tree, `[B]` in [0, 1]."""
    parts = (responses(tree, cut) for cut in chunks(tree, 1))
    return torch.cat([tree.task.verify(episodes(part)) for part in parts])


def build(
    sim: Sim,
    tree: Tree,
    rewards: Tensor,
    arithmetics: Engines,
    theta_old: Weights,
    theta: Weights | None = None,
    modes: Iterable[Mode] = MODES,
) -> Scene:
    """Run every engine over the tree.

    Args:
        sim: sizes and temperature.
        tree, rewards: from `grow`.
        arithmetics: those of the two engines.
        theta_old: weights at rollout.
        theta: weights being optimised; None means θ = θ_old.
        modes: replay modes whose targets are wanted; `disabled` is always there.
    """
    stale, modes = theta is not None, set(modes)
    weights = leaves(theta or theta_old)
    trainer = load(weights, arithmetics.pi, sim)
    target = {"disabled": run(trainer, tree)}
    with torch.no_grad():
        mu_old = run(load(theta_old, arithmetics.mu, sim), tree)
        mu = run(load(weights, arithmetics.mu, sim), tree) if stale else mu_old
        trainer_old = load(theta_old, arithmetics.pi, sim)
        old_live = run(trainer_old, tree) if stale else target["disabled"].frozen()
    for mode in MODES[1:]:
        if mode in modes:
            target[mode] = run(trainer, tree, replay_of(mode, old_live.routes, mu_old.routes))
    old = {"disabled": old_live, "R2": old_live}
    if "R3" in modes:
        with torch.no_grad():
            old["R3"] = run(trainer_old, tree, mu_old.routes) if stale else target["R3"].frozen()
    return Scene(
        tree=tree,
        rewards=rewards,
        weights=weights,
        pi=arithmetics.pi,
        mu_old=mu_old,
        mu=mu,
        old=old,
        target=target,
        stale=stale,
    )
