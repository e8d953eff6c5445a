"""A recipe on a scene: responses, or edges, with their weights, and the update to expect.

Shapes: M members, B responses, T tokens, N contexts, V vocabulary, P parameters.

Every shipped weight is homogeneous in the advantage, so that E[w] = E[A⁺] w(+1) + E[A⁻] w(-1): see `groups`. A response
is weighed twice, once for either sign, and all that is reported reads these two.

A weight of a token alone is the same wherever its edge is taken, so that edges are weighed in place of responses; so is
one of products over other tokens, where a world does not enumerate its responses: see `forms`. What is left is weighed
response by response, all of them or a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.method.aggregation import normaliser
from firstorder.core.method.recipe import Recipe, Terms
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import TokenWeights, token_weights
from firstorder.core.method.terms import term_weights

from . import objectives, terms
from .advantages import AdvantageTable, CriticTable, advantage_table
from .edges import Pass, entropy, kl, router_shift, vjp
from .forms import Form, form
from .rollout import recorded
from .scene import Mode, Scene
from .world import Near, gather, gather_contexts, scatter


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The responses of a scene, or of a part of one, as a recipe weighs them.

    Args:
        scene: the responses.
        stats: the same as a recipe sees them, at advantage 1.
        plus, minus: E[A⁺] and E[A⁻] over the rest of the group, `[M, B]`, or `[M, B, T]` from a critic.
        up, down: token weights at advantage +1 and at -1.
    """

    scene: Scene
    stats: TokenStats
    plus: Tensor
    minus: Tensor
    up: TokenWeights
    down: TokenWeights

    @property
    def expected(self) -> Tensor:
        """μ_old(y) E[w_t | y] over the rest of the group, `[M, B, T]`."""
        plus, minus = (a if a.ndim == self.stats.mask.ndim else a[..., None] for a in (self.plus, self.minus))
        return self.scene.measure[..., None] * (plus * self.up.weight + minus * self.down.weight)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One recipe on one scene; what it takes to say something of it is made when it is first read, and once.

    Args:
        scene: with the recipe's target.
        recipe: the method.
        values: `[M, N]`, what the recipe's critic says of each context; None for a perfect one, V = V^μ.
    """

    scene: Scene
    recipe: Recipe
    values: Tensor | None = None

    @property
    def mode(self) -> Mode:
        """The recipe's replay."""
        return str(self.recipe.router_replay)

    @property
    def target(self) -> Pass:
        """The policy that the recipe updates."""
        return self.scene.target[self.mode]

    @cached_property
    def advantages(self) -> AdvantageTable | CriticTable:
        """The expected advantages under μ_old."""
        return advantage_table(self.scene, self.recipe, self.values)

    @cached_property
    def batch(self) -> Batch:
        """All responses at once."""
        return self._weighed(self.scene)

    def batches(self) -> Iterator[Batch]:
        """The responses in chunks, or all at once where they fit into one or a weight reads the whole batch."""
        parts = [self.scene] if self.recipe.weight_scope == "batch" else self.scene.parts()
        return (self.batch if len(parts) == 1 else self._weighed(part) for part in parts)

    @cached_property
    def form(self) -> Form | None:
        """How the expected update is made of edges; None where responses are weighed one by one.

        Where they are enumerated a product is taken over each, so that it is held at its bound as in training.
        """
        found = form(self.recipe)
        return None if found is None or (found.product and self.scene.exhaustive) else found

    @property
    def sampled(self) -> bool:
        """Whether the expected update is that of a sample."""
        return self.form is None and not self.scene.exhaustive

    def coefficients(self) -> Tensor:
        """E_μ[Σ_t w_t] over the tokens that take each edge, `[M, N, V]`."""
        if self.form is not None:
            assert isinstance(self.advantages, AdvantageTable)
            return self._of_edges(self.advantages)
        edges = torch.zeros((), dtype=torch.float64)
        for batch in self.batches():
            edges = edges + scatter(batch.expected, batch.scene.responses, self.scene.world.contexts)
        return edges

    @cached_property
    def edge_weights(self) -> tuple[TokenWeights, TokenWeights]:
        """Weights of a response of one token at advantage +1 and at -1, of a recipe that has a form: `[M, N V, 1]`,
        or `[M, K N V, 1]` where each edge has K readings."""
        assert self.form is not None
        assert isinstance(self.advantages, AdvantageTable)
        token = self.form.token
        return edge_weights(self.scene, edge_stats(self.scene, token), token, self.advantages)

    @property
    def lengths(self) -> Tensor | None:
        """What a response's weights are divided by for its length, as factors `[T + 1]`; None where they are not."""
        return length_weights(self.recipe, self.scene.world.horizon)

    def passed(self, worth: Tensor) -> Tensor:
        """What reaches each edge times what is earned after it, for `World.through`, under the products of a form."""
        form, mu = self.form, self.scene.mu_old.logp.exp()
        assert form is not None
        keep = self.edge_weights[0].kept[..., 0] if form.masked else None
        before, after = (
            mu if not of and keep is None else mu * self._ratios(of, keep) for of in (form.before, form.after)
        )
        near = None if form.ahead is None else Near(kernel=mu * self._ratios((form.ahead,), keep), steps=form.steps)
        return self.scene.world.through(before, after, worth, self.lengths, near)

    def _of_edges(self, advantages: AdvantageTable) -> Tensor:
        """`coefficients` by edge: μ(a|c) w(c, a, ±) times what reaches the edge and what is earned after it."""
        mu = self.scene.mu_old.logp.exp()
        passed = self.passed(torch.stack([advantages.plus, advantages.minus], dim=1).transpose(-1, -2))
        up, down = (on_edges(self.scene, weights.weight) for weights in self.edge_weights)
        return mu * (passed[:, 0] * up + passed[:, 1] * down)

    def _ratios(self, of: tuple[str, ...], keep: Tensor | None = None) -> Tensor:
        """Π of token ratios at every edge, 0 where `keep` is, the mean over its readings, `[M, N, V]`."""
        ratios = self.token_ratios(of)
        return on_edges(self.scene, ratios if keep is None else ratios * keep)

    def token_ratios(self, of: tuple[str, ...]) -> Tensor:
        """Π of token ratios at every edge, `[M, N V]`, or at every reading of it, `[M, K N V]`."""
        policies = {"theta": self.target.logp, "old": self.scene.old[self.mode].logp, "mu": self.scene.mu_old.logp}
        every = {name: _every(self.scene, self.scene.met(logp.detach())) for name, logp in policies.items()}
        if self.scene.readings is not None:
            every["mu"] = self.scene.readings.flat()
        log = torch.zeros_like(every["mu"])
        for above, below in (one.split("/") for one in of):
            log = log + every[above] - every[below]
        return log.exp()

    @cached_property
    def term_coefficients(self) -> dict[str, Tensor]:
        """What each term of the recipe adds to `coefficients`, by name, `[M, N, V]`."""
        if not self.recipe.terms.active:
            return {}
        weights = term_weights(self.stats_of_edges, self.recipe)
        found = {name: self.taken * on_edges(self.scene, weight) for name, weight in weights.items()}
        return found | self.of_distributions(self.recipe.terms)

    def of_distributions(self, section: Terms) -> dict[str, Tensor]:
        """As `term_coefficients`, of those terms of a section that are sums over the vocabulary."""
        norm = normaliser(self.stats_of_edges, self.recipe.aggregation)[:, :1]  # the same of every edge
        policies = self.target.logp.detach(), self.scene.logp_ref(self.mode)
        return terms.of_distributions(section, self.taken.sum(-1, keepdim=True) / norm, *policies)

    @cached_property
    def stats_of_edges(self) -> TokenStats:
        """Every edge as the terms see it, from `edge_stats`."""
        return edge_stats(self.scene, self.recipe)

    @cached_property
    def taken(self) -> Tensor:
        """How often a response of μ_old takes each edge, `[M, N, V]`, divided for its length where weights are."""
        mu, world = self.scene.mu_old.logp.exp(), self.scene.world
        if self.lengths is None:
            return self.scene.reached[..., None] * mu
        one = torch.ones(len(mu), 1, len(world.levels), world.prompts, dtype=torch.float64)
        return world.through(mu, mu, one, self.lengths)[:, 0] * mu

    def all_coefficients(self) -> Tensor:
        """`coefficients` with those of the terms, `[M, N, V]`."""
        return sum(self.term_coefficients.values(), self.coefficients())

    @cached_property
    def update(self) -> Tensor:
        """u = E_μ[Σ_t w_t ∇ log π_θ(y_t)] with what the recipe's terms add, the exact expected update, `[M, P]`."""
        return vjp(self.target, self.all_coefficients(), self.scene.weights)

    @cached_property
    def gradient(self) -> Tensor:
        """∇J_seq of the recipe's own target, `[M, P]`; eq. (2)."""
        return self.natural_gradient if self.mode == "disabled" else objectives.gradient(self.scene, self.mode)

    @cached_property
    def natural_gradient(self) -> Tensor:
        """∇J_seq of the target that routes live, `[M, P]`."""
        return objectives.gradient(self.scene, "disabled")

    @cached_property
    def log_chi2(self) -> Tensor:
        """log(1 + χ²(π_old ‖ μ_old)) of whole responses, π_old under the recipe's replay, nats, `[M]`."""
        old, mu = self.scene.met(self.scene.old[self.mode].logp.detach()), self.scene.mu_old.logp
        return self.scene.world.log_mass((2 * old - mu).exp())

    @cached_property
    def effective_share(self) -> Tensor:
        """ESS / B of sequence weights W = Π π_θ/μ_old over ever more responses, `[M]`: (E_μ W)² / E_μ W², with what is
        recorded of μ_old in the place of it."""
        mass, mu = self.scene.world.log_mass, self.scene.mu_old.logp.exp()
        log = 2 * mass(mu * self._ratios(("theta/mu",))) - mass(mu * self._ratios(("theta/mu", "theta/mu")))
        return log.exp().clamp(max=1.0)

    def _weighed(self, part: Scene) -> Batch:
        stats = token_stats(part, self.recipe)
        plus, minus = self.advantages.of(part)
        up, down = signed_weights(part, stats, self.recipe, self.advantages)
        return Batch(scene=part, stats=stats, plus=plus, minus=minus, up=up, down=down)


