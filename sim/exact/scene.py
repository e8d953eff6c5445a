"""A scene: two engines, one policy that may have moved, and every target that a recipe can have.

π_old and μ_old share the weights θ_old; π_θ is the training engine at θ. Replay is a policy on the whole tree:
at every token of the context, prompt included, π^R2 uses the experts that π_old picks on that same prefix, and
π^R3 those that μ_old picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.routing import replay_of
from firstorder.sim.config import Sim
from firstorder.sim.model.numerics import Arithmetic, arithmetic
from firstorder.sim.model.policy import Weights, leaves, load
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.task import rows

from .forward import Pass, Routes, run
from .tree import Tree, chunks, episodes, gather, gather_contexts, plant, reach, responses

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

    @property
    def measure(self) -> Tensor:
        """μ_old(y|x) / P of every response, `[M, B]`, summing to 1."""
        return gather(self.mu_old.logp, self.tree).sum(-1).exp() / len(self.tree.prompts)

    def parts(self) -> Iterator[Scene]:
        """The same contexts with the responses a chunk at a time, so that sums over responses take little memory."""
        for cut in chunks(self.tree, len(self.mu_old.logp)):
            yield replace(self, tree=responses(self.tree, cut), rewards=self.rewards[cut])

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
    pair: Engines,
    theta_old: Weights,
    theta: Weights | None = None,
    modes: Iterable[Mode] = MODES,
) -> Scene:
    """Run every engine over the tree.

    Args:
        sim: sizes and temperature.
        tree, rewards: from `grow`.
        pair: the two arithmetics.
        theta_old: weights at rollout.
        theta: weights being optimised; None means θ = θ_old.
        modes: replay modes whose targets are wanted; `disabled` is always there.
    """
    stale = theta is not None
    weights = leaves(theta or theta_old)
    wanted = {"disabled", *modes}
    trainer = load(weights, pair.pi, sim)
    target = {"disabled": run(trainer, tree)}
    with torch.no_grad():
        mu_old = run(load(theta_old, pair.mu, sim), tree)
        mu = run(load(weights, pair.mu, sim), tree) if stale else mu_old
        trainer_old = load(theta_old, pair.pi, sim)
        old_live = run(trainer_old, tree) if stale else frozen(target["disabled"])
    for mode in MODES[1:]:
        if mode in wanted:
            target[mode] = run(trainer, tree, replay_of(mode, old_live.routes, mu_old.routes))
    old = {"disabled": old_live, "R2": old_live}
    if "R3" in wanted:
        with torch.no_grad():
            old["R3"] = run(trainer_old, tree, mu_old.routes) if stale else frozen(target["R3"])
    return Scene(
        tree=tree,
        rewards=rewards,
        weights=weights,
        pi=pair.pi,
        mu_old=mu_old,
        mu=mu,
        old=old,
        target=target,
        stale=stale,
    )


def frozen(done: Pass) -> Pass:
    """The same pass without its graph."""
    return replace(done, logp=done.logp.detach())


def token_stats(scene: Scene, recipe: Recipe) -> TokenStats:
    """The exhaustive batch as a recipe sees it: `[M, B, T]`, with measure μ_old(y) and advantage 1."""
    mode, tree = recipe.router_replay.mode, scene.tree
    target, old = scene.target[mode], scene.old[mode]
    kl_mu = router_shift = None
    if recipe.correction.kind in ("max_kl", "mean_kl"):
        kl_mu = gather_contexts(kl(scene.mu_old.logp, target.logp.detach()), tree)
    if recipe.ratio.router_floor is not None:
        router_shift = gather_contexts(_router_shift(target, old), tree)
    logp_mu = gather(scene.mu_old.logp, tree)
    return TokenStats(
        logp_theta=gather(target.logp.detach(), tree),
        logp_old=gather(old.logp.detach(), tree),
        logp_mu=logp_mu,
        mask=tree.mask.expand(logp_mu.shape),
        advantage=torch.ones(logp_mu.shape[:-1], dtype=torch.float64),
        measure=scene.measure,
        kl_mu=kl_mu,
        router_shift=router_shift,
        rewards=scene.rewards.expand(logp_mu.shape[:-1]),
    )


def token_share(scene: Scene) -> Tensor:
    """Share of each context among the response tokens that μ_old draws, `[M, N]` summing to 1."""
    weight = reach(scene.mu_old.logp, scene.tree)
    return weight / weight.sum(-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two arrays of log-probs over the last axis, nats."""
    return (p.exp() * (p - q)).sum(-1)


def _router_shift(target: Pass, old: Pass) -> Tensor:
    """Mean over layers and the experts that π_old used of |log router_θ - log router_old|, `[M, N]`."""
    used = old.routes.contexts.long()
    shift = target.router_logp.gather(-1, used) - old.router_logp.gather(-1, used)
    return shift.abs().mean((-2, -1))
