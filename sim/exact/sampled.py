"""The sampled twin of the exhaustive batch: groups drawn from μ_old, through the same functions.

It serves two purposes: an estimate with an interval for recipes whose weights read the whole batch, where the
exhaustive value is only the limit of large batches; and a check that every exact expectation is what sampling
converges to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.advantage import advantage
from firstorder.core.method.aggregation import normaliser
from firstorder.core.method.scale import scaled
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights
from firstorder.core.method.terms import with_terms

from .advantages import CriticTable
from .edges import vjp
from .fit import fits
from .measurement import Measurement
from .scene import Scene
from .terms import of_distributions
from .world import scatter

MOST_BLOCKS = 16


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A sampled estimate with its 95% interval."""

    estimate: float
    low: float
    high: float


def sample_responses(scene: Scene, groups: int, group_size: int, batches: int, generator: torch.Generator) -> Tensor:
    """Indices of sampled responses, int64 `[batches, groups, G]`: a prompt at random, then G responses from μ_old."""
    count, owner = scene.world.prompts, scene.responses.prompt
    prompt = torch.randint(count, (batches, groups), generator=generator)
    chance = scene.measure[0] * count
    picks = torch.empty(batches, groups, group_size, dtype=torch.int64)
    for x in range(count):
        answers, asked = (owner == x).nonzero()[:, 0], prompt == x
        total = int(asked.sum()) * group_size
        if total:
            drawn = torch.multinomial(chance[answers], total, replacement=True, generator=generator)
            picks[asked] = answers[drawn].view(-1, group_size)
    return picks


def sampled_edges(measurement: Measurement, picks: Tensor, minibatches: int = 1) -> Tensor:
    """Mean token weights of sampled batches, added up on their edges: `[batches, N · V]`.

    Args:
        measurement: of one member.
        picks: int64 `[batches, groups, G]`, from `sample_responses`.
        minibatches: how many batches side by side are of one rollout, which gives advantages their scale.
    """
    scene, stats = measurement.scene, sampled_stats(measurement, picks, minibatches)
    recipe, path = measurement.recipe, scene.responses.path[picks.flatten(1)].flatten(1).long()
    weight = with_terms(token_weights(stats, recipe).weight, stats, recipe) * stats.weights[..., None]
    edges = torch.zeros(len(picks), scene.world.contexts * scene.world.vocab, dtype=torch.float64)
    edges.scatter_add_(1, path, weight.flatten(1))
    for added in _of_contexts(measurement, stats, path):
        edges = edges + added.flatten(1)
    return edges


