"""What sets an update and its objective apart from what is wanted, split into parts that add up.

Shapes: M members, H hybrids, N contexts, V vocabulary, P parameters.

The four parts of `hybrids` lead from μ_old to the recipe's own target, `target` from there to the natural one, and
of an update `method` is what it is off by where all policies are one. With h_S the hybrid with the parts S swapped,

    value      J(h_S);  in all J(π natural) - J(μ_old)
    error      J(h_S) - J(μ_old) - E[R Σ_t (h_S/μ_old - 1)];  in all approximation_error + replay_bias
    kl         KL(μ_old ‖ h_S) of the next token;  in all that of π natural
    gradient   -c u(h_S);  in all c u - g natural

u(h_S) is the expected update where h_S is what was sampled and is every μ of the weights, and where `staleness` is
swapped π_θ is every π_old. c is the scale at which u of the target fits the target's own gradient best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.sim.model.readings import of_errors
from firstorder.sim.model.truncation import FLOOR

from . import objectives
from .edges import Pass, Routes, kl, vjp
from .fit import compare
from .game import Swapped, changes, in_order, shapley
from .hybrids import PARTS, STALENESS, Start
from .measurement import Measurement
from .scene import Mode, Scene

TARGET, METHOD = "target", "method"
ALL, NONE = frozenset(PARTS), frozenset[str]()
TOGETHER = 1 << 22  # edges, or tokens of responses, of all hybrids that are weighed at once


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a difference.

    Args:
        value: what it adds in the order of `PARTS`; of a gradient its projection on g, ⟨part, g⟩ / ‖g‖².
        shapley: the mean of the same over all orders.
        low, high: its least and its largest over all orders.
        norm, shapley_norm: of a gradient, ‖part‖ / ‖g‖ in that order, and of the mean over all.
        cosine: of a gradient, between the part and g; 0 where the part is.
    """

    value: float
    shapley: float
    low: float
    high: float
    norm: float | None = None
    shapley_norm: float | None = None
    cosine: float | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """A difference and its parts, whose `value` and whose `shapley` add up to `total`.

    Args:
        total: the difference; of a gradient its projection on g.
        parts: by name, those of `PARTS` in their order and what comes after.
        norm: of a gradient, ‖c u - g‖ / ‖g‖.
        scale: c.
    """

    total: float
    parts: Mapping[str, Part]
    norm: float | None = None
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Way:
    """The hybrids on the way from μ_old to one target, and what the recipes that share it share.

    Args:
        start: the engines at θ_old.
        scene: at θ, with the target.
        mode: of the target.
        passes: of `hybrids`.
    """

    start: Start
    scene: Scene
    mode: Mode
    passes: Mapping[Swapped, Pass]

    @cached_property
    def places(self) -> dict[Swapped, int]:
        """Which of the hybrids that differ each set of parts is."""
        found: dict[tuple[int, bool], int] = {}
        keys = {swapped: (id(one), self.scene.stale and STALENESS in swapped) for swapped, one in self.passes.items()}
        for key in keys.values():
            found.setdefault(key, len(found))
        return {swapped: found[key] for swapped, key in keys.items()}

    @cached_property
    def distinct(self) -> list[Swapped]:
        """The hybrids that differ, each by one set of parts."""
        first = {place: swapped for swapped, place in reversed(self.places.items())}
        return [first[place] for place in range(len(first))]

    @cached_property
    def scenes(self) -> list[Scene]:
        """The scene with hybrids in the place of μ_old, as members of it: as many as are weighed at once."""
        mu = self.scene.mu_old.logp
        tokens = self.scene.responses.mask.numel() if self.scene.world.exhaustive else 0
        size = max(1, TOGETHER // max(mu.numel(), len(mu) * tokens))
        return [self._swapped(self.distinct[at : at + size]) for at in range(0, len(self.distinct), size)]

    def each(self, values: Tensor) -> dict[Swapped, Tensor]:
        """Values of the hybrids that differ `[H, ...]` by the parts that are swapped."""
        return {swapped: values[place] for swapped, place in self.places.items()}

    @cached_property
    def value(self) -> Tensor:
        """J of every hybrid, `[H]`."""
        return self._means([objectives.value(each.mu_old.logp, each.world) for each in self.scenes])

    @cached_property
    def error(self) -> Tensor:
        """What the first-order expansion around μ_old misses of J of every hybrid, `[H]`."""
        mu, ahead = self.scene.mu_old.logp, self.scene.worth
        linear = [
            ((ahead * mu.exp()) * (self.scene.met(each.mu_old.logp.view(-1, *mu.shape)) - mu).expm1())
            .sum((-2, -1))
            .flatten()
            for each in self.scenes
        ]
        return self.value - objectives.value(mu, self.scene.world).mean() - self._means(linear)

    @cached_property
    def kl(self) -> Tensor:
        """KL(μ_old ‖ hybrid) of every hybrid, nats a response token, `[H]`."""
        mu, share = self.scene.mu_old.logp, self.scene.share
        return self._means(
            [(share * kl(mu, each.mu_old.logp.view(-1, *mu.shape))).sum(-1).flatten() for each in self.scenes]
        )

    @cached_property
    def gradient(self) -> Tensor:
        """∇J of the target, `[P]`."""
        return objectives.gradient(self.scene, self.mode).mean(0)

    def updates(self, recipe: Recipe) -> Tensor:
        """u of a recipe with every hybrid in the place of μ_old, `[H, P]`."""
        target, weights, mu = self.scene.target[self.mode], self.scene.weights, self.scene.mu_old.logp
        found = []
        for each in self.scenes:
            edges = Measurement(scene=each, recipe=recipe).coefficients().view(-1, *mu.shape)
            found += [vjp(target, one, weights).mean(0) for one in edges]
        return torch.stack(found)

    def _means(self, values: list[Tensor]) -> Tensor:
        """Means over members of values `[H · M]`, `[H]`."""
        return torch.cat(values).view(-1, len(self.scene.mu_old.logp)).mean(1)

    def _swapped(self, chosen: Sequence[Swapped]) -> Scene:
        sim, own = self.start.sim, self.scene.target[self.mode].frozen()
        old = self.scene.old[self.mode].frozen()
        mu, mask = _together([self.passes[swapped] for swapped in chosen]), self.scene.mask
        return replace(
            self.scene,
            mu_old=mu,
            mu=mu,
            old={self.mode: _together([own if STALENESS in swapped else old for swapped in chosen])},
            target={self.mode: _together([own] * len(chosen))},
            mask=None if mask is None else replace(mask, keep=mu.logp > FLOOR),
            readings=of_errors(mu.logp, sim.reading_noise, sim.draws) if sim.reading_noise else None,
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What is off at one minibatch of a recipe, in parts; the names are explained above.

    Args:
        staleness: updates that came before it.
        value, error: in units of reward.
        kl: nats a response token.
        gradient: None where the update is sampled, or there is no gradient to follow.
    """

    staleness: int
    value: Split
    error: Split
    kl: Split
    gradient: Split | None


def split(way: Way, natural: Way, recipe: Recipe, staleness: int = 0) -> Splits:
    """The splits of a recipe at one minibatch.

    Args:
        way: to the recipe's own target.
        natural: to the natural one.
        recipe: the method.
        staleness: of the scene.
    """
    formed = not Measurement(scene=way.scene, recipe=recipe).sampled and bool(natural.gradient.any())
    bias = _end(natural, natural.value) - _end(way, way.value)
    return Splits(
        staleness=staleness,
        value=_of_numbers(way.each(way.value), rest=bias),
        error=_of_numbers(way.each(way.error), rest=bias),
        kl=_of_numbers(way.each(way.kl), rest=_end(natural, natural.kl) - _end(way, way.kl)),
        gradient=_of_vectors(way, natural.gradient, recipe) if formed else None,
    )


def _end(way: Way, values: Tensor) -> float:
    """The value of the target among those of the hybrids, `[H]`."""
    return float(way.each(values)[ALL])


def _of_numbers(worth: Mapping[Swapped, Tensor], rest: float) -> Split:
    """The split from no part swapped to all, and of `rest` from there to what is wanted."""
    added = in_order(worth, PARTS)
    parts = {}
    for name in PARTS:
        spread = changes(worth, PARTS, name)
        parts[name] = Part(
            value=float(added[name]),
            shapley=float(shapley(worth, PARTS, name)),
            low=float(spread.min()),
            high=float(spread.max()),
        )
    parts[TARGET] = Part(value=rest, shapley=rest, low=rest, high=rest)
    return Split(total=float(worth[ALL] - worth[NONE]) + rest, parts=parts)


def _of_vectors(way: Way, wanted: Tensor, recipe: Recipe) -> Split:
    """The split of c u - g, with g `wanted` `[P]`."""
    updates = way.each(way.updates(recipe))
    scale = compare(updates[ALL][None], way.gradient[None]).scale
    worth = {swapped: -scale * u for swapped, u in updates.items()}
    shares = {swapped: _share(each, wanted) for swapped, each in worth.items()}
    parts = {}
    for name, added in in_order(worth, PARTS).items():
        parts[name] = _part(added, shapley(worth, PARTS, name), changes(shares, PARTS, name), wanted)
    for name, rest in ((TARGET, way.gradient - wanted), (METHOD, -worth[ALL] - way.gradient)):
        parts[name] = _part(rest, rest, _share(rest, wanted)[None], wanted)
    total = -worth[NONE] - wanted
    return Split(
        total=float(_share(total, wanted)),
        parts=parts,
        norm=float(total.norm() / wanted.norm()),
        scale=float(scale),
    )


def _part(added: Tensor, mean: Tensor, shares: Tensor, wanted: Tensor) -> Part:
    size = added.norm()
    return Part(
        value=float(_share(added, wanted)),
        shapley=float(_share(mean, wanted)),
        low=float(shares.min()),
        high=float(shares.max()),
        norm=float(size / wanted.norm()),
        shapley_norm=float(mean.norm() / wanted.norm()),
        cosine=float(added @ wanted / (size * wanted.norm())) if size > 0 else 0.0,
    )


def _share(part: Tensor, wanted: Tensor) -> Tensor:
    """⟨part, g⟩ / ‖g‖² of parts `[..., P]`."""
    return (part @ wanted) / (wanted @ wanted)


def _together(passes: Sequence[Pass]) -> Pass:
    """Passes as members of one, without the tokens before a context's last, which no weight reads."""

    def of(routes: Sequence[Routes]) -> Routes:
        return Routes(contexts=torch.cat([each.contexts for each in routes]), leads=())

    return Pass(
        logp=torch.cat([each.logp for each in passes]),
        routes=of([each.routes for each in passes]),
        gates=of([each.gates for each in passes]),
        live=of([each.live for each in passes]),
        margin=torch.cat([each.margin for each in passes]),
        router_logp=torch.cat([each.router_logp for each in passes]),
    )
