"""The simulator as a training backend: a whole ensemble of runs as one batched computation.

Shapes: M members (arms side by side), B responses, L positions, N layers, K experts a token, P parameters.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.method import value
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.step_scale import effective_share, log_weights, step_scale
from firstorder.core.method.terms import quantities, total_loss
from firstorder.core.quantities import Moments, Quantity
from firstorder.core.routing import Replay, replay_of, replay_rows
from firstorder.core.runs.checkpoint import check_like
from firstorder.core.tasks import RANGE, Episodes
from firstorder.core.training import backend as shared
from firstorder.core.training import kept
from firstorder.core.training import replay as replays
from firstorder.core.training.agreement import agreement
from firstorder.core.training.arms import Arm, bonus_weights, cuts
from firstorder.core.training.backend import Scored, WeightFn
from firstorder.core.training.batch import RolloutBatch, check_rewards
from firstorder.sim import optimizer
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import coherence, objectives
from firstorder.sim.exact.agree import mismatch
from firstorder.sim.exact.edges import entropy_gradient
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import Engines, Scene, build, engines, grow
from firstorder.sim.exact.world import World
from firstorder.sim.model import noise
from firstorder.sim.model.missing import missing, without
from firstorder.sim.model.numerics import Arithmetic, arithmetic
from firstorder.sim.model.policy import Weights, flatten, gradient, leaves, load, unflatten
from firstorder.sim.model.readings import engine, misread, token_keys
from firstorder.sim.sampling.reader import Scores, reader
from firstorder.sim.sampling.sequences import Rollouts
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.task import picks

from . import critic, halves
from .expected import Expectation, reference_of, training_world

_ENUMERATED = "after the step, every response to the measured prompts enumerated"
EXACT: dict[str, Quantity] = {
    "exact/j_pi": Quantity(
        formula=f"E[R] of the training engine's policy with its own routes, {_ENUMERATED}",
        unit="reward",
        source="arXiv 2512.01374 eq. (1)",
    ),
    "exact/j_mu": Quantity(
        formula=f"E[R] of the inference engine's policy, {_ENUMERATED}",
        unit="reward",
        source="arXiv 2512.01374 eq. (1)",
    ),
    "exact/value_error": Quantity(
        formula="|J(pi) - J(mu) - E_mu[R sum(rho - 1)]| of the recipe's own target, theta = theta_old",
        unit="reward",
        source="what eq. (3) of arXiv 2512.01374 leaves out",
    ),
    "exact/replay_bias": Quantity(
        formula="J(pi natural) - J(pi), signed; 0 without replay", unit="reward", source="replay_bias of measure"
    ),
    "exact/gradient_error": Quantity(
        formula="min_c |c u - g| / |g|, u the recipe's first update at these weights, g the gradient of its own target",
        unit="relative",
        source="gradient_error of measure",
    ),
    "exact/gradient_error_natural": Quantity(
        formula="as exact/gradient_error, g the gradient of the policy that routes by itself",
        unit="relative",
        source="gradient_error_natural of measure",
    ),
    "exact/bias_entropy": Quantity(
        formula="cosine of b = c u - g, the error that exact/gradient_error_natural measures, with the gradient of the "
        "entropy: negative where the bias sharpens the policy",
        unit="1",
        source="firstorder bias_entropy",
    ),
    "exact/bias_cosine": Quantity(
        formula="cosine of b with the b of the evaluation before; 0 at the first",
        unit="1",
        source="firstorder bias_cosine",
    ),
    "exact/bias_coherence": Quantity(
        formula=f"|sum m^k b_k| / sum m^k |b_k| over the evaluations so far, m = {coherence.MEMORY}: 1 where all point "
        "one way",
        unit="1",
        source="firstorder bias_coherence",
    ),
}
"""What `evaluate` reports."""


class SimBackend:
    """Policies, both engines, the optimiser and, where its recipe wants one, the critic of every member.

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
        self.replays = [arm.recipe.router_replay for arm in members]
        self.settings = optimizer.settings([arm.recipe.optimizer for arm in members])
        self.scaled = torch.tensor([arm.recipe.optimizer.step_scale is not None for arm in members])
        self.task = task_of(sim)
        self.reader = reader(self.task)
        self.engines: Engines = engines(sim, seeds)
        self.weights: Weights = starting_weights(sim, seeds)
        self.rollout_weights = self.weights
        terms = [arm.recipe.terms for arm in arms]
        # of the seeds and the cold start alone, so that a resumed run has the same
        self.reference = self.weights if any(one.reference_kl for one in terms) else None
        self.bonus = any(one.entropy for one in terms)
        self.optimizer = optimizer.start(self._vector())
        self.trail = coherence.begin(*self._vector().shape)
        self.expectation = (
            None
            if sim.update == "sampled"
            else Expectation(
                sim=sim, arms=arms, engines=self.engines, world=training_world(sim), reference=self.reference
            )
        )
        self.comparable = halves.comparable(sim, self.schedule)
        self.halving = False  # whether halves are compared in the step that is under way: it is evaluated
        self.critic = critic.start([arm.recipe for arm in members], sim)
        self.mismatch = mismatch(sim)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What every reported name means."""
        more = ({} if self.critic is None else value.QUANTITIES) | (halves.QUANTITIES if self.comparable else {})
        layers = shared.layer_flips(self.sim.layers) | replays.quantities(self.sim.layers)
        scaled = shared.SCALED if bool(self.scaled.any()) else {}
        terms, mask = quantities(arm.recipe for arm in self.arms), kept.QUANTITIES if self.sim.truncates else {}
        return shared.QUANTITIES | layers | EXACT | more | scaled | mask | terms

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return self.sim.experts

    def rollout(self, step: int) -> RolloutBatch:
        """Prompts of a step, each answered G times by μ_old."""
        self.halving, size = self.comparable and self._evaluates(step + 1), self.schedule.group_size
        picked = picks(self.sim.training_prompts, self.seeds, step, self.schedule.prompts)
        groups = picked.repeat_interleave(size, dim=1)
        number = torch.arange(groups.shape[1])
        keys = noise.combine(noise.combine(noise.mix(self.seeds)[:, None], step), number)
        with torch.no_grad():
            mu = engine(self.sim, self.rollout_weights, self._rollout_arithmetic(step))
            sampled = self.reader.sample(mu, groups, keys, gates=any(of.gates == "replayed" for of in self.replays))
        tokens, mask, lengths = sampled.tokens, sampled.mask, sampled.lengths
        episodes = Episodes(tokens=tokens, mask=mask, lengths=lengths, prompt=groups)
        batch = RolloutBatch(
            tokens=tokens,
            mask=mask,
            lengths=lengths,
            logp_mu=torch.where(mask, self._recorded(sampled.logp, keys), 0.0),
            rewards=self.task.verify(episodes),
            groups=groups,
            routes=self._sent(sampled),
            gates=sampled.gates,
            kept=sampled.kept if self.sim.sampling_mask == "replayed" else None,
        )
        check_rewards(batch, *RANGE)
        return batch

    def _sent(self, sampled: Rollouts) -> Tensor:
        """The routes of μ that arrive, int16 `[M, B, L, N, K]`."""
        if not (self.sim.missing or self.sim.missing_prefix):
            return sampled.routes
        gone = missing(self.reader.keys(sampled.tokens), self.sim.missing)
        gone[..., : self.sim.missing_prefix] = True
        return without(sampled.routes, gone)

    def _recorded(self, logp: Tensor, keys: Tensor) -> Tensor:
        """What μ records of sampled tokens `[M, B, L]`, with the errors of `sim.reading_noise`."""
        if not self.sim.reading_noise:
            return logp
        return misread(logp, self.sim.reading_noise, token_keys(keys, logp.shape[-1]), self.sim.draws)

    def score(self, batch: RolloutBatch) -> tuple[Scored, Moments]:
        """π_old on the batch: once live, which records R2's experts and the flips, and once more where R3 replays.

        The critic reads the states of the pass that the update repeats.
        """
        assert batch.routes is not None
        with torch.no_grad():
            trainer = load(self.weights, self.engines.pi, self.sim)
            live = self.reader.score(trainer, batch.tokens, kept=batch.kept)
            ran = batch.routes >= 0
            own = torch.where(ran, live.routes, -1)
            replay = self._replay(own, live, batch)
            foreign = any(of.mode == "R3" for of in self.replays)
            used = self.reader.score(trainer, batch.tokens, replay, batch.kept) if foreign else live
            of_reference = None
            if self.reference is not None:
                reference = load(self.reference, self.engines.pi, self.sim)
                of_reference = self.reader.score(reference, batch.tokens, replay, batch.kept)
        logp_old = torch.where(batch.mask, used.logp, 0.0)
        values = None if self.critic is None else critic.values(self.critic, used)
        differs = replays.differing(batch, live.routes)
        scored = Scored(
            batch=batch,
            logp_old=logp_old,
            replay=replay,
            logp_ref=None if of_reference is None else torch.where(batch.mask, of_reference.logp, 0.0),
            values=values,
            differs=differs,
            routes=own,
            entropy=used.entropy,
        )
        masked = kept.masked(batch.kept, batch.mask, used.outside)
        return scored, agreement(batch, live.routes, live.margin, used.logp, used.entropy) | masked

    def _replay(self, own: Tensor, live: Scores, batch: RolloutBatch) -> Replay:
        """What each member is given to replay, by the rule of its recipe; `own` are the live experts where any ran."""
        assert batch.routes is not None
        members = [replay_of(of.mode, own[m], batch.routes[m]) for m, of in enumerate(self.replays)]
        ids = torch.stack([torch.full_like(own[0], -1) if routes is None else routes for routes in members])
        gates = None
        if batch.gates is not None:
            formed = [replay_of(of.mode, live.gates[m], batch.gates[m]) for m, of in enumerate(self.replays)]
            kept = [of.gates == "replayed" for of in self.replays]
            nothing = torch.full_like(live.gates[0], torch.nan)
            gates = torch.stack([x if x is not None and k else nothing for x, k in zip(formed, kept, strict=True)])
        return Replay(ids=ids, gates=gates, **replays.rules(self.replays))

    def update(self, minibatch: Scored, weight_fn: WeightFn) -> Moments:
        """One optimiser step of every member, and one of every critic."""
        theta = leaves(self.weights)
        with torch.set_grad_enabled(self.expectation is None):
            trainer = load(theta, self.engines.pi, self.sim)
            batch = minibatch.batch
            scores = self.reader.score(trainer, batch.tokens, minibatch.replay, batch.kept, spread=self.bonus)
            entropy = scores.entropy if self.bonus else None
            stats = minibatch.stats(torch.where(batch.mask, scores.logp, 0.0), entropy)
            weight, bonus = weight_fn(stats), bonus_weights(stats, self.arms)
            loss = total_loss(stats, weight, bonus)
        if self.expectation is None:
            slope = gradient(loss.sum(), theta, keep=self.halving)
            scale = torch.where(self.scaled, step_scale(effective_share(log_weights(stats))), 1.0)
        else:
            slope, scale = self._expected()
        sums: Moments = {"update/loss": (loss.detach(), torch.ones_like(loss))}
        if self.halving:
            sums |= halves.agreement(stats, weight, bonus, slope, theta, self.schedule.group_size)
        sums |= self._move(slope, scale)
        if self.critic is not None:
            self.critic, fitted = critic.fit(self.critic, minibatch, scores)
            sums |= fitted
        return sums | self._replayed(minibatch, scores)

    def _replayed(self, minibatch: Scored, scores: Scores) -> Moments:
        """What the routers did with the experts that they were given; without a rule, others mean that a row was
        lost."""
        assert minibatch.replay is not None
        positions = minibatch.batch.tokens.shape[-1]
        run = replays.run_rows(minibatch.batch.lengths, positions).flatten(-2)
        given, used, live = (x.flatten(-4, -3) for x in (minibatch.replay.ids, scores.routes, scores.live))
        ruled = torch.tensor([each.ruled for each in self.replays])[:, None, None, None]
        took = torch.where(ruled | (used == given).all(-1, keepdim=True), used, -1)
        return replays.replayed(replay_rows(given, took, live, run), run.shape[-1])

    def follow(self) -> Moments:
        """One optimiser step of every member along its exact expected update: `update` where `sim.update = expected`,
        without the responses, which are drawn for the logs alone and whose cost grows with their length."""
        return self._move(*self._expected())

    def _expected(self) -> tuple[Tensor, Tensor]:
        """The slope `[M, P]` of the exact expected update, and what the step along it is scaled by, `[M]`."""
        assert self.expectation is not None
        update, scale = self.expectation.update(self.rollout_weights, self.weights)
        return -update, scale

    def _move(self, slope: Tensor, scale: Tensor) -> Moments:
        """Take an optimiser step of every member down `slope` `[M, P]`, lr times `scale` `[M]`."""
        if not torch.isfinite(slope).all():
            raise NotFiniteError(
                "the gradient is not finite; lower optimizer.lr or bound the ratio with correction or clip"
            )
        clipped, norm = optimizer.clip(slope, self.settings)
        scaled = optimizer.scaled(self.settings, scale)
        vector, self.optimizer = optimizer.step(self._vector(), clipped, self.optimizer, scaled)
        if not torch.isfinite(vector).all():
            raise NotFiniteError("the weights are not finite after an update; lower optimizer.lr")
        self.weights = unflatten(vector, self.weights)
        one = torch.ones_like(norm)
        moved = {"update/grad_norm": (norm, one)}
        return moved | {"update/step_scale": (scale, one)} if bool(self.scaled.any()) else moved

    def sync_weights(self) -> None:
        """μ takes the trainer's weights."""
        self.rollout_weights = self.weights

    def evaluate(self, step: int) -> dict[str, Tensor]:
        """Exact objectives and errors on the measured prompts, every `sim.evaluate_every` steps and after the last."""
        if not self._evaluates(step):
            return {}
        world = grow(self.sim)
        errors, biases = [], []
        for arm, mine in cuts(self.arms):
            of_arm, bias = self._exact(arm.recipe, mine, world)
            errors.append(of_arm)
            biases.append(bias)
        self.trail, heading = coherence.follow(self.trail, torch.cat(biases))
        return {name: torch.cat([of_arm[name] for of_arm in errors]) for name in errors[0]} | heading

    def _evaluates(self, step: int) -> bool:
        every = self.sim.evaluate_every
        return bool(every) and (step % every == 0 or step == self.schedule.steps)

    def _exact(self, recipe: Recipe, cut: slice, world: World) -> tuple[dict[str, Tensor], Tensor]:
        """J of π and μ, the errors of the first update that a recipe would make at these weights, and its bias against
        the natural target; `[members]`, and `[members, P]`."""
        mode = str(recipe.router_replay)
        weights = {name: w[cut] for name, w in self.weights.items()}
        scene = build(
            self.sim,
            world,
            self.engines.members(cut),
            weights,
            modes=[mode],
            reference=reference_of(recipe, self.reference, cut),
        )
        measurement = Measurement(scene=scene, recipe=recipe, values=self._values(recipe, cut, scene))
        u, natural, values = measurement.update, measurement.natural_gradient, objectives.values(scene, mode)
        bias = coherence.bias(u, natural)
        errors = {
            "exact/j_pi": values.j_seq_natural,
            "exact/j_mu": values.j_mu,
            "exact/value_error": values.error.abs(),
            "exact/replay_bias": values.replay_bias,
            "exact/gradient_error": compare(u, measurement.gradient).error,
            "exact/gradient_error_natural": compare(u, natural).error,
            "exact/bias_entropy": coherence.cosine(
                bias, entropy_gradient(scene.target["disabled"], scene.share, scene.weights)
            ),
        }
        return errors, bias

    def _values(self, recipe: Recipe, cut: slice, scene: Scene) -> Tensor | None:
        """What the critics of an arm say of every context of a scene, `[members, N]`."""
        if self.critic is None or not recipe.has_critic:
            return None
        replay = scene.replay(str(recipe.router_replay))
        carried = scene.world.states(load(scene.weights, scene.pi, self.sim), replay)
        of_arm = (self.critic.members >= cut.start) & (self.critic.members < cut.stop)
        return critic.value(self.critic.phi[of_arm], carried)

    def state(self) -> dict[str, Any]:
        """Weights, critics, optimisers and where the bias has pointed; everything random is a hash of (seed, step)."""
        state = {
            "weights": self.weights,
            "optimizer": asdict(self.optimizer),
            "trail": asdict(self.trail),
            "seeds": self.seeds,
        }
        return state if self.critic is None else state | {"critic": critic.state(self.critic)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            DataError: it is not of these members and sizes.
        """
        check_like(state, self.state())
        self.weights = self.rollout_weights = state["weights"]
        self.optimizer = optimizer.OptimizerState(**state["optimizer"])
        self.trail = coherence.Trail(**state["trail"])
        if self.critic is not None:
            self.critic = critic.load(self.critic, state["critic"])

    def _rollout_arithmetic(self, step: int) -> Arithmetic:
        """μ's arithmetic; where it depends on the batch, every step's batch is another draw."""
        if self.sim.numerics.kind != "batch":
            return self.engines.mu
        return arithmetic(self.sim.numerics, noise.combine(self.seeds, step))

    def _vector(self) -> Tensor:
        return flatten(self.weights).detach()