def _of_contexts(measurement: Measurement, stats: TokenStats, path: Tensor) -> Iterable[Tensor]:
    """What the terms that are sums over the vocabulary add to the edges of sampled batches, `[batches, N, V]` each."""
    scene, recipe = measurement.scene, measurement.recipe
    share = torch.where(stats.mask, stats.weights[..., None] / normaliser(stats, recipe.aggregation), 0.0)
    came = torch.zeros(len(path), scene.world.contexts, 1, dtype=torch.float64)
    came[..., 0].scatter_add_(1, path // scene.world.vocab, share.flatten(1))
    policies = measurement.target.logp.detach(), scene.logp_ref(measurement.mode)
    return of_distributions(recipe.terms, came, *policies).values()


def sampled_stats(measurement: Measurement, picks: Tensor, minibatches: int = 1) -> TokenStats:
    """Sampled batches as a recipe sees them, `[batches, groups · G, T]`, with their own advantages; arguments as of
    `sampled_edges`."""
    rows = picks.flatten(1)
    fields = {name: x[0][rows] for name, x in vars(measurement.batch.stats).items() if x is not None}
    a = _advantage(measurement, picks)
    whole, rewards, mask = (
        x.unflatten(0, (-1, minibatches)).flatten(1, 2) for x in (a, fields["rewards"], fields["mask"])
    )
    a = scaled(whole, rewards, mask, measurement.recipe.advantage).view_as(a)
    return TokenStats(**fields | {"advantage": a, "measure": None})


def _advantage(measurement: Measurement, picks: Tensor) -> Tensor:
    """A of every picked response over its group, or of every token under a perfect critic, before any scale."""
    batch, recipe = measurement.batch, measurement.recipe
    if isinstance(measurement.advantages, CriticTable):
        return measurement.advantages.unscaled(batch.scene)[0][picks.flatten(1)]
    return advantage(batch.scene.responses.rewards[picks], recipe.advantage).flatten(1)


def sampled_fits(
    measurement: Measurement, *, blocks: int = 16, batches: int = 16, seed: int = 0
) -> dict[str, Interval]:
    """How a recipe's update at its own minibatch size compares with the gradients, by jackknife over blocks.

    Args:
        measurement: of one member; the recipe's schedule says how many groups of how many responses make a minibatch.
        blocks: independent blocks, one VJP each.
        batches: minibatches averaged within a block, at least those of one rollout where it scales advantages.
        seed: of the sampler.

    Returns:
        The comparisons of `fit.fits`, but for the norm of g, which is exact.
    """
    generator, scene, schedule = torch.Generator().manual_seed(seed), measurement.scene, measurement.recipe.schedule
    groups, size = schedule.prompts // schedule.minibatches, schedule.group_size
    of_rollout = schedule.minibatches if measurement.recipe.advantage.scale != "none" else 1
    batches = of_rollout * max(1, batches // of_rollout)
    updates = []
    for _ in range(blocks):
        picks = sample_responses(scene, groups, size, batches, generator)
        edges = sampled_edges(measurement, picks, of_rollout).mean(0)
        updates.append(vjp(measurement.target, edges.view(1, scene.world.contexts, scene.world.vocab), scene.weights))
    return fit_intervals(measurement, torch.cat(updates))


def block_fits(measurement: Measurement) -> dict[str, Interval]:
    """How the update of a sample of one member compares with the gradients, by jackknife over blocks of it."""
    scene, batch = measurement.scene, measurement.batch
    parts = blocks(len(scene.responses))
    updates = []
    for part in parts:
        edges = scatter(batch.expected[:, part], scene.responses.of(part), scene.world.contexts)
        every = len(parts) * edges + sum(measurement.term_coefficients.values(), torch.zeros((), dtype=torch.float64))
        updates.append(vjp(measurement.target, every, scene.weights))
    return fit_intervals(measurement, torch.cat(updates))


def fit_intervals(measurement: Measurement, u: Tensor) -> dict[str, Interval]:
    """The comparisons of the mean of block updates `[blocks, P]` with the gradients, but for the norm of g."""
    count, targets = len(u), (measurement.gradient[0], measurement.natural_gradient[0])
    whole = fits(u.mean(0), *targets)
    left_out = [fits((u.sum(0) - one) / (count - 1), *targets) for one in u]
    return {
        name: jackknife(value, torch.stack([one[name] for one in left_out]))
        for name, value in whole.items()
        if name != "gradient_norm"
    }


def blocks(size: int) -> list[slice]:
    """A sample of so many responses in equal blocks, as many as divide it and at most 16."""
    count = max(n for n in range(1, MOST_BLOCKS + 1) if size % n == 0)
    return [slice(start, start + size // count) for start in range(0, size, size // count)]


def jackknife(whole: Tensor, left_out: Tensor) -> Interval:
    """Bias-corrected estimate and 95% t interval from leave-one-block-out values `[n]` (Efron and Stein 1981)."""
    from scipy.special import stdtrit  # here, since it takes a third of a second to import

    n = len(left_out)
    pseudo = n * whole - (n - 1) * left_out
    centre = float(pseudo.mean())
    half = float(stdtrit(n - 1, 0.975)) * float(pseudo.std(correction=1)) / n**0.5
    return Interval(estimate=centre, low=centre - half, high=centre + half)
