"""A scene: two engines, one policy that may have moved, and every target that a recipe can have.

π_old and μ_old share the weights θ_old; π_θ is the training engine at θ. Replay is a policy on the whole tree:
at every token of the context, prompt included, π^R2 uses the experts that π_old picks on that same prefix, and
π^R3 those that μ_old picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import RouterReplay
from firstorder.core.routing import replay_of
from firstorder.sim.config import Sim
from firstorder.sim.model.missing import missing, without
from firstorder.sim.model.numerics import Arithmetic, arithmetic
from firstorder.sim.model.policy import Model, Weights, leaves, load
from firstorder.sim.model.readings import Readings
from firstorder.sim.model.truncation import FLOOR
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.contexts import check_reached
from firstorder.sim.tasks.task import rows

from .edges import Given, Pass, Routes
from .graph import Graph
from .pruning import Mask, outside, pruned
from .rollout import rollout, sampled
from .tree import plant
from .world import Responses, World, chunks, gather, worth_ahead

Mode = str
"""A replay as `str` spells the section of a recipe: `disabled`, `R2`, `R3`, `R3 condition=0.5`."""
MODES: tuple[Mode, ...] = ("disabled", "R2", "R3")


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The arithmetics of the training engine π and of the inference engine μ, for M members."""

    pi: Arithmetic
    mu: Arithmetic

    def members(self, cut: slice) -> Engines:
        """The engines of some members."""
        return Engines(pi=self.pi.members(cut), mu=self.mu.members(cut))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All engine passes over one world.

    Args:
        world: contexts and transitions.
        weights: the leaves θ.
        pi: the training engine's arithmetic.
        mu_old, mu: the inference engine at θ_old and at θ, routing live.
        old: π_old by replay mode; R2's is the live one.
        target: π_θ by replay mode, with graph.
        sent: the routes of μ_old that arrive, -1 where they are missing.
        stale: whether θ has left θ_old.
        part: some of the responses, to be looked at in place of all or of a sample.
        readings: what μ_old records; None where that is what it sampled from.
        samples: responses to draw where these are not all looked at.
        mask: of the tokens that μ_old samples from; None where it leaves none out.
        reference: log-probs `[M, N, V]` of the reference policy by replay mode; empty where it is π_old.
    """

    world: World
    weights: Weights
    pi: Arithmetic
    mu_old: Pass
    mu: Pass
    old: Mapping[Mode, Pass]
    target: Mapping[Mode, Pass]
    sent: Routes
    stale: bool
    part: Responses | None = None
    readings: Readings | None = None
    samples: int = 0
    mask: Mask | None = None
    reference: Mapping[Mode, Tensor] = field(default_factory=dict)

    @property
    def exhaustive(self) -> bool:
        """Whether `responses` are all that there are, each with all that is recorded of it."""
        return self.world.exhaustive and self.readings is None

    @cached_property
    def responses(self) -> Responses:
        """What stands for all responses where they are looked at one by one: all, a part of them, or a sample."""
        if self.part is not None:
            return self.part
        found = self.world.responses(self.mu_old.logp)
        if self.readings is None or found.sampled:
            return found
        return sampled(found, self.mu_old.logp, self.world.prompts, self.samples)

    @property
    def calls(self) -> tuple[Tensor, Tensor]:
        """Log-probs `[M, K, N, V]` and experts `[M, K, N, L, E]` of μ_old in every draw of it, K = 1 where it is a
        function of the context."""
        if self.readings is None or self.readings.routes is None:
            return self.mu_old.logp[:, None], self.mu_old.routes.contexts[:, None]
        return self.readings.logp, self.readings.routes

    @cached_property
    def measure(self) -> Tensor:
        """μ_old(y|x) / X of every response, `[M, B]`, summing to 1; 1/B where they are a sample."""
        return self.responses.measure(self.mu_old.logp, self.world.prompts)

    @cached_property
    def reached(self) -> Tensor:
        """How often a response of μ_old comes to each context, `[M, N]`."""
        return self.world.visits(self.mu_old.logp.exp())

    @cached_property
    def worth(self) -> Tensor:
        """E[Σ_t 1{edge t} R] under μ_old before the edge's own probability, `[M, N, V]`."""
        return worth_ahead(self.mu_old.logp.exp(), self.world)

    @cached_property
    def share(self) -> Tensor:
        """Share of each context among the response tokens that μ_old draws, `[M, N]` summing to 1."""
        return self.reached / self.reached.sum(-1, keepdim=True)

    def parts(self) -> list[Scene]:
        """The same contexts with the responses a chunk at a time, so that sums over responses take little memory."""
        parts = list(chunks(self.responses, len(self.mu_old.logp)))
        return [self] if len(parts) == 1 else [replace(self, part=part) for part in parts]

    @property
    def over(self) -> Tensor | None:
        """The tokens that π is renormalised over, bool `[M, N, V]`; None for all."""
        return self.mask.keep if self.mask is not None and self.mask.replayed else None

    def met(self, logp: Tensor) -> Tensor:
        """Log-probs `[M, N, V]` of π as samples of μ_old meet them: the same, but for a mask that is ignored."""
        return logp if self.mask is None else self.mask.met(logp)

    def replay(self, mode: Mode) -> Given | None:
        """What a mode gives π; None where it routes live."""
        return given(mode, self.old["disabled"], self.mu_old, self.sent)

    def logp_ref(self, mode: Mode) -> Tensor:
        """Log-probs of the reference policy under a replay mode, `[M, N, V]`."""
        return self.reference[mode] if self.reference else self.old[mode].logp.detach()

    def probability(self, mode: Mode) -> Tensor:
        """π_θ(y|x) / X of every response under a replay mode, `[M, B]`, without gradient."""
        return gather(self.target[mode].logp.detach(), self.responses).sum(-1).exp() / self.world.prompts