def update(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> Tensor:
    """The exact expected update of a recipe, `[M, P]`; arguments as of `Measurement`."""
    return Measurement(scene=scene, recipe=recipe, values=values).update


def token_stats(scene: Scene, recipe: Recipe) -> TokenStats:
    """The exhaustive batch as a recipe sees it: `[M, B, T]`, with measure μ_old(y) and advantage 1."""
    paths, (kl_mu, shift), mode = scene.responses, distances(scene, recipe), str(recipe.router_replay)
    target, old = (scene.met(p[mode].logp.detach()) for p in (scene.target, scene.old))
    logp_mu = gather(scene.mu_old.logp, paths) if scene.readings is None else recorded(scene.readings, paths)
    return TokenStats(
        logp_theta=gather(target, paths),
        logp_old=gather(old, paths),
        logp_mu=logp_mu,
        mask=(paths.mask if scene.mask is None else paths.mask & (scene.measure > 0)[..., None]).expand(logp_mu.shape),
        advantage=torch.ones(logp_mu.shape[:-1], dtype=torch.float64),
        measure=scene.measure,
        kl_mu=None if kl_mu is None else gather_contexts(kl_mu, paths),
        router_shift=None if shift is None else gather_contexts(shift, paths),
        logp_ref=gather(scene.met(scene.logp_ref(mode)), paths) if recipe.terms.reference_kl else None,
        entropy=gather_contexts(_entropy(scene, mode), paths) if recipe.terms.entropy else None,
        rewards=paths.rewards.expand(logp_mu.shape[:-1]),
        turn=scene.world.task.layout.turns.expand(logp_mu.shape),
    )


def distances(scene: Scene, recipe: Recipe) -> tuple[Tensor | None, Tensor | None]:
    """KL(μ_old ‖ π_θ) and the router shift of every context, `[M, N]`, where a weight reads them."""
    target, old = (policy[str(recipe.router_replay)] for policy in (scene.target, scene.old))
    return (
        kl(scene.mu_old.logp, target.logp.detach()) if "kl_mu" in recipe.needs else None,
        router_shift(target, old) if "router_shift" in recipe.needs else None,
    )


def edge_stats(scene: Scene, recipe: Recipe) -> TokenStats:
    """Every edge as a response of one token, `[M, N V, 1]`, with the times that μ_old takes it as its measure; each
    with every reading, `[M, K N V, 1]`, where these are drawn.

    Their measures sum to the mean length, so that a mean over the tokens of a large batch is one over these.
    """
    mu, vocab = scene.mu_old.logp, scene.world.vocab
    mode = str(recipe.router_replay)
    target, old = (scene.met(p[mode].logp.detach()) for p in (scene.target, scene.old))
    logp_theta, logp_old = (_every(scene, x)[..., None] for x in (target, old))
    logp_mu = (mu.flatten(1) if scene.readings is None else scene.readings.flat())[..., None]
    measure = (scene.reached[..., None] * mu.exp()).flatten(1)
    kl_mu, shift = (
        None if x is None else _every(scene, x.repeat_interleave(vocab, 1))[..., None] for x in distances(scene, recipe)
    )
    section = recipe.terms
    spread = _entropy(scene, mode).repeat_interleave(vocab, 1) if section.entropy else None
    return TokenStats(
        logp_ref=_every(scene, scene.met(scene.logp_ref(mode)))[..., None] if section.reference_kl else None,
        entropy=None if spread is None else _every(scene, spread)[..., None],
        logp_theta=logp_theta,
        logp_old=logp_old,
        logp_mu=logp_mu,
        mask=torch.ones(logp_mu.shape, dtype=torch.bool),
        advantage=torch.ones(logp_mu.shape[:-1], dtype=torch.float64),
        measure=measure if scene.readings is None else scene.readings.share(measure),
        kl_mu=kl_mu,
        router_shift=shift,
    )


def _entropy(scene: Scene, mode: Mode) -> Tensor:
    """Of π_θ at every context, `[M, N]` nats."""
    return entropy(scene.target[mode].logp.detach())


def edge_weights(
    scene: Scene, stats: TokenStats, recipe: Recipe, advantages: AdvantageTable
) -> tuple[TokenWeights, TokenWeights]:
    """As `signed_weights`, of edges."""
    if not recipe.reads_signs:
        return token_weights(stats, recipe), token_weights(stats.with_advantage(-stats.advantage), recipe)
    assert stats.measure is not None
    mu = scene.mu_old.logp.exp()
    worth = torch.stack([advantages.positive, advantages.negative], dim=1).transpose(-1, -2)
    flow = (scene.world.through(mu, mu, worth) * mu[:, None]).flatten(2)
    if scene.readings is not None:
        flow = torch.stack([scene.readings.share(one) for one in flow.unbind(1)], dim=1)
    chances = torch.where(stats.measure[:, None] > 0, flow / stats.measure[:, None], 0.0)
    return _among_signs(stats, recipe, chances[:, 0], chances[:, 1])


def on_edges(scene: Scene, values: Tensor) -> Tensor:
    """Values of `edge_stats` as those of edges, the mean over readings where these are drawn, `[M, N, V]`."""
    shape = scene.mu_old.logp.shape
    return values.reshape(shape) if scene.readings is None else scene.readings.mean(values)


def _every(scene: Scene, edges: Tensor) -> Tensor:
    """Values of edges once for each reading, `[M, N V]` or `[M, K N V]`."""
    flat = edges.flatten(1)
    return flat if scene.readings is None else scene.readings.every(flat)


def length_weights(recipe: Recipe, horizon: int) -> Tensor | None:
    """What a response's weights are divided by for its length, as factors `[T + 1]`; None where they are not."""
    if recipe.aggregation.kind != "length":
        return None
    return torch.arange(horizon + 1).clamp(min=1).double() ** -recipe.aggregation.alpha


def signed_weights(
    scene: Scene, stats: TokenStats, recipe: Recipe, advantages: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    """Token weights at advantage +1 and at advantage -1.

    A clip that reads the signs of the whole batch meets each response with either, as often as the advantages say.
    """
    if recipe.reads_signs:
        return _weights_among_signs(scene, stats, recipe, advantages)
    return token_weights(stats, recipe), token_weights(stats.with_advantage(-stats.advantage), recipe)


def _weights_among_signs(
    scene: Scene, stats: TokenStats, recipe: Recipe, advantages: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    if isinstance(advantages, CriticTable):  # it knows each token's sign, so that one batch holds them all
        plus, minus = advantages.of(scene)
        weights = token_weights(stats.with_advantage(plus - minus), recipe)
        unit = torch.where(stats.mask, weights.clipped * weights.factor / weights.norm, 0.0)
        return replace(weights, weight=unit), replace(weights, weight=-unit)
    return _among_signs(stats, recipe, *advantages.signs(scene))


def _among_signs(
    stats: TokenStats, recipe: Recipe, positive: Tensor, negative: Tensor
) -> tuple[TokenWeights, TokenWeights]:
    """Token weights at either sign where every response is met with both, as often as `positive` and `negative`
    `[M, B]` say."""
    assert stats.measure is not None
    measured, chances = stats.measure, (positive, negative, (1 - positive - negative).clamp(min=0))
    copies = {name: torch.cat([x] * 3, dim=1) for name, x in vars(stats).items() if x is not None}
    signs = torch.cat([sign * torch.ones_like(stats.advantage) for sign in (1, -1, 0)], dim=1)
    measure = torch.cat([measured * chance for chance in chances], dim=1)
    weights = token_weights(TokenStats(**copies | {"advantage": signs, "measure": measure}), recipe)
    size = measured.shape[1]
    up, down = (
        TokenWeights(**{name: x if x.shape[1] == 1 else x[:, cut] for name, x in vars(weights).items()})
        for cut in (slice(size), slice(size, 2 * size))
    )
    return up, down
