"""Hybrid policies: what sets μ_old and a target apart, swapped one part at a time.

Four parts lead from the policy that was sampled to the one that is trained:

    numerics    the arithmetic of μ           becomes  that of π
    gates       the gate weights of μ_old     become   those of the target on the same experts
    flips       the experts that μ_old chose  become   those that the target uses
    staleness   θ_old                         becomes  θ

Any set of them swapped is a policy on all contexts: an arithmetic at some weights w, with experts and gate weights
given at every token. The target's experts and gates are those that it has at w. Gates of μ_old on experts that it did
not choose are what it makes of them where they are given to it. None swapped is μ_old itself, all the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import RouterReplay
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import Model, Weights, leaves, load

from .edges import Given, Pass, Routes
from .game import Swapped
from .pruning import pruned
from .rollout import rollout
from .scene import Engines, Mode, Scene, build, given
from .world import World

PARTS = NUMERICS, GATES, FLIPS, STALENESS = "numerics", "gates", "flips", "staleness"
"""The parts, in the order in which they are swapped where one order is told."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Both engines at θ_old: what no step away from it changes.

    Args:
        sim: sizes and temperature.
        engines: the two arithmetics.
        theta_old: the weights of the rollout.
        scene: θ = θ_old, with the targets that are wanted.
    """

    sim: Sim
    engines: Engines
    theta_old: Weights
    scene: Scene

    @cached_property
    def mu(self) -> Model:
        """The inference engine at θ_old."""
        return load(self.theta_old, self.engines.mu, self.sim)

    @cached_property
    def pi(self) -> Model:
        """The training engine at θ_old."""
        return load(self.theta_old, self.engines.pi, self.sim)

    def of_mu(self, model: Model, replay: Given) -> Pass:
        """An inference engine on the world of the scene, which leaves out what μ_old does."""
        mask = self.scene.mask
        return pruned(self.scene.world.run(model, replay), None if mask is None else mask.keep)

    def of_pi(self, model: Model, replay: Given | None) -> Pass:
        """A training engine there, which does too if the mask is replayed."""
        return pruned(self.scene.world.run(model, replay), self.scene.over)

    def at(self, theta: Weights) -> Scene:
        """The scene at other weights θ: targets and the deployed policy anew, the rest as it was."""
        weights, was = leaves(theta), self.scene
        trainer, live, mu = load(weights, self.engines.pi, self.sim), was.old["disabled"], was.mu_old
        whole = None if was.mask is None else was.world.run(trainer)
        with torch.no_grad():
            deployed, _ = rollout(self.sim, was.world, weights, self.engines.mu)
        return replace(
            was,
            weights=weights,
            mu=deployed,
            target={mode: self.of_pi(trainer, given(mode, live, mu, was.sent)) for mode in was.target},
            stale=True,
            mask=None if was.mask is None or whole is None else replace(was.mask, whole=whole),
        )


def start(sim: Sim, world: World, engines: Engines, theta_old: Weights, modes: Iterable[Mode]) -> Start:
    """Both engines at the weights of the rollout.

    Raises:
        ConfigError: μ draws its routes anew at every token, so that it leaves none to be swapped.
    """
    if sim.numerics.drawn:
        raise ConfigError("a split swaps the routes of mu, which sim.numerics.fresh draws at every token; unset it")
    return Start(
        sim=sim, engines=engines, theta_old=theta_old, scene=build(sim, world, engines, theta_old, modes=modes)
    )


@torch.no_grad()
def hybrids_at_start(of: Start, mode: Mode) -> dict[Swapped, Pass]:
    """Every hybrid at θ_old on the way to the target of a mode, without gradient."""
    mu_old, own = of.scene.mu_old, of.scene.old[mode].frozen()
    asked = mu_old if own.routes.equal(mu_old.routes) else of.of_mu(of.mu, Given(routes=own.routes))
    found = _at(of, of.mu, of.pi, mu_old, own, asked.gates, _replayed_gates(mode, mu_old, None))
    return found | {frozenset(): mu_old, frozenset({FLIPS}): asked}


@torch.no_grad()
def hybrids(of: Start, scene: Scene, mode: Mode, before: Mapping[Swapped, Pass]) -> dict[Swapped, Pass]:
    """Every hybrid on the way to the target of a mode, without gradient.

    Args:
        of: the engines at θ_old.
        scene: at θ.
        mode: the replay of the target.
        before: those at θ_old, from `hybrids_at_start`.
    """
    if not scene.stale:
        return dict(before) | {swapped | {STALENESS}: one for swapped, one in before.items()}
    mu_old, own = scene.mu_old, scene.target[mode].frozen()
    mu, pi = (load(scene.weights, arithmetic, of.sim) for arithmetic in (of.engines.mu, of.engines.pi))
    asked = mu_old if own.routes.equal(mu_old.routes) else of.of_mu(of.mu, Given(routes=own.routes))
    constant = _replayed_gates(mode, mu_old, before[frozenset({NUMERICS, GATES})])
    moved = _at(of, mu, pi, mu_old, own, asked.gates, constant)
    return dict(before) | {swapped | {STALENESS}: one for swapped, one in moved.items()}


def _replayed_gates(mode: Mode, mu_old: Pass, old: Pass | None) -> Routes | None:
    """The gates that the target of a mode has on the experts of μ_old; None where it makes them live.

    `old` is π_old on these experts, None where it is that which is asked for.
    """
    rule = RouterReplay.model_validate(mode)
    if rule.gates == "live" or rule.mode == "disabled":
        return None
    source = mu_old if rule.mode == "R3" else old
    return None if source is None else source.gates


def _at(
    of: Start, mu: Model, pi: Model, recorded: Pass, own: Pass, asked: Routes, constant: Routes | None
) -> dict[Swapped, Pass]:
    """The eight hybrids of two engines at the same weights, by what is swapped of numerics, gates and flips.

    Args:
        of: the engines at θ_old.
        mu, pi: the engines.
        recorded: μ_old, whose experts and gates are given where they are not swapped.
        own: the target at these weights.
        asked: gates of μ_old on the target's experts.
        constant: gates of the target on the experts of μ_old; None: live.
    """
    same = own.routes.equal(recorded.routes)  # no expert is another: nothing to swap
    theirs = own if same and constant is None else of.of_pi(pi, Given(routes=recorded.routes, gates=constant))
    of_mu, of_both = Given(routes=recorded.routes, gates=recorded.gates), Given(routes=own.routes, gates=asked)
    found = {
        (NUMERICS, GATES, FLIPS): own,
        (NUMERICS, GATES): theirs,
        (NUMERICS,): of.of_pi(pi, of_mu),
        (GATES,): of.of_mu(mu, Given(routes=recorded.routes, gates=theirs.gates)),
        (): of.of_mu(mu, of_mu),
    }
    if same:
        found[(NUMERICS, FLIPS)], found[(FLIPS,)] = found[(NUMERICS,)], found[()]
        found[(GATES, FLIPS)] = found[(GATES,)]
    else:
        found[(NUMERICS, FLIPS)] = of.of_pi(pi, of_both)
        found[(FLIPS,)] = of.of_mu(mu, of_both)
        found[(GATES, FLIPS)] = of.of_mu(mu, Given(routes=own.routes, gates=own.gates))
    return {frozenset(swapped): one.frozen() for swapped, one in found.items()}