def given(mode: Mode, old: Pass, mu: Pass, sent: Routes) -> Given | None:
    """What a replay gives π, from the live passes of π_old and of μ_old, of whose routes `sent` arrive; None where it
    routes live."""
    rule = RouterReplay.model_validate(mode)
    routes, source = replay_of(rule.mode, old.routes, sent), replay_of(rule.mode, old, mu)
    if routes is None or source is None:
        return None
    gates = source.gates if rule.gates == "replayed" else None
    return Given(routes=routes, gates=gates, margin=rule.margin, condition=rule.condition)


def arriving(sim: Sim, world: World, routes: Routes) -> Routes:
    """The routes of μ_old that arrive: -1 in the rows that `sim.missing` and `sim.missing_prefix` take away."""
    if not (sim.missing or sim.missing_prefix):
        return routes
    gone = world.keys.each(lambda keys: missing(keys, sim.missing))
    if sim.missing_prefix:
        gone.leads[0][: sim.missing_prefix] = True
    leads = tuple(without(lead, lost) for lead, lost in zip(routes.leads, gone.leads, strict=True))
    return Routes(contexts=without(routes.contexts, gone.contexts), leads=leads)


def engines(sim: Sim, seeds: Tensor, scale: Tensor | None = None) -> Engines:
    """The two engines that `sim` describes; `scale` `[M]` replaces the noise scale of μ."""
    return Engines(pi=arithmetic(sim.training_numerics, seeds), mu=arithmetic(sim.numerics, seeds, scale))


def grow(sim: Sim, *, others: bool = False) -> World:
    """The world of the measured prompts, or of the others, which move θ."""
    return world_of(sim, rows(sim)[1 if others else 0])


def world_of(sim: Sim, which: Tensor) -> World:
    """The world of the task's prompts `which`, int64 `[X]`."""
    task = task_of(sim)
    if sim.world == "tree":
        return plant(task, which)
    return Graph(task=task, table=check_reached(task.contexts(which)), horizon=sim.horizon, samples=sim.samples)


def build(
    sim: Sim,
    world: World,
    arithmetics: Engines,
    theta_old: Weights,
    theta: Weights | None = None,
    modes: Iterable[Mode] = MODES,
    reference: Weights | None = None,
) -> Scene:
    """Run every engine over a world.

    Args:
        sim: sizes and temperature.
        world: from `grow`.
        arithmetics: those of the two engines.
        theta_old: weights at rollout.
        theta: weights being optimised; None means θ = θ_old.
        modes: replay modes whose targets are wanted; `disabled` is always there.
        reference: weights of the reference policy; None means θ_old.

    Raises:
        ConfigError: R3 is wanted of an engine that is drawn at every token.
    """
    stale, modes = theta is not None, set(modes)
    if any(RouterReplay.model_validate(mode).mode == "R3" for mode in modes) and sim.numerics.drawn:
        raise ConfigError("R3 is not defined where sim.numerics.fresh draws the routes of every token; use R2")
    weights = leaves(theta or theta_old)
    trainer = load(weights, arithmetics.pi, sim)
    with torch.no_grad():
        mu_old, readings = rollout(sim, world, theta_old, arithmetics.mu)
        mu = rollout(sim, world, weights, arithmetics.mu)[0] if stale else mu_old
        trainer_old = load(theta_old, arithmetics.pi, sim)
    keep = mu_old.logp > FLOOR if sim.truncates else None
    over = keep if sim.sampling_mask == "replayed" else None

    def run(model: Model, replay: Given | None = None) -> Pass:
        return pruned(world.run(model, replay), over)

    whole = world.run(trainer)
    target = {"disabled": pruned(whole, over)}
    with torch.no_grad():
        whole_old = world.run(trainer_old) if stale else whole.frozen()
        old_live = pruned(whole_old, over)
    old = {"disabled": old_live, "R2": old_live}
    sent = arriving(sim, world, mu_old.routes)
    trainer_ref = None if reference is None else load(reference, arithmetics.pi, sim)
    of_reference = {} if trainer_ref is None else {"disabled": run(trainer_ref).logp.detach()}
    for mode in sorted(modes - {"disabled"}):
        replayed = given(mode, old_live, mu_old, sent)
        target[mode] = run(trainer, replayed)
        with torch.no_grad():
            if RouterReplay.model_validate(mode).mode == "R2":
                old[mode] = old_live  # its own experts, all of which stay
            else:
                old[mode] = run(trainer_old, replayed) if stale else target[mode].frozen()
    of_reference = {}
    if reference is not None:
        with torch.no_grad():
            trainer_ref = load(reference, arithmetics.pi, sim)
            found = {mode: run(trainer_ref, given(mode, old_live, mu_old, sent)).logp for mode in target}
        of_reference = found
    return Scene(
        world=world,
        weights=weights,
        reference=of_reference,
        pi=arithmetics.pi,
        mu_old=mu_old,
        mu=mu,
        old=old,
        target=target,
        sent=sent,
        stale=stale,
        readings=readings,
        samples=sim.samples,
        mask=None
        if keep is None
        else Mask(keep=keep, replayed=over is not None, whole=whole, outside=outside(whole_old.logp, keep)),
    )
