"""The simulator as a training backend: a whole ensemble of runs as one batched computation.

Shapes: M members (arms side by side), B responses, L positions, N layers, K experts a token, P parameters.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from firstorder.core.agreement import agreement
from firstorder.core.arms import Arm
from firstorder.core.backend import Scored, Weigh
from firstorder.core.batch import RolloutBatch
from firstorder.core.diagnostics import Moments
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.recipe import Recipe
from firstorder.core.surrogate import surrogate_loss

from . import exact, noise, optimizer, task
from .config import Sim
from .numerics import Arithmetic, arithmetic
from .policy import Weights, flatten, initial_weights, load, unflatten
from .scene import Engines, build, engines, grow
from .sequences import sample, score
from .tree import Tree


class SimBackend:
    """Policies, both engines and the optimiser of every member.

    Args:
        sim: sizes, numerics, prompts; the measured prompts are the first of the training pool.
        arms: recipes with their member counts, in order.
        seeds: int64 `[M]`; a member's weights, prompts and samples follow from its seed alone.
    """

    def __init__(self, sim: Sim, arms: tuple[Arm, ...], seeds: Tensor) -> None:
        members = [arm for arm in arms for _ in range(arm.members or 1)]
        if len(members) != len(seeds):
            raise ConfigError(f"the arms hold {len(members)} members, got {len(seeds)} seeds")
        self.sim, self.arms, self.seeds, self.schedule = sim, arms, seeds, arms[0].recipe.schedule
        self.modes = [arm.recipe.router_replay.mode for arm in members]
        self.settings = optimizer.settings([arm.recipe.optimizer for arm in members])
        self.pool = task.pool(sim)
        self.engines: Engines = engines(sim, seeds)
        self.weights: Weights = initial_weights(sim, seeds)
        self.rollout_weights = self.weights
        self.optimizer = optimizer.start(self._vector())

    def rollout(self, step: int) -> RolloutBatch:
        """Prompts of a step, each answered G times by μ_old."""
        size = self.schedule.group_size
        picked = task.picks(self.pool, self.seeds, step, self.schedule.prompts)
        groups = picked.repeat_interleave(size, dim=1)
        number = torch.arange(groups.shape[1])
        keys = noise.combine(noise.combine(noise.mix(self.seeds)[:, None], step), number)
        with torch.no_grad():
            engine = load(self.rollout_weights, self._rollout_arithmetic(step), self.sim)
            done = sample(engine, self.pool[groups], self.sim.horizon, keys)
        first = self.sim.prompt_length
        rewards = task.verify(self.sim, self.pool[groups], done.tokens[..., first:], done.mask[..., first:])
        return RolloutBatch(
            tokens=done.tokens,
            mask=done.mask,
            lengths=done.lengths,
            logp_mu=done.logp,
            rewards=rewards,
            groups=groups,
            routes=done.routes,
        )

    def score(self, batch: RolloutBatch) -> tuple[Scored, Moments]:
        """π_old on the batch: once live, which records R2's experts and the flips, and once more where R3 replays."""
        assert batch.routes is not None
        with torch.no_grad():
            trainer = load(self.weights, self.engines.pi, self.sim)
            live = score(trainer, batch.tokens)
            ran = batch.routes >= 0
            own = torch.where(ran, live.routes, -1)
            by_mode = {"disabled": torch.full_like(own, -1), "R2": own, "R3": batch.routes}
            replay = torch.stack([by_mode[mode][m] for m, mode in enumerate(self.modes)])
            used = score(trainer, batch.tokens, replay) if "R3" in self.modes else live
        logp_old = torch.where(batch.mask, used.logp, 0.0)
        return Scored(batch=batch, logp_old=logp_old, replay=replay), agreement(
            batch, live.routes, live.margin, used.entropy
        )

    def update(self, minibatch: Scored, weigh: Weigh) -> Moments:
        """One optimiser step of every member."""
        trained = {name: w.detach().requires_grad_(name != "bias") for name, w in self.weights.items()}
        trainer = load(trained, self.engines.pi, self.sim)
        scores = score(trainer, minibatch.batch.tokens, minibatch.replay)
        logp = torch.where(minibatch.batch.mask, scores.logp, 0.0)
        stats = minibatch.stats(logp)
        loss = surrogate_loss(stats, weigh(stats))
        leaves = [w for w in trained.values() if w.requires_grad]
        gradient = torch.cat([g.flatten(1) for g in torch.autograd.grad(loss.sum(), leaves)], dim=1)
        if not torch.isfinite(gradient).all():
            raise DataError("the gradient is not finite; lower optimizer.lr or bound the ratio with correction or clip")
        clipped, norm = optimizer.clip(gradient, self.settings)
        vector, self.optimizer = optimizer.step(self._vector(), clipped, self.optimizer, self.settings)
        self._set(vector)
        one = torch.ones_like(norm)
        return {"update/grad_norm": (norm, one), "update/loss": (loss.detach(), one)}

    def push(self) -> None:
        """μ takes the trainer's weights."""
        self.rollout_weights = self.weights

    def evaluate(self, step: int) -> dict[str, Tensor]:
        """Exact objectives and errors on the measured prompts, every `sim.evaluate_every` steps and after the last."""
        every = self.sim.evaluate_every
        if not every or (step % every and step != self.schedule.steps):
            return {}
        tree, rewards = grow(self.sim)
        found, start = [], 0
        for arm in self.arms:
            cut = slice(start, start + (arm.members or 1))
            found.append(self._exact(arm.recipe, cut, tree, rewards))
            start = cut.stop
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _exact(self, recipe: Recipe, cut: slice, tree: Tree, rewards: Tensor) -> dict[str, Tensor]:
        """J of π and μ, and the errors of the first update that a recipe would make at these weights; `[members]`."""
        mode = recipe.router_replay.mode
        pair = Engines(pi=self.engines.pi.members(cut), mu=self.engines.mu.members(cut))
        weights = {name: w[cut] for name, w in self.weights.items()}
        scene = build(self.sim, tree, rewards, pair, weights, modes=[mode])
        values, u = exact.values(scene, mode), exact.update(scene, recipe)
        return {
            "exact/j_pi": values.j_seq_natural,
            "exact/j_mu": values.j_mu,
            "exact/value_error": values.error.abs(),
            "exact/replay_bias": values.replay_bias,
            "exact/gradient_error": exact.compare(u, exact.gradient(scene, mode)).error,
            "exact/gradient_error_natural": exact.compare(u, exact.gradient(scene, "disabled")).error,
        }

    def state(self) -> dict[str, Any]:
        """Weights and optimiser; everything random is a hash of (seed, step)."""
        return {"weights": self.weights, "optimizer": asdict(self.optimizer), "seeds": self.seeds}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.weights = self.rollout_weights = state["weights"]
        self.optimizer = optimizer.OptimizerState(**state["optimizer"])

    def _rollout_arithmetic(self, step: int) -> Arithmetic:
        """μ's arithmetic; where it depends on the batch, every step's batch is another draw."""
        if self.sim.numerics.kind != "batch":
            return self.engines.mu
        return arithmetic(self.sim.numerics, noise.combine(self.seeds, step))

    def _vector(self) -> Tensor:
        return flatten({name: w for name, w in self.weights.items() if name != "bias"}).detach()

    def _set(self, vector: Tensor) -> None:
        trained = {name: w for name, w in self.weights.items() if name != "bias"}
        self.weights = self.weights | unflatten(vector, trained)
